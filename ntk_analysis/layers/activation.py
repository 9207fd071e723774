"""Elementwise activation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import jax

from ntk_analysis import activations, gram
from ntk_analysis.kernel import Kernel, rounding, with_covariance
from ntk_analysis.layers.base import Params, Shape, SingleLayer


@dataclass(frozen=True)
class Activation(SingleLayer):
    """y = phi(x); phi by name ("relu", "leaky_relu(0.2)", "gelu", ...) or any elementwise JAX function.

    At infinite width: second moments and means from the activation's dual, Theta' = E[phi'(u) phi'(v)] o Theta.
    """

    function: str | Callable[[jax.Array], jax.Array] | activations.Activation = "relu"

    def __post_init__(self) -> None:
        activations.get(self.function)  # an unknown name fails where it is written

    @property
    def activation(self) -> activations.Activation:
        """The function with its Gaussian facts."""
        return activations.get(self.function)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return input_shape, ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return self.activation(x)

    def kernel(self, kernel: Kernel) -> Kernel:
        if kernel.law != "gaussian":
            raise NotImplementedError(
                f"{self} needs Gaussian pre-activations, got units that are {kernel.law}: put a Dense layer before it"
            )
        phi, covariance = self.activation, kernel.covariance
        moment = gram.Covariance(
            phi.dual.second_moment(covariance.variance1),
            phi.dual.second_moment(covariance.variance2),
            phi.dual.cosine_distance(*covariance),
        )
        error = 4 * rounding(kernel) + _quadrature_error(phi)
        return replace(
            with_covariance(kernel, moment, law="activated"),
            mean1=phi.mean(kernel.variance1),
            mean2=phi.mean(kernel.variance2),
            ntk_scaled=kernel.ntk_scaled * phi.derivative_dual.at_distance(*covariance),
            relative_error=kernel.relative_error + error,
        )


@cache
def _quadrature_error(activation: activations.Activation) -> float:
    with jax.ensure_compile_time_eval():  # a number about the function, not part of the caller's program
        return activation.quadrature_error(1.0)
