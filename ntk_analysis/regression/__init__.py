"""Prediction with a kernel: networks trained by gradient flow, at any time, as scikit-learn estimators.

Everything is for full-batch gradient flow on the loss 1/2 sum |f - y|^2 in NTK parametrisation, `CrossEntropyFlow` for
cross-entropy and `LossFlow` for any loss, also with momentum. Gradient descent with a small learning rate is there
after `time` / learning rate steps; with the mean over n examples, after n times as many. Computed in float64 with
NumPy, outside JAX's transformations.
"""

from ntk_analysis.regression.conjugate_gradients import Solution, solve
from ntk_analysis.regression.cross_entropy import CrossEntropyFlow
from ntk_analysis.regression.estimators import KernelClassifier, KernelRegressor
from ntk_analysis.regression.gradient_flow import GradientFlow
from ntk_analysis.regression.hyperparameters import Family
from ntk_analysis.regression.kernel_estimator import UnresolvedPredictionWarning
from ntk_analysis.regression.loss_flow import LossFlow

__all__ = [
    "CrossEntropyFlow",
    "Family",
    "GradientFlow",
    "KernelClassifier",
    "KernelRegressor",
    "LossFlow",
    "Solution",
    "UnresolvedPredictionWarning",
    "solve",
]
