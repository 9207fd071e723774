"""The integrals over the Laplace parameter s; formulas in the head of the package."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ntk_analysis.activations import PiecewiseLinear
from ntk_analysis.activations.angles import no_derivative, safe_divide, safe_sqrt
from ntk_analysis.batch_norm.checks import centered_covariance, rounding_limit
from ntk_analysis.batch_norm.damping import Matrix, center, damped, eigen, half_log_det, matmul
from ntk_analysis.batch_norm.rules import Rule, nodes_and_log_weights
from ntk_analysis.batch_norm.separation import (
    CloseInputs,
    close_inputs,
    cosine_distances,
    damped_apart,
    entries_apart,
)
from ntk_analysis.common.precision import HeldArray, Real
from ntk_analysis.common.pytrees import compiled_by_structure

Result = TypeVar("Result")
Vector = Float[jax.Array, " B"]


class Propagated(NamedTuple):
    """Kernels of a batch behind a batch-normalised layer: y = phi(xhat), xhat = BN(x), J = dy/dx.

    Attributes:
        nngp: second moments E[y y^T], (B, B).
        distance: cosine distance 1 - nngp_ij / sqrt(nngp_ii nngp_jj), (B, B), to a relative rounding/sqrt(distance) if
            `apart` was given, else rounding/distance; exactly 0 between duplicates.
        pushed: tangent kernel E[J theta J^T], (B, B).
        mean: mean E[y_i] over neurons, (B,).
        slope: products of slopes E[phi'(xhat_i) phi'(xhat_j)], (B, B).
    """

    nngp: Float[HeldArray, "B B"]
    distance: Float[HeldArray, "B B"]
    pushed: Float[HeldArray, "B B"]
    mean: Float[HeldArray, " B"]
    slope: Float[HeldArray, "B B"]


class Batch(NamedTuple):
    """A batch in units in which the mean eigenvalue of S on the zero-mean space is 1; `unit` is its size before that.

    Attributes:
        S: centered covariance; `values` and `vectors` are its eigenvalues and eigenvectors on the zero-mean space.
        apart: variances Var[x_i - x_j].
        close: near-duplicates, for which `apart` says more than the entries of S; None without `apart`.
        floor: number eps times B that is added to |G x|^2.
        rank: number of eigenvalues above rounding.
        on_kink: whether an input is the mean of its batch, within rounding.
    """

    S: Matrix
    values: jax.Array
    vectors: jax.Array
    apart: Matrix
    close: CloseInputs | None
    floor: jax.Array
    unit: jax.Array
    rank: jax.Array
    on_kink: Bool[jax.Array, ""]


class Moments(NamedTuple):
    """Second moments at one node: of Gaussians z with the damped covariance kappa, and of y = phi(z).

    Attributes:
        s: node of the quadrature.
        kappa: damped covariance, (B, B).
        size: root mean squares sqrt E[y_i^2], (B,).
        distance: cosine distances of y, (B, B).
        slope: products of slopes E[phi'(z_i) phi'(z_j)], (B, B).
        bend: matrix N in the package's head, (B, B).
    """

    s: jax.Array
    kappa: Matrix
    size: Vector
    distance: Matrix
    slope: Matrix
    bend: Matrix

    @property
    def value(self) -> Matrix:
        """Second moments E[y_i y_j]."""
        return self.size[:, None] * self.size[None, :] * (1 - self.distance)


_compiled = functools.partial(compiled_by_structure, static=("phi", "rule", "needed"))


@_compiled
def nngp_integral(sigma: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int) -> Matrix:
    """`kernels.nngp` without its checks; like all functions here it gives NaN where the checks would raise an error."""
    batch = _prepare(sigma, None, eps, rounding)
    total = _integrate(lambda m: m.value, batch, phi, rule)
    return _where(_exists(batch, needed), len(sigma) * total)


@_compiled
def push_integral(
    sigma: Matrix, theta: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int
) -> Matrix:
    """`kernels.push` without its checks."""
    batch = _prepare(sigma, None, eps, rounding)
    T = center(theta)
    total = _integrate(lambda m: _pushed(m, T), batch, phi, rule)
    return _where(_differentiable(batch, phi, needed), len(sigma) * total / batch.unit)


@_compiled
def pull_integral(
    sigma: Matrix, cotangent: Matrix, eps: Real, rounding: Real, *, phi: PiecewiseLinear, rule: Rule, needed: int
) -> Matrix:
    """`kernels.pull` without its checks."""
    batch = _prepare(sigma, None, eps, rounding)
    M = (cotangent + cotangent.T) / 2

    def integrand(m: Moments) -> Matrix:
        L = M * m.slope
        D = L + jnp.diag(safe_divide(jnp.sum(M * m.bend, axis=1), jnp.diagonal(m.kappa), 0.0))
        left = matmul(m.kappa, D)
        return m.s * (L + jnp.sum(M * m.value) / 2 * m.kappa + matmul(left, m.kappa) - left - left.T)

    total = center(_integrate(integrand, batch, phi, rule))
    return _where(_differentiable(batch, phi, needed), len(sigma) * total / batch.unit)


@_compiled
def propagate_integrals(
    sigma: Matrix,
    theta: Matrix,
    apart: Matrix | None,
    eps: Real,
    rounding: Real,
    *,
    phi: PiecewiseLinear,
    rule: Rule,
    needed: int,
) -> Propagated:
    """`kernels.propagate` without its checks: all from one eigendecomposition and one pass over the nodes.

    For the NNGP, its diagonal and H = E[(y_i - y_j)^2] / 2 are integrated, which have no cancellation.
    """
    B = len(sigma)
    batch = _prepare(sigma, apart, eps, rounding)
    T = center(theta)

    def integrand(m: Moments) -> tuple[Vector, Matrix, Vector, Matrix]:
        row, column = m.size[:, None], m.size[None, :]
        half_square = (row - column) ** 2 / 2 + row * column * m.distance
        return m.size**2, half_square, _size_of_xhat(m, batch.floor), _pushed(m, T)

    q, H, size, pushed = _integrate(integrand, batch, phi, rule)
    exists, differentiable = batch.rank >= 1, _differentiable(batch, phi, needed)
    distance = jnp.where(batch.apart > 0, cosine_distances(q, 2 * H), 0)

    def by_eps(needed: int) -> jax.Array:
        """1, with a derivative by eps = 0 that is NaN where it is infinite: it needs one more moment of 1/|G x|^2."""
        return no_derivative(jnp.asarray(eps, sigma.dtype), (jnp.asarray(eps) == 0) & (batch.rank < needed))

    return Propagated(
        nngp=_where(exists, B * ((q[:, None] + q[None, :]) / 2 - H)) * by_eps(3),
        distance=_where(exists, distance) * by_eps(3),
        pushed=_where(differentiable, B * pushed / batch.unit) * by_eps(5),
        mean=_where(exists, by_eps(3) * phi.bent * (2 * math.sqrt(2 * B) / math.pi) * size),
        slope=_where(exists & _off_kink(batch, phi), _slope_of_xhat(batch, phi)),
    )


def _pushed(m: Moments, T: Matrix) -> Matrix:
    left = matmul(m.kappa, T)
    both = matmul(left, m.kappa)
    moved = both - left - left.T  # P - T
    a = safe_divide(jnp.diagonal(moved), 2 * jnp.diagonal(m.kappa), 0.0)
    return m.s * (m.slope * (T + moved) + m.bend * (a[:, None] + a[None, :]) + jnp.trace(left) / 2 * m.value)


def _size_of_xhat(m: Moments, floor: jax.Array) -> Vector:
    """Integrand of E|xhat_i|, up to a factor 2 sqrt(2 B)/pi.

    From 1/sqrt(r) = pi^(-1/2) Int s^(-1/2) e^(-s r) ds, E|xhat_i| = sqrt(2 B)/pi Int delta sqrt(kappa_ii) ds/s, whose
    integrand is still 1e-8 where the nodes begin. By parts once it vanishes like s^(3/2), with
    d log delta = -(tr kappa + s B eps) ds/s and d log(kappa_ii / s) = -2 (kappa^2)_ii / kappa_ii ds/s.
    """
    q = jnp.diagonal(m.kappa)
    bent = safe_divide(jnp.sum(m.kappa**2, axis=1), q, 0.0)
    return safe_sqrt(q) * (jnp.sum(q) + m.s * floor + bent)


def _slope_of_xhat(batch: Batch, phi: PiecewiseLinear) -> Matrix:
    """Products of slopes E[phi'(xhat_i) phi'(xhat_j)]: xhat has the signs of the Gaussian G x, whatever eps."""
    q = jnp.diagonal(batch.S)
    return phi.derivative_dual.at_distance(q[:, None], q[None, :], cosine_distances(q, batch.apart))


def _where(condition: jax.Array, result: jax.Array) -> jax.Array:
    """The result if the condition holds, else NaN: a trace can raise no error. As a product, gradients are NaN, too."""
    return result * jnp.where(condition, jnp.ones_like(result), jnp.nan)


def _off_kink(batch: Batch, phi: PiecewiseLinear) -> Bool[jax.Array, ""]:
    return ~batch.on_kink if phi.kinked else jnp.array(True)


def _exists(batch: Batch, needed: int) -> Bool[jax.Array, ""]:
    """Whether the integral is finite: at eps = 0 from the rank `needed` on, else from 1 on."""
    return batch.rank >= jnp.where(batch.floor == 0, needed, 1)


def _differentiable(batch: Batch, phi: PiecewiseLinear, needed: int) -> Bool[jax.Array, ""]:
    return _exists(batch, needed) & _off_kink(batch, phi)


def _prepare(sigma: Matrix, apart: Matrix | None, eps: Real, rounding: Real) -> Batch:
    B = len(sigma)
    if apart is not None:
        # constant where it is 0: the diagonal is no pair, and heavy tails may make derivatives infinite at duplicates
        apart = jnp.where(apart > 0, apart, 0)
    S = centered_covariance(sigma, apart)
    unit = jnp.trace(S) / (B - 1)
    limit = rounding_limit(sigma, apart, rounding) / unit
    S = S / unit
    values, vectors = eigen(S, limit)
    squared = (entries_apart(sigma, rounding) if apart is None else (apart + apart.T) / 2) / unit
    return Batch(
        S=S,
        values=values,
        vectors=vectors,
        apart=squared,
        close=None if apart is None else close_inputs(S, squared),
        floor=jnp.asarray(B * eps / unit),
        unit=unit,
        rank=jnp.sum(values > 0),
        on_kink=jnp.min(jnp.diagonal(S)) <= limit,
    )


def _integrate(integrand: Callable[[Moments], Result], batch: Batch, phi: PiecewiseLinear, rule: Rule) -> Result:
    """Int delta integrand ds/s, one node at a time: a node takes O(B^2) memory, and so do all nodes of a gradient."""
    dtype = batch.S.dtype
    nodes, log_weights = (jnp.asarray(a, dtype) for a in nodes_and_log_weights(rule, dtype))
    s = nodes / jax.lax.stop_gradient(len(batch.S) - 1 + batch.floor)

    def log_weight(s: jax.Array, log_weight: jax.Array) -> jax.Array:
        return log_weight - half_log_det(batch.S, batch.values, batch.vectors, s) - s * batch.floor

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def at(s: jax.Array, log_weights: jax.Array) -> Result:
        weight = jnp.exp(log_weight(s, log_weights))
        return jax.tree.map(lambda leaf: weight * leaf, integrand(_moments(batch, s, phi)))

    def add(total: Result, node: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Result, None]:
        s, log_weights, counts = node
        return jax.lax.cond(counts, lambda: jax.tree.map(jnp.add, total, at(s, log_weights)), lambda: total), None

    # the integrands are of order s in both directions at most, and their sum is of order 1
    counts = jax.vmap(log_weight)(s, log_weights) + jnp.log(nodes) > math.log(np.finfo(dtype).eps)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, s[0], log_weights[0]))
    total, _ = jax.lax.scan(add, zero, (s, log_weights, counts))
    return total


def _moments(batch: Batch, s: jax.Array, phi: PiecewiseLinear) -> Moments:
    kappa = damped(batch.S, batch.values, batch.vectors, s)
    q = jnp.maximum(jnp.diagonal(kappa), 0)
    apart = cosine_distances(q, damped_apart(kappa, s, batch.S, batch.apart, close=batch.close))
    row, column, root = q[:, None], q[None, :], safe_sqrt(q)
    bend = (2 / math.pi) * phi.bent**2 * root[:, None] * root[None, :] * safe_sqrt(apart * (2 - apart))
    return Moments(
        s=s,
        kappa=kappa,
        size=safe_sqrt(phi.dual.second_moment(q)),
        distance=phi.dual.cosine_distance(row, column, apart),
        slope=phi.derivative_dual.at_distance(row, column, apart),
        bend=bend,
    )
