"""A kernel as the matrix whose eigenvalues are taken: checked, exactly symmetric, float64, on a subspace if wanted."""

import math
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float64

from ntk_analysis.arrays import concrete
from ntk_analysis.precision import AnyArray, Real


@runtime_checkable
class ScaledKernel(Protocol):
    """The part of a `Kernel` that this module needs: its NNGP, and its NTK as ntk_scaled * exp(log_scale)."""

    @property
    def nngp(self) -> AnyArray:
        """Covariance of the pre-activations, (m, m)."""

    @property
    def ntk_scaled(self) -> AnyArray:
        """Tangent kernel without its scale, (m, m)."""

    @property
    def log_scale(self) -> Real:
        """Logarithm of the tangent kernel's scale."""


AnyKernel: TypeAlias = ScaledKernel | AnyArray


class Matrix(NamedTuple):
    """A checked kernel: exactly symmetric, float64.

    Attributes:
        entries: kernel of `inputs` inputs times exp(-log_scale), on all of their space or on a part of it.
        error: bound on the error of its eigenvalues that the entries cause.
    """

    entries: Float64[np.ndarray, "r r"]
    inputs: int
    log_scale: float
    error: float
    dtype: np.dtype


def as_matrix(kernel: AnyKernel, which: str, without: AnyArray | None = None) -> Matrix:
    """The part of the kernel that `which` names, checked, on the orthogonal complement of the vectors `without`."""
    if which not in ("ntk", "nngp"):
        raise ValueError(f"which={which!r} is not a kernel: use 'ntk' or 'nngp'")
    log_scale: Real = 0.0
    given: Any = kernel
    if isinstance(kernel, ScaledKernel):
        given, log_scale = (kernel.ntk_scaled, kernel.log_scale) if which == "ntk" else (kernel.nngp, 0.0)
    array = concrete(given, "kernel")
    entries = array.astype(np.float64)
    _check_entries(entries)
    log = float(concrete(log_scale, "log_scale"))
    if not math.isfinite(log):
        raise ValueError(f"log_scale is {log}, expected a finite number: check how the kernel was computed")
    m, error = len(entries), entry_error(entries, array.dtype)
    # a symmetric matrix of entries up to e has no eigenvalue beyond m e (Weyl's inequality)
    matrix = Matrix((entries + entries.T) / 2, m, log, m * error, array.dtype)
    return matrix if without is None else _restricted(matrix, _complement(without, m))


def _restricted(matrix: Matrix, basis: Float64[np.ndarray, "m r"]) -> Matrix:
    """The quadratic form of the matrix on the span of an orthonormal basis, B^T K B."""
    entries = basis.T @ matrix.entries @ basis
    # the eigenvalues taken away leave their rounding behind, which may be large beside those that stay
    lost = matrix.inputs * machine_eps(np.dtype(np.float64)) * float(np.linalg.norm(matrix.entries, np.inf))
    if np.max(np.abs(entries)) <= lost:
        raise ValueError(
            f"kernel is zero, up to rounding ({lost:.2g}), on the {len(entries)} dimensions that `without` leaves: "
            "remove fewer vectors"
        )
    return matrix._replace(entries=(entries + entries.T) / 2, error=matrix.error + lost)


def _complement(without: AnyArray, m: int) -> Float64[np.ndarray, "m r"]:
    """Orthonormal basis of the vectors of length m that are orthogonal to `without`, whose lengths do not matter."""
    vectors = concrete(without, "without").astype(np.float64)
    if vectors.ndim not in (1, 2) or len(vectors) != m:
        raise ValueError(f"without has shape {vectors.shape}, expected ({m},) or ({m}, k): vectors as columns")
    vectors = vectors.reshape(m, -1)
    largest = np.max(np.abs(vectors), axis=0)
    if not (np.isfinite(largest) & (largest > 0)).all():
        raise ValueError("without has a vector that is zero, NaN or infinite, expected directions: leave it out")
    unit = vectors / largest  # in two steps: the square of a length may leave float64's range
    basis: np.ndarray = scipy.linalg.null_space((unit / np.linalg.norm(unit, axis=0)).T)
    if basis.shape[1] == 0:
        raise ValueError(f"without spans all {m} dimensions, no eigenvalue is left: remove fewer vectors")
    return basis


def _check_entries(entries: Float64[np.ndarray, "..."]) -> None:
    if entries.ndim != 2 or entries.shape[0] != entries.shape[1]:
        raise ValueError(f"kernel has shape {entries.shape}, expected (m, m): take one set of inputs against itself")
    if entries.size == 0:
        raise ValueError("kernel is empty, shape (0, 0), expected m >= 1 inputs: pass at least one")
    if not np.isfinite(entries).all():
        row, column = np.argwhere(~np.isfinite(entries))[0].tolist()
        raise ValueError(
            f"kernel[{row}, {column}] is {entries[row, column]}, expected finite entries: where they overflow, pass "
            "the Kernel itself, or compute it in float64"
        )
    largest = np.max(np.abs(entries))
    if largest == 0:
        raise ValueError("kernel is zero everywhere, expected a positive eigenvalue: check inputs and variances")
    if largest > np.finfo(np.float64).max / (2 * len(entries)):
        raise OverflowError(
            f"kernel's entries reach {largest:.2g}, its eigenvalues exceed float64: pass the Kernel itself"
        )


def entry_error(entries: Float64[np.ndarray, "m m"], dtype: np.dtype) -> float:
    """Bound on the entries' error: rounding of the dtype, or the asymmetry if larger, if rounding can explain it."""
    eps, largest = machine_eps(dtype), float(np.max(np.abs(entries)))
    asymmetry = float(np.max(np.abs(entries - entries.T))) / 2
    # Entries (i, j) and (j, i) round apart by about eps per summand and layer, and an arccos near correlation 1 loses
    # half the digits: sqrt(eps) covers both. A kernel between two different sets of inputs is off by order one.
    if asymmetry > math.sqrt(eps) * largest:
        raise ValueError(
            f"kernel is not symmetric: it differs from its transpose by {2 * asymmetry:.2g} with entries up to "
            f"{largest:.2g}, more than {dtype} explains: take one set of inputs against itself"
        )
    return max(eps * largest, asymmetry)


def machine_eps(dtype: np.dtype) -> float:
    """Rounding of the dtype, no finer than that of float64, in which it is computed; integers are exact."""
    given = dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64
    return max(float(jnp.finfo(given).eps), float(np.finfo(np.float64).eps))  # type: ignore[no-untyped-call]
