"""The integrals over the Laplace parameter s; formulas in the head of the package."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis import activations
from ntk_analysis.activations import Activation, PiecewiseLinear
from ntk_analysis.batch_norm.checks import check_covariance, check_eps, check_rank, checked, rank_of, rounding_of
from ntk_analysis.batch_norm.damping import Matrix, center, damped, eigen, half_log_det, matmul
from ntk_analysis.gaussian import geometric_mean, into_range, safe_divide, safe_sqrt
from ntk_analysis.precision import AnyArray, HeldArray, Real, float_array, is_traced, numpy_in_float64

Square: TypeAlias = Float[AnyArray, "B B"]
HeldSquare: TypeAlias = Float[HeldArray, "B B"]


class Rule(NamedTuple):
    """Double-exponential quadrature: s = exp((pi/2) sinh t) / (B - 1) at t = -reach, -reach + step, ..., reach."""

    step: float
    reach: float


COARSE = Rule(1 / 8, 3.6)
FINE = Rule(1 / 16, 4.4)
FINEST = Rule(1 / 64, 4.4)


def automatic(rank: int, eps: float) -> Rule:
    """The rule for this rank and eps, see `nngp`."""
    return (COARSE, FINE, FINEST)[(eps > 0) + (rank <= 3)]


class Moments(NamedTuple):
    """Second moments at one node: the damped covariance kappa and what Gaussians of that covariance give."""

    kappa: Matrix
    value: Matrix
    slope: Matrix
    bend: Matrix


def nngp(
    sigma: Square, activation: str | Activation = "relu", eps: float = 0.0, *, rule: Rule | None = None
) -> HeldSquare:
    """NNGP kernel E[phi(BN(x)) phi(BN(x))^T] of a batch x ~ N(0, sigma) (Yang et al. 2019, 1902.08129), exact.

    At eps = 0 it does not change when sigma is scaled, and its trace is (a^2 + b^2) B for phi(x) = a x + b |x|.

    Args:
        sigma: (B, B) covariance of the pre-activations over the batch; symmetric, positive semi-definite.
        activation: name or `Activation`, piecewise linear with a kink at 0 at most.
        eps: added to the biased batch variance.
        rule: quadrature rule; None chooses by eps and rank(G sigma G), B - 1 under a trace: COARSE, FINE for
            eps > 0 or rank <= 3, FINEST for both (the integrand decays slowly up to s = 1/(B eps)). Relative errors for
            eigenvalues of one order of magnitude: 1e-9, 1e-11, 1e-12 (4e-9 for `push` at B = 2); 2e-8 with COARSE for
            three large eigenvalues among small ones. `quadrature_error` measures it.

    Raises:
        NotImplementedError: the activation is not positively homogeneous.
        ValueError: sigma is no covariance matrix, or all inputs coincide.
    """
    return _dispatch(_nngp, (sigma,), activation, eps, rule, needed=1)


def push(
    sigma: Square, theta: Square, activation: str | Activation = "relu", eps: float = 0.0, *, rule: Rule | None = None
) -> HeldSquare:
    """Tangent kernel behind BN and phi: E[J theta J^T], J = d phi(BN(x)) / dx, x ~ N(0, sigma); linear in theta.

    At eps = 0, push(c sigma, theta) = push(sigma, theta) / c, and rank(G sigma G) >= 3 is needed: E[1/|G x|^2] is
    infinite otherwise. So B >= 4; duplicated inputs are legal while the rank suffices.

    Args:
        sigma: (B, B) covariance of the pre-activations over the batch; symmetric, positive semi-definite.
        theta: (B, B) tangent kernel of the pre-activations; symmetric.
        activation: as in `nngp`.
        eps: added to the biased batch variance.
        rule: as in `nngp`.

    Raises:
        NotImplementedError: the activation is not positively homogeneous.
        ValueError: sigma is no covariance matrix or of too small a rank, theta does not fit, or an input lies at the
            mean of the batch, on the kink of phi.
    """
    return _dispatch(_push, (sigma, theta), activation, eps, rule, needed=3)


def pull(
    sigma: Square,
    cotangent: Square,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    rule: Rule | None = None,
) -> HeldSquare:
    """Adjoint of `push` in theta: <push(sigma, theta), M> = <theta, pull(sigma, M)> for symmetric M, in one pass.

    With D = M o E + diag_i(sum_j M_ij N_ij / kappa_ii) and the symbols of this module's head:
        pull(M) = B Int delta G { M o E + (<M, V> kappa + 2 kappa D kappa) / 2 - kappa D - D kappa } G ds,
    where the term kappa D kappa already stands in units of s^2. Arguments and errors are those of `push`.
    """
    return _dispatch(_pull, (sigma, cotangent), activation, eps, rule, needed=3)


def quadrature_error(
    sigma: Square,
    theta: Square | None = None,
    activation: str | Activation = "relu",
    eps: float = 0.0,
    *,
    rule: Rule | None = None,
) -> float:
    """Measured quadrature error of `nngp`, or of `push` where theta is given, relative to the largest entry.

    The largest change of an entry under half the step and a longer reach, whose own error is far below. Outside
    JAX transformations only.
    """
    array = checked(sigma, "sigma")
    chosen = rule or automatic(rank_of(array, rounding_of(np.asarray(sigma))), eps)
    finer = Rule(chosen.step / 2, chosen.reach + 0.2)
    pair = [
        nngp(sigma, activation, eps, rule=r) if theta is None else push(sigma, theta, activation, eps, rule=r)
        for r in (chosen, finer)
    ]
    return float(np.max(np.abs(pair[0] - pair[1])) / np.max(np.abs(pair[1])))


def large_batch_nngp(sigma: Square, activation: str | Activation = "relu", eps: float = 0.0) -> HeldSquare:
    """Approximation of `nngp` for large batches, any activation: E[phi phi^T] under N(0, S/(v + eps)), v = tr(S)/B.

    The batch variance is replaced by its mean. Largest error of an entry for ReLU
    at eps = 0, B = 8, 32, 256: 3.6e-2, 1.5e-2, 1.8e-3 for Sigma = exp(-|i - j|/3) + I/2; 9e-2, 1.5e-2, 7e-4 for one
    Wishart draw with 2 B features; none for equicorrelated inputs. Arguments and errors as in `nngp`.
    """
    phi = activations.get(activation)
    check_eps(eps)
    if is_traced(sigma):
        return _large_batch(float_array(sigma), eps, phi=phi)
    array: Any = checked(sigma, "sigma")
    check_covariance(array, 1, rounding_of(np.asarray(sigma)))
    return numpy_in_float64(_large_batch)(array, eps, phi=phi)


@functools.partial(jax.jit, static_argnames="phi")
def _large_batch(sigma: Matrix, eps: Real, *, phi: Activation) -> Matrix:
    covariance = center(sigma)
    scale = jnp.trace(covariance) / len(sigma) + eps
    q, distance = _angles(covariance / scale, _apart(sigma, rounding_of(sigma)) / scale)
    return phi.dual.at_distance(q[:, None], q[None, :], distance)


Compute: TypeAlias = Callable[..., Any]


def _dispatch(
    compute: Compute, arrays: tuple[Any, ...], activation: str | Activation, eps: float, rule: Rule | None, needed: int
) -> Any:
    """Checks that the trace allows, then `compute` in the ambient dtype under a trace and in float64 outside."""
    phi = activations.get(activation)
    if not isinstance(phi, PiecewiseLinear):
        raise NotImplementedError(
            f"batch normalisation before {phi.name!r} has no one-dimensional integral: use a positively homogeneous "
            "activation (relu, leaky_relu, abs, identity), or large_batch_nngp for the NNGP at large batches"
        )
    check_eps(eps)
    needed = needed if eps == 0 else 1
    if is_traced(arrays):
        traced = [float_array(array) for array in arrays]
        B = len(traced[0])
        check_rank(B - 1, B, needed)
        rule = rule or automatic(B - 1, eps)
        return compute(*traced, eps, rounding_of(traced[0]), phi=phi, rule=rule, needed=needed)
    sigma, *others = (checked(a, name) for a, name in zip(arrays, ("sigma", "theta or cotangent"), strict=False))
    if any(other.shape != sigma.shape for other in others):
        raise ValueError(f"sigma has shape {sigma.shape}, theta or cotangent {others[0].shape}: they must be the same")
    rounding = rounding_of(np.asarray(arrays[0]))
    check_covariance(sigma, needed, rounding, kink=bool(others) and phi.bent != 0)
    rule = rule or automatic(rank_of(sigma, rounding), eps)
    return numpy_in_float64(compute)(sigma, *others, eps, rounding, phi=phi, rule=rule, needed=needed)


_compiled = functools.partial(jax.jit, static_argnames=("phi", "rule", "needed"))


@_compiled
def _nngp(sigma: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int) -> Matrix:
    def integrand(moments: Moments) -> jax.Array:
        return moments.value

    return _integrate(integrand, sigma, eps, rounding, phi, rule, needed, power=0)


@_compiled
def _push(
    sigma: Matrix, theta: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int
) -> Matrix:
    T = center(theta)

    def integrand(moments: Moments) -> jax.Array:
        kappa, value, slope, bend = moments
        left = matmul(kappa, T)
        both = matmul(left, kappa)
        moved = both - left - left.T  # P - T
        a = safe_divide(jnp.diagonal(moved), 2 * jnp.diagonal(kappa), 0.0)
        return slope * (T + moved) + bend * (a[:, None] + a[None, :]) + jnp.trace(left) / 2 * value

    return _integrate(integrand, sigma, eps, rounding, phi, rule, needed, power=1)


@_compiled
def _pull(
    sigma: Matrix, cotangent: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int
) -> Matrix:
    M = (cotangent + cotangent.T) / 2

    def integrand(moments: Moments) -> jax.Array:
        kappa, value, slope, bend = moments
        L = M * slope
        D = L + jnp.diag(safe_divide(jnp.sum(M * bend, axis=1), jnp.diagonal(kappa), 0.0))
        left = matmul(kappa, D)
        return L + jnp.sum(M * value) / 2 * kappa + matmul(left, kappa) - left - left.T

    return center(_integrate(integrand, sigma, eps, rounding, phi, rule, needed, power=1))


def _integrate(
    integrand: Callable[[Moments], jax.Array],
    sigma: Matrix,
    eps: Real,
    rounding: Real,
    phi: PiecewiseLinear,
    rule: Rule,
    needed: int,
    power: int,
) -> Matrix:
    """B Int delta integrand s^(power - 1) ds, in units where the mean eigenvalue of S on the zero-mean space is 1."""
    B = len(sigma)
    covariance = center((sigma + sigma.T) / 2)
    mean = jnp.trace(covariance) / (B - 1)
    covariance = covariance / mean
    apart = _apart(sigma, rounding) / mean
    values, vectors = eigen(covariance, B * rounding * jnp.max(jnp.diagonal(sigma)) / mean)
    t = np.arange(-rule.reach, rule.reach + rule.step / 2, rule.step)
    log_s = (np.pi / 2) * np.sinh(t) - np.log(B - 1)
    log_measure = np.log(rule.step * (np.pi / 2) * np.cosh(t)) + power * log_s

    def add(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        s, log_weight = node
        weight = jnp.exp(log_weight - half_log_det(covariance, values, vectors, s) - s * (B * eps / mean))
        kappa = damped(covariance, values, vectors, s)
        return total + weight * integrand(_moments(kappa, s * apart, phi)), None

    nodes = (jnp.asarray(np.exp(log_s), sigma.dtype), jnp.asarray(log_measure, sigma.dtype))
    total, _ = jax.lax.scan(add, jnp.zeros_like(sigma), nodes)
    rank = jnp.sum(values > 0)
    return jnp.where(rank >= needed, B * total / mean**power, jnp.nan)


def _moments(kappa: Matrix, apart: Matrix, phi: PiecewiseLinear) -> Moments:
    q, distance = _angles(kappa, apart)
    row, column = q[:, None], q[None, :]
    sine = safe_sqrt(distance * (2 - distance))
    bend = (2 / math.pi) * phi.bent**2 * geometric_mean(row, column) * sine
    slope = phi.derivative_dual.at_distance(row, column, distance)
    return Moments(kappa, phi.dual.at_distance(row, column, distance), slope, bend)


def _angles(covariance: Matrix, apart: Matrix) -> tuple[Float[jax.Array, " B"], Matrix]:
    """Variances, and cosine distances from |z_i - z_j|^2, which damping can only make smaller than `apart`.

    So duplicates are exactly 0 apart. Near-duplicates keep what the entries of a covariance hold of them, a relative
    rounding/distance; nearly opposite inputs are at the right angle up to sqrt(rounding), 1e-8.
    """
    q = jnp.maximum(jnp.diagonal(covariance), 0)
    root = safe_sqrt(q)
    squared = jnp.minimum(q[:, None] + q[None, :] - 2 * covariance, apart)
    lost = squared - (root[:, None] - root[None, :]) ** 2
    return q, into_range(safe_divide(lost, 2 * root[:, None] * root[None, :], 1.0))


def _apart(sigma: Matrix, rounding: Real) -> Matrix:
    """Var[x_i - x_j], which centring leaves alone; 0 where the entries of sigma cannot tell it from 0."""
    q = jnp.diagonal(sigma)
    total = q[:, None] + q[None, :]
    squared = total - sigma - sigma.T
    return jnp.where(squared > rounding * total / 2, squared, 0)
