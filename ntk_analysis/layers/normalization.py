"""Batch normalisation and layer normalisation, finite networks; their infinite-width kernels are not here yet."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ntk_analysis.gaussian import safe_divide, safe_sqrt
from ntk_analysis.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_rank


def _standardize(x: jax.Array, axis: int, eps: float) -> jax.Array:
    centered = x - jnp.mean(x, axis=axis, keepdims=True)
    deviation = safe_sqrt(jnp.mean(centered**2, axis=axis, keepdims=True) + eps)
    return safe_divide(centered, deviation, 0.0)  # a constant channel becomes 0, not NaN


@dataclass(frozen=True)
class _Normalization(SingleLayer):
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"got eps={self.eps}, expected a finite number >= 0")

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return input_shape, ()

    def kernel(self, kernel: Kernel) -> Kernel:
        raise NotImplementedError(
            f"the infinite-width kernel of {type(self).__name__} is not implemented yet: use its finite side (init, "
            'apply), or normalization="none" or "weight_mean" for kernels'
        )


@dataclass(frozen=True)
class BatchNorm(_Normalization):
    """(x - mean) / sqrt(var + eps) of each unit over the batch: biased variance, no affine parameters.

    A unit that is constant over the batch becomes 0.
    """

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        check_rank(x, self)
        if x.shape[0] < 2:
            raise ValueError(f"{self} needs a batch of at least 2 inputs, got {x.shape[0]}")
        return _standardize(x, 0, self.eps)


@dataclass(frozen=True)
class LayerNorm(_Normalization):
    """(x - mean) / sqrt(var + eps) of each input over its units: biased variance, no affine parameters.

    An input whose units are all equal becomes 0.
    """

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return _standardize(x, -1, self.eps)


@dataclass(frozen=True)
class LastBatchNorm(BatchNorm):
    """The BatchNorm after the read-out of a MimicNorm network: on (batch, outputs), no affine parameters."""

    def kernel(self, kernel: Kernel) -> Kernel:
        raise NotImplementedError(
            "a last BatchNorm has no kernel of the inputs alone: it depends on the outputs drawn. Compute the kernel "
            "without it (last_batch_norm=False) and apply last_batch_norm.ntk(theta, outputs, eps) to it"
        )
