"""Parts of an image by their positions: slices of it, rows, single pixels."""

from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape, SingleLayer


class Steps(NamedTuple):
    """A slice start:stop:step, in a form that has a hash."""

    start: int | None
    stop: int | None
    step: int | None


Position: TypeAlias = int | slice | Steps | EllipsisType


@dataclass(frozen=True)
class Index(SingleLayer):
    """y = x[:, *index]: some positions of images (batch, height, width, channels), sequences or volumes.

    A number takes an axis away, as in NumPy: Index((slice(0, 4), 2)) makes sequences of four positions of images. At
    infinite width the kernel is that of these positions.

    Attributes:
        index: for each axis of positions a number, a slice (held as `Steps`), or one Ellipsis for several axes; axes
            that are not named stay.
    """

    index: tuple[Position, ...]

    couples_batch = False
    homogeneous = True

    def __post_init__(self) -> None:
        given = self.index if isinstance(self.index, tuple) and not isinstance(self.index, Steps) else (self.index,)
        held = tuple(Steps(one.start, one.stop, one.step) if isinstance(one, slice) else one for one in given)
        for one in held:
            if isinstance(one, bool) or not isinstance(one, int | Steps | EllipsisType):
                raise TypeError(f"got {one!r} in an Index, expected numbers, slices, and ... at most once")
        if held.count(...) > 1:
            raise ValueError(f"got index={self.index}, expected ... at most once")
        object.__setattr__(self, "index", held)

    def of(self, positions: tuple[int, ...]) -> tuple[int | slice, ...]:
        """What stands in the brackets, for images of these positions.

        Raises:
            ValueError: there are fewer axes, or nothing at these positions.
        """
        named, left = len(self.index) - self.index.count(...), len(positions)
        if named > left:
            raise ValueError(f"{self} names {named} axes of positions, got inputs of {left}, {positions}")
        rest: list[Any] = [slice(None)] * (left - named)
        found: list[Any] = []
        for one in self.index:
            found += rest if one is ... else [slice(*one) if isinstance(one, Steps) else one]
        found += [] if ... in self.index else rest
        for axis, (one, n) in enumerate(zip(found, positions, strict=True)):
            inside = -n <= one < n if isinstance(one, int) else len(range(*one.indices(n))) > 0
            if not inside:
                raise ValueError(f"{self} has nothing on axis {axis} of inputs of {positions} positions")
        return tuple(found)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        batch, *positions, channels = input_shape
        kept = np.empty(positions, bool)[self.of(tuple(positions))].shape
        return (batch, *kept, channels), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return x[(slice(None), *self.of(x.shape[1:-1]))]

    def kernel(self, kernel: Kernel) -> Kernel:
        index, every = self.of(kernel.positions), slice(None)
        pairs = (every, every, *index, *index) if kernel.paired else (every, every, *index)
        taken: dict[str, Any] = {
            name: getattr(kernel, name)[(every, *index)] for name in ("variance1", "variance2", "mean1", "mean2")
        }
        taken |= {name: getattr(kernel, name)[pairs] for name in ("distance", "ntk_scaled")}
        if kernel.paired:
            left = taken["variance1"].ndim > 1
            taken |= {
                f"within{i}": of.distance[(every, *index, *index)] if left else None
                for i, of in enumerate(kernel.within, 1)
            }
        return replace(kernel, before=None, law=_law(kernel), **taken)


def _law(kernel: Kernel) -> Any:
    """A normalised batch loses its statistics with some of its positions."""
    return "activated" if kernel.law == "batch normalized" else kernel.law
