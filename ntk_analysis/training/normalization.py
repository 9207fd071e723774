"""The normalisations that networks are trained with, as Flax NNX modules.

MimicNorm (2010.09278) is made of three pieces: centered weights, one last batch norm, and a scalar at the end of each
residual branch. Beside them stand SkipInit (De & Smith 2020) and Fixup (Zhang et al. 2019), which are for residual
networks only, batch norm, layer norm, group norm and weight standardisation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.activations.angles import safe_divide, safe_sqrt
from ntk_analysis.common.normalizations import RUNNING_VARIANCES, trained_name


@dataclass(frozen=True)
class Normalization:
    """The parts of a network's normalisation.

    Attributes:
        hidden: name of the module behind hidden layers: "none", "batch_norm", "layer_norm", "group_norm" or "shift"
            (Fixup's scalar biases).
        centered: whether weights start centered; training keeps them centered by `center_weights`.
        standardized: whether weights are standardised in every forward pass.
        last: whether a batch norm without affine parameters stands behind the read-out.
        scale: the scalar at the end of a residual branch: "none", "damped" (1/sqrt(l) in the paper), "zero" or "one".
        residual: whether the normalisation makes sense for residual networks only.
    """

    hidden: str = "none"
    centered: bool = False
    standardized: bool = False
    last: bool = False
    scale: str = "none"
    residual: bool = False


NORMALIZATIONS = {
    "none": Normalization(),
    "batch_norm": Normalization("batch_norm"),
    "layer_norm": Normalization("layer_norm"),
    "group_norm": Normalization("group_norm"),
    "weight_standardization": Normalization(standardized=True, scale="damped"),
    "weight_mean": Normalization(centered=True, scale="damped"),
    "last_bn": Normalization(last=True, scale="damped"),
    "mimic_norm": Normalization(centered=True, last=True, scale="damped"),
    "skip_init": Normalization(scale="zero", residual=True),
    "fixup": Normalization("shift", scale="one", residual=True),
}
"""Normalisations by name. `weight_mean` and `last_bn` are MimicNorm less one of its parts: in a residual network they
keep the scalars."""

GROUP = 16  # channels of a group, at least

SKIP_SCALES: dict[str, Callable[[int, int], float]] = {
    "paper": lambda block, convs: block**-0.5,
    "authors": lambda block, convs: 1.2**convs / block,
}
"""Law of the scalar of residual block l = 1, 2, ...: 1/sqrt(l) in the paper, but 1.2^2/l (two convolutions) or 1.2^3/l
(three) in the authors' code."""


class Identity(nnx.Module):
    """The module that stands where nothing is normalised; it ignores further arguments, meant for a removed norm."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        del args, kwargs
        return x


class BatchNorm(nnx.BatchNorm):
    """Flax's batch norm of the last axis, with a choice of the running variance.

    The variance is the mean of squared deviations. Flax's fast variance, a difference of two mean squares, loses all
    its digits in float32 where the mean is much larger than the deviation.

    Args:
        units: size of the last axis.
        momentum: momentum of the running statistics; 0.9 is what PyTorch calls 0.1.
        eps: number added to the variance.
        running_variance: name of the variance to remember, a key of `RUNNING_VARIANCES`.
        rngs: Flax's generators of random numbers; none is drawn.

    Raises:
        ValueError: running_variance is unknown.
    """

    def __init__(
        self,
        units: int,
        *,
        momentum: float = 0.9,
        eps: float = 1e-5,
        running_variance: str = "unbiased",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(units, momentum=momentum, epsilon=eps, use_fast_variance=False, rngs=rngs)
        self.running_variance = _known(running_variance)

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """The normalised x, in its shape (..., units).

        Raises:
            ValueError: there is one sample a unit while training, which would become 0.
        """
        kept = self.momentum * self.var[...]
        running = self.use_running_average if use_running_average is None else use_running_average
        if not running:
            _check_samples(x, "batch norm")
        y = super().__call__(x, use_running_average, mask=mask)
        if not running and self.running_variance == "unbiased":
            self.var[...] = kept + _bessel(self._samples(x, mask)) * (self.var[...] - kept)
        return y

    def _samples(self, x: jax.Array, mask: jax.Array | None) -> Any:
        if mask is None:
            return x.size // x.shape[-1]
        return jnp.sum(jnp.broadcast_to(mask, x.shape), tuple(range(x.ndim - 1)), dtype=self.var.dtype)


class LastBatchNorm(nnx.Module):
    """Batch norm of the logits without affine parameters: (x - mean) / sqrt(var + eps) of each class over the batch.

    `mean` and `var` are the running statistics; `batch_var` is the biased variance of the last batch trained on, by
    which that batch was divided. All are (classes,) float32 `nnx.BatchStat`s. `model.train()` and `model.eval()` switch
    between the batch and the running statistics. Variances are computed in float32 at least.

    Args:
        classes: size of the last axis.
        momentum: momentum of the running statistics; 0.9 is what PyTorch calls 0.1.
        eps: number added to the variance.
        running_variance: name of the variance to remember, a key of `RUNNING_VARIANCES`.
        use_running_average: whether to start in evaluation mode.

    Raises:
        ValueError: running_variance is unknown.
    """

    def __init__(
        self,
        classes: int,
        *,
        momentum: float = 0.9,
        eps: float = 1e-5,
        running_variance: str = "unbiased",
        use_running_average: bool | None = False,
    ) -> None:
        self.mean = nnx.BatchStat(jnp.zeros(classes, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(classes, jnp.float32))
        self.batch_var = nnx.BatchStat(jnp.ones(classes, jnp.float32))
        self.momentum = momentum
        self.eps = eps
        self.running_variance = _known(running_variance)
        self.use_running_average = use_running_average

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """The normalised logits (..., classes), in the dtype of x.

        Raises:
            ValueError: x has another number of classes, or there is one example while training, which would become 0.
        """
        (classes,) = self.mean.shape
        if x.ndim < 2 or x.shape[-1] != classes:
            raise ValueError(f"the last batch norm got shape {x.shape}: expected (batch, {classes})")
        running = self.use_running_average if use_running_average is None else use_running_average
        wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
        if running:
            mean, var = self.mean[...].astype(wide.dtype), self.var[...].astype(wide.dtype)
        else:
            _check_samples(x, "the last batch norm")
            mean = jnp.mean(wide, tuple(range(x.ndim - 1)))
            var = jnp.mean((wide - _row(mean, x.ndim)) ** 2, tuple(range(x.ndim - 1)))
            self._remember(mean, var, x.size // classes)
        normalized = (wide - _row(mean, x.ndim)) * jax.lax.rsqrt(_row(var, x.ndim) + self.eps)
        return normalized.astype(x.dtype)

    def _remember(self, mean: jax.Array, var: jax.Array, samples: int) -> None:
        mean, var = (jax.lax.stop_gradient(value.astype(jnp.float32)) for value in (mean, var))
        remembered = var * _bessel(samples) if self.running_variance == "unbiased" else var
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * remembered
        self.batch_var[...] = var


def _known(running_variance: str) -> str:
    if running_variance not in RUNNING_VARIANCES:
        raise ValueError(f"unknown running_variance {running_variance!r}: choose one of {', '.join(RUNNING_VARIANCES)}")
    return running_variance


def _check_samples(x: jax.Array, name: str) -> None:
    if x.size == x.shape[-1]:
        raise ValueError(f"{name} got one example while training: expected 2 or more, or .eval()")


def _bessel(samples: Any) -> Any:
    return samples / (samples - 1)


def _row(values: jax.Array, ndim: int) -> jax.Array:
    return values.reshape((1,) * (ndim - 1) + (-1,))


class SkipScale(nnx.Module):
    """A learnable scalar at the end of a residual branch."""

    def __init__(self, value: float) -> None:
        self.scale = nnx.Param(jnp.asarray(value, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...].astype(x.dtype)


class Shift(nnx.Module):
    """Fixup's learnable scalar bias, 0 at the start."""

    def __init__(self) -> None:
        self.shift = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.shift[...].astype(x.dtype)


class ShiftedConv(nnx.Conv):
    """A convolution with Fixup's scalar bias before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = Shift()

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return super().__call__(self.before(inputs), *args, **kwargs)


class ShiftedLinear(nnx.Linear):
    """A dense layer with Fixup's scalar bias before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.before = Shift()

    def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return super().__call__(self.before(inputs), *args, **kwargs)


def start_fixup(branches: Sequence[Sequence[nnx.Conv]], read_out: nnx.Linear) -> None:
    """Sets Fixup's initial weights in place: 0 for the last convolution of each of the L branches and for the read-out.

    The other convolutions of a branch of m are scaled by L^(-1/(2m - 2)) (Zhang et al. 2019).
    """
    for branch in branches:
        factor = len(branches) ** (-1 / (2 * len(branch) - 2))
        for conv in branch[:-1]:
            conv.kernel[...] = factor * conv.kernel[...]
        branch[-1].kernel[...] = jnp.zeros_like(branch[-1].kernel[...])
    read_out.kernel[...] = jnp.zeros_like(read_out.kernel[...])


@dataclass(frozen=True)
class Standardized:
    """A product with standardised weights: the weights of each unit have mean 0 and mean square gain/fan-in.

    Qiao et al. 2019, scaled as by Brock et al. 2021. Use it for `nnx.Conv(conv_general_dilated=...)` and
    `nnx.Linear(dot_general=...)`. Weights of a unit that are all equal become 0, with derivatives 0.

    Attributes:
        product: function of (inputs, weights, ...), with units on the weights' last axis.
        gain: gain as for initial weights; 2/(1 - 1/pi) behind a ReLU.
    """

    product: Callable[..., jax.Array]
    gain: float

    def __call__(self, inputs: jax.Array, weights: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        axes = tuple(range(weights.ndim - 1))
        # equal weights must not give the rounding of their mean, which would be standardised to 1
        equal = jnp.max(weights, axes, keepdims=True) == jnp.min(weights, axes, keepdims=True)
        centered = jnp.where(equal, 0, weights - jnp.mean(weights, axes, keepdims=True))
        norm = safe_sqrt(jnp.sum(centered**2, axes, keepdims=True))
        standardized = safe_divide(centered, norm, 0.0)
        return self.product(inputs, self.gain**0.5 * standardized, *args, **kwargs)


def hidden_norm(
    kind: str,
    units: int,
    *,
    rngs: nnx.Rngs,
    momentum: float = 0.9,
    eps: float = 1e-5,
    running_variance: str = "unbiased",
) -> Identity | BatchNorm | nnx.LayerNorm | nnx.GroupNorm | Shift:
    """The module behind a hidden layer, with features on the last axis.

    Args:
        kind: `Normalization.hidden`, or a name or alias of a normalisation; those of weights need no module here.
        units: size of the last axis.
        rngs: Flax's generators of random numbers; none is drawn.
        momentum: momentum of batch norm's running statistics.
        eps: number added to the variance. Layer norm is over the channels of each position, group norm over all
            positions and the channels of a group: as many equal groups as have 16 channels or more (Wu & He 2018).
        running_variance: name of the variance that batch norm remembers, a key of `RUNNING_VARIANCES`.

    Raises:
        ValueError: kind or running_variance is unknown.
    """
    if kind != "shift":
        kind = NORMALIZATIONS[trained_name(kind)].hidden
    match kind:
        case "none":
            return Identity()
        case "batch_norm":
            return BatchNorm(units, momentum=momentum, eps=eps, running_variance=running_variance, rngs=rngs)
        case "layer_norm":
            return nnx.LayerNorm(units, epsilon=eps, use_fast_variance=False, rngs=rngs)
        case "group_norm":
            groups = next(count for count in range(max(units // GROUP, 1), 0, -1) if units % count == 0)
            return nnx.GroupNorm(units, groups, epsilon=eps, use_fast_variance=False, rngs=rngs)
    return Shift()
