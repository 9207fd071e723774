"""Eigenvectors of a training kernel that is positive definite beyond rounding; of another, what would make it so."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.precision import Real
from ntk_analysis.spectrum.matrix import Matrix, machine_eps

EPS = float(np.finfo(np.float64).eps)
SOLVER = 6  # error of eigenvalues and vectors, in sqrt(n) roundings of the largest eigenvalue; 4 were measured


class Modes(NamedTuple):
    """The eigenvalues and eigenvectors of Theta + r I.

    Attributes:
        eigenvalues: eigenvalues, ascending and positive.
        vectors: orthonormal eigenvectors as columns.
        rounding: error of Theta in Frobenius norm: a rounding of its largest entry in each entry, in the dtype in which
            it arrived, and the eigensolver's error.
    """

    eigenvalues: Float64[np.ndarray, " n"]
    vectors: Float64[np.ndarray, "n n"]
    rounding: float


def positive_modes(matrix: Matrix, regularization: Real, name: str) -> Modes:
    """Eigenvalues of Theta + r I, ascending and positive, and orthonormal eigenvectors as columns.

    Args:
        matrix: checked kernel Theta, (n, n).
        regularization: r divided by the mean of the diagonal of Theta, 0 or more.
        name: name of the kernel, for the message.

    Raises:
        ValueError: Theta + r I is not positive definite beyond rounding (the message says what regularisation would
            do, and whether duplicated inputs are the reason); r is negative, NaN or infinite.
    """
    if not 0 <= regularization < math.inf:
        raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
    n = len(matrix.entries)
    eigenvalues, vectors = np.linalg.eigh(matrix.entries)
    diagonal = float(np.trace(matrix.entries)) / n
    rounding = matrix.error + n * EPS * float(np.max(np.abs(eigenvalues)))
    smallest = float(eigenvalues[0])
    if smallest + regularization * diagonal <= rounding:
        raise ValueError(
            f"the {name} of {n} inputs is not positive definite: smallest eigenvalue {smallest:.3g} with "
            f"regularization={regularization:.3g} of a mean diagonal {diagonal:.3g}, and {matrix.dtype} resolves "
            f"{rounding:.2g}: set regularization to {_enough(matrix.dtype, smallest, rounding, diagonal)} or more"
            f"{_reason(matrix, eigenvalues, rounding)}"
        )
    solver = SOLVER * math.sqrt(n) * EPS * float(np.max(np.abs(eigenvalues)))
    return Modes(eigenvalues + regularization * diagonal, vectors, matrix.error + solver)


def _enough(dtype: np.dtype, smallest: float, rounding: float, diagonal: float) -> str:
    """The regularisation r that leaves predictions most digits: rounding takes eps / r of them, r itself takes r."""
    if diagonal <= 0:
        return "nothing: it is no kernel"
    return f"{max(math.sqrt(machine_eps(dtype)), 20 * rounding / diagonal, 2 * (rounding - smallest) / diagonal):.1g}"


def _reason(matrix: Matrix, eigenvalues: np.ndarray, rounding: float) -> str:
    """What else would help, by where the null space comes from: inputs that are the same to the kernel, or its rank."""
    K, n = matrix.entries, len(matrix.entries)
    q = np.diag(K)
    same = q[:, None] + q[None, :] - 2 * K <= 4 * matrix.error / n  # squared distances of features, to rounding
    distinct = int(np.sum(np.argmax(same, axis=1) == np.arange(n)))
    rank = int(np.sum(eigenvalues > rounding))
    if eigenvalues[0] < -rounding:
        return "; it is no kernel: check how it was computed"
    if rank >= distinct:
        return f", or merge duplicated inputs, of which {distinct} are distinct, and average their targets"
    few = f"only {rank} eigenvalues are above rounding, and no more targets can be met"
    return f": {few}, as with fewer parameters or features than inputs, or inputs too close to be told apart"
