"""How far apart two damped inputs are: cosine distances that near-duplicates keep their digits in.

Var[z_i - z_j] under the damped covariance kappa, read off kappa's entries, has an absolute error of a rounding of
kappa_ii + kappa_jj. A caller who knows Var[x_i - x_j], `apart`, better than the entries of Sigma do gets it back to
an error of a rounding of s sqrt(apart S_ii): kappa = s (S - 2 s S R S) with R = W (I + 2 s S W)^-1, which is
W - 2 W kappa W, so
    Var[z_i - z_j] = s (apart_ij - 2 s w R w^T),  w = S_i - S_j the difference of two rows,
where w is small, and the differences of close rows are taken from a row close to both before anything is multiplied.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from ntk_analysis.activations.angles import into_range, safe_divide, safe_sqrt
from ntk_analysis.batch_norm.damping import Matrix, matmul
from ntk_analysis.common.precision import Real

CLOSE = 1e-4  # share of the variances below which a difference makes inputs close; a covariance holds others to 1e-12


class CloseInputs(NamedTuple):
    """For each input the first one close to it, (B,), and the pairs of which this is the same, (B, B)."""

    first: Int[jax.Array, " B"]
    pairs: Bool[jax.Array, "B B"]


def close_inputs(q: Float[jax.Array, " B"], apart: Matrix) -> CloseInputs:
    """The first input close to each, or close to one that is close to it, and so on; q are the variances."""
    B = len(q)
    close = apart < CLOSE * (q[:, None] + q[None, :])
    first = jnp.argmax(close, axis=1)
    for _ in range(B.bit_length()):
        first = first[first]
    return CloseInputs(first, close & (first[:, None] == first[None, :]) & ~jnp.eye(B, dtype=bool))


def damped_apart(
    kappa: Matrix, s: jax.Array, S: Matrix, weights: Float[jax.Array, " B"], *, apart: Matrix, close: CloseInputs | None
) -> Matrix:
    """Variances Var[z_i - z_j] for z ~ N(0, kappa), at most s Var[x_i - x_j]: so duplicates are exactly 0 apart."""
    plain = _spread(kappa)

    def refined() -> Matrix:
        assert close is not None
        rows = S - S[close.first]
        weighted = rows * weights[None, :]
        resolved = matmul(weighted - 2 * matmul(weighted, kappa) * weights[None, :], rows.T)  # w R w^T
        fine = s * (apart - 2 * s * _spread(resolved))
        q, damped = jnp.diagonal(S), jnp.diagonal(kappa)
        # takes the one that rounds less
        better = s * safe_sqrt(apart * (q[:, None] + q[None, :])) < damped[:, None] + damped[None, :]
        return jnp.where(close.pairs & better, jnp.maximum(fine, 0), plain)

    squared = plain if close is None else jax.lax.cond(jnp.any(close.pairs), refined, lambda: plain)
    return jnp.minimum(squared, s * apart)


def cosine_distances(q: Float[jax.Array, " B"], squared: Matrix) -> Matrix:
    """Cosine distances, 1 - correlation, from variances q and Var[z_i - z_j]; 1 where a variance is 0.

    Nearly opposite inputs are at the right angle up to sqrt(rounding), 1e-8.
    """
    root = safe_sqrt(q)
    lost = squared - (root[:, None] - root[None, :]) ** 2
    return into_range(safe_divide(lost, 2 * root[:, None] * root[None, :], 1.0))


def entries_apart(sigma: Matrix, rounding: Real) -> Matrix:
    """Variances Var[x_i - x_j], which centering leaves alone; 0 where the entries of sigma cannot tell them from 0."""
    q = jnp.diagonal(sigma)
    total = q[:, None] + q[None, :]
    squared = total - sigma - sigma.T
    return jnp.where(squared > rounding * total / 2, squared, 0)


def _spread(matrix: Matrix) -> Matrix:
    """The matrix A_ii + A_jj - 2 A_ij."""
    q = jnp.diagonal(matrix)
    return q[:, None] + q[None, :] - 2 * matrix
