"""Lanczos' method for a symmetric matrix that is known by its products with vectors, fully reorthogonalised."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64

BREAKDOWN = 100  # number of eps of the largest entry of T at which what is left of a vector is rounding


@dataclass(frozen=True, eq=False)
class Krylov:
    """An orthonormal basis Q of span(q, A q, ..., A^(k-1) q), and A on it: A Q = Q T + residual last e_k^T.

    Attributes:
        basis: the columns of Q, (m, k).
        diagonal: diagonal of the tridiagonal T, (k,).
        off_diagonal: entries of T beside its diagonal, (k - 1,).
        residual: length of what A adds to the span; 0 if the span is invariant.
        last: its direction (m,).
    """

    basis: Float64[np.ndarray, "m k"]
    diagonal: Float64[np.ndarray, " k"]
    off_diagonal: Float64[np.ndarray, " others"]
    residual: float
    last: Float64[np.ndarray, " m"]

    def ritz(self) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, "k k"]]:
        """Eigenvalues of T, descending, and its eigenvectors s as columns; the vectors Q s are those of A."""
        values, vectors = scipy.linalg.eigh_tridiagonal(self.diagonal, self.off_diagonal)
        return values[::-1], vectors[:, ::-1]

    @property
    def bounds(self) -> Float64[np.ndarray, " k"]:
        """|A Q s - theta Q s| = residual |s_k| of each: within this distance of theta there is an eigenvalue of A."""
        return self.residual * np.abs(self.ritz()[1][-1])


def lanczos(product: Callable[[np.ndarray], np.ndarray], start: Float64[np.ndarray, " m"], steps: int) -> Krylov:
    """At most `steps` steps, of one product each, from a vector that is not zero; fewer where the span is invariant.

    Each new vector is made orthogonal to all before it, twice (Parlett 1998, The Symmetric Eigenvalue Problem, 13.7).
    """
    vector = start / np.linalg.norm(start)
    basis, diagonal, off_diagonal, residual = [vector], list[float](), list[float](), 0.0
    for step in range(min(steps, len(start))):
        rest = product(basis[-1])
        diagonal.append(float(basis[-1] @ rest))
        q = np.stack(basis, axis=1)
        for _ in range(2):
            rest = rest - q @ (q.T @ rest)
        residual = float(np.linalg.norm(rest))
        scale = max(map(abs, [*diagonal, *off_diagonal]))
        if residual <= BREAKDOWN * np.finfo(np.float64).eps * scale or len(basis) == len(start):
            residual, vector = 0.0, np.zeros_like(vector)
            break
        vector = rest / residual
        if step + 1 < steps:
            off_diagonal.append(residual)
            basis.append(vector)
    return Krylov(np.stack(basis, axis=1), np.array(diagonal), np.array(off_diagonal), residual, vector)
