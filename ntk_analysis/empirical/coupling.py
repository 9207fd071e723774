"""Whether the outputs of a batch depend on each other, on their place in the batch or on its size, and how it is known.

What tiles need is that f on a part of the batch is that part of f on the batch: its outputs and their derivatives by
the parameters. Both are tried out, each output at its own scale: a batch norm before a read-out with a large offset
shows in derivatives only, statistics behind a stop_gradient often show in outputs only.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.cost import described, program_cost
from ntk_analysis.common.purity import is_pure
from ntk_analysis.empirical.directions import random_direction
from ntk_analysis.empirical.functions import Network, count_outputs, flattened, name_of, precise
from ntk_analysis.empirical.methods import forward_mode
from ntk_analysis.empirical.roundings import one_rounding_off, program_rounding
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

Respond: TypeAlias = Callable[[Params, Params, Any], Any]
"""Function respond(params, direction, x) -> (2, n, C): outputs, and their derivatives by params along the direction."""

OTHERS = "its outputs depend on the other inputs of the batch"
PLACE = "its outputs depend on their place in the batch"
SIZE = "its outputs depend on the size of the batch"
BY_LAYERS = "a layer normalises over the batch"
WHOLE = 16  # a batch of at most so many inputs is tried as it is
FEW = 8  # number of inputs that are tried of a larger batch
ALONE = 4  # number of inputs that are tried one by one
WORK = 1e10  # FLOPs up to which a larger batch is also tried as it is: less than a second
CANDIDATES = 1024  # number of inputs of a larger set, spread evenly, that are searched for inputs that differ
PERTURBATIONS = 2  # by one rounding each: in three cases of four, one of two moves a unit at its kink over the kink
# factor of the measured effect of one rounding: programs for another number of rows sum in another order, which was
# seen to move outputs by up to 2.5 times as much
MEASURED = 50
EPS = 100  # number of eps of an output's scale, at least: the order of sums of m terms may do sqrt(m) roundings
SAME_PLACE = 1e-3  # fraction of the scale, at most, for the same program and places, and so the same rounding


def known_coupling(network: Layer | Callable[..., Any]) -> bool | None:
    """Whether a network of layers normalises over the batch, as they state; None if that must be tried out."""
    return network.couples_batch if isinstance(network, Layer) else None


def coupling(
    f: Network, params: Params, x1: np.ndarray, x2: np.ndarray | None = None, *, which: str = "ntk", budget: int = 2**30
) -> str:
    """Text that says what couples the outputs of a batch; empty if nothing does.

    For layers of this library the answer is known. Any other function is tried out on a few inputs that
    differ, see `tried_coupling`.

    Args:
        f: function or network.
        params: parameters of f.
        x1: inputs (n, ...).
        x2: second inputs, or None.
        which: kernel, "ntk" or "nngp"; "nngp" does without derivatives where f has none.
        budget: memory in bytes, within which f is also run on all inputs as one batch where that is quick.

    Raises:
        ValueError: f changes from call to call.
    """
    known = known_coupling(f)
    if known is not None:
        return BY_LAYERS if known else ""
    why = _coupling_of_function(f, params, x1, x2, which, budget)
    if why and not is_pure(flattened(f), params, few_that_differ(x1, x2)):
        raise ValueError(
            f"{name_of(f)} changes from call to call: use no counter, no clock and no random numbers in it"
        )
    return why


def _coupling_of_function(
    f: Layer | Callable[..., Any], params: Params, x1: Any, x2: Any, which: str, budget: int
) -> str:
    few, whole = few_that_differ(x1, x2), x1 if x2 is None or len(x1) > len(x2) else x2
    for size in (len(few), 1):
        if not _accepts(f, params, x1, size):
            return f"f does not take a batch of {size}"

    def tried(respond: Respond) -> str:
        given = params, few, whole
        wide = _in_float32(given)  # half precision shows a dependence of half the outputs' size at best
        return _tried_within(budget, respond, *(wide if _runs(respond, *wide[:2]) else given))

    if which == "nngp" and not _runs(response(f), params, few):
        return tried(response(f, "outputs"))
    try:
        with forward_mode():
            return tried(response(f))
    except NotImplementedError:
        return tried(response(f, "reverse"))


def _tried_within(budget: int, respond: Respond, params: Params, few: np.ndarray, whole: np.ndarray) -> str:
    direction = random_direction(params)
    if len(whole) <= len(few):
        return tried_coupling(respond, params, direction, few)
    batch = described(whole.shape, jax.dtypes.canonicalize_dtype(whole.dtype))
    cost, _ = program_cost(respond, params, direction, batch)
    affordable = cost.memory_bytes <= budget and cost.flops <= WORK
    return tried_coupling(respond, params, direction, few, whole=whole if affordable else None)


@lru_cache(maxsize=64)
def response(f: Layer | Callable[..., Any], mode: str = "forward") -> Respond:
    """Function that gives outputs of f and derivatives along a direction, "forward" or in "reverse"; or "outputs"."""
    flat = flattened(f)

    def respond(params: Params, direction: Params, x: Any) -> jax.Array:
        def outputs(params: Params) -> jax.Array:
            return flat(params, x)

        if mode == "outputs":
            return outputs(params)[None]
        if mode == "forward":
            return jnp.stack(jax.jvp(outputs, (params,), (direction,)))
        y, pull = jax.vjp(outputs, params)

        def along(cotangent: jax.Array) -> jax.Array:
            parts = jax.tree.map(lambda g, v: jnp.sum(g * v).astype(y.dtype), pull(cotangent)[0], direction)
            return jnp.sum(jnp.stack(jax.tree.leaves(parts)))

        # <J v, u> = <v, J^T u>, and its derivative by u is J v
        return jnp.stack([y, jax.grad(along)(jnp.zeros_like(y))])

    return jax.jit(precise(respond))


def few_that_differ(x1: np.ndarray, x2: np.ndarray | None = None) -> np.ndarray:
    """All inputs of a small set; of a larger one some from all over it, and some that differ if those are equal.

    In sorted categories, padded tokens or images that are mostly black, the first inputs are often all the same.
    """
    pool = x1 if x2 is None else np.concatenate([_spread(x1), _spread(x2).astype(x1.dtype)])
    if len(pool) <= WHOLE:
        return pool
    candidates = _spread(pool)
    flat = candidates.reshape(len(candidates), -1)
    chosen = [int(row) for row in np.linspace(0, len(flat) - 1, FEW // 2)]
    while len(chosen) < FEW:
        alike = (flat[chosen] == flat[chosen[0]]).all(axis=0)  # features that no chosen input has otherwise
        news = np.count_nonzero(flat[:, alike] != flat[chosen[0], alike], axis=1)
        news[chosen] = -1
        chosen.append(int(np.argmax(news)))
    return candidates[np.sort(chosen)]


def _spread(x: np.ndarray, count: int = CANDIDATES) -> np.ndarray:
    return x if len(x) <= count else x[np.linspace(0, len(x) - 1, count).astype(int)]


def tried_coupling(
    respond: Respond, params: Params, direction: Params, few: np.ndarray, *, whole: np.ndarray | None = None
) -> str:
    """Text that says what couples the outputs of a batch, tried out on a few inputs, and on the whole batch if given.

    Other inputs: every second input is replaced, and the outputs of the others must not move; then the other half is
    replaced. Both runs are of the same program with the same inputs in the same places, so rounding shows when the
    program runs twice (most often it does not show at all). Place: inputs that move up by one must give the outputs
    they gave. Size: inputs must give by themselves the outputs they gave in the batch, and in the whole batch. In these
    two, rounding differs with programs and places, and a chaotic network amplifies it. So it is measured, by the effect
    of changing all inputs and parameters by one rounding. Where that effect is more than a fiftieth of the outputs, a
    dependence on place or size alone is not seen.
    """
    if len(few) < 2:
        return ""
    params, direction = jax.tree.map(jnp.asarray, (params, direction))
    eps = program_rounding(respond, params, direction, few)

    def run(x: np.ndarray, at: Params = params) -> np.ndarray:
        return np.asarray(respond(at, direction, x), np.float64)

    batch, again = run(few), run(few)
    scale = _largest(np.where(np.isfinite(batch), batch, 0))
    noise = _largest(_apart(batch, again))
    same = np.maximum(MEASURED * noise, min(EPS * eps, SAME_PLACE) * scale)
    for kept in (slice(0, None, 2), slice(1, None, 2)):
        if _beyond(batch[:, kept], run(_replaced(few, kept))[:, kept], same):
            return OTHERS
    for seed in range(PERTURBATIONS):
        moved, at = one_rounding_off((few, params), eps, seed)
        noise = np.maximum(noise, _largest(_apart(batch, run(moved, at))))
    rounding = np.maximum(MEASURED * noise, EPS * eps * scale)
    if _beyond(batch, np.roll(run(np.roll(few, 1, axis=0)), -1, axis=1), rounding):
        return PLACE

    def differs_alone(x: np.ndarray, together: np.ndarray) -> bool:
        rows = np.unique(np.linspace(0, len(x) - 1, ALONE).astype(int))
        alone = np.concatenate([run(x[row : row + 1]) for row in rows], axis=1)
        return _beyond(together[:, rows], alone, rounding)

    if differs_alone(few, batch) or (whole is not None and differs_alone(whole, run(whole))):
        return SIZE
    return ""


def _replaced(few: np.ndarray, kept: slice) -> np.ndarray:
    """The inputs, replaced outside `kept`: floats by other numbers, integers by other inputs' or by their neighbours.

    Integers may be indices; JAX clips those out of range, and their outputs are not looked at.
    """
    others = np.ones(len(few), bool)
    others[kept] = False
    changed, old = few.copy(), few[others]
    if few.dtype == bool:
        changed[others] = ~old
    elif jnp.issubdtype(few.dtype, jnp.integer):
        new = np.roll(few, 1, axis=0)[others]
        changed[others] = np.where(new == old, old ^ 1, new)
    else:
        new = 1 - 3 * old
        changed[others] = np.where(new == old, old + 1, new)
    return changed


def _apart(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """|left - right|; 0 where both are the same, NaN included, and infinite where only one of them is finite."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(left - right)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    return np.where(same, 0.0, np.where(np.isnan(distance), np.inf, distance))


