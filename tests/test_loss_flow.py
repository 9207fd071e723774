"""Training on any loss: against formulas of the squared loss, the flow of cross-entropy, and steps with momentum."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.nn import log_softmax

import ntk_analysis.compat.neural_tangents as ours
from ntk_analysis import reference
from ntk_analysis.reference.comparison import as_neural_tangents_expects
from ntk_analysis.regression import CrossEntropyFlow, GradientFlow, LossFlow

RNG = np.random.default_rng(0)
PHI, PHI_TEST = RNG.standard_normal((6, 9)) / 3, RNG.standard_normal((4, 9)) / 3
THETA, TEST = PHI @ PHI.T, PHI_TEST @ PHI.T
TARGETS = RNG.standard_normal((6, 3))
ONE_HOT = np.eye(3)[[0, 1, 2, 1, 0, 2]]
START, START_TEST = RNG.standard_normal((6, 3)), RNG.standard_normal((4, 3))


def squared(outputs):
    return ((outputs - TARGETS) ** 2).sum() / 2


def cross_entropy(outputs):
    return -(ONE_HOT * log_softmax(outputs)).sum()


def cubed(outputs):
    return (jnp.abs(outputs - TARGETS) ** 3).sum() / 3


def test_the_squared_loss_has_a_formula():
    flow = LossFlow.on(THETA, squared, START, [0.5, 4.0])
    assert flow.outputs(TEST, START_TEST).shape == (2, 4, 3)
    for i, time in enumerate(flow.times):
        wanted = START_TEST + GradientFlow.on(THETA, TARGETS - START).mean(TEST, time)
        np.testing.assert_allclose(flow.outputs(TEST, START_TEST)[i], wanted, atol=1e-7)


def test_it_is_the_flow_of_cross_entropy():
    found = LossFlow.on(THETA, cross_entropy, START, 3.0, regularization=0.2).coefficients
    wanted = CrossEntropyFlow.on(THETA, ONE_HOT, 3.0, regularization=0.2, initial=START).coefficients
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_momentum_is_an_oscillator():
    """On the squared loss each mode has z'' = -c z' - lambda z: exp of a matrix of two rows."""
    rate, momentum, time = 0.04, 0.9, 2.0
    flow = LossFlow.on(THETA, squared, START, time, momentum=momentum, rate=rate)
    friction, eye = (1 - momentum) / np.sqrt(rate), np.eye(6)
    generator = np.block([[0 * eye, eye], [-THETA, -friction * eye]])
    moved = scipy.linalg.expm(generator * time / np.sqrt(rate)) @ np.concatenate([START - TARGETS, 0 * START])
    np.testing.assert_allclose(flow.outputs(THETA, START)[0], TARGETS + moved[:6], atol=1e-7)


@pytest.mark.parametrize("loss", [cross_entropy, cubed])
def test_small_steps_with_momentum_come_near(loss):
    """Gradient descent in the space of parameters; its distance from the flow falls with the root of the rate."""

    def apart(rate):
        momentum, steps = 1 - 0.5 * np.sqrt(rate), round(3 / np.sqrt(rate))
        theta, velocity = np.zeros((9, 3)), np.zeros((9, 3))
        slope = {cross_entropy: entropy_slope, cubed: cubed_slope}[loss]
        for _ in range(steps):
            velocity = momentum * velocity - PHI.T @ slope(START + PHI @ theta)
            theta = theta + rate * velocity
        flow = LossFlow.on(THETA, loss, START, steps * rate, momentum=float(momentum), rate=rate)
        return np.abs(flow.outputs(TEST)[0] - PHI_TEST @ theta).max()

    coarse, fine = apart(1e-3), apart(1e-3 / 16)
    assert fine < coarse / 3.5
    assert fine < 0.02


def entropy_slope(outputs):
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True) - ONE_HOT


def cubed_slope(outputs):
    return np.abs(outputs - TARGETS) * (outputs - TARGETS)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"loss": lambda f: f}, TypeError, "JAX function of outputs \\(6, 3\\) that returns one number"),
        ({"loss": lambda f: jnp.sqrt(f.min() - 100)}, ArithmeticError, "no finite gradient"),
        ({"initial": START[:5]}, ValueError, "initial has shape \\(5, 3\\)"),
        ({"times": [1.0, -1.0]}, ValueError, "times="),
        ({"momentum": 1.0, "rate": 0.1}, ValueError, "momentum=1.0, expected"),
        ({"momentum": 0.9}, ValueError, "rate=None, expected the learning rate"),
        ({"rate": 0.1}, ValueError, "without momentum"),
        ({"regularization": -1.0}, ValueError, "regularization=-1"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed, error, words):
    given = {"loss": squared, "initial": START, "times": 1.0} | changed
    with pytest.raises(error, match=words):
        LossFlow.on(THETA, given.pop("loss"), given.pop("initial"), given.pop("times"), **given)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed")
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_predictions_are_those_of_neural_tangents(momentum):
    def loss(outputs, targets):
        return -(targets * log_softmax(outputs)).mean()

    found = ours.predict.gradient_descent(loss, THETA, ONE_HOT, 0.3, momentum)(7.0, START, START_TEST, TEST)
    with as_neural_tangents_expects():
        theirs = reference.load().predict.gradient_descent(loss, THETA, ONE_HOT, 0.3, momentum)
        wanted = theirs(7.0, START, START_TEST, TEST)
    for here, there in zip(found, wanted, strict=True):
        np.testing.assert_allclose(here, there, atol=2e-6)
