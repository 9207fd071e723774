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
from ntk_analysis.batch_norm.checks import NNGP, TANGENT, Needed, centered_covariance, rounding_limits
from ntk_analysis.batch_norm.damping import (
    Matrix,
    Modes,
    center,
    center_adjoint,
    damped,
    half_log_det,
    matmul,
    modes,
)
from ntk_analysis.batch_norm.few_nodes import Nodes, few_nodes, without_derivatives
from ntk_analysis.batch_norm.rules import FINE, AnyRule, FewNodes, nodes_and_log_weights
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
Held = TypeVar("Held")
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
    """A batch in units in which the mean eigenvalue of W^(1/2) S W^(1/2) is 1; `unit` is its size before that.

    Attributes:
        S: centered covariance.
        w: weights of the samples in units of the largest.
        size: sum of these weights, B if all are equal.
        modes: what the samples with a weight resolve of S.
        dimensions: number of samples with a weight, less 1.
        apart: variances Var[x_i - x_j].
        close: near-duplicates, for which `apart` says more than the entries of S; None without `apart`.
        floor: number eps times `size` that is added to z^T W z.
        unit: unit of S.
        outside: whether a sample lies outside of the span of those with a weight.
        rank: number of eigenvalues above rounding.
        on_kink: whether an input is the mean of its batch, within rounding.
    """

    S: Matrix
    w: Vector
    size: jax.Array
    modes: Modes
    dimensions: jax.Array
    apart: Matrix
    close: CloseInputs | None
    floor: jax.Array
    unit: jax.Array
    outside: Bool[jax.Array, ""]
    rank: jax.Array
    on_kink: Bool[jax.Array, ""]

    def exists(self, needed: Needed) -> Bool[jax.Array, ""]:
        """Whether an integral is finite: at eps = 0 from these ranks on, else from 1 on."""
        return self.rank >= jnp.where(self.floor > 0, 1, jnp.where(self.outside, needed.beyond, needed.within))


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


_compiled = functools.partial(compiled_by_structure, static=("phi", "rule"))


@_compiled
def nngp_integral(
    sigma: Matrix, *, w: Vector | None, eps: Real, rounding: Real, phi: PiecewiseLinear, rule: AnyRule
) -> Matrix:
    """`kernels.nngp` without its checks; like all functions here it gives NaN where the checks would raise an error."""
    batch = _prepare(sigma, w, None, eps, rounding, rule)
    total = _integrate(lambda m: m.value, batch, _moments(batch, phi), rule)
    if isinstance(rule, FewNodes):
        total = _with_diagonal(total, phi.dual.second_moment(_of_each(batch)[0]))
    return _where(batch.exists(NNGP), batch.size * total)


@_compiled
def push_integral(
    sigma: Matrix,
    theta: Matrix,
    *,
    w: Vector | None,
    eps: Real,
    rounding: Real,
    phi: PiecewiseLinear,
    rule: AnyRule,
) -> Matrix:
    """`kernels.push` without its checks."""
    batch = _prepare(sigma, w, None, eps, rounding, rule)
    T = center(theta, batch.w)
    total = _integrate(lambda m: _pushed(m, batch.w, T), batch, _moments(batch, phi), rule)
    return _where(_differentiable(batch, phi), batch.size * total / batch.unit)


@_compiled
def pull_integral(
    sigma: Matrix,
    cotangent: Matrix,
    *,
    w: Vector | None,
    eps: Real,
    rounding: Real,
    phi: PiecewiseLinear,
    rule: AnyRule,
) -> Matrix:
    """`kernels.pull` without its checks."""
    batch = _prepare(sigma, w, None, eps, rounding, rule)
    M = (cotangent + cotangent.T) / 2

    def integrand(m: Moments) -> Matrix:
        L = M * m.slope
        D = L + jnp.diag(safe_divide(jnp.sum(M * m.bend, axis=1), jnp.diagonal(m.kappa), 0.0))
        row, column = batch.w[:, None], batch.w[None, :]
        left = row * matmul(m.kappa, D)
        through = matmul(left, m.kappa) * column + jnp.sum(M * m.value) / 2 * row * m.kappa * column
        return m.s * (L + through - left - left.T)

    total = center_adjoint(_integrate(integrand, batch, _moments(batch, phi), rule), batch.w)
    return _where(_differentiable(batch, phi), batch.size * total / batch.unit)


