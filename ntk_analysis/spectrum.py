"""What a kernel's eigenvalues say about training: condition number, outliers, stable learning rates, loss curves.

Takes a symmetric array or a `Kernel`, and always computes in float64 with NumPy, outside JAX's transformations and
whatever its x64 flag says. That does not undo the rounding the kernel arrived with: a float32 kernel has no digits
below about m * 1e-7 of its largest eigenvalue, and results that would need them say so.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import entr

from ntk_analysis.precision import AnyArray, Real


@runtime_checkable
class ScaledKernel(Protocol):
    """What this module needs of a `Kernel`: its NNGP, and its NTK as ntk_scaled * exp(log_scale)."""

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


class UnresolvedSpectrumWarning(UserWarning):
    """The smallest eigenvalue is below the kernel's rounding: its condition number is only bounded from below."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a kernel of m inputs and what follows from them, in float64.

    As with `Kernel.ntk` and `Kernel.ntk_scaled`, plain names are true values, and raise OverflowError where float64
    cannot hold them; scaled ones always exist.

    Attributes:
        eigenvalues_scaled: (m,), descending; the true ones are these times exp(log_scale). Those below `rounding`
            are noise, possibly negative.
        log_scale: 0 for an array and for an NNGP.
        rounding: Size of a scaled eigenvalue below which nothing is resolved. Entries off by e move eigenvalues by at
            most m e (Weyl's inequality), with e = eps(input_dtype) times the largest entry, or half the difference
            found between entries (i, j) and (j, i) where that is larger; the eigensolver adds m eps(float64) times
            the largest eigenvalue. What computing the kernel amplified further (a ReLU near correlation 1, hundreds of
            layers) leaves no trace in the matrix, and is not included.
        input_dtype: dtype in which the kernel arrived.
        which: "ntk" or "nngp".
        loss: "sum" or "mean".
    """

    eigenvalues_scaled: Float64[np.ndarray, " m"]
    log_scale: float
    rounding: float
    input_dtype: np.dtype
    which: str
    loss: str

    @property
    def eigenvalues(self) -> Float64[np.ndarray, " m"]:
        """True eigenvalues, descending."""
        return _unscale(self.eigenvalues_scaled, self.log_scale, "eigenvalues")

    @property
    def largest(self) -> float:
        """True largest eigenvalue."""
        return float(_unscale(self.eigenvalues_scaled[:1], self.log_scale, "eigenvalues")[0])

    @property
    def smallest(self) -> float:
        """True smallest eigenvalue; noise unless `resolved`."""
        return float(_unscale(self.eigenvalues_scaled[-1:], self.log_scale, "eigenvalues")[0])

    @property
    def resolved(self) -> bool:
        """Whether the smallest eigenvalue stands above the rounding. Duplicated inputs make it stand below."""
        return bool(self.eigenvalues_scaled[-1] > self.rounding)

    @property
    def condition_number(self) -> float:
        """Largest eigenvalue / smallest, or a lower bound of it where the smallest is not `resolved`.

        An eigenvalue computed below `rounding` is truly below twice that, so the bound is largest / (2 rounding).
        """
        smallest = float(self.eigenvalues_scaled[-1]) if self.resolved else 2 * self.rounding
        return max(1.0, float(self.eigenvalues_scaled[0]) / smallest)

    @property
    def condition_number_is_lower_bound(self) -> bool:
        """Whether `condition_number` is only known to be at least the value given."""
        return not self.resolved

    @property
    def outlier_ratio(self) -> float:
        """Largest eigenvalue / mean eigenvalue: 1 for a multiple of the identity, m for rank one."""
        return float(1 / np.mean(self._relative))

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the eigenvalues normalised to sum 1, in [1, m] (Roy & Vetterli 2007)."""
        return float(np.exp(entr(self._relative / np.sum(self._relative)).sum()))

    @property
    def learning_rate_scaled(self) -> float:
        """The largest stable learning rate times exp(log_scale)."""
        return 2 * _examples_per_loss(self.loss, len(self.eigenvalues_scaled)) / float(self.eigenvalues_scaled[0])

    @property
    def learning_rate(self) -> float:
        """Largest stable learning rate, 2 / largest eigenvalue (times m for loss "mean")."""
        return float(_unscale(np.array([self.learning_rate_scaled]), -self.log_scale, "learning_rate")[0])

    @property
    def learning_rate_convention(self) -> str:
        """Loss, normalisation and parametrisation in which `learning_rate` is meant."""
        return _convention(self.which, self.loss, len(self.eigenvalues_scaled))

    @property
    def _relative(self) -> Float64[np.ndarray, " m"]:
        """Eigenvalues as fractions of the largest, negative rounding noise removed."""
        relative: np.ndarray = np.maximum(self.eigenvalues_scaled / self.eigenvalues_scaled[0], 0)
        return relative

    def summary(self) -> str:
        """The results as text, one a line."""
        condition = f"{self.condition_number:.6g}"
        if not self.resolved:
            condition = f">= {self.condition_number:.2g} ({_unresolved(self)})"
        times, per = (f" * exp({sign * self.log_scale:.6g})" if self.log_scale else "" for sign in (1, -1))
        return "\n".join(
            [
                f"{self.which.upper()} of {len(self.eigenvalues_scaled)} inputs, {self.input_dtype}",
                f"condition number   {condition}",
                f"largest eigenvalue {self.eigenvalues_scaled[0]:.6g}{times}",
                f"outlier ratio      {self.outlier_ratio:.6g}",
                f"effective rank     {self.effective_rank:.6g}",
                f"learning rate      < {self.learning_rate_scaled:.6g}{per} ({self.learning_rate_convention})",
            ]
        )

    __str__ = summary


def analyse(kernel: AnyKernel, *, which: str = "ntk", loss: str = "sum") -> Spectrum:
    """Eigenvalues of a kernel, and condition number, outliers and stable learning rate from them.

    Args:
        kernel: Symmetric positive semi-definite (m, m) array, of NumPy or JAX, in any real dtype; or a `Kernel`.
        which: "ntk" or "nngp", the part of a `Kernel` to take; of an array it only says what the array is. The
            learning rate of an NNGP is that of training the read-out alone.
        loss: "sum" for 1/2 sum |f - y|^2, "mean" for that divided by the m examples.

    Raises:
        ValueError: Not a spectrum's matrix (not square, empty, NaN or infinite, zero, not symmetric, a negative
            eigenvalue beyond rounding), or an unknown `which` or `loss`.
        TypeError: Called inside a JAX transformation, or on entries that are not real numbers.

    Warns:
        UnresolvedSpectrumWarning: The smallest eigenvalue is below rounding.
    """
    spectrum = _spectrum(kernel, which, loss)
    if not spectrum.resolved:
        warnings.warn(f"{_unresolved(spectrum)}: the condition number is a lower bound", UnresolvedSpectrumWarning, 2)
    return spectrum


def eigenvalues(kernel: AnyKernel, which: str = "ntk") -> Float64[np.ndarray, " m"]:
    """True eigenvalues of a kernel, (m,), descending, float64; see `analyse`."""
    return _spectrum(kernel, which).eigenvalues


def condition_number(kernel: AnyKernel, which: str = "ntk") -> float:
    """Largest eigenvalue / smallest; a lower bound, with a warning, where that is below rounding; see `analyse`."""
    return analyse(kernel, which=which).condition_number


def outlier_ratio(kernel: AnyKernel, which: str = "ntk") -> float:
    """Largest eigenvalue / mean eigenvalue, in [1, m]; see `analyse`."""
    return _spectrum(kernel, which).outlier_ratio


def effective_rank(kernel: AnyKernel, which: str = "ntk") -> float:
    """Exponential of the entropy of the normalised eigenvalues, in [1, m] (Roy & Vetterli 2007); see `analyse`."""
    return _spectrum(kernel, which).effective_rank


def largest_stable_learning_rate(kernel: AnyKernel, which: str = "ntk", loss: str = "sum") -> float:
    """2 / largest eigenvalue, times m for loss "mean": gradient descent in NTK parametrisation; see `analyse`."""
    return _spectrum(kernel, which, loss).learning_rate


class _Matrix(NamedTuple):
    """A checked kernel: exactly symmetric, float64."""

    entries: Float64[np.ndarray, "m m"]
    log_scale: float
    entry_error: float
    dtype: np.dtype


def _spectrum(kernel: AnyKernel, which: str, loss: str = "sum") -> Spectrum:
    matrix = _matrix(kernel, which)
    return _from_eigenvalues(np.linalg.eigvalsh(matrix.entries), matrix, which, loss)


def _from_eigenvalues(ascending: Float64[np.ndarray, " m"], matrix: _Matrix, which: str, loss: str) -> Spectrum:
    _examples_per_loss(loss, 1)
    rounding = len(ascending) * (matrix.entry_error + _eps(np.dtype(np.float64)) * float(np.max(np.abs(ascending))))
    if ascending[0] < -rounding:
        raise ValueError(
            f"kernel is not positive semi-definite: eigenvalue {ascending[0]:.4g}, rounding of {matrix.dtype} explains "
            f"{-rounding:.2g} at most: check how it was computed"
        )
    return Spectrum(ascending[::-1], matrix.log_scale, rounding, matrix.dtype, which, loss)


def _matrix(kernel: AnyKernel, which: str) -> _Matrix:
    if which not in ("ntk", "nngp"):
        raise ValueError(f"which={which!r} is not a kernel: use 'ntk' or 'nngp'")
    log_scale: Real = 0.0
    given: Any = kernel
    if isinstance(kernel, ScaledKernel):
        given, log_scale = (kernel.ntk_scaled, kernel.log_scale) if which == "ntk" else (kernel.nngp, 0.0)
    array = _concrete(given, "kernel")
    entries = array.astype(np.float64)
    _check_entries(entries)
    log = float(_concrete(log_scale, "log_scale"))
    if not math.isfinite(log):
        raise ValueError(f"log_scale is {log}, expected a finite number: check how the kernel was computed")
    return _Matrix((entries + entries.T) / 2, log, _entry_error(entries, array.dtype), array.dtype)


def _concrete(value: Any, name: str) -> np.ndarray:
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is a JAX tracer, spectrum works on concrete arrays: call it outside jit, grad, vmap")
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers: convert it")
    return array


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


def _entry_error(entries: Float64[np.ndarray, "m m"], dtype: np.dtype) -> float:
    """How far entries may be off: rounding of the dtype, or the asymmetry where larger, if rounding can explain it."""
    eps, largest = _eps(dtype), float(np.max(np.abs(entries)))
    asymmetry = float(np.max(np.abs(entries - entries.T))) / 2
    # Entries (i, j) and (j, i) round apart by about eps per summand and layer, and an arccos near correlation 1 loses
    # half the digits: sqrt(eps) covers both. A kernel between two different sets of inputs is off by order one.
    if asymmetry > math.sqrt(eps) * largest:
        raise ValueError(
            f"kernel is not symmetric: it differs from its transpose by {2 * asymmetry:.2g} with entries up to "
            f"{largest:.2g}, more than {dtype} explains: take one set of inputs against itself"
        )
    return max(eps * largest, asymmetry)


def _eps(dtype: np.dtype) -> float:
    """Rounding of the dtype, no finer than the float64 computed in; integers are exact."""
    given = dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64
    return max(float(jnp.finfo(given).eps), float(np.finfo(np.float64).eps))  # type: ignore[no-untyped-call]


def _times_exp(values: Float64[np.ndarray, " m"], log_scale: float) -> Float64[np.ndarray, " m"]:
    """`values` * exp(log_scale), in two halves, so that only a product beyond float64 becomes infinite."""
    with np.errstate(all="ignore"):
        product: np.ndarray = values * np.exp(log_scale / 2) * np.exp(log_scale / 2)
    return np.where(values == 0, 0.0, product)


def _unscale(values: Float64[np.ndarray, " m"], log_scale: float, name: str) -> Float64[np.ndarray, " m"]:
    """`_times_exp`, or an error where that is infinite or vanishes."""
    product = _times_exp(values, log_scale)
    if not np.isfinite(product).all() or (values.any() and not product.any()):
        size = f"{values[0]:.4g} * exp({log_scale:.6g})"
        raise OverflowError(f"{name} = {size} cannot be held in float64: use {name}_scaled and log_scale")
    return product


def _examples_per_loss(loss: str, m: int) -> int:
    """The number the summed squares are divided by."""
    if loss not in ("sum", "mean"):
        raise ValueError(f"loss={loss!r} is not a loss: use 'sum' (1/2 sum |f - y|^2) or 'mean' (that / m)")
    return m if loss == "mean" else 1


def _convention(which: str, loss: str, m: int, dynamics: str = "gradient descent") -> str:
    formula = "1/2 sum |f - y|^2" if loss == "sum" else f"1/(2 m) sum |f - y|^2 with m = {m}"
    trained = "all layers" if which == "ntk" else "read-out only (NNGP)"
    return f"loss {formula}, full-batch {dynamics}, NTK parametrisation, {trained}"


def _unresolved(spectrum: Spectrum) -> str:
    return f"smallest eigenvalue below {spectrum.input_dtype} rounding"


@dataclass(frozen=True, eq=False)
class TrainingCurve:
    """Full-batch training of the linearised network, mode by mode, in float64.

    Attributes:
        steps: (t,) step numbers.
        modes: (m, m) orthonormal eigenvectors of the kernel as columns, by descending eigenvalue.
        rates: (m,) decay per step of each mode: -log|1 - x| for gradient descent, x for gradient flow, with
            x = learning_rate * eigenvalue (/ m for loss "mean"). Negative: grows. Infinite: gone in one step.
        coefficients: (t, m) or (t, m, outputs), the residual f_t - targets in each mode.
        loss: (t,) the loss named by `convention`.
        stable: Whether no mode grows; always so for gradient flow.
        convention: Loss, normalisation and parametrisation.
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
        kernel: As for `analyse`.
        targets: y, (m,) or (m, outputs).
        learning_rate: Positive; in gradient flow step t is time t * learning_rate.
        steps: A last step, for all steps from 0 to it, or a (t,) array of step numbers.
        which: As for `analyse`.
        loss: As for `analyse`; summed over outputs either way.
        initial: f_0, shaped like targets; 0 (the mean over initialisations) if not given.
        gradient_flow: exp(-x t) in the place of (1 - x)^t.

    Raises:
        OverflowError: An unstable learning rate made the loss exceed float64 within the steps asked for.
        ValueError, TypeError: As for `analyse`, and for targets, learning rate or steps that do not fit.
    """
    matrix = _matrix(kernel, which)
    ascending, modes = np.linalg.eigh(matrix.entries)
    spectrum = _from_eigenvalues(ascending, matrix, which, loss)
    x = _step_sizes(spectrum, learning_rate)
    m, times, modes = len(x), _step_numbers(steps), modes[:, ::-1]
    rates = x if gradient_flow else _descent_rates(x)
    flips = (x > 1) & (not gradient_flow)
    start = modes.T @ _initial_residual(targets, initial, m)
    with np.errstate(over="ignore", invalid="ignore"):
        coefficients = np.einsum("tm,m...->tm...", _decay(rates, flips, times), start)
        losses = np.sum(coefficients.reshape(len(times), -1) ** 2, axis=1) / (2 * _examples_per_loss(loss, m))
    if not np.isfinite(losses).all():
        raise OverflowError(
            f"the loss exceeds float64 at step {times[~np.isfinite(losses)].min()}, learning_rate * eigenvalue is "
            f"{x[0]:.4g} (unstable above 2): take a learning rate below {spectrum.learning_rate_scaled:.4g} * "
            f"exp({-spectrum.log_scale:.6g}), fewer steps, or smaller targets"
        )
    stable = gradient_flow or bool(x[0] <= 2 * (1 + 1e-14))  # 2 / eigenvalue * eigenvalue may round to just above 2
    convention = _convention(which, loss, m, "gradient flow" if gradient_flow else "gradient descent")
    return TrainingCurve(times, modes, rates, coefficients, losses, stable, convention)


def _step_numbers(steps: int | AnyArray) -> Int64[np.ndarray, " t"]:
    array = _concrete(steps, "steps")
    if not np.issubdtype(array.dtype, np.integer) or array.ndim > 1 or array.size == 0 or array.min() < 0:
        raise ValueError(f"steps={steps!r}, expected a last step or a (t,) array of step numbers, integers >= 0")
    return np.arange(int(array) + 1, dtype=np.int64) if array.ndim == 0 else array.astype(np.int64)


def _step_sizes(spectrum: Spectrum, learning_rate: Real) -> Float64[np.ndarray, " m"]:
    """Learning rate * eigenvalue for the mean or the sum: the fraction of each mode that a small step removes."""
    rate = float(_concrete(learning_rate, "learning_rate"))
    if not 0 < rate < math.inf:
        raise ValueError(f"learning_rate={rate}, expected a positive number: see largest_stable_learning_rate")
    values = np.maximum(spectrum.eigenvalues_scaled, 0)
    with np.errstate(over="ignore"):
        return _times_exp(rate / _examples_per_loss(spectrum.loss, len(values)) * values, spectrum.log_scale)


def _initial_residual(targets: AnyArray, initial: AnyArray | None, m: int) -> Float64[np.ndarray, "m *outputs"]:
    wanted = _concrete(targets, "targets").astype(np.float64)
    if wanted.ndim not in (1, 2) or len(wanted) != m:
        raise ValueError(f"targets have shape {wanted.shape}, expected ({m},) or ({m}, outputs): one row per input")
    start = np.zeros_like(wanted) if initial is None else _concrete(initial, "initial").astype(np.float64)
    if start.shape != wanted.shape:
        raise ValueError(f"initial has shape {start.shape}, expected that of targets, {wanted.shape}")
    if not np.isfinite(start - wanted).all():
        raise ValueError("targets or initial contain NaN or infinity, expected finite numbers: clean them")
    return start - wanted


def _descent_rates(x: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
    """-log|1 - x|, without cancellation near x = 0 and x = 2; infinite at x = 1."""
    with np.errstate(divide="ignore"):
        rates: np.ndarray = -np.log1p(-np.minimum(x, 2 - x))
    return rates


def _decay(rates: Float64[np.ndarray, " m"], flips: np.ndarray, steps: np.ndarray) -> Float64[np.ndarray, "t m"]:
    """What is left of each mode, exp(-rate t), its sign alternating where a step overshoots (`flips`)."""
    t = steps[:, None]
    exponent = np.where(t == 0, 0.0, rates * t)  # an infinite rate times no step is no decay
    sign = np.where(flips & (t % 2 == 1), -1.0, 1.0)
    decay: np.ndarray = sign * np.exp(-exponent)
    return decay
