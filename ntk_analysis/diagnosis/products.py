"""How many layers a function has: the longest chain of matrix products, counted on its program."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntk_analysis.empirical.functions import Flat
from ntk_analysis.layers.base import Params

PRODUCTS = ("dot_general", "conv_general_dilated")


def products_in_a_row(f: Flat, params: Params, x: jax.Array) -> int:
    """Length of the longest chain of matrix products and convolutions from x to f(params, x), counted on the program.

    Loops of known length count with that length, a `while_loop` as one pass, a `cond` as its longest branch.
    """
    program = jax.make_jaxpr(f)(params, x)
    fixed = len(jax.tree.leaves(params))
    found = _chain(program.jaxpr, [None] * fixed + [0] * (len(program.jaxpr.invars) - fixed))
    return max((depth for depth in found if depth is not None), default=0)


def _chain(program: Jaxpr, depths: list[int | None]) -> list[int | None]:
    """Number of products before each result, from those before each argument; None if independent of the inputs."""
    known = {var: depth for var, depth in zip(program.invars, depths, strict=True) if depth is not None}
    for eqn in program.eqns:
        arguments = [None if isinstance(var, Literal) else known.get(var) for var in eqn.invars]
        reached = [depth for depth in arguments if depth is not None]
        if not reached:
            continue
        depth = max(reached) + (eqn.primitive.name in PRODUCTS)
        depth += eqn.params.get("length", 1) * max((_body_depth(body, arguments) for body in _bodies(eqn)), default=0)
        known |= dict.fromkeys(eqn.outvars, depth)
    return [None if isinstance(var, Literal) else known.get(var) for var in program.outvars]


def _body_depth(body: Jaxpr, arguments: list[int | None]) -> int:
    match = len(arguments) == len(body.invars)  # a cond has its index first, a while loop the constants of its test
    starts: list[int | None] = (
        [None if depth is None else 0 for depth in arguments] if match else [0] * len(body.invars)
    )
    return max((depth for depth in _chain(body, starts) if depth is not None), default=0)


def _bodies(eqn: Any) -> Iterator[Jaxpr]:
    for value in eqn.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, ClosedJaxpr | Jaxpr):
                yield body.jaxpr if isinstance(body, ClosedJaxpr) else body
