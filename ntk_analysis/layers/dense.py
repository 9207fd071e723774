"""Fully connected layer: straight, weight-centered or weight-standardised."""

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from ntk_analysis.common.pytrees import Number, is_known
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_rank
from ntk_analysis.layers.weights import Weights, check_weights


@dataclass(frozen=True)
class Dense(SingleLayer):
    """y = sqrt(w_var / n) W x + sqrt(b_var) b, with W, b ~ N(0, 1) and n the fan-in.

    With `center`, the weights of every output unit have their mean over the fan-in subtracted (MimicNorm's weight
    mean), and the gain becomes w_var / (n - 1): n/(n - 1) makes the variance exact at every finite fan-in (Lemma 1). At
    infinite width W P phi = W (P phi), so the mean across channels leaves the kernel:
        K' = w_var (K - m m') + b_var,    Theta' = K' + w_var Theta.
    With `standardize` the weights are centered and scaled to mean square 1 (weight standardisation; Qiao et al. 2019;
    Brock et al. 2021). The norm of n weights is then fixed, which takes one direction of n from their change, so that
    at infinite width nothing distinguishes it from centering.

    Rates other than 1 are another parametrisation: the parameters are W / sqrt(w_rate) and b / sqrt(b_rate), which
    leaves the network at initialisation as it is and multiplies what its gradients give to the NTK,
        Theta' = w_rate (K' - b_var) + b_rate b_var + w_var Theta.
    Gradient descent then is that of the NTK parametrisation with these factors of the learning rate, layer by layer.
    `networks.parametrized` sets them for the standard and the mean-field parametrisation.

    Attributes:
        width: number of output units.
        w_var: variance of the weights (sigma_w^2), >= 0.
        b_var: variance of the biases (sigma_b^2), >= 0; 0 means no bias parameters.
        center: whether each unit's mean weight is subtracted.
        standardize: whether it is subtracted and the weights are divided by their standard deviation.
        w_rate: factor > 0 of the learning rate of the weights.
        b_rate: factor > 0 of the learning rate of the biases.
    """

    width: int
    w_var: Number = 1.0
    b_var: Number = 0.0
    _: KW_ONLY
    center: bool = False
    standardize: bool = False
    w_rate: Number = 1.0
    b_rate: Number = 1.0

    def __post_init__(self) -> None:
        check_weights(self.width, self.weights)

    @property
    def weights(self) -> Weights:
        """The gains of this layer and its operation on each unit's weights."""
        return Weights(self.w_var, self.b_var, self.center, self.standardize, self.w_rate, self.b_rate)

    couples_batch = False
    ends_in_weights = True

    @property
    def homogeneous(self) -> bool:
        return is_known(self.b_var) and self.b_var == 0

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        params = self.weights.init(key, (input_shape[-1], self.width), self)
        return (*input_shape[:-1], self.width), params

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        check_rank(x, self)
        return self.weights.apply(params, lambda w: jnp.matmul(x, w, precision="highest"))

    def kernel(self, kernel: Kernel) -> Kernel:
        if kernel.positions:
            raise ValueError(
                f"{self} expects vectors, got images of {kernel.positions} positions: put Flatten() or "
                "GlobalAvgPool() before it"
            )
        return self.weights.kernel(kernel, self)
