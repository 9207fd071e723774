"""What a function is known by from one call to the next: a function has no hash, and its name says little.

Its outputs on several inputs, and the derivative of single outputs by each array of parameters along a random
direction, which sees parameters that are zero too: a frozen bias or an adapter that starts at zero changes the kernel
and not the outputs. And the arrays and numbers that it closes over.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from ntk_analysis.common.cost import described
from ntk_analysis.common.norms import norm
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.coupling import few_that_differ
from ntk_analysis.empirical.directions import random_direction
from ntk_analysis.empirical.functions import flattened, name_of, precise
from ntk_analysis.empirical.plans import Call
from ntk_analysis.empirical.roundings import one_rounding_off, program_rounding
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

INPUTS = 8  # number of inputs at which a function is probed
PERTURBATIONS = 2
# factor of the measured effect of one rounding, which is the largest of many such changes: other devices and versions
# of a program were seen to do up to 2.5 times as much
TOLERANCE = 10


class Probed(NamedTuple):
    """Numbers by which a function is recognised.

    Attributes:
        values: values that the function gives in this call.
        tolerance: change of each value that rounding may cause.
    """

    values: np.ndarray
    tolerance: np.ndarray

    def listed(self) -> dict[str, list[float]]:
        """The numbers as lists, for a file."""
        return {"values": self.values.tolist(), "tolerance": self.tolerance.tolist()}


def identity(call: Call) -> dict[str, Any]:
    """The description of the function that a store keeps."""
    with jax.enable_x64(call.float64):
        probe, state = _probe(call), _state(call.f, call.params, call.x1)
    return {"name": name_of(call.f), "probe": probe.listed(), "state": state.listed()}


def same_function(found: dict[str, Any], wanted: dict[str, Any], *, same_jax: bool) -> bool:
    """Whether two descriptions are of the same function, to rounding.

    The numbers inside a program depend on the version of JAX and are compared within one version only.
    """
    told = ["probe", "state"] if same_jax else ["probe"]
    layers = "(" in found["name"] or "(" in wanted["name"]  # the names of our networks describe them fully
    return all(_agree(found[name], wanted[name]) for name in told) and (not layers or found["name"] == wanted["name"])


def as_it_is(f: Any, params: Params, x: Tree) -> Any:
    """f under a name of its own, valid as long as its program and state are the same, so that no older one is run.

    JAX keeps what it compiled for a function; a function that closes over changed state counts as another function.
    """
    if isinstance(f, Layer):
        return f
    program = _program(f, params, x)
    digest = hashlib.sha256(str(program).encode())
    for number in _numbers(program):
        digest.update(np.ascontiguousarray(number).tobytes())
    return _named(f, digest.hexdigest())


@lru_cache(maxsize=32)
def _named(f: Any, digest: str) -> Any:
    del digest
    return partial(f)


def _agree(found: dict[str, list[float]], wanted: dict[str, list[float]]) -> bool:
    before, now = (Probed(*map(np.array, (told["values"], told["tolerance"]))) for told in (found, wanted))
    if before.values.shape != now.values.shape:
        return False
    with np.errstate(invalid="ignore"):
        near = np.abs(before.values - now.values) <= np.fmax(before.tolerance, now.tolerance)
    same = (before.values == now.values) | (np.isnan(before.values) & np.isnan(now.values))
    return bool((near | same).all())


def _probe(call: Call) -> Probed:
    """Outputs, and for the tangent kernel derivatives, with the effect of one rounding of inputs and parameters."""
    if call.plan.coupled:  # f may refuse any other batch
        x, rows = np.asarray(call.x1), np.linspace(0, len(call.x1) - 1, INPUTS).astype(int)
    else:
        x = few_that_differ(call.x1, call.x2)
        x, rows = x[np.linspace(0, len(x) - 1, INPUTS).astype(int)], np.arange(INPUTS)
    directions = random_direction(call.params)
    weights = _weights(call.plan.outputs, call.plan.dtype)
    rows = np.repeat(rows, len(weights) // INPUTS).astype(np.int32)
    arguments = (jax.tree.map(jnp.asarray, directions), jnp.asarray(rows), jnp.asarray(weights))

    def run(params: Params, x: Any) -> tuple[np.ndarray, np.ndarray]:
        found = _projections(call.f, call.plan.which, params, x, *arguments)
        return tuple(np.asarray(part, np.float64) for part in found)  # type: ignore[return-value]

    eps = program_rounding(partial(_projections, call.f, call.plan.which), call.params, x, *arguments)
    values, sizes = run(call.params, x)
    perturbed = [run(*one_rounding_off((call.params, x), eps, seed))[0] for seed in range(PERTURBATIONS)]
    with np.errstate(invalid="ignore"):
        noise = np.nan_to_num(np.max(np.abs(np.stack(perturbed) - values), axis=0))
    sizes = np.nan_to_num(sizes)
    # for each array the largest at any input: at one input alone it may be small by chance
    relative = np.max(np.divide(noise, sizes, out=np.zeros_like(noise), where=sizes > 0), axis=0, keepdims=True)
    tolerance = TOLERANCE * np.maximum(noise, np.maximum(relative, eps) * sizes)
    return Probed(values.ravel(), tolerance.ravel())


def _weights(outputs: int, dtype: np.dtype) -> np.ndarray:
    """Weights (2 INPUTS, C): for each input, weights of all outputs together, and of one output, spread over them."""
    mixed = random_direction(np.empty((INPUTS, outputs)), seed=1)
    single = np.eye(outputs)[np.arange(INPUTS) * outputs // INPUTS]
    return np.stack([mixed, single], axis=1).reshape(-1, outputs).astype(dtype)


@partial(jax.jit, static_argnums=(0, 1))
def _projections(
    f: Any, which: str, params: Params, x: Any, direction: Params, rows: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Weighted outputs on these rows, and their derivatives along the direction, array by array; and the sizes of both.

    This is one program: op by op, each would be compiled, which takes seconds for a deep network.
    """
    flat = precise(flattened(f))
    widest = jax.dtypes.canonicalize_dtype(np.float64)

    def projected(array: jax.Array, along: jax.Array) -> jax.Array:
        array, along = (each.astype(np.float32) if each.dtype.itemsize < 4 else each for each in (array, along))
        return jnp.stack([jnp.sum(array * along), jnp.linalg.norm(array.ravel())]).astype(widest)

    y, pull = (flat(params, x), None) if which == "nngp" else jax.vjp(lambda p: flat(p, x), params)

    def one(row_and_weight: tuple[jax.Array, jax.Array]) -> jax.Array:
        row, weight = row_and_weight
        found = [projected(y[row] * weight, jnp.ones_like(weight))]
        if pull is not None:
            gradients = jax.tree.leaves(pull(jnp.zeros_like(y).at[row].set(weight))[0])
            found += map(projected, gradients, jax.tree.leaves(direction))
        return jnp.stack(found)

    found = jax.lax.map(one, (rows, weights))
    return found[..., 0], found[..., 1]


