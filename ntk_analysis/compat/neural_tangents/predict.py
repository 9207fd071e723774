"""neural-tangents' predictions of trained infinite networks, in terms of `regression.GradientFlow` and `LossFlow`.

Its squared loss is the mean over all numbers in `y_train` of (f - y)^2 / 2, and ours the sum: so its time is ours times
their number.
"""

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ntk_analysis import spectrum
from ntk_analysis.compat.neural_tangents.kernel import Get, taken
from ntk_analysis.regression import GradientFlow, LossFlow

EPS = 1e-12  # added to an eigenvalue, as neural-tangents does


class Gaussian(NamedTuple):
    """Predictions with their covariance.

    Attributes:
        mean: mean predictions (k, outputs).
        covariance: covariance (k, k) of each output over networks.
    """

    mean: Any
    covariance: Any


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: Any,
    y_train: Any,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
    **options: Any,
) -> Callable[..., Any]:
    """A function (t=None, x_test=None, get=("nngp", "ntk"), compute_cov=False) -> predictions of the ensemble.

    Args:
        kernel_fn: function of `stax`.
        x_train: training inputs (n, ...).
        y_train: targets (n, outputs).
        learning_rate: factor of the time.
        diag_reg: added to the kernel's diagonal, times its mean.
        diag_reg_absolute_scale: True, for `diag_reg` itself, is not there.
        options: options of the kernel function, of which there are none here.

    Raises:
        NotImplementedError: `diag_reg_absolute_scale`.
    """
    del options
    _relative(diag_reg_absolute_scale)

    @functools.cache
    def trained(name: str) -> GradientFlow:
        return GradientFlow.on(kernel_fn(x_train, None, name), y_train, which=name, regularization=diag_reg)

    def predict_fn(t: Any = None, x_test: Any = None, get: Get = ("nngp", "ntk"), compute_cov: bool = False) -> Any:
        if compute_cov and diag_reg:
            raise NotImplementedError(
                "compute_cov with diag_reg > 0 is another covariance here: see regression.GradientFlow.covariance"
            )
        names = (get,) if isinstance(get, str) else tuple(get or ("nngp", "ntk"))
        test = x_train if x_test is None else x_test
        cross, time = kernel_fn(test, x_train), _own_time(t, learning_rate, y_train)
        found: dict[str, Any] = {}
        for name in names:
            flow = trained(name)
            found[name] = flow.mean(getattr(cross, name), time)
            if compute_cov:
                spread = _with_covariance(flow, kernel_fn, (x_train, test), cross, name, time)
                found[name] = Gaussian(found[name], spread)
        return found[get] if isinstance(get, str) else taken(SimpleNamespace(**found), names)

    return predict_fn


def gp_inference(
    k_train_train: Any, y_train: Any, diag_reg: float = 0.0, diag_reg_absolute_scale: bool = False
) -> Callable[..., Any]:
    """A function (get, k_test_train) -> mean of the Gaussian process, or of networks trained for ever, on test inputs.

    Args:
        k_train_train: `Kernel` of the training inputs, or one array.
        y_train: targets (n, outputs).
        diag_reg: added to the diagonal, times its mean.
        diag_reg_absolute_scale: True is not there.

    Raises:
        NotImplementedError: `diag_reg_absolute_scale`.
    """
    _relative(diag_reg_absolute_scale)

    def predict_fn(get: str = "nngp", k_test_train: Any = None) -> Any:
        train, test = (getattr(kernel, get, kernel) for kernel in (k_train_train, k_test_train))
        return GradientFlow.on(train, y_train, which=get, regularization=diag_reg).mean(test)

    return predict_fn


