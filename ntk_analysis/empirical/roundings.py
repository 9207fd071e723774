"""Rounding of a program: how coarse it is, and inputs that are one rounding off, which show what becomes of it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from ntk_analysis.common.cost import bodies
from ntk_analysis.common.pytrees import Tree


def program_rounding(function: Callable[..., Any], *arguments: Any) -> float:
    """The coarsest eps of a function's arguments and of its intermediate results: float32 may go through bfloat16."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return max(map(_eps, [*_floats(var.aval for var in jaxpr.invars), *_computed(jaxpr)]))


def one_rounding_off(tree: Tree, eps: float, seed: int) -> Tree:
    """The tree with every float times 1 + eps or 1 - eps, at random; by the eps of its own dtype if that is coarser."""
    generator = np.random.default_rng(seed)

    def moved(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        step = max(_eps(array.dtype), eps)
        factors = np.asarray([1 - step, 1 + step], array.dtype)
        return np.asarray(array * factors[generator.integers(2, size=array.shape, dtype=np.int8)])

    return jax.tree.map(moved, tree)


def _computed(jaxpr: Jaxpr) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        yield from _floats(var.aval for var in eqn.outvars)
        for body in bodies(eqn):
            yield from _computed(body)


def _floats(avals: Iterator[Any]) -> Iterator[Any]:
    dtypes = (getattr(aval, "dtype", None) for aval in avals)
    return (dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.floating))


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)
