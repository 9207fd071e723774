"""Windows that slide over images: padding, strides, and what they do to kernels."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import jax
import jax.numpy as jnp

from ntk_analysis.gram import Covariance

Padding: TypeAlias = Literal["same", "valid", "circular"]
PADDINGS: tuple[str, ...] = get_args(Padding)
Axes: TypeAlias = tuple[int, int]
Size: TypeAlias = int | tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A window of `size` positions moved in steps of `stride` over an image that is padded.

    "same" pads with zeros and "circular" with the opposite edge, both to ceil(size of the image / stride) outputs;
    "valid" pads nothing. Where an odd number of rows is needed, the larger part stands at the end.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding

    @property
    def places(self) -> int:
        """Positions in the window."""
        return math.prod(self.size)

    def pads(self, image: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Rows and columns to add before and after."""
        if self.padding == "valid":
            return ((0, 0), (0, 0))
        totals = [
            max((math.ceil(n / step) - 1) * step + k - n, 0)
            for n, k, step in zip(image, self.size, self.stride, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)

    def output(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Height and width of the result.

        Raises:
            ValueError: the window is larger than the image (padded by at most the image's size, where circular).
        """
        pads = self.pads(image)
        padded = [n + sum(pad) for n, pad in zip(image, pads, strict=True)]
        too_large = any(k > n for k, n in zip(self.size, padded, strict=True))
        if too_large or (self.padding == "circular" and any(max(p) > n for p, n in zip(pads, image, strict=True))):
            raise ValueError(
                f"a window of {self.size} does not fit on an image of {tuple(image)} with padding {self.padding!r}: "
                "use a smaller window or padding 'same'"
            )
        return tuple((n - k) // step + 1 for n, k, step in zip(padded, self.size, self.stride, strict=True))

    def padded(self, array: jax.Array, axes: Axes) -> jax.Array:
        """The array with these two axes padded."""
        widths = [(0, 0)] * array.ndim
        for axis, pad in zip(axes, self.pads(tuple(array.shape[axis] for axis in axes)), strict=True):
            widths[axis] = pad
        return jnp.pad(array, widths, mode="wrap" if self.padding == "circular" else "constant")

    def parts(self, array: jax.Array, *pairs_of_axes: Axes) -> list[jax.Array]:
        """What each of the places in the window sees, along one pair of axes or along several in step."""
        outputs = [self.output(tuple(array.shape[axis] for axis in axes)) for axes in pairs_of_axes]
        for axes in pairs_of_axes:
            array = self.padded(array, axes)
        seen = []
        for offset in itertools.product(*map(range, self.size)):
            index = [slice(None)] * array.ndim
            for axes, output in zip(pairs_of_axes, outputs, strict=True):
                for axis, start, step, n in zip(axes, offset, self.stride, output, strict=True):
                    index[axis] = slice(start, start + step * (n - 1) + 1, step)
            seen.append(array[tuple(index)])
        return seen

    def covariances(self, covariance: Covariance, rows: Axes, columns: Axes) -> list[Covariance]:
        """The covariance at each place in the window, which moves over both inputs in step."""
        both = (rows,) if rows == columns else (rows, columns)
        return [
            Covariance(*part)
            for part in zip(
                self.parts(covariance.variance1, rows),
                self.parts(covariance.variance2, columns),
                self.parts(covariance.distance, *both),
                strict=True,
            )
        ]

    def mean(self, array: jax.Array, *pairs_of_axes: Axes) -> jax.Array:
        """Mean over the window, padding included."""
        parts = self.parts(array, *pairs_of_axes)
        return sum(parts[1:], parts[0]) / self.places


def window(size: Size, stride: Size, padding: str) -> Window:
    """A checked window; one number stands for height and width.

    Raises:
        ValueError: sizes or strides below 1, or an unknown padding.
    """
    if padding not in PADDINGS:
        raise ValueError(f"got padding={padding!r}: choose one of {', '.join(PADDINGS)}")
    return Window(_pair("kernel_size or window", size), _pair("stride", stride), cast(Padding, padding))


def _pair(name: str, value: Size) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 1 for n in pair):
        raise ValueError(f"got {name}={value}, expected an integer >= 1 or a tuple (height, width) of them")
    return pair
