"""Kernel prediction, scikit-learn's way: regression and classification."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike
from scipy.special import softmax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from ntk_analysis.alignment import centered_one_hot
from ntk_analysis.common.arrays import check_dense
from ntk_analysis.common.precision import Real
from ntk_analysis.empirical.trees import InputTree
from ntk_analysis.regression.cross_entropy import CrossEntropyFlow
from ntk_analysis.regression.hyperparameters import hyperparameters_of
from ntk_analysis.regression.kernel_estimator import KernelEstimator, readable
from ntk_analysis.regression.kernel_source import in_memory
from ntk_analysis.regression.likelihood import Likelihood, maximised
from ntk_analysis.regression.probabilities import on_simplex


class KernelRegressor(RegressorMixin, KernelEstimator):  # type: ignore[misc]
    """Infinitely wide or linearised networks, trained on squared error, 1/2 sum |f - y|^2, for a given time.

    With which="ntk" all layers train; with which="nngp" only the read-out trains, which ends, for an infinite network,
    in the posterior of its Gaussian process. For a network linearised where it started, fit y - f(x) and add f to
    predictions. An infinite network with batch normalisation has the mean and variance of the training inputs, as one
    batch, for test inputs too: `infinite_kernel(..., statistics="x1")`. At eps = 0 it takes 6 training inputs. The
    kernel of training and test inputs as one batch, cut in two, belongs to no network that predicts, and a finite
    network in training mode is refused.

    The networks start at outputs of mean 0, and a constant is no part of what they are trained by: targets far from 0
    want `normalize_y=True`, which subtracts their mean.

    Predictions are exact for the given kernel up to rounding, which small regularisations of singular kernels amplify;
    `predict` states by how much if asked for, and warns if it is more than 0.01 of the largest target.

    With an optimizer, `fit` first maximises the log marginal likelihood over the hyperparameters: all positive numbers
    of the network but eps, or those of a `Family` of networks, and the regularisation where it is above 0. It is the
    evidence of a Gaussian process whose covariance is the kernel `which`; `time` does not enter.

    Args:
        kernel: kernel of the inputs, in one of four forms. A network stands for its infinite-width kernel. A function
            (x1, x2) of inputs in their own dtype, with x2 = None for x1 with itself, returns a `Kernel`, an
            `EmpiricalKernel` (a trace stands for the average output) or an array (n1, n2) or (n1, n2, C, C), such as
            functools.partial(empirical_ntk, f, params). A `Family` of networks names hyperparameters. With
            "precomputed", `fit` takes the kernel (n, n) or (n, n, C, C), and `predict` the kernel of test against
            training inputs (k, n) or (k, n, C, C).
        which: kernel that describes training, "ntk" or "nngp".
        regularization: number added to the diagonal, as a fraction of its mean; it is a weight decay, see
            `GradientFlow`.
        time: training time; a step of gradient descent takes its learning rate. Infinity trains until the end.
        relative_time: whether time counts in units of 1 / (largest eigenvalue), for kernels beyond float64.
        batch_norm: "exact" or "large_batch", how an infinite network's batch normalisation is integrated, as for
            `infinite_kernel`.
        solver: "modes" decomposes the kernel, which knows all times, spreads and rounding; "conjugate_gradients" solves
            for the end of training alone, and reads a kernel in a store some rows at a time, see `solve`.
        normalize_y: whether the networks are trained on targets of mean 0 and variance 1, of each output; predictions
            are transformed back, their spread and error with them.
        optimizer: None; "fmin_l_bfgs_b", SciPy's; or a function (obj_func, initial_theta, bounds) -> (theta, value)
            that minimises obj_func(theta, eval_gradient=True), as in scikit-learn's `GaussianProcessRegressor`.
        n_restarts_optimizer: number of further starts, drawn uniformly from the bounds in logarithms.
        random_state: seed or generator of these starts.

    Attributes:
        flow_: course of training, see `GradientFlow`; with solver="modes".
        solution_: coefficients with their residual, see `Solution`; with solver="conjugate_gradients", where
            `return_error` bounds what the residual leaves, without rounding of the kernel's entries and without
            `approximation_error_`.
        kernel_: kernel that predicts, the network of the hyperparameters found.
        regularization_: regularisation, found likewise.
        hyperparameters_: hyperparameters by name; with an optimizer.
        log_marginal_likelihood_value_: largest log marginal likelihood; with an optimizer.
        X_fit_: training inputs, without those of weight 0.
        y_mean_: number that was subtracted from the targets, of each output.
        y_scale_: number that they were then divided by, of each output; 1 for targets that are all the same.
        nngp_: NNGP of the training inputs; None if only one kernel is known.
        approximation_error_: measured error of an infinite network's kernel of the training inputs, see `Kernel`; 0
            where it is exact. The error that `predict` states counts it, with solver="modes".
        n_features_in_: number of features of an input.
    """

    def __init__(
        self,
        kernel: Any,
        *,
        which: Any = "ntk",
        regularization: Any = 0.0,
        time: Any = math.inf,
        relative_time: Any = False,
        batch_norm: Any = "exact",
        solver: Any = "modes",
        normalize_y: Any = False,
        optimizer: Any = None,
        n_restarts_optimizer: Any = 0,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            kernel,
            which=which,
            regularization=regularization,
            time=time,
            relative_time=relative_time,
            batch_norm=batch_norm,
            solver=solver,
        )
        self.normalize_y = normalize_y
        self.optimizer = optimizer
        self.n_restarts_optimizer = n_restarts_optimizer
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: ArrayLike | InputTree, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "KernelRegressor":
        """Decomposes the kernel of the training inputs (n, d), or images, with targets (n,) or (n, outputs).

        Args:
            X: training inputs, or a precomputed kernel; for a function as kernel also a dict of arrays, with a first
                axis (n,) each. Cross-validation cuts arrays only: give it row numbers, and a function that takes the
                rows.
            y: targets.
            sample_weight: weights (n,) of the inputs in the loss 1/2 sum w |f - y|^2, >= 0; None for 1 each. An input
                of weight 2 is two inputs, and one of weight 0 is left out.

        Raises:
            ValueError: the kernel is not positive definite, see `GradientFlow.on`; or inputs, targets or weights do not
                fit.
            NotImplementedError: the network has no kernel between two sets of inputs, as behind a last batch
                normalisation.
        """
        given = y if y is None else readable(y, "y")
        inputs, targets = self._validated(X, given, multi_output=True, y_numeric=True)
        inputs, targets, weights = self._weighted(inputs, np.asarray(targets, np.float64), sample_weight)
        self.y_mean_, self.y_scale_ = np.zeros(targets.shape[1:]), np.ones(targets.shape[1:])
        if self.normalize_y:
            self.y_mean_ = np.average(targets, axis=0, weights=weights)
            deviation = np.sqrt(np.average((targets - self.y_mean_) ** 2, axis=0, weights=weights))
            rounding = 10 * np.finfo(np.float64).eps * np.abs(self.y_mean_)
            self.y_scale_ = np.where(deviation > rounding, deviation, 1.0)
        normalised = (targets - self.y_mean_) / self.y_scale_
        self._training = inputs, normalised, weights
        if self.optimizer is not None:
            likelihood = self._likelihood()
            theta = maximised(likelihood, self.optimizer, self.n_restarts_optimizer, self.random_state)
            values = [float(value) for value in np.exp(theta)]
            self.kernel_, self.regularization_ = likelihood.free.build(values)
            self.hyperparameters_ = dict(zip(likelihood.free.names, values, strict=True))
            self.log_marginal_likelihood_value_ = likelihood(theta)[0]
        self._fit(inputs, normalised, weights)
        return self

    def log_marginal_likelihood(self, theta: ArrayLike | None = None, eval_gradient: bool = False) -> Any:
        """Log marginal likelihood of the training targets (normalised, with `normalize_y`), summed over outputs.

        Args:
            theta: logarithms (p,) of the hyperparameters, in the order of `hyperparameters_`; None for those fitted.
            eval_gradient: whether to return its derivatives (p,) by theta as well.

        Raises:
            ValueError: the kernel has no hyperparameters, where theta or derivatives are asked for or the solver is not
                "modes"; or theta does not fit.
        """
        check_is_fitted(self)
        if theta is None and not eval_gradient and self.solver == "modes":
            return self.flow_.log_marginal_likelihood()
        likelihood = self._likelihood()
        if theta is None:
            fitted = getattr(self, "hyperparameters_", None)
            theta = likelihood.free.start if fitted is None else np.log(list(fitted.values()))
        value, slope = likelihood(np.asarray(theta, np.float64))
        return (value, slope) if eval_gradient else value

    def _likelihood(self) -> Likelihood:
        """The likelihood of the training targets as a function of the hyperparameters."""
        inputs, targets, weights = self._training
        w = np.ones(len(targets)) if weights is None else weights
        free = hyperparameters_of(self.kernel, self.regularization)
        return Likelihood(free, inputs, targets.reshape(len(targets), -1), w, self.which, self.batch_norm)

    def predict(
        self,
        X: ArrayLike | InputTree,
        *,
        time: Real | Sequence[Any] | None = None,
        return_std: bool = False,
        return_cov: bool = False,
        return_error: bool = False,
    ) -> Any:
        """Mean prediction (k, *outputs); if asked for, with the spread over networks of each output, and its error.

        Args:
            X: test inputs (k, d), images, a dict of arrays, or a precomputed kernel (k, n).
            time: training time in place of the estimator's; for several (times,), all results have this as their first
                axis.
            return_std: whether to return the standard deviation (k,) as well; with `normalize_y` and several outputs
                that of each, (k, outputs).
            return_cov: whether to return the covariance (k, k) as well; of several normalised outputs (k, k, outputs).
            return_error: whether to return, last, a bound (k, *outputs) on how far the mean is off: by rounding of the
                kernel's entries and of solving, and by the kernel's own error, see `GradientFlow.mean_error`.

        Raises:
            ValueError: inputs or times do not fit, or a spread is asked for without an NNGP.

        Warns:
            UnresolvedPredictionWarning: the error is above 0.01 of the largest target, and was not asked for.
        """
        mean, spread, error = self._predict(X, time, return_std, return_cov)
        mean, error = self.y_mean_ + self.y_scale_ * mean, self.y_scale_ * error
        if not return_error:
            self._warn_unresolved(error)
        found = [mean]
        if spread is not None:
            power = 2 if return_cov else 1
            found.append(np.multiply.outer(spread, self.y_scale_**power) if self.normalize_y else spread)
        found += [error] if return_error else []
        return found[0] if len(found) == 1 else tuple(found)


LOSSES = ("squared", "cross_entropy")


class KernelClassifier(ClassifierMixin, KernelEstimator):  # type: ignore[misc]
    """Infinitely wide or linearised networks, trained to tell classes apart; the largest output is what is predicted.

    With loss="squared" it is `KernelRegressor` on one-hot targets minus 1/classes. With loss="cross_entropy" the
    probabilities are the softmax of the outputs, and training ends at a finite time, see `CrossEntropyFlow`: without
    weight decay separable classes have no end of training. The integration in time has no bound on its error.

    Args:
        kernel: kernel of the inputs, as for `KernelRegressor`, like all arguments not explained here.
        which: kernel that describes training, "ntk" or "nngp".
        regularization: weight decay, as a fraction of the mean of the kernel's diagonal.
        time: training time, finite for loss="cross_entropy".
        relative_time: whether time counts in units of 1 / (largest eigenvalue).
        batch_norm: "exact" or "large_batch".
        solver: "modes" or "conjugate_gradients".
        loss: "squared" or "cross_entropy".

    Attributes:
        classes_: sorted labels, of shape (classes,).
        cross_entropy_flow_: course of training, see `CrossEntropyFlow`; with loss="cross_entropy". Otherwise `flow_` or
            `solution_`, as of `KernelRegressor`.
    """

    def __init__(
        self,
        kernel: Any,
        *,
        which: Any = "ntk",
        regularization: Any = 0.0,
        time: Any = math.inf,
        relative_time: Any = False,
        batch_norm: Any = "exact",
        solver: Any = "modes",
        loss: Any = "squared",
    ) -> None:
        super().__init__(
            kernel,
            which=which,
            regularization=regularization,
            time=time,
            relative_time=relative_time,
            batch_norm=batch_norm,
            solver=solver,
        )
        self.loss = loss

    def fit(self, X: ArrayLike | InputTree, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "KernelClassifier":
        """Trains on inputs with labels (n,); all else is as for `KernelRegressor.fit`.

        Raises:
            ValueError: as `KernelRegressor.fit`; or loss="cross_entropy" is asked for without a finite time, or with
                another solver than "modes".
            OverflowError, ArithmeticError: as `CrossEntropyFlow.on`, for loss="cross_entropy".
        """
        check_dense(y, "y")
        inputs, labels = self._validated(X, y)
        check_classification_targets(labels)
        self._check_loss()
        inputs, labels, weights = self._weighted(inputs, labels, sample_weight)
        self.classes_ = np.unique(labels)
        if self.loss == "squared":
            self._fit(inputs, centered_one_hot(labels), weights)
            return self
        self.cross_entropy_flow_ = CrossEntropyFlow.on(
            in_memory(self._kernel_of(inputs)),
            labels,
            self.time,
            which=self.which,
            regularization=self.regularization_,
            weights=weights,
            relative=self.relative_time,
        )
        return self

    def _check_loss(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"got loss={self.loss!r}, expected {' or '.join(map(repr, LOSSES))}")
        if self.loss == "squared":
            return
        if np.ndim(self.time) or not math.isfinite(self.time):
            raise ValueError(
                f"got loss='cross_entropy' with time={self.time}, expected a finite number: without weight decay "
                "separable classes have no end of training"
            )
        if self.solver != "modes":
            raise ValueError(
                f"got loss='cross_entropy' with solver={self.solver!r}, which solves squared losses: leave it out"
            )

    def outputs(
        self, X: ArrayLike | InputTree, *, time: Real | Sequence[Any] | None = None
    ) -> Float64[np.ndarray, "..."]:
        """Mean outputs (k, classes): of squared loss they approach the one-hot targets minus 1/classes.

        Args:
            X: test inputs, as for `KernelRegressor.predict`.
            time: training time in place of the estimator's, for loss="squared"; for several (times,), outputs have this
                as their first axis.

        Raises:
            ValueError: inputs or times do not fit, or a time is given for loss="cross_entropy".
        """
        if self.loss == "cross_entropy":
            if time is not None:
                raise ValueError(
                    f"got time={time} for loss='cross_entropy', which is trained to the time of the estimator: leave "
                    "it out, or take CrossEntropyFlow for several times"
                )
            _, kernel = self._against(X)  # raises an error if nothing was fitted
            found: np.ndarray = self.cross_entropy_flow_.outputs(in_memory(kernel))[0]
            return found
        outputs, _, error = self._predict(X, time)
        self._warn_unresolved(error)
        return outputs

    def decision_function(self, X: ArrayLike | InputTree) -> Float64[np.ndarray, "..."]:
        """Scores (k, classes), the outputs; of two classes (k,), how far the second one's is above the first one's."""
        outputs = self.outputs(X)
        return outputs if len(self.classes_) > 2 else outputs[:, 1] - outputs[:, 0]

    def predict_proba(self, X: ArrayLike | InputTree) -> Float64[np.ndarray, "k classes"]:
        """Probabilities (k, classes) of the classes.

        With loss="cross_entropy" they are the softmax of the outputs, which is what was trained. With loss="squared"
        they are the outputs plus 1/classes, at the nearest point of the simplex: squared loss on one-hot targets is
        least for the conditional probabilities, which the outputs estimate; they sum to 1, but may leave [0, 1].
        Nothing calibrates either.
        """
        outputs = self.outputs(X)
        if self.loss == "cross_entropy":
            probabilities: np.ndarray = softmax(outputs, axis=1)
            return probabilities
        return on_simplex(outputs + 1 / len(self.classes_))

    def predict(self, X: ArrayLike | InputTree) -> np.ndarray:
        """Predicted labels (k,)."""
        outputs = self.outputs(X)  # raises an error if nothing was fitted
        labels: np.ndarray = self.classes_[np.argmax(outputs, axis=-1)]
        return labels
