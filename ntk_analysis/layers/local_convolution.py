"""Locally connected layer: a convolution whose weights differ from position to position."""

import math
from dataclasses import KW_ONLY, dataclass, replace

import jax
import jax.numpy as jnp

from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape
from ntk_analysis.layers.convolution import Convolution, slide
from ntk_analysis.layers.readout import at_equal_positions
from ntk_analysis.layers.weights import drawn_together
from ntk_analysis.layers.windows import Size, Window, window


@dataclass(frozen=True)
class ConvLocal(Convolution):
    """Locally connected layer: `Conv` with weights and biases of its own at each output position.

    At infinite width it has the kernel of `Conv` at equal positions; outputs at different positions are independent,
    K'(p, p') = Theta'(p, p') = 0 (Novak et al. 2019). So a flattening read-out does not tell it from `Conv`, and a
    pooling one does.

    Attributes:
        channels: number of output channels.
        kernel_size: size of the kernel, one number or a tuple, such as (height, width).
        stride: step of the window, one number or a tuple.
        padding: "same" (zeros), "circular" or "valid" (none).
        w_var: variance of the weights (sigma_w^2), >= 0.
        b_var: variance of the biases (sigma_b^2), >= 0; 0 means no bias parameters.
        center: whether each unit's mean weight is subtracted.
        standardize: whether it is subtracted and the weights are divided by their standard deviation.
        w_rate: factor > 0 of the learning rate of the weights, see `Dense`.
        b_rate: factor > 0 of the learning rate of the biases.
        dilation: distance between the places of the window, one number or a tuple; 1 leaves no gaps.
    """

    _: KW_ONLY
    dilation: Size = 1

    couples_batch = False

    @property
    def own_axes(self) -> int:
        return self.window.dimensions

    @property
    def window(self) -> Window:
        """The window that each output position sees."""
        return window(self.kernel_size, self.stride, self.padding, self.dilation)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        """Output shape, and weights (*output positions, fan-in, channels) with biases (*output positions, channels)."""
        self.check_input(input_shape)
        batch, *image, channels = input_shape
        output, fan_in = self.window.output(tuple(image)), self.window.places * channels
        keys = jax.random.split(key, math.prod(output))
        flat = drawn_together(lambda one: self.weights.init(one, (fan_in, self.channels), self), keys, self)
        params = {name: values.reshape(*output, *values.shape[1:]) for name, values in flat.items()}
        return (batch, *output, self.channels), params

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        self.check_input(x.shape)
        seen = jnp.concatenate(self.window.parts(x, tuple(range(1, x.ndim - 1))), -1)
        output = seen.shape[1:-1]
        patches = seen.reshape(len(x), -1, seen.shape[-1])
        flat = {name: values.reshape(patches.shape[1], *values.shape[len(output) :]) for name, values in params.items()}

        def at_position(own: Params, patch: jax.Array) -> jax.Array:
            return self.weights.apply(own, lambda w: jnp.matmul(patch, w, precision="highest"))

        return jax.vmap(at_position, (0, 1), 1)(flat, patches).reshape(len(x), *output, self.channels)

    def kernel(self, kernel: Kernel) -> Kernel:
        self.check_input((0, *kernel.positions, 0))
        equal = self.weights.kernel(slide(at_equal_positions(kernel), self.window), self)
        return independent_positions(equal) if kernel.paired else equal


def independent_positions(kernel: Kernel) -> Kernel:
    """The kernel at all pairs of positions, of one at equal positions, where different ones are independent."""
    places = math.prod(kernel.positions)
    same = jnp.eye(places, dtype=bool).reshape(kernel.positions * 2)
    within = jnp.where(same, 0, jnp.ones((), kernel.distance.dtype))
    ones = (1,) * len(kernel.positions)
    distance, ntk_scaled = (of.reshape(*of.shape, *ones) for of in (kernel.distance, kernel.ntk_scaled))
    return replace(
        kernel,
        distance=jnp.where(same, distance, 1),
        ntk_scaled=jnp.where(same, ntk_scaled, 0),
        within1=jnp.broadcast_to(within, (len(kernel.variance1), *within.shape)),
        within2=jnp.broadcast_to(within, (len(kernel.variance2), *within.shape)),
    )
