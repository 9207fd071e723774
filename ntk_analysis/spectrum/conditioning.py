"""Condition number, outliers, effective rank and stable learning rate, from a kernel's eigenvalues."""

import warnings
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64
from scipy.special import entr

from ntk_analysis.any_kernel import AnyKernel
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.spectrum.matrix import Matrix, as_matrix, machine_eps


class UnresolvedSpectrumWarning(UserWarning):
    """The smallest eigenvalue is below the kernel's rounding: its condition number is only bounded from below."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues of a kernel and what follows from them, in float64.

    There are m of them for m inputs, m C of a full kernel of C outputs, and fewer where directions were left out
    (`without` in `analyse`).

    As with `Kernel.ntk` and `Kernel.ntk_scaled`, plain names are true values, and raise OverflowError where float64
    cannot hold them; scaled values always exist.

    Attributes:
        eigenvalues_scaled: eigenvalues (r,), descending; the true ones are these times exp(log_scale). Those below
            `rounding` are noise, possibly negative.
        inputs: number m of inputs.
        log_scale: logarithm of the kernel's scale; 0 for an array and for an NNGP.
        rounding: size of a scaled eigenvalue below which nothing is resolved. Entries off by e move eigenvalues by at
            most m e (Weyl's inequality), with e = eps(input_dtype) times the largest entry, or half the difference
            found between entries (i, j) and (j, i) if that is larger. The eigensolver adds m eps(float64) times the
            largest eigenvalue. Leaving out directions adds as much again, for the largest eigenvalue of the whole
            kernel, because what is removed may be far larger than what stays. Errors that computing the kernel
            amplified (a ReLU near correlation 1, hundreds of layers) leave no trace in the matrix, and are not
            included.
        input_dtype: dtype in which the kernel arrived.
        which: kernel, "ntk" or "nngp".
        loss: convention of the loss, "sum" or "mean".
    """

    eigenvalues_scaled: Float64[np.ndarray, " r"]
    inputs: int
    log_scale: float
    rounding: float
    input_dtype: np.dtype
    which: str
    loss: str

    @property
    def eigenvalues(self) -> Float64[np.ndarray, " r"]:
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
        """Whether the smallest eigenvalue is above the rounding. With duplicated inputs it is below."""
        return bool(self.eigenvalues_scaled[-1] > self.rounding)

    @property
    def condition_number(self) -> float:
        """Largest eigenvalue / smallest, or a lower bound on it if the smallest is not `resolved`.

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
        """Largest eigenvalue / mean eigenvalue: 1 for a multiple of the identity, r for rank one."""
        return float(1 / np.mean(self._relative))

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the eigenvalues normalised to sum 1, in [1, r] (Roy & Vetterli 2007)."""
        return float(np.exp(entr(self._relative / np.sum(self._relative)).sum()))

    @property
    def learning_rate_scaled(self) -> float:
        """The largest stable learning rate times exp(log_scale)."""
        return 2 * examples_per_loss(self.loss, self.inputs) / float(self.eigenvalues_scaled[0])

    @property
    def learning_rate(self) -> float:
        """Largest stable learning rate, 2 / largest eigenvalue (times m for loss "mean")."""
        return float(_unscale(np.array([self.learning_rate_scaled]), -self.log_scale, "learning_rate")[0])

    @property
    def learning_rate_convention(self) -> str:
        """Loss, normalisation and parametrisation in which `learning_rate` is meant."""
        return convention_of(self.which, self.loss, self.inputs)

    @property
    def _relative(self) -> Float64[np.ndarray, " r"]:
        """Eigenvalues as fractions of the largest, with negative rounding noise removed."""
        relative: np.ndarray = np.maximum(self.eigenvalues_scaled / self.eigenvalues_scaled[0], 0)
        return relative

    def summary(self) -> str:
        """The results as text, one on each line."""
        condition = f"{self.condition_number:.6g}"
        if not self.resolved:
            condition = f">= {self.condition_number:.2g} ({_unresolved(self)})"
        r = len(self.eigenvalues_scaled)
        space = "" if r == self.inputs else f", on {r} dimensions"
        times, per = (f" * exp({sign * self.log_scale:.6g})" if self.log_scale else "" for sign in (1, -1))
        return "\n".join(
            [
                f"{self.which.upper()} of {self.inputs} inputs, {self.input_dtype}{space}",
                f"condition number   {condition}",
                f"largest eigenvalue {self.eigenvalues_scaled[0]:.6g}{times}",
                f"outlier ratio      {self.outlier_ratio:.6g}",
                f"effective rank     {self.effective_rank:.6g}",
                f"learning rate      < {self.learning_rate_scaled:.6g}{per} ({self.learning_rate_convention})",
            ]
        )

    __str__ = summary


