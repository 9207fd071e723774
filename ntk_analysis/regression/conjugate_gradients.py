"""Kernel regression of any size: conjugate gradients on a kernel that is multiplied some rows at a time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, Rows, rows_of
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.regression.gradient_flow import checked_weights
from ntk_analysis.spectrum.largest import square
from ntk_analysis.spectrum.matrix import machine_eps

RANK = 500  # eigenvalues that are taken out of the way of the iterations, at most a tenth of all


@dataclass(frozen=True, eq=False)
class Solution:
    """The coefficients A = (Theta + r W^-1)^-1 Y of a regression that is trained to its end, weights W of its inputs.

    Attributes:
        coefficients_scaled: coefficients (n, *outputs); the true ones are these times exp(-log_scale).
        log_scale: logarithm of the scale of the kernel.
        residual: |Y - (Theta + r W^-1) A| / |Y| of each output, computed with the kernel and not along the iterations.
        error_scaled: bound on |A - exact| of each output for the kernel as it was read, if that has no negative
            eigenvalue: residual |Y| / r, times the largest weight, in the scale of the coefficients; infinite for r =
            0. A prediction is off by at most this times the length of its row.
        iterations: number of iterations, in each of which the kernel was read once.
        which: kernel, "ntk" or "nngp".
    """

    coefficients_scaled: Float64[np.ndarray, "n *outputs"]
    log_scale: float
    residual: Float64[np.ndarray, "*outputs"]
    error_scaled: Float64[np.ndarray, "*outputs"]
    iterations: int
    which: str

    def predict(self, test: AnyKernel) -> Float64[np.ndarray, "k *outputs"]:
        """Mean predictions, from the kernel (k, n) of the test inputs with the training inputs.

        Raises:
            ValueError: the kernel does not fit; as `rows_of`.
        """
        rows = self._against(test)
        return rows.product(self.coefficients_scaled) * np.exp(rows.log_scale - self.log_scale)

    def predict_error(self, test: AnyKernel) -> Float64[np.ndarray, "k *outputs"]:
        """Bound on how far `predict` is off because the iterations ended: |row of the kernel| times `error_scaled`.

        Rounding of the kernel's entries, and a kernel's `approximation_error`, are not included.

        Raises:
            ValueError: `predict` raises it.
        """
        rows = self._against(test)
        lengths = np.concatenate([np.linalg.norm(values.astype(np.float64), axis=1) for _, values in rows])
        return np.multiply.outer(lengths * np.exp(rows.log_scale - self.log_scale), self.error_scaled)

    def _against(self, test: AnyKernel) -> Rows:
        rows = rows_of(test, self.which)
        if rows.shape[1] != len(self.coefficients_scaled):
            raise ValueError(f"kernel has shape {rows.shape}, expected (k, {len(self.coefficients_scaled)})")
        return rows


def solve(
    kernel: AnyKernel,
    targets: AnyArray,
    *,
    regularization: Real = 0.0,
    weights: AnyArray | None = None,
    which: str = "ntk",
    tolerance: Real = 1e-8,
    iterations: int = 1000,
) -> Solution:
    """Regression on n inputs, trained to its end, by conjugate gradients.

    It is `GradientFlow` at time infinity for kernels of any size. All outputs share the products with the kernel. The
    iterations are preconditioned: eigenvalues that outweigh the rest are taken out of their way first. A kernel in a
    store is kept in memory as by `spectrum.largest_eigenvalues`, or read for each iteration.

    Args:
        kernel: any kernel of n inputs with themselves, of one output or the mean over outputs of a trace.
        targets: targets (n,) or (n, outputs).
        regularization: r divided by the mean of the kernel's diagonal, in which inputs have their weights; 0 or more.
        weights: weights (n,) of the inputs' errors in the loss, > 0; None for 1 each.
        which: "ntk" or "nngp".
        tolerance: residual |Y - (Theta + r W^-1) A| / |Y| of each output at which the iterations end.
        iterations: largest number of iterations.

    Raises:
        ValueError: the kernel is not square, targets, weights or the regularisation do not fit, or the kernel is not
            positive definite with this regularisation.
        ArithmeticError: the residual is above the tolerance after all iterations; the message says how large it is.
    """
    rows = rows_of(kernel, which).held()
    n = square(rows)
    y = concrete(targets, "targets").astype(np.float64)
    if y.ndim not in (1, 2) or len(y) != n or not np.isfinite(y).all():
        raise ValueError(f"targets have shape {y.shape}, expected finite ({n},) or ({n}, outputs)")
    if not 0 <= regularization < np.inf:
        raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
    w = np.ones(n) if weights is None else checked_weights(weights, n)
    diagonal = np.concatenate([np.diagonal(values[:, at]).astype(np.float64) for at, values in rows])
    r = float(regularization) * np.average(diagonal, weights=w) / w[:, None]
    soften = _preconditioner(rows, float(r.mean()), min(RANK, n // 10))
    a, count = _iterated(rows, r, y.reshape(n, -1), soften=soften, tolerance=float(tolerance), most=iterations)
    size = np.linalg.norm(y.reshape(n, -1), axis=0)
    left = np.linalg.norm(y.reshape(n, -1) - rows.product(a) - r * a, axis=0)
    residual = left / np.where(size > 0, size, 1)
    if residual.max() > 2 * tolerance:  # along the iterations it is known to rounding
        raise ArithmeticError(
            f"the residual is {residual.max():.2g} of the targets after {count} iterations, expected {tolerance:.2g}: "
            "use a larger regularization or tolerance, or more iterations"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(left > 0, left / r.min(), 0.0)
    shape = y.shape[1:]
    return Solution(a.reshape(y.shape), rows.log_scale, residual.reshape(shape), error.reshape(shape), count, which)


def _preconditioner(rows: Rows, r: float, rank: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function that brings the largest eigenvalues of Theta + r I down to the last one of them, about.

    They are those of a Nystroem approximation on random vectors, for which the kernel is read once (Frangella, Tropp &
    Udell 2021, 2110.02820, algorithm 2.1 and equation 1.3).
    """
    n = square(rows)
    if rank < 2:
        return lambda x: x
    sketch = np.linalg.qr(np.random.default_rng(0).standard_normal((n, rank)))[0]
    image = rows.product(sketch)
    shift = machine_eps(rows.dtype) * float(np.linalg.norm(image))
    image += shift * sketch
    inner = sketch.T @ image
    try:
        root = np.linalg.cholesky((inner + inner.T) / 2)
    except np.linalg.LinAlgError:  # it is no kernel, as the iterations will find
        return lambda x: x
    vectors, singular, _ = np.linalg.svd(
        scipy.linalg.solve_triangular(root, image.T, lower=True).T, full_matrices=False
    )
    values = np.maximum(singular**2 - shift, 0) + r
    if values[-1] <= 0:
        return lambda x: x
    shrunk = values[-1] / values - 1
    return lambda x: x + vectors @ (shrunk[:, None] * (vectors.T @ x))


