"""The centered covariance under damping: s S (I + 2 s S)^-1 and det(I + 2 s S), with gradients at equal eigenvalues."""

import functools
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.precision import Real

Matrix: TypeAlias = Float[jax.Array, "B B"]
Array = TypeVar("Array", jax.Array, np.ndarray)


def center(matrix: Array) -> Array:
    """The centered matrix G A G, with the row means subtracted first; of NumPy or JAX."""
    rows = matrix - matrix.mean(axis=1, keepdims=True)
    return rows - rows.mean(axis=0, keepdims=True)


def matmul(left: jax.Array, right: jax.Array) -> jax.Array:
    """The product left right, in full precision on every device."""
    return jnp.matmul(left, right, precision="highest")


@functools.cache
def zero_mean_basis(B: int) -> np.ndarray:
    """Helmert's orthonormal basis of the vectors of sum 0, (B, B - 1)."""
    k = np.arange(1, B)
    basis = np.triu(np.ones((B, B - 1)))
    basis[k, k - 1] = -k
    return basis / np.sqrt(k * (k + 1.0))


def eigen(covariance: Matrix, tolerance: Real) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues (B - 1,), 0 if within rounding, and eigenvectors (B, B - 1) on the zero-mean space; constants."""
    basis = jnp.asarray(zero_mean_basis(len(covariance)), covariance.dtype)
    fixed = jax.lax.stop_gradient(covariance)
    values, vectors = jnp.linalg.eigh(matmul(matmul(basis.T, fixed), basis))
    return jnp.where(values > jax.lax.stop_gradient(tolerance), values, 0), matmul(basis, vectors)


# Functions of S whose derivatives are written down, not taken through the eigenvectors: derivatives of eigh are
# infinite at equal eigenvalues, and every covariance a I + b 11^T has only such. `values` and `vectors` are constants
# of S.


@jax.custom_jvp
def _resolvent(S: Matrix, values: jax.Array, vectors: jax.Array, s: jax.Array) -> Matrix:
    """The resolvent (I + 2 s S)^-1 on the zero-mean space."""
    return matmul(vectors / (1 + 2 * s * values)[None, :], vectors.T)


@jax.custom_jvp
def damped(S: Matrix, values: jax.Array, vectors: jax.Array, s: jax.Array) -> Matrix:
    """The damped covariance s S (I + 2 s S)^-1."""
    return matmul(vectors * (s * values / (1 + 2 * s * values))[None, :], vectors.T)


@jax.custom_jvp
def half_log_det(S: Matrix, values: jax.Array, vectors: jax.Array, s: jax.Array) -> jax.Array:
    """The value log det(I + 2 s S) / 2."""
    return jnp.sum(jnp.log1p(2 * s * values)) / 2


def _turned(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> jax.Array:
    """The derivative s C dS C, with C the resolvent."""
    C = _resolvent(*primals)
    return primals[-1] * matmul(matmul(C, tangents[0]), C)


@_resolvent.defjvp
def _resolvent_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _resolvent(*primals), -2 * _turned(primals, tangents)


@damped.defjvp
def _damped_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return damped(*primals), _turned(primals, tangents)


@half_log_det.defjvp
def _half_log_det_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return half_log_det(*primals), primals[-1] * jnp.sum(_resolvent(*primals) * tangents[0])
