"""The largest stable learning rate, against models where it is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import empirical, networks, spectrum
from ntk_analysis.descent import largest_stable_learning_rate, loss_curve

from .test_empirical import drawn
from .tiers import full

RNG = np.random.default_rng(0)
X = RNG.standard_normal((12, 5))
Y = RNG.standard_normal((12, 2))


def linear(params, x):
    return x @ params


def product(params, x):
    """One input, two parameters: f = u v, tangent kernel u^2 + v^2."""
    u, v = params
    return u * v * x


def excess(kernel, residual, steps):
    """By what fraction above 2/lambda_max a linear model of these residuals passes."""
    mode = np.linalg.eigh(kernel)[1][:, -1]
    share = np.sum((mode @ residual) ** 2) / np.sum(residual**2)
    return (share ** (-1 / (2 * steps)) - 1) / 2


@pytest.mark.parametrize("x64", [False, *full(True)])
def test_linear_model_is_stable_up_to_twice_the_inverse_of_the_largest_eigenvalue(x64):
    kernel, start = X @ X.T, np.zeros((5, 2))
    with jax.enable_x64(x64):
        found = largest_stable_learning_rate(linear, start, X, Y, steps=500, resolution=1e-4)
    ratio = found.rate / spectrum.largest_stable_learning_rate(kernel)
    assert -found.error <= ratio - 1 <= excess(kernel, Y, 500) + found.error
    assert found.bracket[0] < found.rate < found.bracket[1] <= found.bracket[0] * (1 + 1e-4)


def test_more_steps_come_closer_to_the_bound():
    bound = spectrum.largest_stable_learning_rate(X @ X.T)
    few, many = (
        largest_stable_learning_rate(linear, np.zeros((5, 2)), X, Y, steps=steps, resolution=1e-5).rate / bound - 1
        for steps in (10, 300)
    )
    assert few > 10 * many > 0


@pytest.mark.parametrize("normalization", full("weight_mean", "none"))
def test_network_close_to_its_targets_has_the_rate_of_its_own_tangent_kernel(normalization):
    network = networks.fully_connected(2, 16, normalization)
    params, _, _ = drawn(network, (5,))
    kernel = empirical.empirical_ntk(network, params, X, method="jacobian").ntk[:, :, 0, 0]
    residual = Y[:, :1]
    y = np.asarray(jax.jit(network.apply)(params, X)) + 1e-4 * residual
    found = largest_stable_learning_rate(network, params, X, y, steps=200, resolution=1e-3)
    ratio = found.rate / spectrum.largest_stable_learning_rate(kernel)
    # 1e-3: a residual of 1e-4 moves the kernel by that order
    assert -found.error - 1e-3 <= ratio - 1 <= excess(kernel, residual, 200) + found.error + 1e-3


def test_catapult_survives_only_where_it_is_let():
    start, one = (np.array([2.0]), np.array([0.1])), np.array([1.0])
    bound = 2 / (2.0**2 + 0.1**2)
    strict, loose = (
        largest_stable_learning_rate(product, start, one, np.zeros(1), steps=400, catapults=catapults).rate / bound
        for catapults in (False, True)
    )
    # |f| shrinks in the first step iff (1 - rate v^2) (rate u^2 - 1) < 1: up to 0.5025 = 1.008 bounds
    assert strict == pytest.approx(1.008, abs=0.01)
    assert 1.5 < loose < 2.5  # the catapult phase ends near 4 / lambda_max for such a model


def test_loss_curve_is_that_of_the_linear_model():
    kernel, rate = X @ X.T, 0.5 / np.linalg.norm(X @ X.T, 2)
    expected = spectrum.training_curve(kernel, Y, learning_rate=rate, steps=20).loss
    found = loss_curve(linear, np.zeros((5, 2)), X, Y, learning_rate=rate, steps=20)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y[:, 0]}, r"targets have shape \(12,\), the network's outputs \(12, 2\)"),
        ({"steps": 0}, "got steps=0: expected at least 1"),
        ({"resolution": 1.0}, "got resolution=1.0: expected a number in"),
        ({"y": np.zeros((12, 2))}, "nothing moves"),
        ({"y": np.full((12, 2), np.nan)}, "at the start"),
    ],
)
def test_bad_input(change, message):
    arguments = {"y": Y, "steps": 5, "resolution": 0.1} | change
    y = arguments.pop("y")
    with pytest.raises(ValueError, match=message):
        largest_stable_learning_rate(linear, np.zeros((5, 2)), X, y, **arguments)


def test_no_rate_is_unstable_for_bounded_outputs():
    with pytest.raises(ValueError, match="no unstable learning rate"):
        largest_stable_learning_rate(lambda p, x: jnp.tanh(x @ p) * 1e-3, np.ones((5, 2)), X, 2 * np.sign(Y), steps=3)


def test_loss_curve_needs_steps():
    with pytest.raises(ValueError, match="at least 1"):
        loss_curve(linear, np.zeros((5, 2)), X, Y, learning_rate=0.1, steps=0)
