"""What one block does to variance and correlation, and its correlation map T."""

import functools
import operator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from ntk_analysis.activations import Activation
from ntk_analysis.activations.angles import safe_divide
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import Real
from ntk_analysis.infinite import covariances
from ntk_analysis.meanfield.variance import NEARLY_ZERO


@dataclass(frozen=True)
class FixedPoint:
    """A correlation that a block maps to itself.

    Attributes:
        correlation: correlation rho* at the fixed point.
        slope: slope T'(rho*) of the map there.
        stable: whether nearby correlations approach it; at slope 1 the direction in which they move decides.
        distance: cosine distance 1 - rho*, to full relative precision where `correlation` rounds to 1.
    """

    correlation: float
    slope: float
    stable: bool
    distance: float


@dataclass(frozen=True)
class MeanField:
    """The maps of variance and correlation of one block, at the variance at which the layers settle.

    Attributes:
        activation: activation phi.
        normalization: name of the normalisation, "none" or "weight_mean".
        w_var: weight variance.
        b_var: bias variance.
        q_star: variance reached by iterating from q = 1; None if it grows without bound.
        chi_1: growth w_var E[phi'^2] at q_star, per layer, of a small perturbation and of the NTK's diagonal.
        chi_1_error: bound on the absolute error of chi_1, from quadrature and from q_star; 1e-13 for closed forms.
        variance_slope: slope dq'/dq at q_star. Above 1 the variance leaves q_star at the slightest perturbation. So it
            does for GELU at its stable gain (1.1441 straight, 1.0621 with weight centering): q = 1 is kept in exact
            arithmetic only.
        phase: "ordered" (chi_1 < 1), "chaotic" (chi_1 > 1), "critical" (equal within chi_1_error, which is at most
            1e-8) or "undecided" (equal within a larger error); None without q_star. Where q_star = 0 it still tells of
            chi_1, not of the scale-free map: they differ by the factor variance_slope.
        fixed_points: fixed points of `transition`, in ascending order; empty if every correlation is fixed, or if none
            is defined.
        correlation_length: length -1/ln|slope| at the stable fixed point, in layers; inf at slope 1, 0 at slope 0.
        scale_free: whether the activation is homogeneous, without bias and at its stable gain: then every q is fixed,
            and q_star = 1 stands for all.
        every_correlation_fixed: whether T(rho) = rho up to rounding.
        reason: reason why a field is None or `fixed_points` is empty; otherwise "".
    """

    activation: Activation
    normalization: str
    w_var: float
    b_var: float
    q_star: float | None = None
    chi_1: float | None = None
    chi_1_error: float | None = None
    variance_slope: float | None = None
    phase: str | None = None
    fixed_points: tuple[FixedPoint, ...] = ()
    correlation_length: float | None = None
    scale_free: bool = False
    every_correlation_fixed: bool = False
    reason: str = ""

    def transition_distance(self, distance: Real) -> Float64[np.ndarray, "..."] | float:
        """Cosine distance 1 - T(rho) as a function of 1 - rho in [0, 2]; T is to full relative precision near rho = 1.

        At q_star = 0 it is the limit q -> 0: for homogeneous activations the map normalised by the variance, else rho.

        Raises:
            ValueError: there is no bounded variance (the message is `reason`), or a distance is outside [0, 2].
        """
        if self.q_star is None or self.w_var == self.b_var == 0:
            raise ValueError(self.reason)
        before = concrete(distance, "distance").astype(np.float64)
        if not np.all((before >= 0) & (before <= 2)):
            raise ValueError(
                "got a correlation outside [-1, 1], expected E[uv] / sqrt(E[u^2] E[v^2]); clip rounding off"
            )
        after = before if self.every_correlation_fixed else evaluated(self, before)[0]
        return after if after.ndim else float(after)

    def transition(self, rho: Real) -> Float64[np.ndarray, "..."] | float:
        """Correlation T(rho) after the block; see `transition_distance` for the limits and errors."""
        return 1 - self.transition_distance(1 - concrete(rho, "rho").astype(np.float64))

    def trajectory(self, rho: Real, depth: Real) -> Float64[np.ndarray, "layers *batch"]:
        """Correlations rho, T(rho), T(T(rho)), ... after 0 to `depth` blocks, iterated in the cosine distance."""
        if isinstance(depth, float) or not np.issubdtype(np.asarray(depth).dtype, np.integer) or depth < 0:
            raise ValueError(f"got depth {depth}, expected an integer >= 0: the number of blocks")
        first = concrete(rho, "rho").astype(np.float64)
        distance, correlations = 1 - first, [first]
        self.transition_distance(distance)  # rejects numbers that are not correlations, at depth 0 too
        for _ in range(operator.index(depth)):  # type: ignore[arg-type]
            distance = np.asarray(self.transition_distance(distance))
            correlations.append(1 - distance)
        return np.stack(correlations)


AT_ONCE = 64  # number of distances in a call of `_move`


@functools.partial(jax.jit, static_argnames=("phi", "centered"))
def _move(
    phi: Activation, centered: bool, w: jax.Array, b: jax.Array, q: jax.Array, distance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cosine distance after the block, T' = w q E[phi' phi'] / (w V + b), and the distance's relative error."""
    found = phi.joint(q, q, distance)
    covariance = covariances.Covariance(*found.squares, found.phi.distance)
    error = safe_divide(found.phi.distance_error, found.phi.distance, 0.0)
    if centered:
        covariance = covariances.subtract_means(covariance, *found.means)
        error = error * safe_divide(found.squares[0], covariance.variance1, 1.0)
    bias = covariances.Covariance(b, b, jnp.zeros_like(distance))
    after = covariances.add(covariances.scale(covariance, w), bias)
    slope = w * q * found.slope.value / after.variance1
    return after.distance, slope, jnp.broadcast_to(error, slope.shape)


def evaluated(block: MeanField, distance: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine distances after the block, slopes there and relative errors of quadrature, at q_star.

    At q_star = 0 they are the limits q -> 0.
    """
    q = block.q_star or (1.0 if block.activation.homogeneous else NEARLY_ZERO)
    flat = np.asarray(distance, np.float64).reshape(-1)
    padded = np.append(flat, np.ones(-len(flat) % AT_ONCE)).reshape(-1, AT_ONCE)  # one program for any number
    with jax.enable_x64(True):
        numbers = [jnp.asarray(x, jnp.float64) for x in (block.w_var, block.b_var, q)]
        rows = [_move(block.activation, block.normalization == "weight_mean", *numbers, row) for row in padded]
    after, slope, error = (np.concatenate(x)[: len(flat)].reshape(np.shape(distance)) for x in zip(*rows, strict=True))
    return after, slope, error
