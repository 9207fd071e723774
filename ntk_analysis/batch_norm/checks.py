"""What a covariance of a batch must be before it is integrated."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.batch_norm.damping import Array, Modes, center, modes
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


class Needed(NamedTuple):
    """Ranks of the statistics' samples from which an integral is finite.

    Attributes:
        within: rank for the samples with a weight, and for those in their span.
        beyond: rank for others: where the statistics nearly vanish, nothing bounds xhat there.
    """

    within: int
    beyond: int


NNGP = Needed(1, 3)
TANGENT = Needed(3, 5)
WITH_EPS = Needed(1, 1)


def rounding_limits(sigma: Array, w: Array | None, apart: Array | None, rounding: Real) -> Array:
    """Bounds (B,) below which a variance of each input of H sigma H^T, or an eigenvalue, is 0 within rounding.

    Distances taken from differences of vectors are better known than those of the covariance: to a rounding of the
    geometric mean of the two.
    """
    xp: Any = sigma.__array_namespace__()
    weighted = xp.ones(len(sigma), dtype=bool) if w is None else w > 0
    largest = _at_least_those(weighted, xp.diagonal(sigma))
    if apart is not None:
        largest = (largest * _at_least_those(weighted, xp.max(xp.where(weighted[None, :], apart, 0), axis=1))) ** 0.5
    return len(sigma) * rounding * largest


def _at_least_those(weighted: Array, values: Array) -> Any:
    """Each value, or the largest of a sample with a weight: its rounding is in the statistics, and so in each input."""
    xp: Any = values.__array_namespace__()
    return xp.maximum(values, xp.max(xp.where(weighted, values, 0)))


def centered_covariance(sigma: Array, w: Array | None, apart: Array | None) -> Array:
    """The centered covariance H sigma H^T; from Var[x_i - x_j] alone if that is known."""
    source = sigma if apart is None else apart / -2
    return center((source + source.T) / 2, w)


def modes_of(sigma: np.ndarray, w: np.ndarray | None, rounding: float, apart: np.ndarray | None = None) -> Modes:
    """The modes of H sigma H^T."""
    return modes(centered_covariance(sigma, w, apart), w, rounding_limits(sigma, w, apart, rounding))


def effective_rank(of: Modes) -> int:
    """The rank that the tail of the integrals has: inputs outside of the span of the statistics' samples take 2."""
    return int(np.sum(of.values > 0)) - 2 * bool(of.outside.any())


def check_eps(eps: Number) -> None:
    """Raises ValueError unless eps is a finite number >= 0, as far as it is known."""
    if is_known(eps) and not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"got eps={eps}, expected a finite number >= 0: it is added to the variance")


def checked(value: ArrayLike, name: str) -> np.ndarray:
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


def checked_weights(weights: ArrayLike, B: int) -> np.ndarray:
    """Weights (B,) of the samples in units of the largest, in float64; else raises an error."""
    p = concrete(weights, "weights").astype(np.float64)
    if p.shape != (B,):
        raise ValueError(f"weights have shape {p.shape}, expected ({B},): one for each sample of the batch")
    if not np.all(np.isfinite(p) & (p >= 0)):
        bad = int(np.argmin(np.isfinite(p) & (p >= 0)))
        raise ValueError(f"weights[{bad}] is {p[bad]}, expected finite numbers >= 0: shares in the batch's statistics")
    total = float(np.sum(p))
    if abs(total - 1) > B * rounding_of(np.asarray(weights)):
        raise ValueError(f"weights have the sum {total!r}, expected 1: divide them by their sum")
    if np.sum(p > 0) < 2:
        raise ValueError(
            f"sample {int(np.argmax(p))} has all the weight, and no variance: give at least 2 samples some"
        )
    w = p / p.max()
    smallest = float(np.sqrt(np.finfo(np.float64).eps))
    if np.any((w > 0) & (w < smallest)):
        small = int(np.argmin(np.where(w > 0, w, 1)))
        raise ValueError(
            f"weights[{small}] is {w[small]:.2g} of the largest, which rounding does not tell from 0: set it to 0, or "
            f"to at least {smallest:.2g} of the largest"
        )
    return w


def check_covariance(
    sigma: np.ndarray,
    needed: Needed,
    rounding: float,
    *,
    w: np.ndarray | None = None,
    kink: bool = False,
    apart: np.ndarray | None = None,
) -> Modes:
    """The modes of a covariance; raises ValueError unless it is one, of enough rank, and off the kink where asked."""
    B, largest = len(sigma), float(np.max(np.diag(sigma)))
    smallest = float(np.linalg.eigvalsh(sigma)[0])
    if smallest < -B * rounding * max(largest, 0.0):
        raise ValueError(f"sigma is no covariance: its smallest eigenvalue is {smallest:.3g}, expected >= 0")
    found = modes_of(sigma, w, rounding, apart)
    rank, count = int(np.sum(found.values > 0)), B if w is None else int(np.sum(w > 0))
    check_rank(rank, count, needed.within, others=B - count)
    if found.outside.any():
        _check_rank_beyond(rank, count, needed.beyond, int(np.argmax(found.outside)))
    centered = np.diag(centered_covariance(sigma, w, apart))
    on_kink = centered <= rounding_limits(sigma, w, apart, rounding)
    if kink and np.any(on_kink):
        raise ValueError(
            f"input {int(np.argmin(np.where(on_kink, centered, np.inf)))} is the mean of its batch, so BN puts it "
            "exactly on the kink of the activation, where no derivative exists: move it"
        )
    return found


def check_rank(rank: int, B: int, needed: int, *, others: int = 0) -> None:
    """Raises ValueError if the integral diverges at this rank of B samples; the message says what makes it finite."""
    if rank < needed:
        cure = "a larger batch, distinct inputs, or eps > 0" if needed > 1 else "a larger batch or distinct inputs"
        batch = f"the {B} samples with a weight have" if others else f"this batch of {B} has"
        raise ValueError(
            f"{batch} a centered covariance of rank {rank}, but the integral is finite only from rank {needed}: use "
            f"{cure}"
        )


def _check_rank_beyond(rank: int, count: int, needed: int, sample: int) -> None:
    """Raises ValueError if the integral diverges for samples outside of the span of those with a weight."""
    if rank < needed:
        raise ValueError(
            f"the {count} samples with a weight have a centered covariance of rank {rank}, but for samples outside of "
            f"their span, as sample {sample}, the integral is finite only from rank {needed}: give at least "
            f"{needed + 1} distinct samples a weight, or use eps > 0"
        )
