"""The centered covariance under damping, with gradients at equal eigenvalues: s S (I + 2 s W S)^-1, det(I + 2 s W S).

The samples have weights w >= 0 in the batch's statistics, in units of the largest, and W = diag(w).
"""

from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.precision import HeldArray

Matrix: TypeAlias = Float[jax.Array, "B B"]
Array = TypeVar("Array", jax.Array, np.ndarray)


def center(matrix: Array, w: Array | None = None) -> Array:
    """The centered matrix H A H^T, H = I - 1 w^T / sum(w), with the row means subtracted first; of NumPy or JAX."""
    xp: Any = matrix.__array_namespace__()
    rows = matrix - xp.average(matrix, axis=1, weights=w, keepdims=True)
    centered: Array = rows - xp.average(rows, axis=0, weights=w, keepdims=True)
    return centered


def center_adjoint(matrix: jax.Array, w: jax.Array) -> jax.Array:
    """The matrix H^T A H: the adjoint of `center`, which it equals for equal weights."""
    shares = w / jnp.sum(w)
    rows = matrix - shares[:, None] * jnp.sum(matrix, axis=0, keepdims=True)
    return rows - jnp.sum(rows, axis=1, keepdims=True) * shares[None, :]


def matmul(left: Array, right: Array) -> Array:
    """The product left right, in full precision on every device."""
    if isinstance(left, np.ndarray):
        return left @ right
    return jnp.matmul(left, right, precision="highest")


class Modes(NamedTuple):
    """What the samples with a weight resolve of S, and what they do not: S = loadings loadings^T + beyond.

    Attributes:
        values: (B - 1,) eigenvalues of W^(1/2) S W^(1/2) without that of W^(1/2) 1; 0 if within rounding.
        loadings: (B, B - 1) covariances of all samples with these modes, at unit variance; 0 where the value is 0.
        duals: (B - 1, B) the modes, at unit variance, from the samples with a weight; 0 where the value is 0.
        residual: (B, B) I - loadings duals, on centered matrices: what the modes do not tell.
        beyond: (B, B) covariance of the samples given those with a weight; None where all have the same. It is exactly
            0 in the rows of samples with a weight, and of those in their span: else rounding would count as variance
            where s is large.
        outside: (B,) whether a sample has a part that no sample with a weight has.
    """

    values: HeldArray
    loadings: HeldArray
    duals: HeldArray
    residual: HeldArray
    beyond: HeldArray | None
    outside: HeldArray


def modes(S: Array, w: Array | None, limits: Array) -> Modes:
    """The modes of a centered covariance; `limits` (B,) are the roundings of its diagonal. Of NumPy or JAX.

    All samples have the same weight for w = None, which saves two products of matrices.
    """
    xp: Any = S.__array_namespace__()
    root = xp.ones_like(limits) if w is None else w**0.5
    weighted = root > 0
    normal = root / xp.sum(root**2) ** 0.5 + xp.eye(len(S), dtype=S.dtype)[0]
    values, vectors = xp.linalg.eigh(_reflected(root[:, None] * S * root[None, :], normal)[1:, 1:])
    kept = values > xp.max(xp.where(weighted, limits, 0))
    values = xp.where(kept, values, 0)
    vectors = xp.pad(vectors, ((1, 0), (0, 0))) - normal[:, None] * matmul(normal[1:], vectors)[None, :] / normal[0]
    inverse = xp.where(kept, 1 / xp.where(kept, values, 1) ** 0.5, 0)
    unweighted = vectors / xp.where(weighted, root, 1)[:, None]
    own = unweighted * (values**0.5)[None, :]
    duals = inverse[:, None] * vectors.T * root[None, :]
    lost = matmul(unweighted * xp.where(kept, 0, xp.ones_like(values))[None, :], vectors.T) * root[None, :]
    if w is None:
        return Modes(values, own, duals, lost, None, xp.zeros(len(S), dtype=bool))
    other = matmul(S * root[None, :], vectors) * inverse[None, :]
    loadings = xp.where(w[:, None] * xp.max(values) >= values[None, :], own, other)  # takes the one that rounds less
    rest = S - matmul(loadings, loadings.T)
    rounding = limits * (1 + xp.max(xp.abs(loadings) * inverse[None, :], axis=1))
    outside = ~weighted & (xp.diagonal(rest) > rounding)
    residual = xp.where(weighted[:, None], lost, xp.eye(len(S), dtype=S.dtype) - matmul(loadings, duals))
    beyond = xp.where(outside[:, None] & outside[None, :], rest, 0)
    return Modes(values, loadings, duals, residual, beyond, outside)


def _reflected(matrix: Array, normal: Array) -> Array:
    """The symmetric matrix H A H, H = I - n n^T / n_0 the reflection of Householder, |n|^2 = 2 n_0.

    For n = v/|v| + e_0, v of entries >= 0, the columns of H behind the first are orthonormal and orthogonal to v.
    """
    along = matmul(matrix, normal) / normal[0]
    across = along - (along * normal).sum() / (2 * normal[0]) * normal
    found: Array = matrix - (normal[:, None] * across[None, :] + across[:, None] * normal[None, :])
    return found


# Functions of S whose derivatives are written down, not taken through the eigenvectors: derivatives of eigh are
# infinite at equal eigenvalues, and every covariance a I + b 11^T has only such. The modes are constants of S, and so
# are the weights.


@jax.custom_jvp
def damped(S: Matrix, of: Modes, w: jax.Array, s: jax.Array) -> Matrix:
    """The damped covariance s S (I + 2 s W S)^-1."""
    within = matmul(of.loadings * (s / (1 + 2 * s * of.values))[None, :], of.loadings.T)
    return within if of.beyond is None else within + s * of.beyond


@jax.custom_jvp
def half_log_det(S: Matrix, of: Modes, w: jax.Array, s: jax.Array) -> jax.Array:
    """The value log det(I + 2 s W S) / 2."""
    return jnp.sum(jnp.log1p(2 * s * of.values)) / 2


@jax.custom_jvp
def _resolvent(S: Matrix, of: Modes, w: jax.Array, s: jax.Array) -> Matrix:
    """The resolvent (I + 2 s S W)^-1 on centered matrices."""
    return of.residual + matmul(of.loadings / (1 + 2 * s * of.values)[None, :], of.duals)


def _turned(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> jax.Array:
    """The derivative s C dS C^T, with C the resolvent."""
    C = _resolvent(*primals)
    return primals[-1] * matmul(matmul(C, tangents[0]), C.T)


@_resolvent.defjvp
def _resolvent_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _resolvent(*primals), -2 * _turned(primals, tangents) * primals[2][None, :]


@damped.defjvp
def _damped_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return damped(*primals), _turned(primals, tangents)


@half_log_det.defjvp
def _half_log_det_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    w, s = primals[2:]
    return half_log_det(*primals), s * jnp.sum(w[:, None] * _resolvent(*primals) * tangents[0])
