"""Few nodes for large batches: Gauss quadrature in the weight that the batch itself puts on the damping.

All integrals are of smooth functions with the weight delta ds. In the variable
    u(s) = tr(W kappa) = sum_k s lambda_k / (1 + 2 s lambda_k)
these functions, over u, are polynomials of low degree up to O(1/r), where r = (sum lambda)^2 / sum lambda^2 is the
effective rank; as r grows, u becomes s tr(W S), and the weight delta u ds/s the exponential distribution. So Gauss
quadrature in u with this weight has an error that falls with r, by more powers the more nodes it takes. One node is
close to expectations in the place of the batch's statistics: it is wrong on the constant mode at every batch size, two
are not. The weight is a function of the eigenvalues alone, which is summed on many points; the nodes are eigenvalues of
its Jacobi matrix (Golub & Welsch 1969).

The second moments of each input and its E|xhat_i| need no products of matrices, and are integrated on all nodes. There
are no derivatives: nodes and weights move with the batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.batch_norm.damping import Matrix, matmul
from ntk_analysis.batch_norm.rules import points

BISECTIONS = 60  # of log s, from a range of some 100

Vector = Float[jax.Array, " nodes"]


class Nodes(NamedTuple):
    """Nodes of the integrals Int f(s) delta(s) ds/s.

    Attributes:
        s: nodes.
        log_weights: logarithms of the weights, which leave delta out.
    """

    s: Vector
    log_weights: Vector


def few_nodes(values: Float[jax.Array, " modes"], floor: jax.Array, scale: jax.Array, count: int) -> Nodes:
    """Gauss quadrature of `count` nodes for a batch with these eigenvalues, floor = c eps, in units 1/scale of s."""
    log_s, log_steps = (jnp.asarray(a, values.dtype) for a in points(np.dtype(values.dtype)))
    log_s = log_s - jnp.log(scale)

    def log_damping(log_s: jax.Array) -> jax.Array:
        """The logarithm of delta."""
        s = jnp.exp(log_s)
        return -jnp.sum(jnp.log1p(2 * s * values)) / 2 - s * floor

    def size(log_s: jax.Array) -> jax.Array:
        """The variable u."""
        part = jnp.exp(log_s) * values
        return jnp.sum(part / (1 + 2 * part))

    # point by point: at once they take as much memory as a matrix of the batch
    u, weight = jax.lax.map(size, log_s), jnp.exp(log_steps + jax.lax.map(log_damping, log_s))
    nodes = _gauss_nodes(u, weight * u, count)
    others = ~np.eye(count, dtype=bool)[None]
    between = jnp.where(others, nodes[None, :, None] - nodes[None, None, :], 1)
    lagrange = jnp.prod(jnp.where(others, (u[:, None, None] - nodes[None, None, :]) / between, 1), axis=2)
    mass = matmul((weight * u)[None, :], lagrange)[0]

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        below = jax.vmap(size)(middle) < nodes
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jnp.full_like(nodes, log_s[0]), jnp.full_like(nodes, log_s[-1])
    found, _ = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
    return Nodes(jnp.exp(found), jnp.log(mass / nodes) - jax.vmap(log_damping)(found))


@jax.custom_jvp
def without_derivatives(S: Matrix) -> Matrix:
    """The matrix itself, whose derivatives raise NotImplementedError."""
    return S


@without_derivatives.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError("batch normalisation by few nodes has no derivatives: use rule=None, or a Rule")


def _gauss_nodes(u: jax.Array, mass: jax.Array, count: int) -> jax.Array:
    """The nodes of Gauss quadrature for masses at points u, by Stieltjes' procedure."""
    before, now, norm = jnp.zeros_like(u), jnp.ones_like(u), jnp.sum(mass)
    diagonal, beside = [], [jnp.zeros_like(norm)]
    for _ in range(count):
        diagonal.append(jnp.sum(mass * u * now**2) / norm)
        before, now = now, (u - diagonal[-1]) * now - beside[-1] * before
        norm, last = jnp.sum(mass * now**2), norm
        beside.append(norm / last)
    off = jnp.diag(jnp.sqrt(jnp.stack(beside[1:-1])), 1) if count > 1 else 0.0
    half = jnp.diag(jnp.stack(diagonal) / 2) + off
    return jnp.linalg.eigvalsh(half + half.T)
