"""FLOPs and memory of a JAX program, counted on its jaxpr: nothing is compiled or run."""

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from numpy.typing import DTypeLike

from ntk_analysis.common.pytrees import Tree

EIGH = 9.0  # operations for each n^3 of an eigendecomposition with vectors (Golub & Van Loan)
PROGRAMS = 1024  # number of programs whose cost is kept; tracing takes as long as a small kernel itself


class Cost(NamedTuple):
    """The operations and the memory that a program takes.

    Attributes:
        flops: number of operations: 2 for each multiply-add of matrix products and convolutions, 9 n^3 for an
            eigendecomposition, 1 for each element computed otherwise. A `while_loop` counts as one pass, a `cond` as
            its dearest branch.
        memory_bytes: the most bytes that inputs, outputs and intermediate arrays take at one time, in the order of the
            program and without XLA's fusion, which needs less.
    """

    flops: float
    memory_bytes: int


def program_cost(function: Callable[..., Any], *arguments: Any) -> tuple[Cost, Any]:
    """Cost and described results of function(*arguments); arguments may be arrays or `jax.ShapeDtypeStruct`s."""
    leaves, tree = jax.tree.flatten(arguments)
    float64 = jax.dtypes.canonicalize_dtype("float64") == "float64"
    return _traced_cost(function, tree, tuple(described(leaf.shape, leaf.dtype) for leaf in leaves), float64)


@lru_cache(maxsize=PROGRAMS)
def _traced_cost(function: Any, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], float64: bool) -> tuple[Cost, Any]:
    del float64  # tracing depends on JAX's flag
    program, results = jax.make_jaxpr(function, return_shape=True)(*jax.tree.unflatten(tree, leaves))
    return _cost(program.jaxpr), results


def described(shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """The description of an array that is not at hand."""
    return jax.ShapeDtypeStruct(shape, dtype)


def tree_bytes(tree: Tree) -> int:
    """Number of bytes of all arrays, or descriptions of arrays, in a tree."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def _cost(jaxpr: Jaxpr) -> Cost:
    last_use = {var: index for index, eqn in enumerate(jaxpr.eqns) for var in _variables(eqn.invars)}
    kept = {*jaxpr.invars, *jaxpr.constvars, *_variables(jaxpr.outvars)}
    alive = sum(_bytes(var.aval) for var in [*jaxpr.invars, *jaxpr.constvars])
    flops, peak = 0.0, alive
    for index, eqn in enumerate(jaxpr.eqns):
        arguments = _variables(eqn.invars)
        results = sum(_bytes(var.aval) for var in eqn.outvars)
        inner = [_cost(body) for body in bodies(eqn)]
        flops += max(body.flops for body in inner) * eqn.params.get("length", 1) if inner else _flops(eqn)
        # the inputs of a body are counted already (for a scan, the arrays of which they are slices)
        inside = max((body.memory_bytes for body in inner), default=0) - sum(_bytes(var.aval) for var in arguments)
        peak = max(peak, alive + max(results, inside))
        done = {var for var in arguments if last_use[var] == index} | {
            var for var in eqn.outvars if var not in last_use
        }
        alive += results - sum(_bytes(var.aval) for var in done - kept)
    return Cost(flops, peak)


def _variables(atoms: Iterable[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def bodies(eqn: JaxprEqn) -> list[Jaxpr]:
    """The programs inside a step: of a loop, of branches, or of a function that is called."""
    params = [param if isinstance(param, tuple | list) else [param] for param in eqn.params.values()]
    found = [value for values in params for value in values if isinstance(value, ClosedJaxpr | Jaxpr)]
    return [body.jaxpr if isinstance(body, ClosedJaxpr) else body for body in found]


def _flops(eqn: Any) -> float:
    results = sum(math.prod(var.aval.shape) for var in eqn.outvars)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * results * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * results * math.prod(kernel) / outputs
    if eqn.primitive.name == "eigh":
        return EIGH * eqn.invars[0].aval.shape[-1] * math.prod(eqn.invars[0].aval.shape)
    return float(results)
