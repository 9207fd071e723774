"""The largest eigenvalues of a kernel of any size, which is read some rows at a time and never held as a whole."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse.linalg
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, Rows, rows_of
from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.precision import Real
from ntk_analysis.spectrum.conditioning import times_exp


@dataclass(frozen=True, eq=False)
class LargestEigenvalues:
    """Largest eigenvalues of a kernel, with eigenvectors.

    Attributes:
        eigenvalues_scaled: eigenvalues (k,), descending; the true ones are these times exp(log_scale).
        vectors: orthonormal eigenvectors, the columns of (n, k).
        log_scale: logarithm of the kernel's scale.
        error: largest |K v - eigenvalue v| of these pairs, in the scale of `eigenvalues_scaled`: within this distance
            of each value there is an eigenvalue of the kernel as it was read.
    """

    eigenvalues_scaled: Float64[np.ndarray, " k"]
    vectors: Float64[np.ndarray, "n k"]
    log_scale: float
    error: float

    @property
    def eigenvalues(self) -> Float64[np.ndarray, " k"]:
        """True eigenvalues, descending; infinite where float64 cannot hold them."""
        return times_exp(self.eigenvalues_scaled, self.log_scale)


def largest_eigenvalues(
    kernel: AnyKernel, count: int = 10, *, which: str = "ntk", tolerance: Real = 1e-8
) -> LargestEigenvalues:
    """The largest eigenvalues of a kernel (n, n) and their vectors, by ARPACK's implicitly restarted Lanczos method.

    A kernel in a store is kept in memory, in its own dtype, where a quarter of what is free holds it; else it is read
    for each product with a vector, tens of times or, where eigenvalues lie close to one another, hundreds, and takes
    memory for rows of its tiles only. `analyse` computes all eigenvalues, where a float64 copy fits.

    Args:
        kernel: any kernel of n inputs with themselves, of one output or the mean over outputs of a trace.
        count: number of eigenvalues, below n.
        which: "ntk" or "nngp".
        tolerance: relative error of the eigenvalues at which the iterations end; 0 is that of float64.

    Raises:
        ValueError: the kernel is not square, or `count` is not from 1 to n - 1; as `rows_of`.
    """
    rows = rows_of(kernel, which)
    n = square(rows)
    whole_number(count, "count", n - 1)
    rows = rows.held()
    operator = scipy.sparse.linalg.LinearOperator((n, n), matvec=rows.product, matmat=rows.product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    values, vectors = scipy.sparse.linalg.eigsh(operator, k=count, which="LA", v0=start, tol=float(tolerance))
    values, vectors = values[::-1], vectors[:, ::-1]
    error = float(np.linalg.norm(rows.product(vectors) - vectors * values, axis=0).max())
    return LargestEigenvalues(values, vectors, rows.log_scale, error)


def square(rows: Rows) -> int:
    """The number of inputs of a kernel of inputs with themselves."""
    n1, n2 = rows.shape
    if n1 != n2:
        raise ValueError(f"kernel has shape {rows.shape}, expected (n, n): take one set of inputs against itself")
    return n1
