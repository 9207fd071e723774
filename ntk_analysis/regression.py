"""Prediction with a kernel: networks trained by gradient flow, at any time, as scikit-learn estimators.

Everything is for full-batch gradient flow on the loss 1/2 sum |f - y|^2 in NTK parametrisation. Gradient descent with
a small learning rate is there after `time` / learning rate steps; with the mean over n examples, after n times as many.
Computed in float64 with NumPy, outside JAX's transformations.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ntk_analysis.alignment import ComparableKernel, centered_one_hot, entries
from ntk_analysis.empirical import EmpiricalKernel
from ntk_analysis.infinite import HasKernel, infinite_kernel
from ntk_analysis.kernel import Kernel
from ntk_analysis.precision import AnyArray, Real
from ntk_analysis.spectrum.conditioning import times_exp
from ntk_analysis.spectrum.matrix import as_matrix, concrete


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """Training on n inputs, mode by mode of their kernel Theta: decomposed once, for all times and test inputs.

    Lee et al. 2019 (1902.06720), equations 14 and 15, with A_t = (Theta + r I)^-1 (I - exp(-(Theta + r I) t)); the
    weight decay r pulls parameters back to where they started, r/2 |theta - theta_0|^2 beside the loss.

    Attributes:
        eigenvalues_scaled: (n,) of Theta + r I, ascending and positive; the true ones are these times exp(log_scale).
        modes: (n, n) orthonormal eigenvectors as columns.
        coefficients: (n, *outputs) the targets in these modes.
        log_scale: of the kernel, 0 for arrays and for an NNGP.
        which: "ntk" or "nngp".
    """

    eigenvalues_scaled: Float64[np.ndarray, " n"]
    modes: Float64[np.ndarray, "n n"]
    coefficients: Float64[np.ndarray, "n *outputs"]
    log_scale: float
    which: str

    @classmethod
    def on(
        cls, kernel: Kernel | AnyArray, targets: AnyArray, *, which: str = "ntk", regularization: Real = 0.0
    ) -> "GradientFlow":
        """Training towards `targets` from outputs of mean 0.

        Args:
            kernel: (n, n) symmetric array or `Kernel` of the training inputs with themselves.
            targets: (n,) or (n, outputs); of one network linearised where it started, y - f_0.
            which: "ntk", or "nngp", which is training the read-out alone.
            regularization: r over the mean of the kernel's diagonal, 0 or more.

        Raises:
            ValueError: not a kernel, see `spectrum.analyse`; Theta + r I not positive definite beyond rounding (the
                message says what regularisation would do); targets or regularisation that do not fit.
        """
        matrix = as_matrix(kernel, which)
        y = concrete(targets, "targets").astype(np.float64)
        if y.ndim not in (1, 2) or len(y) != matrix.inputs or not np.isfinite(y).all():
            raise ValueError(
                f"targets have shape {y.shape}, expected finite ({matrix.inputs},) or ({matrix.inputs}, outputs)"
            )
        if not 0 <= regularization < math.inf:
            raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
        eigenvalues, modes = np.linalg.eigh(matrix.entries)
        diagonal = float(np.trace(matrix.entries)) / matrix.inputs
        rounding = matrix.error + matrix.inputs * float(np.finfo(np.float64).eps) * float(np.max(np.abs(eigenvalues)))
        smallest = float(eigenvalues[0])
        if smallest + regularization * diagonal <= rounding:
            raise ValueError(
                f"the {which.upper()} of {matrix.inputs} inputs is not positive definite: smallest eigenvalue "
                f"{smallest:.3g} with regularization={regularization:.3g} of a mean diagonal {diagonal:.3g}, and "
                f"{matrix.dtype} resolves {rounding:.2g}: set regularization to {_enough(smallest, rounding, diagonal)}"
                " or more, or remove duplicated inputs"
            )
        return cls(eigenvalues + regularization * diagonal, modes, modes.T @ y, matrix.log_scale, which)

    def mean(
        self, test: ComparableKernel, time: Any = math.inf, *, relative: bool = False
    ) -> Float64[np.ndarray, "..."]:
        """Mean prediction Theta_* A_t y on k test inputs.

        Args:
            test: (k, n) kernel of the test inputs with the training inputs, its scale included.
            time: a number or (times,), infinity allowed.
            relative: whether time counts in units of 1 / (largest eigenvalue of Theta + r I), in which the largest
                stable learning rate of gradient descent is 2.

        Raises:
            ValueError: a kernel or times that do not fit.
        """
        in_modes = self._against_modes(test)
        return np.stack([(in_modes * a) @ self.coefficients for a in self._weights(time, relative)]).reshape(
            np.shape(time) + in_modes.shape[:1] + self.coefficients.shape[1:]
        )

    def covariance(
        self,
        test: ComparableKernel,
        nngp: AnyArray,
        nngp_test_train: AnyArray,
        nngp_test: AnyArray,
        time: Any = math.inf,
        *,
        relative: bool = False,
    ) -> Float64[np.ndarray, "..."]:
        """Covariance of predictions over infinitely wide networks, K_** + B K B' - B K_*' - K_* B', B = Theta_* A_t.

        The same for each output. With which="nngp", time = infinity and r = 0 it is the posterior of the Gaussian
        process. With r > 0 it is that of networks trained with weight decay; the posterior with observation noise r
        adds r B B', which is what fitting targets with fresh noise of variance r adds.

        Args:
            test: as for `mean`.
            nngp: (n, n) NNGP of the training inputs.
            nngp_test_train: (k, n).
            nngp_test: (k, k), or the variances (k,), for the variances only.
            time: as for `mean`.
            relative: as for `mean`.

        Raises:
            ValueError: kernels that do not fit, in shape, or because they give a negative variance.
        """
        prior, mixed, start = (np.asarray(part, np.float64) for part in (nngp, nngp_test_train, nngp_test))
        in_modes, k = self._against_modes(test), len(mixed)
        if in_modes.shape != mixed.shape or prior.shape != self.modes.shape or start.shape not in ((k,), (k, k)):
            raise ValueError(
                f"NNGP of shapes {prior.shape}, {mixed.shape}, {start.shape}, expected {self.modes.shape}, "
                f"{in_modes.shape} and ({len(in_modes)},) or ({len(in_modes)}, {len(in_modes)})"
            )
        found = []
        for a in self._weights(time, relative):
            B = (in_modes * a) @ self.modes.T
            if start.ndim == 1:
                found.append(_nonnegative(start + np.sum((B @ prior - 2 * mixed) * B, axis=1), B, prior, start))
            else:
                half = (B @ prior / 2 - mixed) @ B.T
                found.append(start + half + half.T)
                _nonnegative(np.diagonal(found[-1]), B, prior, np.diagonal(start))
        return np.stack(found).reshape(np.shape(time) + start.shape)

    def _against_modes(self, test: ComparableKernel) -> Float64[np.ndarray, "k n"]:
        values, log_scale = entries(test, self.which)
        if values.ndim != 2 or values.shape[1] != len(self.modes):
            raise ValueError(
                f"kernel of test with training inputs has shape {values.shape}, expected (k, {len(self.modes)})"
            )
        return _scaled(values.astype(np.float64) @ self.modes, log_scale - self.log_scale)

    def _weights(self, time: Any, relative: bool) -> Float64[np.ndarray, "times n"]:
        """Eigenvalues of A_t times exp(log_scale): for log_scale beyond exp's range only their product with Theta_*."""
        t = np.asarray(time, np.float64)
        if t.ndim > 1 or t.size == 0 or not (t >= 0).all():
            raise ValueError(f"time={time}, expected numbers >= 0, one or (times,)")
        values = self.eigenvalues_scaled
        exponents = np.outer(t, values / values[-1]) if relative else _scaled(np.outer(t, values), self.log_scale)
        weights: np.ndarray = -np.expm1(-exponents) / values
        return weights


