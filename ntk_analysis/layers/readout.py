"""Layers that make vectors of images: flattening and average pooling."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import geometric_mean, into_range, safe_divide, safe_sqrt
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.kernel import Kernel, add_ntk, map_covariance, rounding, tall, wide
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_image
from ntk_analysis.layers.convolution import with_windowed_error
from ntk_analysis.layers.windows import Axes, Padding, Window, window


@dataclass(frozen=True)
class Flatten(SingleLayer):
    """Images (batch, h, w, channels) as vectors (batch, h w channels); vectors stay as they are.

    At infinite width it takes the mean over equal positions, K' = mean_p K(p, p), and likewise for Theta and the
    channel means. The features at different positions have different laws, so a dense layer must come next.
    """

    couples_batch = False
    ends_positions = True

    @property
    def homogeneous(self) -> bool:
        return True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return (input_shape[0], math.prod(input_shape[1:])), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return x.reshape(len(x), -1)

    def kernel(self, kernel: Kernel) -> Kernel:
        if not kernel.positions:
            return kernel
        kernel = at_equal_positions(kernel)

        def propagate(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
            del mean1, mean2
            return covariances.mean(covariance, (2, 3))

        flat = map_covariance(
            kernel,
            propagate,
            mean1=jnp.mean(kernel.mean1, (1, 2)),
            mean2=jnp.mean(kernel.mean2, (1, 2)),
            ntk_scaled=jnp.mean(kernel.ntk_scaled, (2, 3)),
            law="inputs" if kernel.law == "inputs" else "activated",
        )
        return with_windowed_error(flat)


def at_equal_positions(kernel: Kernel) -> Kernel:
    """The kernel of images without the pairs of different positions."""
    if not kernel.paired:
        return kernel
    distance, ntk_scaled = _equal(kernel.distance), _equal(kernel.ntk_scaled)
    return replace(kernel, distance=distance, ntk_scaled=ntk_scaled, within1=None, within2=None)


def _equal(pairs: jax.Array) -> jax.Array:
    return jnp.einsum("abhwhw->abhw", pairs)


@dataclass(frozen=True)
class AvgPool(SingleLayer):
    """Mean over windows of (batch, height, width, channels); padding counts as zeros (as the image, if circular).

    At infinite width K'(P, P') is the mean of K(p, p') over both windows, so all pairs of positions are kept.

    Attributes:
        window: size of the window, one number or (height, width).
        stride: step of the window, one number or (height, width); None is the size of the window.
        padding: padding of the image, "same", "circular" or "valid".
    """

    window: int | tuple[int, int] = 2
    stride: int | tuple[int, int] | None = None
    padding: Padding = "valid"

    couples_batch = False

    def __post_init__(self) -> None:
        _ = self.moving

    @property
    def moving(self) -> Window:
        """The window with its stride and padding."""
        return window(self.window, self.window if self.stride is None else self.stride, self.padding)

    @property
    def pairs_positions(self) -> bool:
        return True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        check_image(input_shape, self)
        batch, *image, channels = input_shape
        return (batch, *self.moving.output(tuple(image)), channels), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_image(x.shape, self)
        return self.moving.mean(x, (1, 2))

    def kernel(self, kernel: Kernel) -> Kernel:
        check_image((0, *kernel.positions, 0), self)
        return pooled(kernel, self.moving.mean)


@dataclass(frozen=True)
class GlobalAvgPool(SingleLayer):
    """Mean over all positions: (batch, height, width, channels) to (batch, channels).

    At infinite width K' = mean_{p, p'} K(p, p'), so all pairs of positions are kept up to here.
    """

    couples_batch = False
    ends_positions = True

    @property
    def pairs_positions(self) -> bool:
        return True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        check_image(input_shape, self)
        return (input_shape[0], input_shape[-1]), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_image(x.shape, self)
        return jnp.mean(x, (1, 2))

    def kernel(self, kernel: Kernel) -> Kernel:
        check_image((0, *kernel.positions, 0), self)
        one = at_equal_positions(pooled(kernel, functools.partial(jnp.mean, keepdims=True)))
        sides = {name: getattr(one, name)[:, 0, 0] for name in ("variance1", "variance2", "mean1", "mean2")}
        return replace(one, **sides, distance=one.distance[:, :, 0, 0], ntk_scaled=one.ntk_scaled[:, :, 0, 0])


@dataclass(frozen=True)
class SumPool(AvgPool):
    """Sum over windows of (batch, height, width, channels): `AvgPool` times the number of positions in a window.

    At infinite width K'(P, P') is the sum of K(p, p') over both windows.

    Attributes:
        window: size of the window, one number or (height, width).
        stride: step of the window, one number or (height, width); None is the size of the window.
        padding: padding of the image, "same", "circular" or "valid".
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        return self.moving.places * super().compute(params, x)

    def kernel(self, kernel: Kernel) -> Kernel:
        return multiplied(super().kernel(kernel), float(self.moving.places))


@dataclass(frozen=True)
class GlobalSumPool(GlobalAvgPool):
    """Sum over all positions: (batch, height, width, channels) to (batch, channels).

    At infinite width K' = sum_{p, p'} K(p, p').
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        return math.prod(x.shape[1:3]) * super().compute(params, x)

    def kernel(self, kernel: Kernel) -> Kernel:
        return multiplied(super().kernel(kernel), float(math.prod(kernel.positions)))


def multiplied(kernel: Kernel, factor: float) -> Kernel:
    """The kernel of units that are multiplied by a number; correlations stay."""
    changes = {name: factor * getattr(kernel, name) for name in ("mean1", "mean2")}
    changes |= {name: factor**2 * getattr(kernel, name) for name in ("variance1", "variance2")}
    return add_ntk(
        replace(kernel, **changes, ntk_scaled=jnp.zeros_like(kernel.ntk_scaled)),
        factor**2 * kernel.ntk_scaled,
        kernel.log_scale,
    )


def pooled(kernel: Kernel, mean: Callable[[jax.Array, Axes], jax.Array]) -> Kernel:
    """Mean of the kernel over windows that move over both inputs independently; mean(array, two axes) averages.

    Means of correlations do not keep digits below their rounding: distances under 8 roundings become 0.
    """
    rows, columns = (-4, -3), (-2, -1)

    def both(array: jax.Array) -> jax.Array:
        return mean(mean(array, rows), columns)

    cross = both(kernel.covariance.value)
    self1, self2 = (both(within.value) for within in kernel.within)
    variance1, variance2 = (jnp.maximum(jnp.einsum("ahwhw->ahw", values), 0) for values in (self1, self2))

    def distance(value: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
        apart = into_range(1 - safe_divide(value, geometric_mean(left, right), 0.0))
        return jnp.where(apart < 8 * rounding(kernel), 0, apart)

    def canceling(before: jax.Array, after: jax.Array) -> jax.Array:
        """Ratio of the variance of parallel units' mean to that of the mean; at most 1 / rounding."""
        parallel = mean(safe_sqrt(before), (-2, -1)) ** 2
        return jnp.max(safe_divide(parallel, jnp.maximum(after, rounding(kernel) * parallel), 1.0))

    apart = distance(cross, variance1[:, None, :, :, None, None], variance2[None, :, None, None])
    # a distance that became 0 although the inputs differ in the window is lost: an error above 1
    differ = mean(jnp.where(_equal(kernel.distance) > 0, 1.0, 0.0).astype(apart.dtype), (-2, -1)) > 0
    lost = jnp.any(differ & (_equal(apart) == 0))
    smallest = jnp.where(lost, rounding(kernel), jnp.min(jnp.where(apart > 0, apart, 2)))
    canceled = jnp.maximum(canceling(kernel.variance1, variance1), canceling(kernel.variance2, variance2))
    return replace(
        kernel,
        variance1=variance1,
        variance2=variance2,
        distance=apart,
        mean1=mean(kernel.mean1, (-2, -1)),
        mean2=mean(kernel.mean2, (-2, -1)),
        ntk_scaled=both(kernel.ntk_scaled),
        relative_error=kernel.relative_error + 4 * rounding(kernel) * jax.lax.stop_gradient(canceled / smallest),
        within1=distance(self1, tall(variance1), wide(variance1)),
        within2=distance(self2, tall(variance2), wide(variance2)),
    )
