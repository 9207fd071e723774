"""Batch normalisation, and normalisations of each input by itself: layer, group and root mean square."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ntk_analysis import activations
from ntk_analysis.activations.angles import safe_divide, safe_sqrt
from ntk_analysis.batch_norm.checks import check_eps
from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.pytrees import Number
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.kernel import (
    MOST_DIMENSIONS,
    BatchNormalized,
    Kernel,
    as_one_batch,
    divided,
    map_covariance,
    rounding,
)
from ntk_analysis.layers.activation import batch_normalized
from ntk_analysis.layers.base import Params, Shape, SingleLayer


def _standardize(x: jax.Array, axis: int | tuple[int, ...], eps: Number) -> jax.Array:
    check_eps(eps)
    centered = x - jnp.mean(x, axis=axis, keepdims=True)
    deviation = safe_sqrt(jnp.mean(centered**2, axis=axis, keepdims=True) + eps)
    return safe_divide(centered, deviation, 0.0)  # a constant channel becomes 0, not NaN


@dataclass(frozen=True)
class _Normalization(SingleLayer):
    """The parts that the normalisations share: eps, and no parameters unless a class has some.

    Attributes:
        eps: number added to the variance.
    """

    eps: Number = 0.0

    def __post_init__(self) -> None:
        check_eps(self.eps)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return input_shape, ()


@dataclass(frozen=True)
class BatchNorm(_Normalization):
    """gamma (x - mean) / sqrt(var + eps) + beta of each unit over the batch (and positions), with the biased variance.

    A unit that is constant over the batch becomes 0. At infinite width the kernel is that of one joint batch, exact at
    every batch size, before an activation that is piecewise linear with its kink at 0; see `batch_norm`. For a network
    that predicts, mean and variance are those of the training batch: `infinite_kernel(..., statistics="x1")`.

    On images the batch of a channel is the M = images x positions numbers that it has on all of them. They are jointly
    Gaussian over channels, so the formulas of vectors hold for the (M, M) kernel of all pairs of positions.

    Attributes:
        eps: number added to the variance.
        train_scale: whether gamma, 1 at the start, is a parameter; else it is 1.
        train_shift: whether beta, 0 at the start, is a parameter; else it is 0.
    """

    train_scale: bool = False
    train_shift: bool = False

    couples_batch = True
    pairs_positions = True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        params = {}
        if self.train_scale:
            params["gamma"] = jnp.ones(input_shape[-1])
        if self.train_shift:
            params["beta"] = jnp.zeros(input_shape[-1])
        return input_shape, params or ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        if not 2 <= x.ndim <= 2 + MOST_DIMENSIONS:
            raise ValueError(
                f"{self} expects (batch, features) or (batch, *positions, channels) with one to three axes of "
                f"positions, got shape {tuple(x.shape)}: x.reshape(len(x), -1) flattens"
            )
        if x.shape[0] < 2:
            raise ValueError(f"{self} needs a batch of at least 2 inputs, got {x.shape[0]}")
        y = _standardize(x, tuple(range(x.ndim - 1)), self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        if self.train_scale:
            y = y * params["gamma"].reshape(shape)
        return y + params["beta"].reshape(shape) if self.train_shift else y

    def kernel(self, kernel: Kernel) -> Kernel:
        if kernel.positions and not kernel.paired:
            raise ValueError(f"{self} on images needs the kernel at all pairs of positions: input_kernel(paired=True)")
        if not kernel.joint:
            raise NotImplementedError(
                f"the kernel of {self} is that of one joint batch, whose inputs share their statistics: x1 against "
                "another x2 would need two batches with their own. Compute the kernel of both together (x2=None), or, "
                'where x2 is behind the statistics of x1 as in prediction, use infinite_kernel(..., statistics="x1")'
            )
        if kernel.training == 1 and math.prod(kernel.positions) == 1:
            raise ValueError(
                f"{self} needs a training batch of at least 2 inputs, got 1: its statistics have no variance"
            )
        if kernel.law != "gaussian":
            after = " behind an activation see batch_norm.after_activation;" if kernel.law == "activated" else ""
            raise NotImplementedError(
                f"{self} needs Gaussian pre-activations, got units that are {kernel.law}:{after} put a Dense layer "
                "before it"
            )
        deviation = safe_sqrt(kernel.variance1).reshape(-1)
        distance = as_one_batch(kernel.distance)
        before = BatchNormalized(
            sigma=as_one_batch(kernel.covariance.value),
            apart=(deviation[:, None] - deviation[None, :]) ** 2
            + 2 * deviation[:, None] * deviation[None, :] * distance,
            ntk_scaled=as_one_batch(kernel.ntk_scaled),
            eps=self.eps,
            train_scale=self.train_scale,
            train_shift=self.train_shift,
        )
        linear = batch_normalized(kernel, before, activations.get("identity"), law="batch normalized")
        return replace(linear, before=before)


@dataclass(frozen=True)
class LayerNorm(_Normalization):
    """(x - mean) / sqrt(var + eps) of each input over its units (of each position over its channels).

    The variance is biased, and there are no affine parameters; an input whose units are all equal becomes 0. At
    infinite width, with mean m and variance v across channels, K' = (K - m m') / sqrt((v + eps)(v' + eps)), and Theta'
    = Theta / the same root, because the Jacobian projects away only one direction of many. Behind a ReLU the
    correlation map of the pair is that of weight centering, T_bar.

    Attributes:
        eps: number added to the variance.
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return _standardize(x, -1, self.eps)

    def kernel(self, kernel: Kernel) -> Kernel:
        _check_law(kernel, self)

        def normalize(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
            centered = covariances.subtract_means(covariance, mean1, mean2)
            kept1, kept2 = (safe_divide(q, q + self.eps, 0.0) for q in (centered.variance1, centered.variance2))
            return covariances.Covariance(kept1, kept2, centered.distance)

        covariance, mean1, mean2 = kernel.covariance, kernel.rows(kernel.mean1), kernel.columns(kernel.mean2)
        centered = covariances.subtract_means(covariance, mean1, mean2)
        deviations = safe_sqrt(centered.variance1 + self.eps) * safe_sqrt(centered.variance2 + self.eps)
        return map_covariance(
            kernel,
            normalize,
            ntk_scaled=safe_divide(kernel.ntk_scaled, deviations, 0.0),
            mean1=jnp.zeros_like(kernel.mean1),
            mean2=jnp.zeros_like(kernel.mean2),
            relative_error=kernel.relative_error + 4 * rounding(kernel),
            law="gaussian" if kernel.law == "gaussian" else "activated",
        )


@dataclass(frozen=True)
class RMSNorm(_Normalization):
    """x / sqrt(mean(x^2) + eps) of each input over its units, of each position over its channels.

    Zhang & Sennrich 2019, without affine parameters; an input of zeros stays one. At infinite width, with q the second
    moment, K' = K / sqrt((q + eps)(q' + eps)) and Theta' = Theta / the same root: `LayerNorm` without the means.

    Attributes:
        eps: number added to the mean square.
    """

    couples_batch = False

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_eps(self.eps)
        return safe_divide(x, safe_sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.eps), 0.0)

    def kernel(self, kernel: Kernel) -> Kernel:
        _check_law(kernel, self)
        return divided(kernel, safe_sqrt(kernel.variance1 + self.eps), safe_sqrt(kernel.variance2 + self.eps))


@dataclass(frozen=True)
class GroupNorm(_Normalization):
    """(x - mean) / sqrt(var + eps) of each input within groups of units, over all positions (Wu & He 2018).

    The variance is biased, and there are no affine parameters; a group whose units are all equal becomes 0. At infinite
    width a group's mean and variance are those of all channels. On vectors the kernel is `LayerNorm`'s; on images, with
    v the mean of K(p, p) over positions, K' = K / sqrt((v + eps)(v' + eps)) and Theta' = Theta / the same root, for
    pre-activations, whose means are 0.

    Attributes:
        eps: number added to the variance.
        groups: number of groups, a divisor of the number of units; the infinite-width kernel does not depend on it.
    """

    groups: int = 32

    couples_batch = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number(self.groups, "groups")

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        if input_shape[-1] % self.groups:
            raise ValueError(f"{self} needs a number of units that its groups divide, got {input_shape[-1]}")
        return super().init(key, input_shape)

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        return _standardize(grouped, (*range(1, x.ndim - 1), x.ndim), self.eps).reshape(x.shape)

    def kernel(self, kernel: Kernel) -> Kernel:
        if not kernel.positions:
            return LayerNorm(self.eps).kernel(kernel)
        if kernel.law != "gaussian":
            raise NotImplementedError(
                f"{self} on images needs Gaussian pre-activations, got units that are {kernel.law}: put a Conv layer "
                "before it"
            )
        one, other = (
            safe_sqrt(jnp.broadcast_to(jnp.mean(q, axis=tuple(range(1, q.ndim)), keepdims=True) + self.eps, q.shape))
            for q in (kernel.variance1, kernel.variance2)
        )
        return divided(kernel, one, other)


def _check_law(kernel: Kernel, layer: object) -> None:
    if kernel.law == "inputs":
        raise NotImplementedError(
            f"{layer} stands on the inputs, which have no law over their features: standardise them yourself, or put a "
            "Dense layer before it"
        )


@dataclass(frozen=True)
class LastBatchNorm(_Normalization):
    """The batch normalisation after the read-out of a MimicNorm network: no affine parameters, biased variance.

    Attributes:
        eps: number added to the variance.
    """

    couples_batch = True

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        return BatchNorm(self.eps).compute(params, x)

    def kernel(self, kernel: Kernel) -> Kernel:
        raise NotImplementedError(
            "a last BatchNorm has no kernel of the inputs alone: it depends on the outputs drawn. Compute the kernel "
            "without it (last_batch_norm=False) and apply last_batch_norm.ntk(theta, outputs, eps) to it; new points "
            "behind a training batch have weights=0 there"
        )