def _scaled(values: np.ndarray, log_scale: float) -> np.ndarray:
    """values * exp(log_scale), of any shape; infinite where that is beyond float64."""
    return times_exp(values.ravel(), log_scale).reshape(values.shape)


def _enough(smallest: float, rounding: float, diagonal: float) -> str:
    """Twice the relative regularisation that lifts the smallest eigenvalue above rounding."""
    return f"{2 * (rounding + max(-smallest, 0)) / diagonal:.1g}" if diagonal > 0 else "nothing: it is no kernel"


def _nonnegative(variance: np.ndarray, B: np.ndarray, prior: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Variances with negative rounding removed; an error where it is no rounding.

    They are a quadratic form [-B, I] of the joint NNGP, so that whatever B, negative means rounding of the NNGP (sqrt
    of eps allows for an arccos near correlation 1) or kernels that do not belong together.
    """
    size = max(float(np.max(np.abs(prior))), float(np.max(np.abs(start)))) * (1 + np.sum(np.abs(B), axis=1)) ** 2
    if (variance < -math.sqrt(np.finfo(np.float64).eps) * size).any():
        raise ValueError(
            f"a predicted variance is {variance.min():.3g}: the kernels do not belong together; take all from the same "
            "network, and test inputs as rows against training inputs as columns"
        )
    return np.maximum(variance, 0.0)


class _KernelEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What regression and classification share; see `KernelRegressor`."""

    def __init__(
        self,
        kernel: Any,  # scikit-learn's way: parameters are stored as they come, and checked by fit
        *,
        which: Any = "ntk",
        regularization: Any = 0.0,
        time: Any = math.inf,
        relative_time: Any = False,
    ) -> None:
        self.kernel = kernel
        self.which = which
        self.regularization = regularization
        self.time = time
        self.relative_time = relative_time

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self._precomputed  # cross-validation cuts rows and columns
        return tags

    @property
    def _precomputed(self) -> bool:
        return isinstance(self.kernel, str) and self.kernel == "precomputed"

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        # a precomputed float32 kernel stays one, for what it resolves depends on it
        dtype = [np.float64, np.float32] if self._precomputed else np.float64
        return validate_data(self, X, *y, dtype=dtype, allow_nd=not self._precomputed, **options)

    def _fit(self, X: np.ndarray, targets: np.ndarray) -> None:
        kernel = self._between(X, None)
        if isinstance(kernel, EmpiricalKernel) and kernel.coupled:
            raise ValueError(
                "the network's outputs depend on the other inputs of the batch: compute the kernel of training and "
                "test inputs as one batch, cut it, and use kernel='precomputed'"
            )
        matrix = self._matrix(kernel)
        # a kernel with cross terms between C outputs is one of n C inputs with one output
        y = targets if isinstance(matrix, Kernel) or len(matrix) == len(targets) else targets.reshape(-1)
        self.flow_ = GradientFlow.on(matrix, y, which=self.which, regularization=self.regularization)
        self.X_fit_, self._targets_shape = X, targets.shape[1:]
        self.nngp_ = np.asarray(kernel.nngp) if isinstance(kernel, Kernel) else None

    def _between(self, X: np.ndarray, other: np.ndarray | None) -> ComparableKernel:
        if self._precomputed:
            return X
        network = self.kernel
        if isinstance(network, HasKernel):
            if other is None:  # a network that only has a joint kernel refuses here, not after the work
                jax.eval_shape(lambda x1, x2: infinite_kernel(network, x1, x2).distance, X[:1], X[:1])
            return infinite_kernel(network, X, other)
        if not callable(self.kernel):
            raise ValueError(f"kernel={self.kernel!r}, expected a network, a function (x1, x2) or 'precomputed'")
        return self.kernel(X, other)

    def _matrix(self, kernel: ComparableKernel) -> Kernel | np.ndarray:
        """The kernel (n1, n2), or (n1 C, n2 C), input by input, of a full one."""
        if isinstance(kernel, Kernel):
            return kernel
        values, _ = entries(kernel, self.which)
        if values.ndim == 2:
            return values
        n1, n2, C, _ = values.shape
        return values.transpose(0, 2, 1, 3).reshape(n1 * C, n2 * C)

    def _predict(self, X: Any, time: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        kernel = self._between(X, self.X_fit_)
        options: Any = {"time": self.time if time is None else time, "relative": self.relative_time}
        matrix = self._matrix(kernel)
        mean = self.flow_.mean(matrix, **options).reshape(*np.shape(options["time"]), len(X), *self._targets_shape)
        if not (return_std or return_cov):
            return mean
        if not isinstance(kernel, Kernel) or self.nngp_ is None:
            raise ValueError("variances need an NNGP beside the kernel: give a network, or use GradientFlow.covariance")
        start = self._between(X, None).nngp if return_cov else kernel.variance1  # type: ignore[union-attr]
        spread = self.flow_.covariance(kernel, self.nngp_, kernel.nngp, start, **options)
        return mean, spread if return_cov else np.sqrt(spread)


class KernelRegressor(RegressorMixin, _KernelEstimator):  # type: ignore[misc]
    """Infinitely wide or linearised networks trained on squared error, 1/2 sum |f - y|^2, for a given time.

    With which="ntk" all layers train; with which="nngp" the read-out alone, which ends, for an infinite network, in the
    posterior of its Gaussian process. A network linearised where it started: fit y - f(x), add f to predictions.
    A network with a batch normalisation has a kernel of training and test inputs jointly: compute that, cut it, and use
    kernel="precomputed".

    Args:
        kernel: a network (its infinite-width kernel); a function (x1, x2) of float64 inputs, x2 = None for x1 with
            itself, that returns a `Kernel`, an `EmpiricalKernel` (a trace stands for the average output) or an array
            (n1, n2) or (n1, n2, C, C), such as functools.partial(empirical_ntk, f, params); or "precomputed": `fit`
            takes the kernel (n, n) and `predict` that of test against training inputs (k, n).
        which: "ntk" or "nngp".
        regularization: added to the diagonal, as a fraction of its mean; a weight decay, see `GradientFlow`.
        time: of training; a step of gradient descent is its learning rate. Infinity: until the end.
        relative_time: whether time counts in units of 1 / (largest eigenvalue), for kernels beyond float64.

    Attributes:
        flow_: the training, see `GradientFlow`.
        X_fit_: the training inputs.
        nngp_: their NNGP; None where only one kernel is known.
        n_features_in_: features of an input.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> "KernelRegressor":
        """Decomposes the kernel of the training inputs (n, d), or images, with targets (n,) or (n, outputs).

        Raises:
            ValueError: the kernel is not positive definite, see `GradientFlow.on`; inputs or targets that do not fit.
            NotImplementedError: the network has no kernel between two sets of inputs.
        """
        X, y = self._validated(X, y, multi_output=True, y_numeric=True)
        self._fit(X, y)
        return self

    def predict(self, X: Any, *, time: Any = None, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean prediction (k, *outputs), and with it, where asked for, the spread over networks, of each output.

        Args:
            X: (k, d) inputs, images, or a precomputed (k, n) kernel.
            time: in place of the estimator's; of (times,), all results have this as their first axis.
            return_std: also the standard deviation (k,).
            return_cov: also the covariance (k, k).

        Raises:
            ValueError: inputs or times that do not fit; a spread without an NNGP.
        """
        return self._predict(X, time, return_std, return_cov)


class KernelClassifier(ClassifierMixin, _KernelEstimator):  # type: ignore[misc]
    """`KernelRegressor` on one-hot targets minus 1/classes; the class of the largest output is predicted.

    Attributes:
        classes_: (classes,) sorted labels.
    """

    def fit(self, X: Any, y: Any) -> "KernelClassifier":
        """Decomposes the kernel of the training inputs, with labels (n,); as `KernelRegressor.fit`."""
        X, y = self._validated(X, y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        self._fit(X, centered_one_hot(y))
        return self

    def outputs(self, X: Any, *, time: Any = None) -> Float64[np.ndarray, "..."]:
        """Mean outputs, which approach the one-hot targets minus 1/classes."""
        return self._predict(X, time)

    def predict(self, X: Any) -> np.ndarray:
        """Labels (k,)."""
        outputs = self.outputs(X)  # says so where nothing was fitted
        labels: np.ndarray = self.classes_[np.argmax(outputs, axis=-1)]
        return labels
