"""Convolution in one to three dimensions: straight, weight-centered or weight-standardised."""

from dataclasses import KW_ONLY, dataclass, replace

import jax
import jax.numpy as jnp

from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.pytrees import Number
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.distances import rounding_error
from ntk_analysis.infinite.kernel import Kernel, map_covariance, rounding
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_image
from ntk_analysis.layers.weights import Weights, check_weights
from ntk_analysis.layers.windows import Padding, Size, Window, window


@dataclass(frozen=True)
class Convolution(SingleLayer):
    """What convolutions share: gains, and a window over images, sequences or volumes."""

    channels: int
    kernel_size: Size = 3
    stride: Size = 1
    padding: Padding = "same"
    _: KW_ONLY
    w_var: Number = 1.0
    b_var: Number = 0.0
    center: bool = False
    standardize: bool = False
    w_rate: Number = 1.0
    b_rate: Number = 1.0

    ends_in_weights = True

    def __post_init__(self) -> None:
        check_weights(self.channels, self.weights)
        _ = self.window

    @property
    def weights(self) -> Weights:
        """The gains of this layer and its operation on each unit's weights."""
        return Weights(self.w_var, self.b_var, self.center, self.standardize, self.w_rate, self.b_rate)

    @property
    def window(self) -> Window:
        """The window that each output position sees."""
        return window(self.kernel_size, self.stride, self.padding)

    @property
    def own_axes(self) -> int:
        """Number of axes of the weights before those of one unit: output positions that have weights of their own."""
        return 0

    def check_input(self, shape: Shape) -> None:
        """Raises ValueError unless inputs of this shape have as many axes of positions as the window."""
        check_image(shape, self, self.window.dimensions)


@dataclass(frozen=True)
class Conv(Convolution):
    """Convolution of images (batch, height, width, channels), sequences or volumes, in NTK parametrisation.

    Sizes that are one number are those of images; a tuple of one, (3,), makes a convolution of sequences (batch,
    length, channels), a tuple of three one of volumes (batch, depth, height, width, channels).

    The fan-in n is channels x places in the window, padding included, and everything else is as in `Dense`:
    centering subtracts each unit's mean over the whole fan-in. At infinite width, with window places d,
        K'(p, p') = w_var (mean_d K(p+d, p'+d) - m(p) m(p')) + b_var,    m(p) = mean_d m(p+d),
    with the terms in m only if centered, and zero padding counting as 0 (Garriga-Alonso et al. 2019; Arora et al.
    2019).
    The gain w_var/(n - 1) of centered weights is exact at every width in `Dense`, but not here: the positions of one
    channel depend on each other, and the variance is off by a relative O(1/channels).
    With groups each output channel sees the channels of one group only, whose number is taken to infinity: the kernel
    stays. So a depthwise convolution, of groups of one channel, has none, and the network's inputs have no groups.

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
        groups: number of groups of channels, a divisor of the numbers of input and of output channels.
    """

    _: KW_ONLY
    dilation: Size = 1
    groups: int = 1

    couples_batch = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self.groups, "groups")
        if self.channels % self.groups:
            raise ValueError(f"got channels={self.channels} in groups={self.groups}, expected a multiple of the groups")

    @property
    def window(self) -> Window:
        """The window that each output position sees."""
        return window(self.kernel_size, self.stride, self.padding, self.dilation)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        self.check_input(input_shape)
        batch, *image, channels = input_shape
        if channels % self.groups:
            raise ValueError(f"{self} expects channels that its {self.groups} groups divide, got {channels}")
        params = self.weights.init(key, (*self.window.size, channels // self.groups, self.channels), self)
        return (batch, *self.window.output(tuple(image)), self.channels), params

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        self.check_input(x.shape)
        return self.weights.apply(params, lambda w: convolved(x, w, self.window, self.groups))

    def kernel(self, kernel: Kernel) -> Kernel:
        self.check_input((0, *kernel.positions, 0))
        if self.groups > 1 and kernel.law == "inputs":
            raise NotImplementedError(
                f"{self} stands on the inputs, whose groups of channels differ, so that its units do: begin with a "
                "Conv without groups"
            )
        return self.weights.kernel(slide(kernel, self.window), self)


def convolved(x: jax.Array, w: jax.Array, window: Window, groups: int = 1) -> jax.Array:
    """Images (n, *positions, channels) seen through a window, times weights (*size, channels of a group, units)."""
    window.output(x.shape[1:-1])
    axes = "DHW"[-window.dimensions :]
    return jax.lax.conv_general_dilated(
        window.padded(x, tuple(range(1, x.ndim - 1))),
        w,
        window.stride,
        "VALID",
        rhs_dilation=window.dilation,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        feature_group_count=groups,
        precision="highest",
    )


def slide(kernel: Kernel, window: Window) -> Kernel:
    """Mean of the kernel over a window that moves over both inputs in step."""
    k = len(kernel.positions)
    columns = tuple(range(-k, 0))
    rows = tuple(range(-2 * k, -k)) if kernel.paired else columns

    def propagate(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
        del mean1, mean2
        return window.average(covariance, rows, columns)

    slid = map_covariance(
        kernel,
        propagate,
        mean1=window.mean(kernel.mean1, columns),
        mean2=window.mean(kernel.mean2, columns),
        ntk_scaled=window.mean(kernel.ntk_scaled, *((rows, columns) if kernel.paired else (rows,))),
    )
    return with_windowed_error(slid)


def with_windowed_error(kernel: Kernel) -> Kernel:
    """The kernel behind a mean over positions: inputs that differ in brightness alone now differ in direction, too."""
    differences = rounding_error(kernel.known_distance)
    return replace(kernel, relative_error=jnp.maximum(kernel.relative_error, differences) + 4 * rounding(kernel))