def _beyond(left: np.ndarray, right: np.ndarray, tolerance: np.ndarray) -> bool:
    return bool((_apart(left, right) > tolerance).any())


def _largest(values: np.ndarray) -> np.ndarray:
    """Largest absolute value of each output over the batch, (2, 1, C)."""
    largest: np.ndarray = np.max(np.abs(values), axis=1, keepdims=True)
    return largest


def _runs(respond: Respond, params: Params, x: np.ndarray) -> bool:
    try:
        jax.eval_shape(respond, params, params, x)
    except Exception:  # a function without derivatives, as behind a callback, or of fixed dtype may raise anything
        return False
    return True


def _in_float32(tree: Any) -> Any:
    """The tree with its floats of 8 and 16 bits converted to float32."""

    def widened(leaf: Any) -> Any:
        half = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return np.asarray(leaf).astype(np.float32) if half else leaf

    return jax.tree.map(widened, tree)


def _accepts(f: Any, params: Params, x: np.ndarray, size: int) -> bool:
    leaves, tree = jax.tree.flatten(params)
    shapes = tuple(described(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves)
    batch = described((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
    return _accepted(f, tree, shapes, batch)


@lru_cache(maxsize=64)
def _accepted(f: Any, tree: Any, leaves: tuple[Any, ...], x: jax.ShapeDtypeStruct) -> bool:
    """Whether f takes a batch of this size. As it takes another one, what it raises is about the size."""
    try:
        count_outputs(f, jax.tree.unflatten(tree, leaves), x)
    except Exception:  # a user's function may raise anything
        return False
    return True
