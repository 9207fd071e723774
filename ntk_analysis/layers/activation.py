"""Elementwise activation."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import activations, batch_norm
from ntk_analysis.activations.angles import no_second_derivative, safe_divide
from ntk_analysis.common.importable import PickledByName
from ntk_analysis.common.pytrees import Number, NumbersAsData, compiled_by_structure, has_traced_numbers
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.kernel import (
    BatchNormalized,
    Kernel,
    add_ntk,
    as_pairs,
    map_covariance,
    rounding,
    within_inputs,
)
from ntk_analysis.layers.base import Params, Shape, SingleLayer


@dataclass(frozen=True)
class Activation(PickledByName, SingleLayer):
    """y = phi(x); phi by name ("relu", "leaky_relu(0.2)", "gelu", ...) or any elementwise JAX function.

    At infinite width the second moments and means come from the activation's dual, and Theta' = E[phi'(u) phi'(v)] o
    Theta. Behind a `BatchNorm` the units are not Gaussian and its Jacobian couples the batch: see
    `batch_norm.propagate`.
    """

    function: str | Callable[[jax.Array], jax.Array] | activations.Activation = "relu"

    couples_batch = False

    def __post_init__(self) -> None:
        phi = activations.get(self.function)  # an unknown name fails where it is written
        if isinstance(phi, NumbersAsData) and (isinstance(self.function, str) or has_traced_numbers(phi)):
            object.__setattr__(self, "function", phi)  # a slope that is given by name is a number all the same

    @property
    def activation(self) -> activations.Activation:
        """The activation with its Gaussian expectations."""
        return activations.get(self.function)

    @property
    def homogeneous(self) -> bool:
        return self.activation.homogeneous

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return input_shape, ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return self.activation(x)

    def kernel(self, kernel: Kernel) -> Kernel:
        phi = self.activation
        if kernel.before is not None:
            return batch_normalized(kernel, kernel.before, phi, law="activated")
        if kernel.law != "gaussian":
            raise NotImplementedError(
                f"{self} needs Gaussian pre-activations, got units that are {kernel.law}: put a Dense layer before it"
            )

        found: list[activations.Joint] = []  # expectations of the pairs, and of positions within each side

        def moment(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
            del mean1, mean2
            found.append(phi.joint(*covariance))
            return covariances.Covariance(*found[-1].squares, found[-1].phi.distance)

        changed = map_covariance(kernel, moment, law="activated")
        pairs = found[0]
        slope = pairs.slope.value
        if phi.kinked:
            slope = no_second_derivative(slope, kernel.coincident())
        if phi.jumps:
            changed = replace(changed, distance=no_second_derivative(changed.distance, kernel.coincident()))
        worst = [jnp.max(safe_divide(of.phi.distance_error, of.phi.distance, 0.0)) for of in found]
        worst.append(jnp.max(pairs.slope.error))
        error = jax.lax.stop_gradient(functools.reduce(jnp.maximum, worst))
        return replace(
            changed,
            mean1=pairs.means[0].reshape(kernel.mean1.shape),
            mean2=pairs.means[1].reshape(kernel.mean2.shape),
            ntk_scaled=kernel.ntk_scaled * slope,
            relative_error=kernel.relative_error + 4 * rounding(kernel) + error,
        )


@functools.partial(compiled_by_structure, static=("phi", "eps", "training", "nodes"))
def _propagate(
    sigma: jax.Array,
    theta: jax.Array,
    apart: jax.Array,
    *,
    phi: activations.Activation,
    eps: Number,
    training: int | None,
    nodes: int | None,
) -> batch_norm.Propagated:
    """`batch_norm.propagate`, traced: it follows the ambient dtype and gives NaN where eager code raises an error."""
    weights = None if training is None else np.where(np.arange(len(sigma)) < training, 1 / training, 0.0)
    rule = None if nodes is None else batch_norm.FewNodes(nodes)
    return batch_norm.propagate(sigma, theta, phi, eps, apart=apart, weights=weights, rule=rule)


def batch_normalized(kernel: Kernel, before: BatchNormalized, phi: activations.Activation, **changes: object) -> Kernel:
    """Kernel of phi(gamma xhat + beta) at gamma = 1, beta = 0, for batch-normalised pre-activations xhat, `before`."""
    n, positions, places = len(kernel.variance1), kernel.positions, math.prod(kernel.positions)
    training = None if kernel.training is None else kernel.training * places
    result = _propagate(
        before.sigma,
        before.ntk_scaled,
        before.apart,
        phi=phi,
        eps=before.eps,
        training=training,
        nodes=kernel.nodes,
    )

    def pairs(matrix: jax.Array) -> jax.Array:
        return as_pairs(matrix, n, positions)

    # units are NaN where all inputs coincide: they become 0, as in the finite network; the tangent kernel stays NaN
    variance = jnp.nan_to_num(jnp.diagonal(result.nngp)).reshape(n, *positions)
    mean, distance = result.mean.reshape(n, *positions), pairs(result.distance)
    within = within_inputs(distance) if kernel.paired else None
    # new points take 2 from the rank
    quadrature = batch_norm.rule_error(n * places - 1 if training is None else training - 3)
    new = replace(
        kernel,
        variance1=variance,
        variance2=variance,
        distance=distance,
        mean1=mean,
        mean2=mean,
        ntk_scaled=pairs(result.pushed),
        within1=within,
        within2=within,
        relative_error=kernel.relative_error + 4 * rounding(kernel) + quadrature,
        before=None,
        **changes,  # type: ignore[arg-type]
    )
    # d/d gamma = phi'(xhat) xhat = phi(xhat) for a homogeneous phi, d/d beta = phi'(xhat)
    if before.train_scale:
        new = add_ntk(new, pairs(result.nngp))
    if before.train_shift:
        new = add_ntk(new, pairs(result.slope))
    return new
