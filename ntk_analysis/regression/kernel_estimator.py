"""What the kernel estimators share: checked inputs, the fit, and predictions with their spread and error."""

import math
import warnings
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_X_y, validate_data

from ntk_analysis.any_kernel import AnyKernel
from ntk_analysis.common.arrays import concrete
from ntk_analysis.empirical.coupling import known_coupling
from ntk_analysis.empirical.trees import arrays_of, is_tree
from ntk_analysis.infinite import Kernel, StoredKernel
from ntk_analysis.infinite.kernel import HasKernel
from ntk_analysis.layers import Layer
from ntk_analysis.regression.conjugate_gradients import solve
from ntk_analysis.regression.gradient_flow import GradientFlow
from ntk_analysis.regression.hyperparameters import Family
from ntk_analysis.regression.kernel_source import in_memory, is_precomputed, kernel_between

SOLVERS = ("modes", "conjugate_gradients")
RESOLVED = 0.01  # error of predictions, as a fraction of the largest target, above which predictions warn


class UnresolvedPredictionWarning(UserWarning):
    """Predictions may be off by more than 0.01 of the largest target; the message says by how much."""


class KernelEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
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
        if is_tree(X):
            return self._validated_tree(X, *y, **options)
        precomputed = is_precomputed(self.kernel)
        given = X if X is None else readable(X, "X")
        # networks of infinite width compute in float64; a function is given what its inputs are, such as tokens
        dtype = np.float64 if isinstance(self.kernel, HasKernel | Family) else None
        found = validate_data(self, given, *y, dtype=dtype, allow_nd=True, **options)
        # a precomputed kernel keeps the dtype in which it arrived, because its resolution depends on the dtype; so do
        # the columns of a table, whose entries are objects where they differ
        if precomputed or (found[0] if y else found).dtype == object:
            inputs = concrete(X, "X")
            return (inputs, found[1]) if y else inputs
        return found

    def _validated_tree(self, X: Any, *y: Any, reset: bool = True, **options: Any) -> Any:
        """Inputs in a dict of arrays, each in its own dtype; scikit-learn checks the targets alone."""
        if is_precomputed(self.kernel) or isinstance(self.kernel, HasKernel | Family):
            raise ValueError("X is a dict, expected an array: only a function as kernel takes a dict of arrays")
        leaves, structure = arrays_of(X, "X")
        inputs = jax.tree.unflatten(structure, [np.asarray(leaf) for leaf in leaves])
        if not y:
            return inputs
        # the row numbers stand for the inputs
        return inputs, check_X_y(np.arange(len(leaves[0]))[:, None], y[0], **options)[1]

    def _weighted(self, X: Any, targets: np.ndarray, sample_weight: Any) -> Any:
        """Inputs, targets and weights without the inputs of weight 0; the weights are None where all are 1."""
        self.kernel_ = self.kernel.at_start() if isinstance(self.kernel, Family) else self.kernel
        self.regularization_ = self.regularization
        self._kept = None
        if sample_weight is None:
            return X, targets, None
        weights = _check_sample_weight(sample_weight, targets, dtype=np.float64, ensure_non_negative=True)
        if isinstance(self.kernel_, Layer) and known_coupling(self.kernel_):
            raise ValueError(
                "sample_weight is given for a network with batch normalisation, whose statistics count every input "
                "once: leave it out"
            )
        kept = weights > 0
        if not kept.any():
            raise ValueError("sample_weight is 0 for all inputs, expected at least one number > 0")
        if kept.all():
            return X, targets, weights
        if is_precomputed(self.kernel):
            self._kept = np.flatnonzero(kept)
            X = X[:, kept]
        return jax.tree.map(lambda array: array[kept], X), targets[kept], weights[kept]

    def _fit(self, X: Any, targets: np.ndarray, weights: np.ndarray | None) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"got solver={self.solver!r}, expected {' or '.join(map(repr, SOLVERS))}")
        kernel = self._kernel_of(X)
        self._largest_target = float(np.max(np.abs(targets)))
        options: Any = {"which": self.which, "regularization": self.regularization_, "weights": weights}
        if self.solver == "conjugate_gradients":
            self.nngp_ = None
            self.solution_ = solve(kernel, targets, **options)
            return
        self.flow_ = GradientFlow.on(in_memory(kernel), targets, **options)
        self.nngp_ = np.asarray(kernel.nngp) if isinstance(kernel, Kernel | StoredKernel) else None

    def _kernel_of(self, X: Any) -> AnyKernel:
        """Kernel of the training inputs with themselves, which are kept."""
        kernel = kernel_between(self.kernel_, X, batch_norm=self.batch_norm)
        self.X_fit_ = X
        self.approximation_error_ = kernel.approximation_error if isinstance(kernel, Kernel | StoredKernel) else 0.0
        return kernel

    def _against(self, X: Any) -> tuple[Any, AnyKernel]:
        """Checked test inputs, and their kernel with the training inputs."""
        check_is_fitted(self)
        X = self._validated(X, reset=False)
        X = X if self._kept is None else X[:, self._kept]
        return X, kernel_between(self.kernel_, X, self.X_fit_, batch=self.X_fit_, batch_norm=self.batch_norm)

    def _predict(
        self, X: Any, time: Any, return_std: bool = False, return_cov: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Mean (*times, k, *outputs), the spread (*times, k) or (*times, k, k) if asked for, and the mean's error."""
        X, kernel = self._against(X)
        options: Any = {"time": self.time if time is None else time, "relative": self.relative_time}
        if self.solver == "conjugate_gradients":
            if np.shape(options["time"]) != () or options["time"] != math.inf or return_std or return_cov:
                raise ValueError(
                    "solver='conjugate_gradients' knows the mean at the end of training only: leave out time, "
                    "return_std and return_cov, or take solver='modes'"
                )
            mean, error = self.solution_.predict(kernel), self.solution_.predict_error(kernel)
        else:
            held = in_memory(kernel)
            mean, error = self.flow_.mean(held, **options), self.flow_.mean_error(held, **options)
        spread = self._spread(X, kernel, options, return_cov) if return_std or return_cov else None
        return mean, spread, error

    def _warn_unresolved(self, error: np.ndarray) -> None:
        """Warns where predictions may be off by too much; `error` is their error, in the units of the targets."""
        if np.max(error) > RESOLVED * self._largest_target:
            warnings.warn(
                f"predictions may be off by {np.max(error):.2g}, as the kernel and the solver are, with targets up to "
                f"{self._largest_target:.3g}: use a larger regularization, or return_error=True for the error of each",
                UnresolvedPredictionWarning,
                stacklevel=3,
            )

    def _spread(self, X: np.ndarray, kernel: Any, options: Any, return_cov: bool) -> Float64[np.ndarray, "..."]:
        """Covariance or standard deviation of the predictions."""
        if not isinstance(kernel, Kernel) or self.nngp_ is None:
            raise ValueError("variances need an NNGP beside the kernel: give a network, or use GradientFlow.covariance")
        how: Any = {"batch": self.X_fit_, "batch_norm": self.batch_norm}
        own: Any = kernel_between(self.kernel_, X, **how) if return_cov else None
        start = own.nngp if return_cov else kernel.variance1
        spread = self.flow_.covariance(kernel, self.nngp_, kernel.nngp, start, **options)
        return spread if return_cov else np.sqrt(spread)


def readable(value: Any, name: str) -> Any:
    """The value as scikit-learn takes it: a table as it is, for the names of its columns; all else as an array."""
    array = concrete(value, name)
    if hasattr(value, "columns"):
        return value
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind not in "biu" else array
