"""Largest units of windows: a finite layer, without a kernel at infinite width here."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_image
from ntk_analysis.layers.windows import Padding, Size, Window, window


@dataclass(frozen=True)
class MaxPool(SingleLayer):
    """Maximum over windows of (batch, height, width, channels); padding is never the largest.

    Sequences and volumes have windows of one and three numbers, as in `Conv`. The mean product of two maxima depends on
    all units of both windows together, for which there is no closed form here: `infinite_kernel` refuses the layer, and
    `monte_carlo_kernel` and `empirical_ntk` are the way.

    Attributes:
        window: size of the window, one number or a tuple, such as (height, width).
        stride: step of the window, one number or a tuple; None is the size of the window.
        padding: padding of the image, "same", "circular" or "valid".
    """

    window: Size = 2
    stride: Size | None = None
    padding: Padding = "valid"

    couples_batch = False
    homogeneous = True

    def __post_init__(self) -> None:
        _ = self.moving

    @property
    def moving(self) -> Window:
        """The window with its stride and padding."""
        return window(self.window, self.window if self.stride is None else self.stride, self.padding)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        check_image(input_shape, self, self.moving.dimensions)
        batch, *image, channels = input_shape
        return (batch, *self.moving.output(tuple(image)), channels), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        moving = self.moving
        check_image(x.shape, self, moving.dimensions)
        moving.output(x.shape[1:-1])
        pads = moving.pads(x.shape[1:-1])
        if self.padding == "circular":
            x, pads = moving.padded(x, tuple(range(1, x.ndim - 1))), ((0, 0),) * moving.dimensions
        size, stride = (1, *moving.size, 1), (1, *moving.stride, 1)
        return jax.lax.reduce_window(
            x, jnp.array(-jnp.inf, x.dtype), jax.lax.max, size, stride, [(0, 0), *pads, (0, 0)]
        )