def analyse(kernel: AnyKernel, *, which: str = "ntk", loss: str = "sum", without: AnyArray | None = None) -> Spectrum:
    """Eigenvalues of a kernel, and its condition number, outliers and stable learning rate.

    Some kernels have a condition number on a part of the space only: a network of outputs centered over the batch
    learns nothing along the vector of ones. With `without`, all results are about the kernel's quadratic form on the
    orthogonal complement of the given vectors, B^T K B with an orthonormal basis B of the complement. If the vectors
    span an invariant subspace of the kernel, such as its null space, this leaves out their eigenvalues and changes no
    other.

    A kernel in a store is read into one float64 matrix, where its eigenvalues are computed: 3.2 GB of 20,000 inputs.

    Args:
        kernel: Any kernel of m inputs with themselves, symmetric and positive semi-definite. A full kernel
            (m, m, C, C) of C outputs counts as the matrix (m C, m C), output by output; the trace as the mean over
            outputs.
        which: part of a `Kernel` to take, "ntk" or "nngp"; for an array it only says what the array is. The learning
            rate of an NNGP is that of training the read-out alone.
        loss: convention of the loss, "sum" for 1/2 sum |f - y|^2, "mean" for that divided by the m examples.
        without: one vector (m,) or several as columns (m, k), of any length, orthogonal or not, whose directions are
            left out: `np.ones(m)` for the constant mode. They count as exact.

    Raises:
        ValueError: the array is not a spectrum's matrix (not square, empty, NaN or infinite, zero, not symmetric, or
            with a negative eigenvalue beyond rounding), `which` or `loss` is unknown, or the vectors `without` do not
            fit or leave nothing.
        TypeError: the call is inside a JAX transformation, or entries are not real numbers.
        MemoryError: one float64 copy of a kernel in a store does not fit; `largest_eigenvalues` needs none.

    Warns:
        UnresolvedSpectrumWarning: the smallest eigenvalue is below rounding.
    """
    spectrum = _spectrum(kernel, which, loss, without)
    if not spectrum.resolved:
        warnings.warn(f"{_unresolved(spectrum)}: the condition number is a lower bound", UnresolvedSpectrumWarning, 2)
    return spectrum


def eigenvalues(kernel: AnyKernel, which: str = "ntk", *, without: AnyArray | None = None) -> Float64[np.ndarray, " r"]:
    """True eigenvalues of a kernel, descending, float64; (m,), or fewer `without` some vectors; see `analyse`."""
    return _spectrum(kernel, which, without=without).eigenvalues


def condition_number(kernel: AnyKernel, which: str = "ntk", *, without: AnyArray | None = None) -> float:
    """Largest eigenvalue / smallest; a lower bound, with a warning, if that is below rounding; see `analyse`."""
    return analyse(kernel, which=which, without=without).condition_number


def outlier_ratio(kernel: AnyKernel, which: str = "ntk") -> float:
    """Largest eigenvalue / mean eigenvalue, in [1, m]; see `analyse`."""
    return _spectrum(kernel, which).outlier_ratio


def effective_rank(kernel: AnyKernel, which: str = "ntk") -> float:
    """Exponential of the entropy of the normalised eigenvalues, in [1, m] (Roy & Vetterli 2007); see `analyse`."""
    return _spectrum(kernel, which).effective_rank


def largest_stable_learning_rate(kernel: AnyKernel, which: str = "ntk", loss: str = "sum") -> float:
    """Learning rate 2 / largest eigenvalue, times m for loss "mean", in NTK parametrisation; see `analyse`."""
    return _spectrum(kernel, which, loss).learning_rate


def _spectrum(kernel: AnyKernel, which: str, loss: str = "sum", without: AnyArray | None = None) -> Spectrum:
    matrix = as_matrix(kernel, which, without)
    # the transpose is what LAPACK calls a matrix, and is overwritten: a kernel that fills the memory has no second copy
    ascending = scipy.linalg.eigh(
        matrix.entries.T, eigvals_only=True, overwrite_a=True, check_finite=False, driver="ev"
    )
    return from_eigenvalues(ascending, matrix, which, loss)


def from_eigenvalues(ascending: Float64[np.ndarray, " r"], matrix: Matrix, which: str, loss: str) -> Spectrum:
    """The spectrum of a matrix with these eigenvalues, positive up to rounding."""
    examples_per_loss(loss, 1)
    solver_error = len(ascending) * machine_eps(np.dtype(np.float64)) * float(np.max(np.abs(ascending)))
    rounding = matrix.error + solver_error
    if ascending[0] < -rounding:
        raise ValueError(
            f"kernel is not positive semi-definite: eigenvalue {ascending[0]:.4g}, rounding of {matrix.dtype} explains "
            f"{-rounding:.2g} at most: check how it was computed"
        )
    return Spectrum(ascending[::-1], matrix.inputs, matrix.log_scale, rounding, matrix.dtype, which, loss)


def times_exp(values: Float64[np.ndarray, " m"], log_scale: float) -> Float64[np.ndarray, " m"]:
    """`values` * exp(log_scale), in two halves, so that only a product beyond float64 becomes infinite."""
    with np.errstate(all="ignore"):
        product: np.ndarray = values * np.exp(log_scale / 2) * np.exp(log_scale / 2)
    return np.where(values == 0, 0.0, product)


def _unscale(values: Float64[np.ndarray, " m"], log_scale: float, name: str) -> Float64[np.ndarray, " m"]:
    """The result of `times_exp`, or an error where that is infinite or vanishes."""
    product = times_exp(values, log_scale)
    if not np.isfinite(product).all() or (values.any() and not product.any()):
        size = f"{values[0]:.4g} * exp({log_scale:.6g})"
        raise OverflowError(f"{name} = {size} cannot be held in float64: use {name}_scaled and log_scale")
    return product


def examples_per_loss(loss: str, m: int) -> int:
    """The number by which the summed squares are divided."""
    if loss not in ("sum", "mean"):
        raise ValueError(f"loss={loss!r} is not a loss: use 'sum' (1/2 sum |f - y|^2) or 'mean' (that / m)")
    return m if loss == "mean" else 1


def convention_of(which: str, loss: str, m: int, dynamics: str = "gradient descent") -> str:
    """Text that names loss, normalisation and parametrisation."""
    formula = "1/2 sum |f - y|^2" if loss == "sum" else f"1/(2 m) sum |f - y|^2 with m = {m}"
    trained = "all layers" if which == "ntk" else "read-out only (NNGP)"
    return f"loss {formula}, full-batch {dynamics}, NTK parametrisation, {trained}"


def _unresolved(spectrum: Spectrum) -> str:
    return f"smallest eigenvalue below {spectrum.input_dtype} rounding"
