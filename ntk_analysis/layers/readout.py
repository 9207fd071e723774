"""Layers that make vectors of images: flattening and average pooling."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import geometric_mean, into_range, safe_divide, safe_sqrt
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.kernel import Kernel, add_ntk, equal_positions, map_covariance, rounding, tall, wide
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_image
from ntk_analysis.layers.convolution import with_windowed_error
from ntk_analysis.layers.windows import Axes, Padding, Size, Window, window


@dataclass(frozen=True)
class Flatten(SingleLayer):
    """Images (batch, h, w, channels), sequences or volumes as vectors (batch, h w channels); vectors stay as they are.

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
        single = tuple(range(1, 1 + len(kernel.positions)))
        pairs = tuple(axis + 1 for axis in single)

        def propagate(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
            del mean1, mean2
            return covariances.mean(covariance, pairs)

        flat = map_covariance(
            kernel,
            propagate,
            mean1=jnp.mean(kernel.mean1, single),
            mean2=jnp.mean(kernel.mean2, single),
            ntk_scaled=jnp.mean(kernel.ntk_scaled, pairs),
            law="inputs" if kernel.law == "inputs" else "activated",
        )
        return with_windowed_error(flat)


def at_equal_positions(kernel: Kernel) -> Kernel:
    """The kernel of images without the pairs of different positions."""
    if not kernel.paired:
        return kernel
    distance, ntk_scaled = (equal_positions(of, len(kernel.positions)) for of in (kernel.distance, kernel.ntk_scaled))
    return replace(kernel, distance=distance, ntk_scaled=ntk_scaled, within1=None, within2=None)


@dataclass(frozen=True)
class AvgPool(SingleLayer):
    """Mean over windows of (batch, height, width, channels); padding counts as zeros (as the image, if circular).

    Sequences and volumes have windows of one and three numbers, as in `Conv`. At infinite width K'(P, P') is the mean
    of K(p, p') over both windows, so all pairs of positions are kept.

    Attributes:
        window: size of the window, one number or a tuple, such as (height, width).
        stride: step of the window, one number or a tuple; None is the size of the window.
        padding: padding of the image, "same", "circular" or "valid".
    """

    window: Size = 2
    stride: Size | None = None
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
        check_image(input_shape, self, self.moving.dimensions)
        batch, *image, channels = input_shape
        return (batch, *self.moving.output(tuple(image)), channels), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_image(x.shape, self, self.moving.dimensions)
        return self.moving.mean(x, tuple(range(1, x.ndim - 1)))

    def kernel(self, kernel: Kernel) -> Kernel:
        check_image((0, *kernel.positions, 0), self, self.moving.dimensions)
        return pooled(kernel, self.moving.mean, sum(self.moving.size))


@dataclass(frozen=True)
class GlobalAvgPool(SingleLayer):
    """Mean over all positions: images, sequences or volumes (batch, *positions, channels) to (batch, channels).

    At infinite width K' = mean_{p, p'} K(p, p'), so all pairs of positions are kept up to here.
    """

    couples_batch = False
    ends_positions = True

    @property
    def pairs_positions(self) -> bool:
        return True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        check_image(input_shape, self, None)
        return (input_shape[0], input_shape[-1]), ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_image(x.shape, self, None)
        return jnp.mean(x, tuple(range(1, x.ndim - 1)))

    def kernel(self, kernel: Kernel) -> Kernel:
        check_image((0, *kernel.positions, 0), self, None)
        one = at_equal_positions(pooled(kernel, _mean_of_all, sum(kernel.positions)))
        sides = {name: getattr(one, name).reshape(-1) for name in ("variance1", "variance2", "mean1", "mean2")}
        pairs = {name: getattr(one, name).reshape(one.distance.shape[:2]) for name in ("distance", "ntk_scaled")}
        return replace(one, **sides, **pairs)


@dataclass(frozen=True)
class SumPool(AvgPool):
    """Sum over windows of (batch, height, width, channels): `AvgPool` times the number of positions in a window.

    At infinite width K'(P, P') is the sum of K(p, p') over both windows.

    Attributes:
        window: size of the window, one number or a tuple, such as (height, width).
        stride: step of the window, one number or a tuple; None is the size of the window.
        padding: padding of the image, "same", "circular" or "valid".
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        return self.moving.places * super().compute(params, x)

    def kernel(self, kernel: Kernel) -> Kernel:
        return multiplied(super().kernel(kernel), float(self.moving.places))


@dataclass(frozen=True)
class GlobalSumPool(GlobalAvgPool):
    """Sum over all positions: images, sequences or volumes (batch, *positions, channels) to (batch, channels).

    At infinite width K' = sum_{p, p'} K(p, p').
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        return math.prod(x.shape[1:-1]) * super().compute(params, x)

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


def _mean_of_all(array: jax.Array, axes: Axes) -> jax.Array:
    """Mean along these axes, which stay with length 1; along one after the other, as longer sums round more often."""
    for axis in reversed(axes):
        array = jnp.mean(array, axis, keepdims=True)
    return array


def pooled(kernel: Kernel, mean: Callable[[jax.Array, Axes], jax.Array], side: int) -> Kernel:
    """Mean of the kernel over windows that move over both inputs independently.

    Means of correlations do not keep digits below their rounding: distances under 8 roundings become 0, and under more
    where correlations cancel in the mean. The error that is stated bounds all roundings of the means. Of the errors of
    the correlations it does not say how far they cancel, too: it counts them as if they did.

    Args:
        kernel: kernel at all pairs of positions.
        mean: function mean(array, axes) that averages over a window, along one axis after the other.
        side: number of rows of a window and of its columns, added; of all its sides.
    """
    k = len(kernel.positions)
    rows, columns = tuple(range(-2 * k, -k)), tuple(range(-k, 0))
    eps = rounding(kernel)
    each = eps * (2.5 + side)  # of a mean over two windows: five halves of each term, a half of each sum and quotient

    def both(array: jax.Array) -> jax.Array:
        return mean(mean(array, rows), columns)

    def canceling(before: jax.Array, after: jax.Array) -> jax.Array:
        """Variance of parallel units' mean over the least that the variance of the mean can be."""
        parallel = mean(safe_sqrt(before), columns) ** 2
        return jax.lax.stop_gradient(safe_divide(parallel, jnp.maximum(after - each * parallel, eps * parallel), 1.0))

    cross = both(kernel.covariance.value)
    self1, self2 = (both(within.value) for within in kernel.within)
    variance1, variance2 = (jnp.maximum(equal_positions(values, k), 0) for values in (self1, self2))
    of1, of2 = (
        (after, canceling(before, after))
        for before, after in ((kernel.variance1, variance1), (kernel.variance2, variance2))
    )

    def distance(
        value: jax.Array, left: Sequence[jax.Array], right: Sequence[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """The cosine distance, and its rounding error over it."""
        (q1, canceled1), (q2, canceled2) = left, right
        apart, canceled = into_range(1 - safe_divide(value, geometric_mean(q1, q2), 0.0)), canceled1 + canceled2
        error, kept = each * canceled + 2.5 * eps, apart >= 4 * eps * canceled
        return jnp.where(kept, apart, 0), jnp.where(kept, error / jax.lax.stop_gradient(jnp.where(kept, apart, 1)), 0)

    apart, error = distance(cross, [tall(q)[:, None] for q in of1], [wide(q)[None] for q in of2])
    # a distance that became 0 although the inputs differ in the window is lost: an error of all of it
    apart_before = equal_positions(kernel.known_distance, k) > 0
    differ = mean(jnp.where(apart_before, 1.0, 0.0).astype(apart.dtype), columns) > 0
    lost = jnp.any(differ & (equal_positions(apart, k) == 0))
    return replace(
        kernel,
        variance1=variance1,
        variance2=variance2,
        distance=apart,
        mean1=mean(kernel.mean1, columns),
        mean2=mean(kernel.mean2, columns),
        ntk_scaled=both(kernel.ntk_scaled),
        relative_error=kernel.relative_error + jnp.where(lost, 1, jnp.max(error)),
        within1=distance(self1, [tall(q) for q in of1], [wide(q) for q in of1])[0],
        within2=distance(self2, [tall(q) for q in of2], [wide(q) for q in of2])[0],
    )
