"""Windows that slide over images, sequences and volumes: padding, strides, and what they do to kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import into_range, safe_divide, safe_sqrt
from ntk_analysis.infinite.covariances import Covariance
from ntk_analysis.infinite.kernel import MOST_DIMENSIONS

Padding: TypeAlias = Literal["same", "valid", "circular"]
PADDINGS: tuple[str, ...] = get_args(Padding)
Axes: TypeAlias = tuple[int, ...]
Size: TypeAlias = int | tuple[int, ...]
DIMENSIONS = 2  # of a window whose sizes are single numbers


@dataclass(frozen=True)
class Window:
    """A window of `size` positions, `dilation` apart, moved in steps of `stride` over an image that is padded.

    Images may have one to three axes of positions. "same" pads with zeros and "circular" with the opposite edge, both
    to ceil(size of the image / stride) outputs; "valid" pads nothing. If an odd number of rows is needed, the larger
    part is added at the end. Where numbers to add are `given`, they are these.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Padding
    dilation: tuple[int, ...]
    given: tuple[tuple[int, int], ...] | None = None

    @property
    def dimensions(self) -> int:
        """Number of axes of positions."""
        return len(self.size)

    @property
    def span(self) -> tuple[int, ...]:
        """Numbers of positions from the first to the last place of the window, both included."""
        return tuple((k - 1) * apart + 1 for k, apart in zip(self.size, self.dilation, strict=True))

    @property
    def places(self) -> int:
        """Number of positions in the window."""
        return math.prod(self.size)

    def pads(self, image: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Numbers of positions to add before and after, along each axis."""
        return tuple(self._pad(side, n) for side, n in enumerate(image))

    def output(self, image: tuple[int, ...]) -> tuple[int, ...]:
        """Positions of the result.

        Raises:
            ValueError: the window is larger than the image (padded by at most the image's size, where circular).
        """
        pads = self.pads(image)
        padded = [n + sum(pad) for n, pad in zip(image, pads, strict=True)]
        too_large = any(k > n for k, n in zip(self.span, padded, strict=True))
        if too_large or (self.padding == "circular" and any(max(p) > n for p, n in zip(pads, image, strict=True))):
            raise ValueError(
                f"a window of {self.span} does not fit on an image of {tuple(image)} with padding {self.padding!r}: "
                "use a smaller window or padding 'same'"
            )
        return tuple((n - k) // step + 1 for n, k, step in zip(padded, self.span, self.stride, strict=True))

    def padded(self, array: jax.Array, axes: Axes) -> jax.Array:
        """The array with these axes padded."""
        return self._padded(array, {axis: self._pad(side, array.shape[axis]) for side, axis in enumerate(axes)})

    def parts(self, array: jax.Array, axes: Axes) -> list[jax.Array]:
        """The parts of the array that each of the places in the window sees."""
        self.output(tuple(array.shape[axis] for axis in axes))
        parts = [array]
        for side, axis in enumerate(axes):
            parts = [seen for part in parts for seen in self._seen(part, side, [axis])]
        return parts

    def mean(self, array: jax.Array, *positions: Axes) -> jax.Array:
        """Mean over the window, padding included; along the positions of several images it moves in step."""
        for axes in positions:
            self.output(tuple(array.shape[axis] for axis in axes))
        for side in range(self.dimensions):  # along one axis after the other: 3 + 3 terms in place of 3 x 3
            seen = self._seen(array, side, [axes[side] for axes in positions])
            array = sum(seen[1:], seen[0])
        return array / self.places

    def average(self, covariance: Covariance, rows: Axes, columns: Axes) -> Covariance:
        """Mean of the covariance over the window, which moves over both inputs in step.

        With r the deviations, R^2 = mean r^2 and shares r/R, 1 - correlation of the mean is the sum of two non-negative
        terms: mean (share1 - share2)^2 / 2 and mean(r1 r2 distance) / (R1 R2).
        """
        root1, root2 = safe_sqrt(covariance.variance1), safe_sqrt(covariance.variance2)
        variance1, variance2 = self.mean(covariance.variance1, rows), self.mean(covariance.variance2, columns)
        whole1, whole2 = safe_sqrt(variance1), safe_sqrt(variance2)
        shares1, shares2 = (
            # fused into what follows, they would be computed anew for every pair
            _materialized([safe_divide(part, whole, 0.0) for part in self.parts(root, axes)])
            for root, whole, axes in ((root1, whole1, rows), (root2, whole2, columns))
        )
        mismatches = [(left - right) ** 2 for left, right in zip(shares1, shares2, strict=True)]
        mismatch = sum(mismatches[1:], mismatches[0]) / (2 * self.places)
        both = (rows,) if rows == columns else (rows, columns)
        apart = self.mean(root1 * root2 * covariance.distance, *both)
        distance = mismatch + safe_divide(apart, whole1 * whole2, 0.0)
        return Covariance(variance1, variance2, into_range(distance))

    def _seen(self, array: jax.Array, side: int, axes: Sequence[int]) -> list[jax.Array]:
        """The parts of the array that the places along one side of the window see; the axes have one length."""
        pad = self._pad(side, array.shape[axes[0]])
        n = (array.shape[axes[0]] + sum(pad) - self.span[side]) // self.stride[side] + 1
        # fused, XLA would look for the border anew in each of the parts
        (padded,) = _materialized([self._padded(array, dict.fromkeys(axes, pad))])
        seen = []
        for start in range(0, self.span[side], self.dilation[side]):
            index = [slice(None)] * array.ndim
            for axis in axes:
                index[axis] = slice(start, start + self.stride[side] * (n - 1) + 1, self.stride[side])
            seen.append(padded[tuple(index)])
        return seen

    def _padded(self, array: jax.Array, pads: dict[int, tuple[int, int]]) -> jax.Array:
        widths = [(0, 0)] * array.ndim
        for axis, pad in pads.items():
            widths[axis] = pad
        return jnp.pad(array, widths, mode="wrap" if self.padding == "circular" else "constant")

    def _pad(self, side: int, n: int) -> tuple[int, int]:
        """Numbers to add before and after n positions along one axis."""
        if self.given is not None:
            return self.given[side]
        if self.padding == "valid":
            return (0, 0)
        step = self.stride[side]
        total = max((math.ceil(n / step) - 1) * step + self.span[side] - n, 0)
        return (total // 2, total - total // 2)


def _materialized(arrays: list[jax.Array]) -> list[jax.Array]:
    """The arrays unchanged, but computed before what follows and not fused into it."""
    return list(jax.lax.optimization_barrier(arrays))


def window(size: Size, stride: Size, padding: Padding, dilation: Size = 1) -> Window:
    """A checked window; one number stands for all axes, which are as many as the tuples have, or two.

    Raises:
        ValueError: a size, stride or dilation is below 1, tuples have several lengths, or the padding is unknown.
    """
    if padding not in PADDINGS:
        raise ValueError(f"got padding={padding!r}: choose one of {', '.join(PADDINGS)}")
    named = {"kernel_size or window": size, "stride": stride, "dilation": dilation}
    lengths = {len(value) for value in named.values() if isinstance(value, tuple)} or {DIMENSIONS}
    if len(lengths) > 1:
        got = ", ".join(f"{name}={value}" for name, value in named.items())
        raise ValueError(f"got {got}, expected tuples of one length, the number of axes of positions")
    (dimensions,) = lengths
    sides = {name: value if isinstance(value, tuple) else (value,) * dimensions for name, value in named.items()}
    for name, side in sides.items():
        if not 1 <= dimensions <= MOST_DIMENSIONS or not all(isinstance(n, int) and n >= 1 for n in side):
            raise ValueError(
                f"got {name}={named[name]}, expected an integer >= 1 or a tuple of one to three of them, such as "
                "(height, width)"
            )
    steps = sides["stride"]
    return Window(sides["kernel_size or window"], steps, padding, sides["dilation"])
