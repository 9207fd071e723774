"""Transposed convolution: a convolution of an image that zeros have stretched."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape
from ntk_analysis.layers.convolution import Convolution, convolved, slide
from ntk_analysis.layers.windows import Window


@dataclass(frozen=True)
class ConvTranspose(Convolution):
    """Transposed convolution of images (batch, height, width, channels), sequences or volumes: it makes them larger.

    Behind each position stand stride - 1 zeros, and over this image moves a window in steps of one. The outputs are
    size x stride positions with the paddings "same" and "circular", size x stride + max(kernel_size - stride, 0) with
    "valid"; where they stand is as in `jax.lax.conv_transpose`. All else is as in `Conv`: the fan-in is channels x
    places in the window, most of which see zeros, so that with one stride s in k dimensions about 1/s^k of w_var is
    left on the average. At infinite width K' is that of `Conv` on the covariance between the zeros.

    Attributes:
        channels: number of output channels.
        kernel_size: size of the kernel, one number or a tuple, such as (height, width).
        stride: factor by which the image grows, one number or a tuple.
        padding: "same", "circular" or "valid".
        w_var: variance of the weights (sigma_w^2), >= 0.
        b_var: variance of the biases (sigma_b^2), >= 0; 0 means no bias parameters.
        center: whether each unit's mean weight is subtracted.
        standardize: whether it is subtracted and the weights are divided by their standard deviation.
        w_rate: factor > 0 of the learning rate of the weights, see `Dense`.
        b_rate: factor > 0 of the learning rate of the biases.
    """

    couples_batch = False

    @property
    def stretching(self) -> Window:
        """The window that each output position sees, over the stretched image."""
        moving = self.window
        sides = zip(moving.size, moving.stride, strict=True)
        pads = tuple(_pads(size, factor, valid=self.padding == "valid") for size, factor in sides)
        return replace(moving, stride=(1,) * moving.dimensions, given=pads)

    def most_positions(self, positions: int) -> int:
        return positions * math.prod(self.window.stride)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        self.check_input(input_shape)
        batch, *image, channels = input_shape
        stretched = tuple(n * factor for n, factor in zip(image, self.window.stride, strict=True))
        params = self.weights.init(key, (*self.window.size, channels, self.channels), self)
        return (batch, *self.stretching.output(stretched), self.channels), params

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        self.check_input(x.shape)
        wide = stretched(x, tuple(range(1, x.ndim - 1)), self.window.stride)
        return self.weights.apply(params, lambda w: convolved(wide, w, self.stretching))

    def kernel(self, kernel: Kernel) -> Kernel:
        self.check_input((0, *kernel.positions, 0))
        k, factors = len(kernel.positions), self.window.stride
        single = tuple(range(-k, 0))
        both, twice = (tuple(range(-2 * k, 0)), factors * 2) if kernel.paired else (single, factors)
        wide: dict[str, Any] = {
            name: stretched(getattr(kernel, name), single, factors) for name in ("variance1", "variance2")
        }
        wide |= {name: stretched(getattr(kernel, name), single, factors) for name in ("mean1", "mean2")}
        wide |= {name: stretched(getattr(kernel, name), both, twice) for name in ("distance", "ntk_scaled")}
        if kernel.paired:
            wide |= {f"within{i}": stretched(of.distance, both, twice) for i, of in enumerate(kernel.within, 1)}
        return self.weights.kernel(slide(replace(kernel, **wide), self.stretching), self)


def stretched(array: jax.Array, axes: tuple[int, ...], factors: tuple[int, ...]) -> jax.Array:
    """The array with factor - 1 zeros behind each position along these axes."""
    spaces = [(0, 0, 0)] * array.ndim
    for axis, factor in zip(axes, factors, strict=True):
        spaces[axis] = (0, factor - 1, factor - 1)
    return jax.lax.pad(array, jnp.zeros((), array.dtype), spaces)


def _pads(size: int, factor: int, *, valid: bool) -> tuple[int, int]:
    """Numbers of zeros before and after the stretched image; a circular one is padded with itself likewise."""
    if valid:
        return size - 1, max(size - factor, 0)
    before = min(size - 1, (size + factor - 1) // 2)
    return before, size - 1 - before
