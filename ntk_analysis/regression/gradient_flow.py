"""Training by gradient flow: mean and covariance of the predictions of infinitely wide networks, at any time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, entries, opened, output_by_output
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.finite import require_finite
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.regression.approximation import approximation, growth
from ntk_analysis.regression.kernel_source import in_memory
from ntk_analysis.regression.positive_modes import EPS, positive_modes
from ntk_analysis.spectrum.conditioning import times_exp
from ntk_analysis.spectrum.matrix import as_matrix, machine_eps


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Training on n inputs, mode by mode of their kernel Theta, which is decomposed once for all times and test inputs.

    Mean and covariance of predictions are those of Lee et al. 2019 (1902.06720) for r = 0, with A_t = (Theta + r I)^-1
    (I - exp(-(Theta + r I) t)). The weight decay r adds r/2 |theta - theta_0|^2 to the loss, which pulls parameters
    back to where they started. With weights w of the inputs the loss is 1/2 sum w |f - y|^2: it is training with D
    Theta D for Theta, D y for y and Theta_* D for Theta_*, where D = diag(sqrt(w)).

    A full kernel (n, n, C, C) is the matrix of its n C outputs, output by output, as for `spectrum`; targets and
    predictions keep their shapes (n, C) and (k, C).

    Attributes:
        eigenvalues_scaled: eigenvalues (m,) of Theta + r I, ascending and positive; the true ones are these times
            exp(log_scale). There are m = n of them, or m = n C of a full kernel.
        modes: orthonormal eigenvectors, the columns of an (m, m) matrix.
        coefficients: targets in these modes, of shape (m, *outputs); (m,) of a full kernel.
        log_scale: logarithm of the kernel's scale; 0 for arrays and for an NNGP.
        which: kernel, "ntk" or "nngp".
        error_scaled: error of the kernel in Frobenius norm: in each entry a rounding of the largest one, in the dtype
            in which it arrived, and the `approximation_error` of a `Kernel`; and the eigensolver's error. Roundings
            that computing the kernel amplified leave no trace in it, and are not included.
        largest_scaled: largest entry of Theta.
        roots: square roots of the inputs' weights, of each output of a full kernel; None if all are 1.
        together: number C of outputs of a full kernel; None of a kernel that all outputs share.
    """

    eigenvalues_scaled: Float64[np.ndarray, " m"]
    modes: Float64[np.ndarray, "m m"]
    coefficients: Float64[np.ndarray, "m *outputs"]
    log_scale: float
    which: str
    error_scaled: float
    largest_scaled: float
    roots: Float64[np.ndarray, " m"] | None = None
    together: int | None = None

    @classmethod
    def on(
        cls,
        kernel: AnyKernel,
        targets: AnyArray,
        *,
        which: str = "ntk",
        regularization: Real = 0.0,
        weights: AnyArray | None = None,
    ) -> "GradientFlow":
        """Training towards `targets` from outputs of mean 0.

        Args:
            kernel: symmetric array (n, n), `Kernel` of the training inputs with themselves, or full kernel (n, n, C,
                C) of C outputs.
            targets: targets (n,) or (n, outputs), of a full kernel (n, C); for a network linearised where it started,
                y - f_0.
            which: kernel, "ntk", or "nngp", which trains the read-out alone.
            regularization: r divided by the mean of the kernel's diagonal, in which inputs have their weights; 0 or
                more.
            weights: weights (n,) of the inputs' errors in the loss, > 0; None for 1 each. An input of weight 2 is two
                inputs.

        Raises:
            ValueError: the array is not a kernel, see `spectrum.analyse`; Theta + r I is not positive definite beyond
                rounding (the message says what regularisation would do); or targets, regularisation or weights do not
                fit.
        """
        matrix = as_matrix(kernel, which)
        n, m, largest = matrix.inputs, len(matrix.entries), float(np.max(np.abs(matrix.entries)))
        y = concrete(targets, "targets").astype(np.float64)
        together = None if m == n else m // n
        if y.ndim not in (1, 2) or len(y) != n or (together or y.shape[-1]) != y.shape[-1] or not np.isfinite(y).all():
            expected = f"({n},) or ({n}, outputs)" if together is None else f"({n}, {together})"
            raise ValueError(f"targets have shape {y.shape}, expected finite {expected}")
        if together is not None:
            y = y.T.ravel()
        roots, share = None, 1.0
        if weights is not None:
            w = checked_weights(weights, n)
            roots, share = np.tile(np.sqrt(w), m // n), 1 / float(w.mean())
            y = (roots * y.T).T
            weighted = roots[:, None] * matrix.entries * roots
            error = float(w.max()) * matrix.error + 4 * EPS * float(np.linalg.norm(weighted))
            matrix = matrix._replace(entries=weighted, error=error)
        # the mean of the weighted kernel's diagonal, of which r is a fraction, is `share` of its mean over all weights
        eigenvalues, modes, rounding = positive_modes(matrix, float(regularization) * share, which.upper())
        # of m^2 entries, each with its weights
        error = rounding + m * approximation(kernel, which) * float(np.max(np.abs(matrix.entries)))
        return cls(eigenvalues, modes, modes.T @ y, matrix.log_scale, which, error, largest, roots, together)

    def mean(
        self, test: AnyKernel, time: Real | Sequence[Any] = math.inf, *, relative: bool = False
    ) -> Float64[np.ndarray, "..."]:
        """Mean prediction Theta_* A_t y on k test inputs.

        Args:
            test: kernel (k, n) of the test inputs with the training inputs, its scale included; (k, n, C, C) of a full
                one.
            time: training time, a number or an array (times,); infinity is allowed.
            relative: whether time counts in units of 1 / (largest eigenvalue of Theta + r I), in which the largest
                stable learning rate of gradient descent is 2.

        Raises:
            ValueError: the kernel or times do not fit, or a mean is beyond float64.
        """
        in_modes, _ = self._against_modes(test)
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            means = [self._by_input((in_modes * a) @ self.coefficients) for a in self._weights(time, relative)]
        _require_finite([np.abs(mean.reshape(len(mean), -1)).max(axis=1, initial=0) for mean in means], "mean")
        return np.stack(means).reshape(np.shape(time) + means[0].shape)

    def mean_error(
        self, test: AnyKernel, time: Real | Sequence[Any] = math.inf, *, relative: bool = False
    ) -> Float64[np.ndarray, "..."]:
        """Bound on how far `mean` is off, in the shape of `mean`; infinite where no bound exists.

        It is for rounding, and for the approximations that a `Kernel` tells of (`approximation_error`).

        Let phi(x) = (1 - exp(-x t)) / x. If the kernel is off by E and the kernel of the test inputs by e, Theta_* A_t
        y moves by at most (|e| + |E| |w|) |A_t y|, with w = A_t Theta_*' of the true kernels: the divided differences
        of phi are |phi[x, x']| <= phi(x) phi(x'), an equality for t = infinity. This term makes small regularisations
        of singular kernels inexact: A_t y has the part of the targets that differs between duplicated inputs, divided
        by r.

        Arguments and errors are those of `mean`. E is `error_scaled`, and e the same for `test`.
        """
        in_modes, test_error = self._against_modes(test)
        solver = (len(self.modes) + 4 + abs(self.log_scale)) * EPS
        off = test_error + solver * np.linalg.norm(in_modes, axis=1)
        y = np.linalg.norm(self.coefficients, axis=0)
        # relative error of the step in relative time, and of the targets' coefficients
        relatively = solver + self.error_scaled / self.eigenvalues_scaled[-1]
        errors = []
        for a in self._weights(time, relative):
            left = 1 - self.error_scaled * np.max(a)  # fraction left of the smallest eigenvalue, if resolved at all
            w = np.linalg.norm(in_modes * a, axis=1)
            true_w = (w + off * np.max(a)) / left if left > 0 else np.full(len(w), np.inf)
            moved = np.linalg.norm(a.reshape(-1, *(1,) * (self.coefficients.ndim - 1)) * self.coefficients, axis=0)
            here = np.multiply.outer(off + self.error_scaled * true_w, moved) + relatively * np.multiply.outer(w, y)
            errors.append(self._by_input(here))
        return np.stack(errors).reshape(np.shape(time) + errors[0].shape)

    def log_marginal_likelihood(self) -> float:
        """Logarithm of the density of the targets under N(0, Theta + r W^-1), summed over outputs (natural logarithm).

        With which="nngp" it is the evidence of the Gaussian process that infinitely wide networks are, observed with
        noise of variance r (r/w at weight w); with "ntk" that of the process whose posterior mean is the end of
        training. Rasmussen & Williams 2006, equation 2.30.
        """
        m, outputs = len(self.modes), math.prod(self.coefficients.shape[1:])
        logs = np.log(self.eigenvalues_scaled) + self.log_scale
        determinant = float(np.sum(logs)) - (0.0 if self.roots is None else 2 * float(np.sum(np.log(self.roots))))
        squares = float(np.sum(self.coefficients.reshape(m, -1) ** 2 / self.eigenvalues_scaled[:, None]))
        fit = float(times_exp(np.array([squares]), -self.log_scale)[0])
        return -fit / 2 - outputs * (determinant + m * math.log(2 * math.pi)) / 2

    def covariance(
        self,
        test: AnyKernel,
        nngp: AnyArray,
        nngp_test_train: AnyArray,
        nngp_test: AnyArray,
        *,
        time: Real | Sequence[Any] = math.inf,
        relative: bool = False,
    ) -> Float64[np.ndarray, "..."]:
        """Covariance of predictions over infinitely wide networks, K_** + B K B' - B K_*' - K_* B', B = Theta_* A_t.

        It is the same for each output. With which="nngp", time = infinity and r = 0 it is the posterior covariance of
        the Gaussian process. With r > 0 it is that of networks trained with weight decay; the posterior with
        observation noise r adds r B B', which is what fitting targets with fresh noise of variance r adds.

        Args:
            test: kernel (k, n) of the test inputs with the training inputs, as for `mean`.
            nngp: NNGP (n, n) of the training inputs.
            nngp_test_train: NNGP (k, n) of the test inputs with the training inputs.
            nngp_test: NNGP (k, k) of the test inputs; or their variances (k,), which gives variances only.
            time: training time, as for `mean`.
            relative: whether time counts in relative units, as for `mean`.

        Raises:
            ValueError: kernels do not fit, in shape or because they give a negative variance; kernels are NaN or
                infinite; or a covariance is beyond float64.
        """
        prior, mixed, start = (
            concrete(part, name).astype(np.float64)
            for part, name in ((nngp, "nngp"), (nngp_test_train, "nngp_test_train"), (nngp_test, "nngp_test"))
        )
        for part, name in ((prior, "nngp"), (mixed, "nngp_test_train"), (start, "nngp_test")):
            require_finite(part, name)
        if self.roots is not None and prior.shape == self.modes.shape and mixed.shape[1:] == self.roots.shape:
            prior, mixed = self.roots[:, None] * prior * self.roots, mixed * self.roots
        (in_modes, _), k = self._against_modes(test), len(mixed)
        if in_modes.shape != mixed.shape or prior.shape != self.modes.shape or start.shape not in ((k,), (k, k)):
            raise ValueError(
                f"NNGP of shapes {prior.shape}, {mixed.shape}, {start.shape}, expected {self.modes.shape}, "
                f"{in_modes.shape} and ({len(in_modes)},) or ({len(in_modes)}, {len(in_modes)})"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            covariances = [
                _covariance((in_modes * a) @ self.modes.T, prior, mixed, start) for a in self._weights(time, relative)
            ]
        _require_finite(covariances, "covariance")
        return np.stack(covariances).reshape(np.shape(time) + start.shape)

    def _against_modes(self, test: AnyKernel) -> tuple[Float64[np.ndarray, "k n"], float]:
        """Rows of the test kernel in the modes, and the length of what a row may be off by, in the modes' scale."""
        test = in_memory(opened(test))
        values, log_scale = entries(test, self.which)
        C, n = self.together, len(self.modes) // (self.together or 1)
        if values.shape[1:] != (n, *(() if C is None else (C, C))):
            expected = f"(k, {n})" if C is None else f"(k, {n}, {C}, {C})"
            raise ValueError(f"kernel of test with training inputs has shape {values.shape}, expected {expected}")
        scale = log_scale - self.log_scale
        rows = (values if C is None else output_by_output(values)).astype(np.float64)
        largest = np.max(np.abs(rows))
        off = _scaled(np.array([machine_eps(values.dtype) * largest, largest]), scale)
        error = off[0] + approximation(test, self.which) * max(off[1], self.largest_scaled * growth(test))
        length = math.sqrt(rows.shape[1]) * float(error)
        if self.roots is not None:
            rows, length = rows * self.roots, length * float(np.max(self.roots))
        return _scaled(rows @ self.modes, scale), length

    def _by_input(self, values: np.ndarray) -> np.ndarray:
        """Values (m, *outputs) of predictions, with the outputs of a full kernel on an axis of their own, (k, C)."""
        return values if self.together is None else values.reshape(self.together, -1).T

    def _weights(self, time: Any, relative: bool) -> Float64[np.ndarray, "times n"]:
        """Eigenvalues of A_t times exp(log_scale): for log_scale beyond exp's range only their product with Theta_*."""
        t = concrete(time, "time").astype(np.float64)
        if t.ndim > 1 or t.size == 0 or not (t >= 0).all():
            raise ValueError(f"time={time}, expected numbers >= 0, one or (times,)")
        values = self.eigenvalues_scaled
        exponents = np.outer(t, values / values[-1]) if relative else _scaled(np.outer(t, values), self.log_scale)
        weights: np.ndarray = -np.expm1(-exponents) / values
        return weights


def checked_weights(weights: AnyArray, n: int) -> Float64[np.ndarray, " n"]:
    """The weights of n inputs; ValueError unless they are n finite numbers above 0."""
    w = concrete(weights, "weights").astype(np.float64)
    if w.shape != (n,) or not np.isfinite(w).all() or not (w > 0).all():
        raise ValueError(f"weights have shape {w.shape}, expected ({n},) finite numbers > 0: leave out inputs of 0")
    return w


def _require_finite(predictions: list[np.ndarray], name: str) -> None:
    """Applies `finite` to the predictions at each time, of each input or of each pair of inputs."""
    why = "it leaves float64's range; scale the targets, or take all kernels from the same network"
    for values in predictions:
        require_finite(values, f"the predicted {name}", why=lambda *inputs: why)


def _scaled(values: np.ndarray, log_scale: float) -> np.ndarray:
    """values * exp(log_scale), for any shape; infinite where that is beyond float64."""
    return times_exp(values.ravel(), log_scale).reshape(values.shape)


def _covariance(B: np.ndarray, prior: np.ndarray, mixed: np.ndarray, start: np.ndarray) -> np.ndarray:
    """K_** + B K B' - B K_*' - K_* B' with start = K_** (k, k); or its diagonal, with the variances start (k,)."""
    if start.ndim == 1:
        return _nonnegative(start + np.sum((B @ prior - 2 * mixed) * B, axis=1), B, prior, start)
    half = (B @ prior / 2 - mixed) @ B.T
    found: np.ndarray = start + half + half.T
    _nonnegative(np.diagonal(found), B, prior, np.diagonal(start))
    return found


def _nonnegative(variance: np.ndarray, B: np.ndarray, prior: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Variances with negative rounding removed; an error if a negative one is more than rounding.

    They are a quadratic form [-B, I] of the joint NNGP. So for any B, a negative variance means rounding of the NNGP
    (sqrt of eps allows for an arccos near correlation 1) or kernels that do not belong together.
    """
    size = max(float(np.max(np.abs(prior))), float(np.max(np.abs(start)))) * (1 + np.sum(np.abs(B), axis=1)) ** 2
    if (variance < -math.sqrt(np.finfo(np.float64).eps) * size).any():
        raise ValueError(
            f"a predicted variance is {variance.min():.3g}: the kernels do not belong together; take all from the same "
            "network, and test inputs as rows against training inputs as columns"
        )
    return np.maximum(variance, 0.0)
