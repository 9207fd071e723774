"""Inputs that are dicts of arrays: each input becomes one row of numbers, which the function takes apart again."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import real_array
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

InputTree: TypeAlias = Mapping[str, Any]
"""Arrays (n, ...) of n inputs by name, in dicts of any depth."""


@dataclass(frozen=True)
class OfRows:
    """A function f(params, tree) of inputs as a function of rows of numbers (n, k).

    Attributes:
        function: function of the tree.
        structure: structure of the tree.
        shapes: shape of one input in each array.
        dtypes: dtype of each array, as it came.
    """

    function: Callable[..., Any]
    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    def __call__(self, params: Params, x: jax.Array) -> Any:
        parts = jnp.split(x, np.cumsum([math.prod(shape) for shape in self.shapes])[:-1], axis=1)
        leaves = [
            part.reshape(len(x), *shape).astype(jax.dtypes.canonicalize_dtype(dtype))
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return self.function(params, jax.tree.unflatten(self.structure, leaves))


def is_tree(x: object) -> bool:
    """Whether inputs are a dict of arrays; a sparse matrix of SciPy may be a mapping, too."""
    return isinstance(x, Mapping) and not hasattr(x, "toarray")


def as_rows(f: Any, params: Params, x1: Any, x2: Any) -> tuple[Any, Any, Any]:
    """The function and its inputs by rows of numbers, if the inputs are a tree; else as they are.

    Raises:
        ValueError: a tree has no arrays, arrays of different numbers of inputs, other arrays than the other tree, or
            whole numbers that the floats beside them do not hold.
        TypeError: a network of layers, which takes arrays, is given a tree; or f or params is a whole model.
    """
    if not is_tree(x1):
        return f, x1, x2
    if isinstance(f, Layer):
        raise TypeError(f"{f} takes arrays, got a dict of inputs: give the array it is to take")
    refuse_whole_models(f, params)
    leaves, structure = arrays_of(x1, "x1")
    shapes, dtypes = tuple(leaf.shape[1:] for leaf in leaves), tuple(np.dtype(leaf.dtype) for leaf in leaves)
    others = None
    if x2 is not None:
        others, structure2 = arrays_of(x2, "x2")
        if structure2 != structure or tuple(leaf.shape[1:] for leaf in others) != shapes:
            raise ValueError("x2 must have the arrays of x1: got other names or other shapes of an input")
    dtype = _common(leaves + (others or []))
    of_rows = OfRows(f, structure, shapes, dtypes)
    return of_rows, _rows(leaves, dtype), None if others is None else _rows(others, dtype)


def arrays_of(tree: Any, name: str) -> tuple[list[AnyArray], Any]:
    """The arrays of a tree of inputs and its structure; errors are those of `as_rows`."""
    named, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [real_array(leaf, f"{name}{jax.tree_util.keystr(path)}") for path, leaf in named]
    counts = [leaf.shape[:1] for leaf in leaves]
    if not leaves or len({*counts}) > 1 or counts[0] == ():
        raise ValueError(
            f"{name} has arrays of {', '.join(str(leaf.shape) for leaf in leaves) or 'no'} shape, expected (n, ...) "
            "with the same number of inputs in each"
        )
    return leaves, structure


def _common(leaves: list[AnyArray]) -> np.dtype:
    """The dtype of the rows: the widest float of the arrays, which decides how the network computes; else integers."""
    floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not floats:
        return np.dtype(np.result_type(*(leaf.dtype for leaf in leaves)))
    return np.dtype(np.float64 if any(dtype.itemsize == 8 for dtype in floats) else np.float32)


def _rows(leaves: list[AnyArray], dtype: np.dtype) -> Any:
    host: Any = jnp if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves) else np
    flat = [host.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves]
    rows = [part.astype(dtype) for part in flat]
    if host is np and any((row != part).any() for row, part in zip(rows, flat, strict=True) if part.dtype.kind in "iu"):
        raise ValueError(f"inputs have whole numbers that {dtype} does not hold: give float64 arrays beside them")
    return host.concatenate(rows, axis=1)
