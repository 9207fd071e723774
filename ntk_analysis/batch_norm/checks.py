"""What a covariance of a batch must be before it is integrated."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_analysis.batch_norm.damping import Array, center, zero_mean_basis
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.common.pytrees import Number, is_known

ROUNDINGS = 16  # eigenvalues and distances below this many roundings of Sigma's diagonal (times B) are 0


def rounding_of(array: AnyArray) -> float:
    """Relative rounding of the entries: that of their dtype, no finer than float64, no coarser than float32.

    Entries of fewer bits are taken as exact float32 numbers: with room for their rounding, few batches would have any
    rank.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 4:
        return ROUNDINGS * float(np.finfo(np.float64).eps)
    return ROUNDINGS * float(np.finfo(np.float32).eps)


def rounding_limit(sigma: Array, apart: Array | None, rounding: Real) -> Any:
    """Bound below which an eigenvalue or a variance of G sigma G is 0 within rounding.

    Distances taken from differences of vectors are better known than those of the covariance: to a rounding of the
    geometric mean of the two.
    """
    largest = sigma.diagonal().max()
    return len(sigma) * rounding * (largest if apart is None else (largest * apart.max()) ** 0.5)


def centered_covariance(sigma: Array, apart: Array | None) -> Array:
    """The centered covariance G sigma G; from Var[x_i - x_j] alone if that is known."""
    source = sigma if apart is None else apart / -2
    return center((source + source.T) / 2)


def rank_of(sigma: np.ndarray, rounding: float, apart: np.ndarray | None = None) -> int:
    """Rank of G sigma G: the number of its eigenvalues above rounding."""
    basis = zero_mean_basis(len(sigma))
    values = np.linalg.eigvalsh(basis.T @ centered_covariance(sigma, apart) @ basis)
    return int(np.sum(values > rounding_limit(sigma, apart, rounding)))


def check_eps(eps: Number) -> None:
    """Raises ValueError unless eps is a finite number >= 0, as far as it is known."""
    if is_known(eps) and not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"got eps={eps}, expected a finite number >= 0: it is added to the variance")


def checked(value: Any, name: str) -> np.ndarray:
    """The value as a finite symmetric matrix in float64; else raises an error."""
    given = concrete(value, name)
    array = given.astype(np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected (B, B): one batch against itself")
    if not np.isfinite(array).all():
        i, j = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"{name}[{i}, {j}] is {array[i, j]}, expected finite entries")
    asymmetry = float(np.max(np.abs(array - array.T)))
    if asymmetry > len(array) * rounding_of(given) * np.max(np.abs(array)):
        raise ValueError(f"{name} differs from its transpose by {asymmetry:.2g}: pass a symmetric matrix")
    return (array + array.T) / 2


def check_apart(sigma: np.ndarray, apart: np.ndarray, rounding: float) -> None:
    """Raises ValueError unless apart is Var[x_i - x_j], as far as sigma can tell."""
    q = np.diag(sigma)
    differs = np.abs(apart - (q[:, None] + q[None, :] - 2 * sigma))
    limit = len(sigma) * rounding * np.max(q)
    if np.max(differs) > limit or np.any(np.diag(apart) != 0) or np.any(apart < 0):
        i, j = np.unravel_index(int(np.argmax(np.where(apart < 0, np.inf, differs))), apart.shape)
        raise ValueError(
            f"apart[{i}, {j}] is {apart[i, j]:.6g}, but sigma says {q[i] + q[j] - 2 * sigma[i, j]:.6g}: pass "
            "Var[x_i - x_j] >= 0, exactly 0 on the diagonal, or None"
        )


def check_covariance(
    sigma: np.ndarray, needed: int, rounding: float, *, kink: bool = False, apart: np.ndarray | None = None
) -> None:
    """Raises ValueError unless sigma is a covariance of enough rank, and off the kink of phi where that matters."""
    B, largest = len(sigma), float(np.max(np.diag(sigma)))
    smallest = float(np.linalg.eigvalsh(sigma)[0])
    if smallest < -B * rounding * max(largest, 0.0):
        raise ValueError(f"sigma is no covariance: its smallest eigenvalue is {smallest:.3g}, expected >= 0")
    check_rank(rank_of(sigma, rounding, apart), B, needed)
    centered = np.diag(centered_covariance(sigma, apart))
    if kink and np.any(centered <= rounding_limit(sigma, apart, rounding)):
        raise ValueError(
            f"input {int(np.argmin(centered))} is the mean of its batch, so BN puts it exactly on the kink of the "
            "activation, where no derivative exists: move it"
        )


def check_rank(rank: int, B: int, needed: int) -> None:
    """Raises ValueError if the integral diverges at this rank; the message says what would make it finite."""
    if rank < needed:
        cure = "a larger batch, distinct inputs, or eps > 0" if needed > 1 else "a larger batch or distinct inputs"
        raise ValueError(
            f"this batch of {B} has a centered covariance of rank {rank}, but the integral is finite only from rank "
            f"{needed}: use {cure}"
        )