@_compiled
def propagate_integrals(
    sigma: Matrix,
    theta: Matrix,
    apart: Matrix | None,
    *,
    w: Vector | None,
    eps: Real,
    rounding: Real,
    phi: PiecewiseLinear,
    rule: AnyRule,
) -> Propagated:
    """`kernels.propagate` without its checks: all from one eigendecomposition and one pass over the nodes.

    For the NNGP, its diagonal and H = E[(y_i/d_i - y_j/d_j)^2] / 2 are integrated, which have no cancellation; d_i =
    sqrt(S_ii) makes up for samples without a weight that are larger than the others by far.
    """
    batch = _prepare(sigma, w, apart, eps, rounding, rule)
    T = center(theta, batch.w)
    d = jax.lax.stop_gradient(safe_sqrt(jnp.diagonal(batch.S)))
    d = jnp.where(d > 0, d, 1)

    def integrand(m: Moments) -> tuple[Vector, Matrix, Vector, Matrix]:
        size = m.size / d
        row, column = size[:, None], size[None, :]
        half_square = (row - column) ** 2 / 2 + row * column * m.distance
        return size**2, half_square, _size_of_xhat(m, batch), _pushed(m, batch.w, T)

    q, H, size, pushed = _integrate(integrand, batch, _moments(batch, phi), rule)
    exists = batch.exists(NNGP)
    distance = jnp.where(batch.apart > 0, cosine_distances(q, 2 * H), 0)
    nngp = d[:, None] * d[None, :] * ((q[:, None] + q[None, :]) / 2 - H)
    if isinstance(rule, FewNodes):
        square, size = _of_each(batch)
        nngp = _with_diagonal(nngp, phi.dual.second_moment(square))

    def by_eps(needed: Needed) -> jax.Array:
        """1, with a derivative by eps = 0 that is NaN where it is infinite: it needs one more moment of 1/|G x|^2."""
        more = Needed(needed.within + 2, needed.beyond + 2)
        return no_derivative(jnp.asarray(eps, sigma.dtype), (jnp.asarray(eps) == 0) & ~batch.exists(more))

    return Propagated(
        nngp=_where(exists, batch.size * nngp) * by_eps(NNGP),
        distance=_where(exists, distance) * by_eps(NNGP),
        pushed=_where(_differentiable(batch, phi), batch.size * pushed / batch.unit) * by_eps(TANGENT),
        mean=_where(exists, by_eps(NNGP) * phi.bent * (2 * jnp.sqrt(2 * batch.size) / math.pi) * size),
        slope=_where((batch.rank >= 1) & _off_kink(batch, phi), _slope_of_xhat(batch, phi)),
    )


def _pushed(m: Moments, w: Vector, T: Matrix) -> Matrix:
    Q = m.kappa * w[None, :]
    left = matmul(Q, T)
    moved = matmul(left, Q.T) - left - left.T  # P - T
    a = safe_divide(jnp.diagonal(moved), 2 * jnp.diagonal(m.kappa), 0.0)
    trace = jnp.sum(w * jnp.diagonal(left))
    return m.s * (m.slope * (T + moved) + m.bend * (a[:, None] + a[None, :]) + trace / 2 * m.value)


def _size_of_xhat(m: Moments, batch: Batch) -> Vector:
    """Integrand of E|xhat_i|, up to a factor 2 sqrt(2 size)/pi.

    From 1/sqrt(r) = pi^(-1/2) Int s^(-1/2) e^(-s r) ds, E|xhat_i| = sqrt(2 size)/pi Int delta sqrt(kappa_ii) ds/s,
    whose integrand is still 1e-8 where the nodes begin. By parts once it vanishes like s^(3/2), with
    d log delta = -(tr W kappa + s size eps) ds/s and d log(kappa_ii / s) = -2 (kappa W kappa)_ii / kappa_ii ds/s.
    """
    q, w = jnp.diagonal(m.kappa), batch.w
    bent = safe_divide(jnp.sum(m.kappa**2 * w[None, :], axis=1), q, 0.0)
    return safe_sqrt(q) * (jnp.sum(w * q) + m.s * batch.floor + bent)


def _slope_of_xhat(batch: Batch, phi: PiecewiseLinear) -> Matrix:
    """Products of slopes E[phi'(xhat_i) phi'(xhat_j)]: xhat has the signs of the Gaussian G x, whatever eps."""
    q = jnp.diagonal(batch.S)
    return phi.derivative_dual.at_distance(q[:, None], q[None, :], cosine_distances(q, batch.apart))


def _where(condition: jax.Array, result: jax.Array) -> jax.Array:
    """The result if the condition holds, else NaN: a trace can raise no error. As a product, gradients are NaN, too."""
    return result * jnp.where(condition, jnp.ones_like(result), jnp.nan)


def _off_kink(batch: Batch, phi: PiecewiseLinear) -> Bool[jax.Array, ""]:
    return ~batch.on_kink if phi.kinked else jnp.array(True)


def _differentiable(batch: Batch, phi: PiecewiseLinear) -> Bool[jax.Array, ""]:
    return batch.exists(TANGENT) & _off_kink(batch, phi)