def _iterated(
    rows: Rows, r: np.ndarray, y: np.ndarray, *, soften: Callable[[np.ndarray], np.ndarray], tolerance: float, most: int
) -> tuple[Float64[np.ndarray, "n outputs"], int]:
    """Coefficients, and the number of iterations; all outputs step at once, each with a length of its own."""
    a, left = np.zeros_like(y), y.copy()
    wanted = tolerance * np.linalg.norm(y, axis=0)
    direction = soften(left)
    slope = np.sum(left * direction, axis=0)
    for count in range(most):
        if (np.linalg.norm(left, axis=0) <= wanted).all():
            return a, count
        moved = rows.product(direction) + r * direction
        curvature = np.sum(direction * moved, axis=0)
        if (curvature < 0).any():
            raise ValueError(
                f"the kernel is not positive definite: a direction has curvature {curvature.min():.3g}: use a larger "
                "regularization"
            )
        step = _ratio(slope, curvature)
        a += step * direction
        left -= step * moved
        softened = soften(left)
        before, slope = slope, np.sum(left * softened, axis=0)
        direction = softened + _ratio(slope, before) * direction
    return a, most


def _ratio(above: np.ndarray, below: np.ndarray) -> Float64[np.ndarray, " outputs"]:
    """Ratios, and 0 where an output has arrived and both are 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
