"""The function whose kernel is taken: checked, and its outputs flattened."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import check_dense
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.empirical.trees import OfRows
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

Flat: TypeAlias = Callable[[Params, Any], jax.Array]
"""Function f(params, x) -> (n, C)."""
Network: TypeAlias = Layer | Callable[..., Any]
"""A network of layers, or a function f(params, x)."""
Inputs: TypeAlias = AnyArray | jax.ShapeDtypeStruct
"""Inputs (n, ...), or the description of inputs that are not at hand."""


class Side(NamedTuple):
    """The inputs of the rows, or of the columns, of a tile of the kernel.

    Attributes:
        x: inputs of the rows, of shape (n, ...); the WHOLE batch if the function couples it.
        rows: numbers (n,) of the outputs of the batch that are the rows; None unless the function couples the batch.
    """

    x: Any
    rows: Any = None


def flattened(f: Layer | Callable[..., Any]) -> Flat:
    """The function f(params, x) with all axes of its output but the first flattened into C."""
    apply = f.apply if isinstance(f, Layer) else f

    def flat(params: Params, x: Any) -> jax.Array:
        y = apply(params, x)
        return y.reshape(y.shape[0], -1)

    return flat


def name_of(f: object) -> str:
    """The name of f: a network is written in full, a function by its module and name."""
    if isinstance(f, Layer):
        return repr(f)
    while isinstance(f, partial | OfRows):
        f = f.func if isinstance(f, partial) else f.function
    return f"{getattr(f, '__module__', type(f).__module__)}:{getattr(f, '__qualname__', type(f).__qualname__)}"


def shortened(name: str, length: int = 80) -> str:
    """A name cut to fit into a line of text: the names of deep Serials are longer."""
    return name if len(name) <= length else f"{name[: length - 3]}..."


def defined(f: Flat) -> Flat:
    """The function f with derivatives that are NaN where its outputs are: log has finite ones at negative numbers."""

    def marked(params: Params, x: Any) -> jax.Array:
        return nan_with_derivatives(f(params, x))

    return marked


def nan_with_derivatives(y: jax.Array) -> jax.Array:
    """y, with derivatives that are NaN where y is."""
    return y * jnp.where(jnp.isnan(y), jnp.asarray(jnp.nan, y.dtype), jnp.ones((), y.dtype))


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with matrix products that are exact to the dtype, also inside a user's function."""

    def exact(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return exact


def count_outputs(f: Layer | Callable[..., Any], params: Params, x: jax.ShapeDtypeStruct) -> tuple[int, np.dtype]:
    """The number C and the dtype of the outputs, without computing them.

    Raises:
        TypeError: f does not return one array of floats.
        ValueError: the first axis of the array is not that of the inputs, or there are no outputs.
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
    """Raises TypeError or ValueError, naming the path, for parameters that are not finite floats."""
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
        host = np if isinstance(leaf, np.ndarray) else jnp  # JAX would compile the check for each shape
        if not host.all(host.isfinite(leaf)):
            raise ValueError(f"{name} has NaN or infinite values: no kernel can be taken there")


def check_inputs(x1: Inputs, x2: Inputs | None) -> None:
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
