"""Kernel prediction, scikit-learn's way: regression and classification."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ntk_analysis.alignment import centered_one_hot
from ntk_analysis.common.arrays import check_dense, concrete
from ntk_analysis.common.precision import Real
from ntk_analysis.infinite import Kernel, StoredKernel
from ntk_analysis.regression.conjugate_gradients import solve
from ntk_analysis.regression.gradient_flow import GradientFlow
from ntk_analysis.regression.kernel_source import input_by_input, is_precomputed, kernel_between

SOLVERS = ("modes", "conjugate_gradients")
RESOLVED = 0.01  # error of predictions, as a fraction of the largest target, above which predictions warn


class UnresolvedPredictionWarning(UserWarning):
    """Rounding may have moved predictions by more than 0.01 of the largest target; the message says by how much."""


class _KernelEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The parts that regression and classification share; see `KernelRegressor`."""

    def __init__(
        self,
        kernel: Any,  # scikit-learn's convention: parameters are stored as they come, and fit checks them
        *,
        which: Any = "ntk",
        regularization: Any = 0.0,
        time: Any = math.inf,
        relative_time: Any = False,
        batch_norm: Any = "exact",
        solver: Any = "modes",
    ) -> None:
        self.kernel = kernel
        self.which = which
        self.regularization = regularization
        self.time = time
        self.relative_time = relative_time
        self.batch_norm = batch_norm
        self.solver = solver

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = is_precomputed(self.kernel)  # then cross-validation cuts rows and columns
        return tags

    def _validated(self, X: Any, *y: Any, **options: Any) -> Any:
        precomputed = is_precomputed(self.kernel)
        given = X if X is None else _readable(X, "X")
        found = validate_data(self, given, *y, dtype=np.float64, allow_nd=not precomputed, **options)
        if not precomputed:
            return found
        # a precomputed kernel keeps the dtype in which it arrived, because its resolution depends on the dtype
        kernel = concrete(X, "X")
        return (kernel, found[1]) if y else kernel

    def _fit(self, X: np.ndarray, targets: np.ndarray) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"got solver={self.solver!r}, expected {' or '.join(map(repr, SOLVERS))}")
        kernel = kernel_between(self.kernel, X, batch_norm=self.batch_norm)
        self.X_fit_, self._targets_shape = X, targets.shape[1:]
        self._largest_target = float(np.max(np.abs(targets)))
        self.approximation_error_ = kernel.approximation_error if isinstance(kernel, Kernel | StoredKernel) else 0.0
        if self.solver == "conjugate_gradients":
            self.nngp_ = None
            self.solution_ = solve(kernel, targets, which=self.which, regularization=self.regularization)
            return
        matrix = input_by_input(kernel, self.which)
        # a kernel with cross terms between C outputs is treated as one of n C inputs with one output
        y = targets if isinstance(matrix, Kernel) or len(matrix) == len(targets) else targets.reshape(-1)
        self.flow_ = GradientFlow.on(matrix, y, which=self.which, regularization=self.regularization)
        self.nngp_ = np.asarray(kernel.nngp) if isinstance(kernel, Kernel | StoredKernel) else None

    def _predict(
        self, X: Any, time: Any, return_std: bool = False, return_cov: bool = False, return_error: bool = False
    ) -> Any:
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        kernel = kernel_between(self.kernel, X, self.X_fit_, batch=self.X_fit_, batch_norm=self.batch_norm)
        options: Any = {"time": self.time if time is None else time, "relative": self.relative_time}
        shape = (*np.shape(options["time"]), len(X), *self._targets_shape)
        if self.solver == "conjugate_gradients":
            if shape[:1] != (len(X),) or options["time"] != math.inf or return_std or return_cov:
                raise ValueError(
                    "solver='conjugate_gradients' knows the mean at the end of training only: leave out time, "
                    "return_std and return_cov, or take solver='modes'"
                )
            mean, error = self.solution_.predict(kernel), self.solution_.predict_error(kernel)
        else:
            matrix = input_by_input(kernel, self.which)
            mean, error = (part(matrix, **options).reshape(shape) for part in (self.flow_.mean, self.flow_.mean_error))
        if not return_error and np.max(error) > RESOLVED * self._largest_target:
            warnings.warn(
                f"predictions may be off by {np.max(error):.2g}, for rounding or the solver, with targets up to "
                f"{self._largest_target:.3g}: use a larger regularization, or return_error=True for the error of each",
                UnresolvedPredictionWarning,
                stacklevel=3,
            )
        found = [mean, *self._spread(X, kernel, options, return_cov)] if return_std or return_cov else [mean]
        found += [error] if return_error else []
        return found[0] if len(found) == 1 else tuple(found)

    def _spread(self, X: np.ndarray, kernel: Any, options: Any, return_cov: bool) -> list[np.ndarray]:
        """Covariance or standard deviation of the predictions."""
        if not isinstance(kernel, Kernel) or self.nngp_ is None:
            raise ValueError("variances need an NNGP beside the kernel: give a network, or use GradientFlow.covariance")
        how: Any = {"batch": self.X_fit_, "batch_norm": self.batch_norm}
        own: Any = kernel_between(self.kernel, X, **how) if return_cov else None
        start = own.nngp if return_cov else kernel.variance1
        spread = self.flow_.covariance(kernel, self.nngp_, kernel.nngp, start, **options)
        return [spread if return_cov else np.sqrt(spread)]


