"""Training of the linearised network: residuals and loss, mode by mode of the kernel."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from ntk_analysis.any_kernel import AnyKernel
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.spectrum.conditioning import Spectrum, convention_of, examples_per_loss, from_eigenvalues, times_exp
from ntk_analysis.spectrum.matrix import as_matrix


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """Full-batch training of the linearised network, mode by mode, in float64.

    Attributes:
        steps: step numbers, of shape (t,).
        modes: orthonormal eigenvectors of the kernel as columns, by descending eigenvalue, of shape (m, m).
        rates: decay per step of each mode, (m,): -log|1 - x| for gradient descent, x for gradient flow, with x =
            learning_rate * eigenvalue (/ m for loss "mean"). A negative rate means growth, an infinite one that the
            mode is gone in one step.
        coefficients: residual f_t - targets in each mode, of shape (t, m) or (t, m, outputs).
        loss: loss named by `convention`, of shape (t,).
        stable: whether no mode grows, which always holds for gradient flow.
        convention: text that names loss, normalisation and parametrisation.
    """

    steps: Int64[np.ndarray, " t"]
    modes: Float64[np.ndarray, "m m"]
    rates: Float64[np.ndarray, " m"]
    coefficients: Float64[np.ndarray, "t m *outputs"]
    loss: Float64[np.ndarray, " t"]
    stable: bool
    convention: str

    @property
    def residuals(self) -> Float64[np.ndarray, "t m *outputs"]:
        """Residual f_t - targets of each input at each step."""
        residuals: np.ndarray = np.einsum("ij,tj...->ti...", self.modes, self.coefficients)
        return residuals


def training_curve(
    kernel: AnyKernel,
    targets: AnyArray,
    *,
    learning_rate: Real,
    steps: int | AnyArray,
    which: str = "ntk",
    loss: str = "sum",
    initial: AnyArray | None = None,
    gradient_flow: bool = False,
) -> TrainingCurve:
    """Residuals and loss of the linearised network: f_t - y = (1 - x)^t (f_0 - y) in each mode of the kernel.

    Here x = learning_rate * eigenvalue, divided by m for loss "mean" (Lee et al. 2019, Jacot et al. 2018). Negative
    eigenvalues, which are rounding, count as zero.

    Args:
        kernel: the kernel, as for `analyse`.
        targets: y, (m,) or (m, outputs); of a full kernel (m C,), output by output.
        learning_rate: Positive; in gradient flow step t is time t * learning_rate.
        steps: A last step, for all steps from 0 to it, or a (t,) array of step numbers.
        which: the part of the kernel, as for `analyse`.
        loss: the loss, as for `analyse`; summed over outputs either way.
        initial: f_0, shaped like targets; 0 (the mean over initialisations) if not given.
        gradient_flow: exp(-x t) in the place of (1 - x)^t.

    Raises:
        OverflowError: the learning rate is so unstable that the loss exceeds float64 within these steps.
        ValueError, TypeError: the kernel is refused, as by `analyse`; or targets, learning rate or steps do not fit.
    """
    matrix = as_matrix(kernel, which)
    ascending, modes = np.linalg.eigh(matrix.entries)
    spectrum = from_eigenvalues(ascending, matrix, which, loss)
    x = _step_sizes(spectrum, learning_rate)
    m, times, modes = len(x), _step_numbers(steps), modes[:, ::-1]
    rates = x if gradient_flow else _descent_rates(x)
    flips = (x > 1) & (not gradient_flow)
    start = modes.T @ _initial_residual(targets, initial, m)
    with np.errstate(over="ignore", invalid="ignore"):
        coefficients = np.einsum("tm,m...->tm...", _decay(rates, flips, times), start)
        losses = np.sum(coefficients.reshape(len(times), -1) ** 2, axis=1) / (
            2 * examples_per_loss(loss, matrix.inputs)
        )
    if not np.isfinite(losses).all():
        raise OverflowError(
            f"the loss exceeds float64 at step {times[~np.isfinite(losses)].min()}, learning_rate * eigenvalue is "
            f"{x[0]:.4g} (unstable above 2): take a learning rate below {spectrum.learning_rate_scaled:.4g} * "
            f"exp({-spectrum.log_scale:.6g}), fewer steps, or smaller targets"
        )
    stable = gradient_flow or bool(x[0] <= 2 * (1 + 1e-14))  # 2 / eigenvalue * eigenvalue may round to just above 2
    convention = convention_of(which, loss, matrix.inputs, "gradient flow" if gradient_flow else "gradient descent")
    return TrainingCurve(times, modes, rates, coefficients, losses, stable, convention)


def _step_numbers(steps: int | AnyArray) -> Int64[np.ndarray, " t"]:
    array = concrete(steps, "steps")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1 or array.size == 0 or array.min() < 0:
        raise ValueError(f"steps={steps!r}, expected a last step or a (t,) array of step numbers, integers >= 0")
    return np.arange(int(array) + 1, dtype=np.int64) if array.ndim == 0 else array.astype(np.int64)


def _step_sizes(spectrum: Spectrum, learning_rate: Real) -> Float64[np.ndarray, " m"]:
    """Learning rate * eigenvalue for the mean or the sum: the fraction of each mode that a small step removes."""
    rate = float(concrete(learning_rate, "learning_rate"))
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate}, expected a positive number: see largest_stable_learning_rate")
    values = np.maximum(spectrum.eigenvalues_scaled, 0)
    with np.errstate(over="ignore"):
        return times_exp(rate / examples_per_loss(spectrum.loss, spectrum.inputs) * values, spectrum.log_scale)


def _initial_residual(targets: AnyArray, initial: AnyArray | None, m: int) -> Float64[np.ndarray, "m *outputs"]:
    wanted = concrete(targets, "targets").astype(np.float64)
    if wanted.ndim not in (1, 2) or len(wanted) != m:
        raise ValueError(f"targets have shape {wanted.shape}, expected ({m},) or ({m}, outputs): one row per input")
    start = np.zeros_like(wanted) if initial is None else concrete(initial, "initial").astype(np.float64)
    if start.shape != wanted.shape:
        raise ValueError(f"initial has shape {start.shape}, expected that of targets, {wanted.shape}")
    if not np.isfinite(start - wanted).all():
        raise ValueError("targets or initial contain NaN or infinity, expected finite numbers: clean them")
    return start - wanted


def _descent_rates(x: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """Decay rates -log|1 - x|, without cancellation near x = 0 and x = 2; infinite at x = 1."""
    with np.errstate(divide="ignore"):
        rates: np.ndarray = -np.log1p(-np.minimum(x, 2 - x))
    return rates


def _decay(rates: Float64[np.ndarray, " m"], flips: np.ndarray, steps: np.ndarray) -> Float64[np.ndarray, "t m"]:
    """The factor exp(-rate t) left of each mode, with alternating sign where a step overshoots (`flips`)."""
    t = steps[:, None]
    exponent = np.where(t == 0, 0.0, rates * t)  # an infinite rate times no step is no decay
    sign = np.where(flips & (t % 2 == 1), -1.0, 1.0)
    decay: np.ndarray = sign * np.exp(-exponent)
    return decay
