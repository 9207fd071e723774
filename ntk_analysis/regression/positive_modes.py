"""Eigenvectors of a training kernel that is positive definite beyond rounding; of another, what would make it so."""

import math

import numpy as np
from jaxtyping import Float64

from ntk_analysis.precision import Real
from ntk_analysis.spectrum.matrix import Matrix


def positive_modes(
    matrix: Matrix, regularization: Real, name: str
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, "n n"]]:
    """Eigenvalues of Theta + r I, ascending and positive, and orthonormal eigenvectors as columns.

    Args:
        matrix: Theta, checked, (n, n).
        regularization: r over the mean of the diagonal of Theta, 0 or more.
        name: of the kernel, for the message.

    Raises:
        ValueError: Theta + r I is not positive definite beyond rounding (the message says what regularisation would
            do); r is negative, NaN or infinite.
    """
    if not 0 <= regularization < math.inf:
        raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
    eigenvalues, modes = np.linalg.eigh(matrix.entries)
    diagonal = float(np.trace(matrix.entries)) / matrix.inputs
    rounding = matrix.error + matrix.inputs * float(np.finfo(np.float64).eps) * float(np.max(np.abs(eigenvalues)))
    smallest = float(eigenvalues[0])
    if smallest + regularization * diagonal <= rounding:
        raise ValueError(
            f"the {name} of {matrix.inputs} inputs is not positive definite: smallest eigenvalue {smallest:.3g} with "
            f"regularization={regularization:.3g} of a mean diagonal {diagonal:.3g}, and {matrix.dtype} resolves "
            f"{rounding:.2g}: set regularization to {_enough(smallest, rounding, diagonal)} or more, or remove "
            "duplicated inputs"
        )
    return eigenvalues + regularization * diagonal, modes


def _enough(smallest: float, rounding: float, diagonal: float) -> str:
    """Twice the relative regularisation that lifts the smallest eigenvalue above rounding."""
    return f"{2 * (rounding + max(-smallest, 0)) / diagonal:.1g}" if diagonal > 0 else "nothing: it is no kernel"
