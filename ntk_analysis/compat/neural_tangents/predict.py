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

    With `compute_cov` they are `Gaussian`s. With a regularisation r the covariance of "nngp" is that of the posterior
    with noise r, and without `x_test` all kernels "nngp", and the tangent kernel, have r on their diagonal, as there.

    Args:
        kernel_fn: function of `stax`.
        x_train: training inputs (n, ...).
        y_train: targets (n, outputs).
        learning_rate: factor of the time.
        diag_reg: added to the kernel's diagonal, times its mean.
        diag_reg_absolute_scale: whether `diag_reg` is added itself.
        options: options of the kernel function, of which there are none here.
    """
    del options
    kernels = functools.cache(lambda name: np.asarray(kernel_fn(x_train, None, name), np.float64))

    @functools.cache
    def trained(name: str) -> tuple[GradientFlow, np.ndarray]:
        kernel = kernels(name)
        r = _regularization(kernel, diag_reg, diag_reg_absolute_scale)
        flow = GradientFlow.on(kernel, y_train, which=name, regularization=r / np.trace(kernel) * len(kernel))
        return flow, kernel + r * np.eye(len(kernel))

    def predict_fn(t: Any = None, x_test: Any = None, get: Get = ("nngp", "ntk"), compute_cov: bool = False) -> Any:
        names = (get,) if isinstance(get, str) else tuple(get or ("nngp", "ntk"))
        time = _own_time(t, learning_rate, y_train)
        cross = None if x_test is None else kernel_fn(x_test, x_train)
        found: dict[str, Any] = {}
        for name in names:
            flow, regularized = trained(name)
            test = regularized if cross is None else getattr(cross, name)
            found[name] = flow.mean(test, time)
            if compute_cov:
                prior = regularized if name == "nngp" else kernels("nngp")
                mixed, start = (prior, prior) if cross is None else (cross.nngp, kernel_fn(x_test, None, "nngp"))
                found[name] = Gaussian(found[name], flow.covariance(test, prior, mixed, start, time=time))
        return found[get] if isinstance(get, str) else taken(SimpleNamespace(**found), names)

    return predict_fn


def gp_inference(
    k_train_train: Any, y_train: Any, diag_reg: float = 0.0, diag_reg_absolute_scale: bool = False
) -> Callable[..., Any]:
    """A function (get=None, k_test_train=None, k_test_test=None) -> posterior of the Gaussian process on test inputs.

    `get` is "nngp" (the process), "ntk" (networks trained for ever) or "ntkgp" (the process whose kernel is the tangent
    kernel), or several of them. It returns means, and with `k_test_test` `Gaussian`s.

    Args:
        k_train_train: `Kernel` of the training inputs, or one array.
        y_train: targets (n, outputs).
        diag_reg: added to the diagonal, times its mean.
        diag_reg_absolute_scale: whether `diag_reg` is added itself.
    """

    @functools.cache
    def trained(which: str) -> tuple[GradientFlow, np.ndarray]:
        kernel = np.asarray(_field(k_train_train, which), np.float64)
        r = _regularization(kernel, diag_reg, diag_reg_absolute_scale)
        flow = GradientFlow.on(kernel, y_train, which=which, regularization=r / np.trace(kernel) * len(kernel))
        return flow, kernel + r * np.eye(len(kernel))

    def posterior(name: str, k_test_train: Any, k_test_test: Any) -> Any:
        which = "ntk" if name == "ntkgp" else name
        flow, regularized = trained(which)
        if k_test_train is None:
            mean: Any = np.asarray(y_train)
            return mean if k_test_test is None else Gaussian(mean, np.zeros_like(regularized))
        test = np.asarray(_field(k_test_train, which))
        mean = flow.mean(test)
        if k_test_test is None:
            return mean
        if name == "ntk":
            prior, mixed, start = (_field(k, "nngp") for k in (k_train_train, k_test_train, k_test_test))
        else:
            prior, mixed, start = regularized, test, _field(k_test_test, which)
        return Gaussian(mean, flow.covariance(test, prior, np.asarray(mixed), np.asarray(start)))

    def predict_fn(get: Get = None, k_test_train: Any = None, k_test_test: Any = None) -> Any:
        names = (get,) if isinstance(get, str) else tuple(get or ("nngp", "ntk"))
        found = {name: posterior(name, k_test_train, k_test_test) for name in names}
        return found[get] if isinstance(get, str) else taken(SimpleNamespace(**found), names)

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
        diag_reg_absolute_scale: whether `diag_reg` is added itself.
    """
    targets, kernel = np.asarray(y_train), np.asarray(k_train_train, np.float64)
    r = _regularization(kernel, diag_reg, diag_reg_absolute_scale)

    def predict_fn(t: Any = None, fx_train_0: Any = 0.0, fx_test_0: Any = None, k_test_train: Any = None) -> Any:
        relative = r / np.trace(kernel) * len(kernel)
        flow = GradientFlow.on(kernel, targets - np.asarray(fx_train_0), regularization=relative)
        time = _own_time(t, learning_rate, targets)
        train = np.asarray(fx_train_0) + flow.mean(kernel + r * np.eye(len(kernel)), time)
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


def _regularization(kernel: np.ndarray, diag_reg: float, absolute: bool) -> float:
    """What is added to the diagonal."""
    return diag_reg if absolute else float(diag_reg * np.trace(kernel) / len(kernel))


def _field(kernel: Any, name: str) -> Any:
    """A kernel by its name, of an object that has it or of one array."""
    return kernel if isinstance(kernel, np.ndarray) or not hasattr(kernel, name) else getattr(kernel, name)
