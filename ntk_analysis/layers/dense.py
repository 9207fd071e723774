"""Fully connected layer, straight or weight-centred."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ntk_analysis import gram
from ntk_analysis.kernel import Kernel, add_ntk, rounding, with_covariance
from ntk_analysis.layers.base import Params, Shape, SingleLayer, check_rank


@dataclass(frozen=True)
class Dense(SingleLayer):
    """y = sqrt(w_var / n) W x + sqrt(b_var) b, with W, b ~ N(0, 1) and n the fan-in.

    With `center`, every output unit's weights have their own mean over the fan-in subtracted (MimicNorm's weight mean),
    and the gain becomes w_var / (n - 1): n/(n - 1) makes the variance exact at every finite fan-in (Lemma 1). At
    infinite width W P phi = W (P phi), so the mean across channels leaves the kernel:
        K' = w_var (K - m m') + b_var,    Theta' = K' + w_var Theta.

    Attributes:
        width: number of output units.
        w_var: variance of the weights (sigma_w^2), >= 0.
        b_var: variance of the biases (sigma_b^2), >= 0; 0 means no bias parameters.
        center: subtract each unit's mean weight.
    """

    width: int
    w_var: float = 1.0
    b_var: float = 0.0
    center: bool = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"got width {self.width}, expected at least 1 unit")
        for name in ("w_var", "b_var"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"got {name}={value}, expected a finite variance >= 0")

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        fan_in = input_shape[-1]
        if self.center and fan_in < 2:
            raise ValueError(f"{self} cannot be centred over a fan-in of {fan_in}: one weight minus its mean is zero")
        w_key, b_key = jax.random.split(key)
        params = {"w": jax.random.normal(w_key, (fan_in, self.width))}
        if self.b_var > 0:
            params["b"] = jax.random.normal(b_key, (self.width,))
        return (*input_shape[:-1], self.width), params

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        check_rank(x, self)
        w, fan_in = params["w"], x.shape[-1]
        if self.center:
            w, fan_in = w - jnp.mean(w, axis=0, keepdims=True), fan_in - 1
        y = jnp.matmul(x, w, precision="highest") * (self.w_var / fan_in) ** 0.5
        return y + self.b_var**0.5 * params["b"][None, :] if self.b_var > 0 else y

    def kernel(self, kernel: Kernel) -> Kernel:
        if self.center and kernel.law == "inputs":
            raise NotImplementedError(
                f"{self} stands on the inputs: weight centering needs an activation before it. Leave the first layer "
                "straight (center=False), or subtract the mean of each input's features yourself"
            )
        covariance = kernel.covariance
        if self.center:
            covariance = gram.subtract_means(covariance, kernel.mean1[:, None], kernel.mean2[None, :])
        covariance = gram.add_constant(gram.scale(covariance, self.w_var), self.b_var)
        propagated = with_covariance(
            kernel,
            covariance,
            mean1=jnp.zeros_like(kernel.mean1),
            mean2=jnp.zeros_like(kernel.mean2),
            ntk_scaled=self.w_var * kernel.ntk_scaled,
            relative_error=kernel.relative_error + 4 * rounding(kernel),
            law="gaussian",
        )
        return add_ntk(propagated, covariance.value)
