"""Images, sequences and volumes in another size, by interpolation."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_image
from ntk_analysis.layers.readout import pooled
from ntk_analysis.layers.windows import Axes

Method: TypeAlias = Literal["linear", "nearest", "cubic", "lanczos3", "lanczos5"]
METHODS: tuple[str, ...] = get_args(Method)
AVERAGES = ("linear", "nearest")


@dataclass(frozen=True)
class ImageResize(SingleLayer):
    """Images (batch, height, width, channels), sequences or volumes in another size, as `jax.image.resize` does it.

    Each output is a weighted mean of inputs, y(P) = sum_p R(P, p) x(p). At infinite width K'(P, P') = sum_{p, p'}
    R(P, p) R(P', p') K(p, p'), and likewise for Theta, so all pairs of positions are kept. Methods with negative
    weights, "cubic" and "lanczos", have a finite side only.

    Attributes:
        shape: positions of the output, one number for each axis; -1 leaves an axis as it is.
        method: "linear", "nearest", "cubic", "lanczos3" or "lanczos5".
        antialias: whether a smaller image is smoothed first; without effect on a larger one, and on "nearest".
    """

    shape: tuple[int, ...]
    method: Method = "linear"
    antialias: bool = True

    couples_batch = False
    pairs_positions = True
    homogeneous = True

    def __post_init__(self) -> None:
        if not self.shape or not all(isinstance(n, int) and (n >= 1 or n == -1) for n in self.shape):
            raise ValueError(f"got shape={self.shape}, expected a number of positions >= 1, or -1, for each axis")
        if self.method not in METHODS:
            raise ValueError(f"got method={self.method!r}: choose one of {', '.join(METHODS)}")

    def most_positions(self, positions: int) -> int:
        return (
            max(positions, math.prod(self.shape))
            if -1 not in self.shape
            else positions * math.prod(map(abs, self.shape))
        )

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        check_image(input_shape, self, len(self.shape))
        batch, *image, channels = input_shape
        return (batch, *(n if m == -1 else m for n, m in zip(image, self.shape, strict=True)), channels), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_image(x.shape, self, len(self.shape))
        return self.resized(x, tuple(range(1, x.ndim - 1)))

    def resized(self, array: jax.Array, axes: Axes) -> jax.Array:
        """The array with these axes, one for each number of `shape`, in the new size."""
        for axis, m in zip(axes, self.shape, strict=True):
            n = array.shape[axis]
            if m not in (-1, n):
                eye = jnp.eye(n, dtype=array.dtype)
                weights = jax.image.resize(eye, (m, n), self.method, self.antialias, jax.lax.Precision.HIGHEST)
                array = jnp.moveaxis(jnp.tensordot(array, weights, ((axis,), (1,)), precision="highest"), -1, axis)
        return array

    def kernel(self, kernel: Kernel) -> Kernel:
        check_image((0, *kernel.positions, 0), self, len(self.shape))
        if self.method not in AVERAGES:
            raise NotImplementedError(
                f"{self} has negative weights and no infinite-width kernel here: use 'linear' or 'nearest', or "
                "monte_carlo_kernel and empirical_ntk"
            )
        return pooled(kernel, self.resized, sum(kernel.positions))