def _state(f: Any, params: Params, x: Any) -> Probed:
    """The arrays and numbers that the program of f holds, each projected on a random direction."""
    values, tolerance = [], []
    for number, array in enumerate(_numbers(_program(f, params, x))):
        eps = float(jnp.finfo(array.dtype).eps) if jnp.issubdtype(array.dtype, jnp.floating) else 2.0**-52
        wide = array.astype(np.float64)
        values.append(float(np.sum(wide * random_direction(wide, seed=2 + number))))
        tolerance.append(TOLERANCE * eps * norm(np.where(np.isfinite(wide), wide, 0)))
    return Probed(np.array(values), np.array(tolerance))


def _program(f: Any, params: Params, x: Any) -> ClosedJaxpr:
    """The program of f, traced anew."""
    flat = flattened(f)
    shape = described(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
    return jax.make_jaxpr(lambda params, x: flat(params, x))(params, shape)


def _numbers(program: ClosedJaxpr) -> Iterator[np.ndarray]:
    """The arrays and numbers that are written into a program, in the program's order."""
    for const in program.consts:
        if jnp.issubdtype(const.dtype, jax.dtypes.prng_key):
            yield np.asarray(jax.random.key_data(const))
        else:
            yield np.asarray(const)
    yield from _numbers_of(program.jaxpr)


def _numbers_of(jaxpr: Jaxpr) -> Iterator[np.ndarray]:
    for eqn in jaxpr.eqns:
        yield from (np.asarray(atom.val) for atom in eqn.invars if isinstance(atom, Literal))
        for param in eqn.params.values():
            for value in param if isinstance(param, tuple | list) else [param]:
                if isinstance(value, ClosedJaxpr):
                    yield from _numbers(value)
                elif isinstance(value, Jaxpr):
                    yield from _numbers_of(value)