def _readable(value: Any, name: str) -> Any:
    """The value as scikit-learn takes it: a table as it is, for the names of its columns; all else as an array."""
    array = concrete(value, name)
    if hasattr(value, "columns"):
        return value
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind not in "biu" else array


class KernelRegressor(RegressorMixin, _KernelEstimator):  # type: ignore[misc]
    """Infinitely wide or linearised networks, trained on squared error, 1/2 sum |f - y|^2, for a given time.

    With which="ntk" all layers train; with which="nngp" only the read-out trains, which ends, for an infinite network,
    in the posterior of its Gaussian process. For a network linearised where it started, fit y - f(x) and add f to
    predictions. An infinite network with batch normalisation has the mean and variance of the training inputs, as one
    batch, for test inputs too: `infinite_kernel(..., statistics="x1")`. At eps = 0 it takes 6 training inputs. The
    kernel of training and test inputs as one batch, cut in two, belongs to no network that predicts, and a finite
    network in training mode is refused.

    Predictions are exact for the given kernel up to rounding, which small regularisations of singular kernels amplify;
    `predict` states by how much if asked for, and warns if it is more than 0.01 of the largest target.

    Args:
        kernel: kernel of the inputs, in one of three forms. A network stands for its infinite-width kernel. A function
            (x1, x2) of float64 inputs, with x2 = None for x1 with itself, returns a `Kernel`, an `EmpiricalKernel` (a
            trace stands for the average output) or an array (n1, n2) or (n1, n2, C, C), such as
            functools.partial(empirical_ntk, f, params). With "precomputed", `fit` takes the kernel (n, n), and
            `predict` the kernel of test against training inputs (k, n).
        which: kernel that describes training, "ntk" or "nngp".
        regularization: number added to the diagonal, as a fraction of its mean; it is a weight decay, see
            `GradientFlow`.
        time: training time; a step of gradient descent takes its learning rate. Infinity trains until the end.
        relative_time: whether time counts in units of 1 / (largest eigenvalue), for kernels beyond float64.
        batch_norm: "exact" or "large_batch", how an infinite network's batch normalisation is integrated, as for
            `infinite_kernel`.
        solver: "modes" decomposes the kernel, which knows all times, spreads and rounding; "conjugate_gradients" solves
            for the end of training alone, and reads a kernel in a store some rows at a time, see `solve`.

    Attributes:
        flow_: course of training, see `GradientFlow`; with solver="modes".
        solution_: coefficients with their residual, see `Solution`; with solver="conjugate_gradients", where
            `return_error` bounds what the residual leaves, without rounding of the kernel's entries.
        X_fit_: training inputs.
        nngp_: NNGP of the training inputs; None if only one kernel is known.
        approximation_error_: measured error of an infinite network's kernel of the training inputs, see `Kernel`; 0
            where it is exact. What `predict` says of rounding does not count it.
        n_features_in_: number of features of an input.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike) -> "KernelRegressor":
        """Decomposes the kernel of the training inputs (n, d), or images, with targets (n,) or (n, outputs).

        Raises:
            ValueError: the kernel is not positive definite, see `GradientFlow.on`; or inputs or targets do not fit.
            NotImplementedError: the network has no kernel between two sets of inputs, as behind a last batch
                normalisation.
        """
        self._fit(*self._validated(X, y if y is None else _readable(y, "y"), multi_output=True, y_numeric=True))
        return self

    def predict(
        self,
        X: ArrayLike,
        *,
        time: Real | Sequence[Any] | None = None,
        return_std: bool = False,
        return_cov: bool = False,
        return_error: bool = False,
    ) -> Any:
        """Mean prediction (k, *outputs); if asked for, with the spread over networks of each output, and its error.

        Args:
            X: test inputs (k, d), images, or a precomputed kernel (k, n).
            time: training time in place of the estimator's; for several (times,), all results have this as their first
                axis.
            return_std: whether to return the standard deviation (k,) as well.
            return_cov: whether to return the covariance (k, k) as well.
            return_error: whether to return, last, a bound (k, *outputs) on how far rounding may have moved the mean:
                rounding of the kernel's entries and of solving, see `GradientFlow.mean_error`.

        Raises:
            ValueError: inputs or times do not fit, or a spread is asked for without an NNGP.

        Warns:
            UnresolvedPredictionWarning: the error is above 0.01 of the largest target, and was not asked for.
        """
        return self._predict(X, time, return_std, return_cov, return_error)


class KernelClassifier(ClassifierMixin, _KernelEstimator):  # type: ignore[misc]
    """`KernelRegressor` on one-hot targets minus 1/classes; it predicts the class of the largest output.

    Attributes:
        classes_: sorted labels, of shape (classes,).
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> "KernelClassifier":
        """Decomposes the kernel of the training inputs, with labels (n,); errors are those of `KernelRegressor.fit`."""
        check_dense(y, "y")
        inputs, labels = self._validated(X, y)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        self._fit(inputs, centered_one_hot(labels))
        return self

    def outputs(self, X: ArrayLike, *, time: Real | Sequence[Any] | None = None) -> Float64[np.ndarray, "..."]:
        """Mean outputs, which approach the one-hot targets minus 1/classes."""
        return self._predict(X, time)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Predicted labels (k,)."""
        outputs = self.outputs(X)  # raises an error if nothing was fitted
        labels: np.ndarray = self.classes_[np.argmax(outputs, axis=-1)]
        return labels
