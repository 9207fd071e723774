"""A kernel as the matrix whose eigenvalues are taken: checked, exactly symmetric, float64, on a subspace if wanted."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, Rows, entries, on_disk, opened, output_by_output, rows_of
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.memory import require_memory
from ntk_analysis.common.precision import AnyArray

AT_ONCE = 256  # rows of a matrix that are compared with columns at once


class Matrix(NamedTuple):
    """A checked kernel: exactly symmetric, float64.

    Attributes:
        entries: The kernel of `inputs` inputs, and of all their outputs where it is a full one, output by output,
            times exp(-log_scale), on all of their space or a part of it.
        error: What its eigenvalues may be off by, because of the entries.
    """

    entries: Float64[np.ndarray, "r r"]
    inputs: int
    log_scale: float
    error: float
    dtype: np.dtype


def as_matrix(kernel: AnyKernel, which: str, without: AnyArray | None = None) -> Matrix:
    """The part of the kernel that `which` names, checked, on the orthogonal complement of the vectors `without`."""
    kernel = opened(kernel)
    if on_disk(kernel):
        rows = rows_of(kernel, which)
        array, inputs, log, dtype = _read(rows), rows.shape[0], rows.log_scale, rows.dtype
    else:
        array, inputs, log, dtype = _copied(kernel, which)
    _check_entries(array)
    if not math.isfinite(log):
        raise ValueError(f"log_scale is {log}, expected a finite number: check how the kernel was computed")
    error = entry_error(array, dtype)
    _symmetrize(array)
    # a symmetric matrix of entries up to e has no eigenvalue beyond m e (Weyl's inequality)
    matrix = Matrix(array, inputs, log, len(array) * error, dtype)
    return matrix if without is None else _restricted(matrix, _complement(without, len(array)))


def _read(rows: Rows) -> Float64[np.ndarray, "n1 n2"]:
    """The one copy of a kernel on disk, read some rows at a time."""
    needed = int(np.prod(rows.shape)) * np.dtype(np.float64).itemsize
    require_memory(
        needed,
        f"all eigenvalues of {rows.shape[0]} inputs in float64",
        "compute the largest ones, by spectrum.largest_eigenvalues",
    )
    array = np.empty(rows.shape)
    for some, values in rows:
        array[some] = values
    return array


def _copied(kernel: AnyKernel, which: str) -> tuple[Float64[np.ndarray, "m1 m2"], int, float, np.dtype]:
    """A copy of a kernel in memory as one matrix, its number of inputs, its log_scale and its dtype."""
    values, log = entries(kernel, which)
    if values.ndim == 3:
        raise ValueError(
            f"the kernel holds the diagonal over {values.shape[2]} outputs, expected one matrix: take one output, "
            "values[:, :, c], the trace or the full kernel"
        )
    inputs = len(values)
    if values.ndim == 4:
        values = output_by_output(values)
    return values.astype(np.float64), inputs, log, values.dtype


def _symmetrize(array: Float64[np.ndarray, "m m"]) -> None:
    """Puts (A + A^T) / 2 in the place of A, without another matrix of its size."""
    for rows in _some(array):
        rest = slice(rows.start, len(array))
        mean = (array[rows, rest] + array[rest, rows].T) / 2
        array[rows, rest], array[rest, rows] = mean, mean.T


def _some(array: np.ndarray) -> list[slice]:
    """The rows of a matrix, some at a time."""
    return [slice(start, min(start + AT_ONCE, len(array))) for start in range(0, len(array), AT_ONCE)]


def _restricted(matrix: Matrix, basis: Float64[np.ndarray, "m r"]) -> Matrix:
    """The quadratic form of the matrix on the span of an orthonormal basis, B^T K B."""
    entries = basis.T @ matrix.entries @ basis
    # the eigenvalues taken away leave their rounding behind, however large they are beside those that stay
    lost = len(basis) * machine_eps(np.dtype(np.float64)) * float(np.linalg.norm(matrix.entries, np.inf))
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
    largest = _largest(entries)
    if largest == 0:
        raise ValueError("kernel is zero everywhere, expected a positive eigenvalue: check inputs and variances")
    if largest > np.finfo(np.float64).max / (2 * len(entries)):
        raise OverflowError(
            f"kernel's entries reach {largest:.2g}, its eigenvalues exceed float64: pass the Kernel itself"
        )


def entry_error(entries: Float64[np.ndarray, "m m"], dtype: np.dtype) -> float:
    """Bound on the entries' error: rounding of the dtype, or the asymmetry if larger, if rounding can explain it."""
    eps, largest = machine_eps(dtype), _largest(entries)
    asymmetry = max(_largest(entries[rows] - entries[:, rows].T) for rows in _some(entries)) / 2
    # Entries (i, j) and (j, i) round apart by about eps per summand and layer, and an arccos near correlation 1 loses
    # half the digits: sqrt(eps) covers both. A kernel between two different sets of inputs is off by order one.
    if asymmetry > math.sqrt(eps) * largest:
        raise ValueError(
            f"kernel is not symmetric: it differs from its transpose by {2 * asymmetry:.2g} with entries up to "
            f"{largest:.2g}, more than {dtype} explains: take one set of inputs against itself"
        )
    return max(eps * largest, asymmetry)


def _largest(entries: np.ndarray) -> float:
    """The largest absolute value, without an array of absolute values."""
    return max(float(np.max(entries)), -float(np.min(entries)))


def machine_eps(dtype: np.dtype) -> float:
    """Rounding of the dtype, no finer than that of float64, in which it is computed; integers are exact."""
    given = dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64
    return max(float(jnp.finfo(given).eps), float(np.finfo(np.float64).eps))