def gradient_descent_mse(
    k_train_train: Any,
    y_train: Any,
    learning_rate: float = 1.0,
    diag_reg: float = 0.0,
    diag_reg_absolute_scale: bool = False,
) -> Callable[..., Any]:
    """A function (t=None, fx_train_0=0, fx_test_0=None, k_test_train=None) -> outputs of a linearised network.

    Args:
        k_train_train: NTK (n, n) of the training inputs.
        y_train: targets (n, outputs).
        learning_rate: factor of the time.
        diag_reg: added to the diagonal, times its mean.
        diag_reg_absolute_scale: True is not there.

    Raises:
        NotImplementedError: `diag_reg_absolute_scale`.
    """
    _relative(diag_reg_absolute_scale)
    targets = np.asarray(y_train)

    def predict_fn(t: Any = None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None) -> Any:
        flow = GradientFlow.on(k_train_train, targets - np.asarray(fx_train_0), regularization=diag_reg)
        time = _own_time(t, learning_rate, targets)
        train = np.asarray(fx_train_0) + flow.mean(k_train_train, time)
        if fx_test_0 is None:
            return train
        return train, np.asarray(fx_test_0) + flow.mean(k_test_train, time)

    return predict_fn


def gradient_descent(
    loss: Callable[..., Any],
    k_train_train: Any,
    y_train: Any,
    learning_rate: float = 1.0,
    momentum: float | None = None,
) -> Callable[..., Any]:
    """A function (t, fx_train_0=0, fx_test_0=None, k_test_train=None) -> outputs of a linearised network on any loss.

    Without momentum t counts steps of size 1 times `learning_rate`, and with it steps, as there.

    Args:
        loss: JAX function (outputs, targets) that returns the number to be minimised.
        k_train_train: NTK (n, n) of the training inputs.
        y_train: targets (n, outputs).
        learning_rate: size of a step.
        momentum: factor of the last step; None for gradient flow.
    """
    targets = np.asarray(y_train, np.float64)

    def predict_fn(t: Any, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None) -> Any:
        start = np.broadcast_to(np.asarray(fx_train_0, np.float64), targets.shape)
        flow = LossFlow.on(
            np.asarray(k_train_train),
            lambda f: loss(f, jnp.asarray(targets)),
            start,
            np.asarray(t, np.float64) * learning_rate,
            momentum=momentum,
            rate=None if momentum is None else learning_rate,
        )
        several = np.ndim(t) > 0
        train = flow.outputs(np.asarray(k_train_train), start)
        if fx_test_0 is None:
            return train if several else train[0]
        shape = (np.shape(k_test_train)[0], targets.shape[1])
        test = flow.outputs(np.asarray(k_test_train), np.broadcast_to(np.asarray(fx_test_0, np.float64), shape))
        return (train, test) if several else (train[0], test[0])

    return predict_fn


def max_learning_rate(ntk_train_train: Any, y_train_size: int | None = None, momentum: float = 0.0) -> float:
    """The largest stable rate of gradient descent on the mean squared loss, 2 (1 + momentum) size / lambda_max.

    Args:
        ntk_train_train: NTK (n, n) of the training inputs.
        y_train_size: number of targets; None takes n.
        momentum: factor of the last step.
    """
    kernel = np.asarray(ntk_train_train)
    size = len(kernel) if y_train_size is None else y_train_size
    largest = float(np.max(spectrum.analyse(kernel).eigenvalues))
    return 2 * (1 + momentum) * size / (largest + EPS)


def _own_time(t: Any, learning_rate: float, y_train: Any) -> Any:
    return math.inf if t is None else np.asarray(t, float) * learning_rate / np.size(y_train)


def _relative(absolute: bool) -> None:
    if absolute:
        raise NotImplementedError(
            "got diag_reg_absolute_scale=True: the regularisation is relative to the mean of the diagonal here, divide "
            "it by that mean"
        )


def _with_covariance(
    flow: GradientFlow, kernel_fn: Any, inputs: tuple[Any, Any], cross: Any, name: str, time: float
) -> np.ndarray:
    """Covariance of the predictions on test inputs over networks; `inputs` are those of training and of the test."""
    train, test = (kernel_fn(x, None, "nngp") for x in inputs)
    return flow.covariance(getattr(cross, name), train, cross.nngp, test, time=time)
