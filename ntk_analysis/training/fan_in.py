"""Which axes of an array of weights are the fan-in of its units.

An array by itself does not say: (64, 4, 16) is an in-projection of attention, whose fan-in is 64, a convolution in one
dimension, 64 · 4, or 64 stacked layers, 4. Dense and two-dimensional convolutional weights with their units last are
read so by their shape; for all others the module that holds them knows.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
from jax.tree_util import KeyPath

from ntk_analysis.common.precision import AnyArray

Path: TypeAlias = tuple[str, ...]


class FanIn(NamedTuple):
    """The way in which an array of weights is read.

    Attributes:
        axes: axes over which a unit sums; () for biases, scales and embeddings.
        convolution: whether the array is a convolution.
    """

    axes: tuple[int, ...]
    convolution: bool = False

    def size(self, weights: AnyArray) -> int:
        """Number of weights of one unit; 0 where units sum over nothing."""
        return math.prod(weights.shape[axis] for axis in self.axes) if self.axes else 0


Axes: TypeAlias = Callable[[Path, Any], FanIn | None]
"""Function axes(path, array) that gives the fan-in, or None if it is not known; the path is the keys to the array."""

if TYPE_CHECKING:
    from flax import nnx

    from ntk_analysis.layers import Layer

    StatedAxes: TypeAlias = int | tuple[int, ...] | Mapping[str, Any] | Axes | Layer | nnx.Module | None
else:
    # what a caller may give as axes=, see `center`; anything else is refused at run time, in the words of `given`
    StatedAxes: TypeAlias = object

NOT_SUMMED = FanIn(())
VECTORS = ("bias", "b", "scale", "gamma", "beta", "shift")  # arrays of one axis; with two they are stacked
ATTENTION = ("query", "key", "value", "out")


def by_shape(path: Path, weights: AnyArray) -> FanIn | None:
    """The fan-in as shapes tell it, without a module: (fan-in, units) and (height, width, channels, units).

    It is None for other numbers of axes, embeddings, PyTorch's `weight`, whose units come first, biases and scales of
    stacked layers, and arrays of four axes under attention's names, which are stacked layers, too.
    """
    path = named(path)
    name = path[-1].lower() if path else ""
    if weights.ndim < 2:
        return NOT_SUMMED
    if weights.ndim not in (2, 4) or name in VECTORS or name == "weight" or "embed" in name:
        return None
    if weights.ndim == 4 and set(path) & set(ATTENTION):
        return None
    return FanIn(tuple(range(weights.ndim - 1)), weights.ndim == 4)


def named(path: Path) -> Path:
    """The path without what a tree adds to the module's own: Linen's collection, the value of an NNX variable, dots."""
    path = tuple(part for key in path for part in key.split("."))
    path = path[1:] if path[:1] == ("params",) else path
    return path[:-1] if len(path) > 1 and path[-1] in ("value", "raw_value") else path


def from_table(table: Mapping[Path, Callable[[tuple[int, ...]], FanIn | None]]) -> Axes:
    """The fan-in of each array by its path in the table and its shape; by its shape alone if its path is not there."""

    def axes(path: Path, weights: Any) -> FanIn | None:
        read = table.get(named(path))
        return by_shape(path, weights) if read is None else read(tuple(weights.shape))

    return axes


def given(axes: object) -> Axes:
    """The fan-in as the caller states it: for all arrays, by the end of their path, or by a function of path and array.

    Raises:
        TypeError: axes is of another kind.
    """
    if isinstance(axes, Mapping):
        ends = {named(tuple(end.split("/"))): stated for end, stated in axes.items()}

        def by_end(path: Path, weights: Any) -> FanIn | None:
            path = named(path)
            found = max((end for end in ends if path[-len(end) :] == end), key=len, default=None)
            return by_shape(path, weights) if found is None else _stated(ends[found], path, weights)

        return by_end
    if callable(axes):
        return lambda path, weights: _stated(axes(path, weights), path, weights)
    if isinstance(axes, int) or (isinstance(axes, tuple) and all(isinstance(axis, int) for axis in axes)):
        return lambda path, weights: _stated(axes, path, weights) if weights.ndim >= 2 else NOT_SUMMED
    raise TypeError(
        f"got axes={axes!r}: expected axes of the fan-in as (0, 1), a dictionary of them by the end of the path, as "
        '{"query/kernel": 0}, a function of (path, array), or a network'
    )


def _stated(axes: Any, path: Path, weights: Any) -> FanIn | None:
    if axes is None or isinstance(axes, FanIn):
        return axes
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)
    inside = [axis for axis in wanted if isinstance(axis, int) and -weights.ndim <= axis < weights.ndim]
    whole = tuple(sorted({axis % weights.ndim for axis in inside}))
    if len(whole) != len(wanted):
        raise ValueError(f"got axes {axes!r} for {'/'.join(path)} {weights.shape}: expected different ones of its own")
    return FanIn(whole, len(whole) > 1)


def stacked(inner: tuple[int, ...], axes: tuple[int, ...], convolution: bool = False) -> Callable[..., FanIn | None]:
    """The fan-in of an array that holds one layer of shape `inner`, or many of them stacked along further axes.

    It is None where more than one of the axes could be the stack, as in (64, 64, 64).
    """

    def read(outer: tuple[int, ...]) -> FanIn | None:
        places = combinations(range(len(outer)), len(inner))
        fits = (kept for kept in places if tuple(outer[axis] for axis in kept) == inner)
        found = {tuple(kept[axis] for axis in axes) for kept in fits}
        return FanIn(found.pop(), convolution) if len(found) == 1 else None

    return read


def keys(path: KeyPath[Any]) -> Path:
    """The keys of a path of `jax.tree_util`, as text."""
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