def _prepare(
    sigma: Matrix, weights: Vector | None, apart: Matrix | None, eps: Real, rounding: Real, rule: AnyRule
) -> Batch:
    w = jnp.ones(len(sigma), sigma.dtype) if weights is None else jax.lax.stop_gradient(weights)
    if apart is not None:
        # constant where it is 0: the diagonal is no pair, and heavy tails may make derivatives infinite at duplicates
        apart = jnp.where(apart > 0, apart, 0)
    S = centered_covariance(sigma, w, apart)
    if isinstance(rule, FewNodes):
        S = without_derivatives(S)
    dimensions, size = jnp.sum(w > 0).astype(S.dtype) - 1, jnp.sum(w)
    unit = jnp.sum(w * jnp.diagonal(S)) / dimensions
    limits = jax.lax.stop_gradient(rounding_limits(sigma, w, apart, rounding) / unit)
    S = S / unit
    found = modes(jax.lax.stop_gradient(S), None if weights is None else w, limits)
    squared = (entries_apart(sigma, rounding) if apart is None else (apart + apart.T) / 2) / unit
    return Batch(
        S=S,
        w=w,
        size=size,
        modes=found,
        dimensions=dimensions,
        apart=squared,
        close=None if apart is None else close_inputs(jnp.diagonal(S), squared),
        floor=size * eps / unit,
        unit=unit,
        outside=jnp.any(found.outside),
        rank=jnp.sum(found.values > 0),
        on_kink=jnp.any(jnp.diagonal(S) <= limits),
    )


class Node(NamedTuple):
    """What a sum over the nodes holds of one, where moments of pairs are not needed.

    Attributes:
        square: variances kappa_ii.
        size: integrand of E|xhat_i|, see `_size_of_xhat`.
    """

    square: Vector
    size: Vector


def _of_each(batch: Batch) -> Node:
    """The integrals of kappa_ii and of E|xhat_i| on all nodes: products of matrices with vectors only."""
    squares, values = batch.modes.loadings**2, batch.modes.values
    beyond = 0.0 if batch.modes.beyond is None else jnp.diagonal(batch.modes.beyond)

    def at(s: jax.Array) -> Node:
        part = s / (1 + 2 * s * values)
        q = matmul(squares, part[:, None])[:, 0] + s * beyond
        bent = safe_divide(matmul(squares, (part**2 * values)[:, None])[:, 0], q, 0.0)
        return Node(q, safe_sqrt(q) * (jnp.sum(part * values) + s * batch.floor + bent))

    return _integrate(lambda node: node, batch, at, FINE)


def _with_diagonal(matrix: Matrix, diagonal: Vector) -> Matrix:
    """The matrix of the same correlations with this diagonal."""
    ratio = safe_sqrt(safe_divide(diagonal, jnp.diagonal(matrix), 0.0))
    return matrix * ratio[:, None] * ratio[None, :]


def _integrate(
    integrand: Callable[[Held], Result], batch: Batch, moments: Callable[[jax.Array], Held], rule: AnyRule
) -> Result:
    """Int delta integrand ds/s, one node at a time: a node takes O(B^2) memory, and so do all nodes of a gradient."""
    nodes = jax.lax.stop_gradient(_nodes(batch, rule))

    def log_weight(s: jax.Array, log_weight: jax.Array) -> jax.Array:
        return log_weight - half_log_det(batch.S, batch.modes, batch.w, s) - s * batch.floor

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def at(node: Nodes) -> Result:
        weight = jnp.exp(log_weight(*node))
        return jax.tree.map(lambda leaf: weight * leaf, integrand(moments(node.s)))

    def add(total: Result, node: tuple[Nodes, jax.Array]) -> tuple[Result, None]:
        return jax.lax.cond(node[1], lambda: jax.tree.map(jnp.add, total, at(node[0])), lambda: total), None

    # the integrands are of order s in both directions at most, s^2 to the right for samples outside of the span of
    # those with a weight, and their sum is of order 1
    order = jnp.log(nodes.s * _scale(batch))
    order = order + jnp.where(batch.outside, jnp.maximum(order, 0), 0)
    size = jax.vmap(log_weight)(*nodes) + order
    counts = (size > math.log(np.finfo(batch.S.dtype).eps)) | isinstance(rule, FewNodes)
    first = jax.tree.map(lambda leaf: leaf[0], nodes)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(at, first))
    total, _ = jax.lax.scan(add, zero, (nodes, counts))
    return total


def _scale(batch: Batch) -> jax.Array:
    """What 1/s is measured in."""
    return jax.lax.stop_gradient(batch.dimensions + batch.floor)


def _nodes(batch: Batch, rule: AnyRule) -> Nodes:
    """The nodes of a rule for this batch."""
    if isinstance(rule, FewNodes):
        return few_nodes(batch.modes.values, batch.floor, _scale(batch), rule.count)
    s, log_weights = (jnp.asarray(a, batch.S.dtype) for a in nodes_and_log_weights(rule, batch.S.dtype))
    return Nodes(s / _scale(batch), log_weights)


def _moments(batch: Batch, phi: PiecewiseLinear) -> Callable[[jax.Array], Moments]:
    """The moments of a batch as a function of s."""

    def at(s: jax.Array) -> Moments:
        kappa = damped(batch.S, batch.modes, batch.w, s)
        q = jnp.maximum(jnp.diagonal(kappa), 0)
        apart = cosine_distances(q, damped_apart(kappa, s, batch.S, batch.w, apart=batch.apart, close=batch.close))
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

    return at
