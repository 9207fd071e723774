"""The function whose kernel is taken: checked, its outputs flattened, and whether its outputs couple the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.arrays import check_dense
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LastBatchNorm,
    Layer,
    LayerNorm,
    Repeat,
    Residual,
    ResidualChain,
    Serial,
)
from ntk_analysis.layers.base import Params

Flat: TypeAlias = Callable[[Params, Any], jax.Array]
"""f(params, x) -> (n, C)."""

BY_THEMSELVES = {Activation, AvgPool, Conv, Dense, Flatten, GlobalAvgPool, LayerNorm}
"""Layers that treat each input by itself; a class derived from one of them may not."""
COUPLING_ROWS = 8  # inputs that the test for coupling looks at
# of what rounding is measured to do; programs for another number of rows sum in another order, which was seen to move
# outputs by up to 2.5 times as much, and the order of sums of m terms may do sqrt(m) times as much
COUPLING_TOLERANCE = 100


class Side(NamedTuple):
    """The rows, or the columns, of a tile of the kernel.

    Attributes:
        x: (n, ...) inputs of the rows; the WHOLE batch, where the function couples it.
        rows: (n,) which outputs of the batch the rows are; None unless the function couples the batch.
    """

    x: Any
    rows: Any = None


def flattened(f: Layer | Callable[..., Any]) -> Flat:
    """f(params, x) with all axes of its output but the first flattened into C."""
    apply = f.apply if isinstance(f, Layer) else f

    def flat(params: Params, x: Any) -> jax.Array:
        y = apply(params, x)
        return y.reshape(y.shape[0], -1)

    return flat


def count_outputs(f: Layer | Callable[..., Any], params: Params, x: jax.ShapeDtypeStruct) -> tuple[int, np.dtype]:
    """C and the dtype of the outputs, without computing them.

    Raises:
        TypeError: f does not return one array of floats.
        ValueError: its first axis is not that of the inputs, or it has no outputs.
    """
    y = jax.eval_shape(f.apply if isinstance(f, Layer) else f, params, x)
    if not isinstance(y, jax.ShapeDtypeStruct) or not jnp.issubdtype(y.dtype, jnp.floating):
        got = y.dtype if isinstance(y, jax.ShapeDtypeStruct) else type(y).__name__
        raise TypeError(
            f"f must return one array of floats, got {got}: lambda params, x: f(params, x)[0] takes one of many"
        )
    if y.shape[:1] != x.shape[:1] or 0 in y.shape:
        raise ValueError(
            f"f must return (n, ...) outputs for n inputs, got shape {y.shape} for inputs of shape {x.shape}: "
            "put the batch first"
        )
    return int(np.prod(y.shape[1:], dtype=int)), np.dtype(y.dtype)


def check_params(params: Params) -> None:
    """Raises TypeError or ValueError, naming the path, for parameters that are no finite floats."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params holds no arrays: a tangent kernel needs parameters to move along")
    for path, leaf in leaves:
        name = f"params{jax.tree_util.keystr(path)}"
        check_dense(leaf, name)
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize > 8:
            raise TypeError(
                f"{name} is {type(leaf).__name__ if dtype is None else dtype}, expected an array of floats: keep what "
                "is not trained outside params, as in lambda params, x: f(params, constants, x)"
            )
        if isinstance(leaf, jax.ShapeDtypeStruct):
            continue
        host = np if isinstance(leaf, np.ndarray) else jnp  # JAX would compile it for each shape
        if not host.all(host.isfinite(leaf)):
            raise ValueError(f"{name} has NaN or infinite values: no kernel can be taken there")


def known_coupling(network: Layer | Callable[..., Any]) -> bool | None:
    """Whether a network of this library's layers normalises over the batch; None where that must be tried out."""
    match network:
        case BatchNorm() | LastBatchNorm():
            return True
        case Serial(layers=layers):
            parts = [known_coupling(layer) for layer in layers]
        case Repeat(block=block):
            parts = [known_coupling(block)]
        case ResidualChain(branch=branch):
            parts = [known_coupling(branch)]
        case Residual(branch=branch, shortcut=shortcut):
            parts = [known_coupling(layer) for layer in (branch, shortcut) if layer is not None]
        case _:
            return False if type(network) in BY_THEMSELVES else None
    return True if True in parts else None if None in parts else False


def couples_batch(f: Flat, params: Params, x: Any) -> bool:
    """Whether the output on one input depends on the other inputs of the batch, as in batch norm in training mode.

    Tested on values, not on derivatives: what tiles need is that f on a part of the batch is that part of f on the
    batch, and statistics behind a stop_gradient, a maximum over the batch or a 1/len(x) break that with derivatives of
    zero. On up to 8 inputs: every second one is replaced and the others' outputs must not move; then the first by
    itself must give what it gave in the batch.

    What counts as moved is beyond rounding, which a chaotic network amplifies, and so it is measured. The replaced
    batch runs through the same program, whose rounding shows when it runs twice (most often not at all). The single
    input runs through another one, and rounding is there what a change of all inputs and parameters by one rounding
    does. Where that is more than a hundredth of the outputs, a dependence on the size of the batch alone is not seen.
    """
    few = np.asarray(x[:COUPLING_ROWS])  # NumPy: JAX would compile each of the few steps outside f
    if len(few) < 2:
        return False
    batch, again = np.asarray(f(params, few)), np.asarray(f(params, few))
    odd = few[1::2]
    # integers may be indices, which have a range: another input's are in it
    others = 1 - 3 * odd if jnp.issubdtype(few.dtype, jnp.floating) else few[::2][: len(odd)]
    changed = few.copy()
    changed[1::2] = others
    replaced = np.asarray(f(params, changed))
    if _differ(batch[::2], replaced[::2], again[::2]):
        return True
    alone, rounded = np.asarray(f(params, few[:1])), np.asarray(f(*_one_rounding_off((params, few), batch.dtype)))
    return _differ(batch[:1], alone, np.stack([again, rounded])[:, :1])


def _differ(left: np.ndarray, right: np.ndarray, rounded: np.ndarray) -> bool:
    """Whether they differ by more than rounding moves the left: by one eps at least, or as it did in `rounded`."""
    scale = max(_eps(left.dtype) * _largest(left), _largest(left - rounded))
    return _largest(left - right) > COUPLING_TOLERANCE * scale


def _one_rounding_off(tree: Any, dtype: Any) -> Any:
    """Every float times 1 + eps or 1 - eps, by chance; eps of its own dtype or of `dtype`, where that is coarser."""
    generator = np.random.default_rng(0)

    def moved(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        eps = max(_eps(array.dtype), _eps(dtype))
        factors = np.asarray([1 - eps, 1 + eps], array.dtype)
        return array * factors[generator.integers(2, size=array.shape, dtype=np.int8)]

    return jax.tree.map(moved, tree)


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _largest(values: np.ndarray) -> float:
    return float(np.max(np.abs(values), initial=0.0))


def check_inputs(x1: Any, x2: Any) -> None:
    """Raises ValueError unless both are finite inputs (n, ...) of the same features, n >= 1."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None:
            continue
        if not x.shape or 0 in x.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected (n, ...) with at least one input")
        if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating) and not np.isfinite(x).all():
            bad = np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))
            raise ValueError(
                f"{name} has NaN or infinite values in {len(bad)} of {len(x)} inputs, first in row {bad[0]}"
            )
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        raise ValueError(f"x2 must have the features of x1: got {tuple(x2.shape[1:])} against {tuple(x1.shape[1:])}")
