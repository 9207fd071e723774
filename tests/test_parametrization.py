"""Parametrisations: rates of each layer, and kernels of finite and infinite networks with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis import activations
from ntk_analysis.layers import Activation, Conv, Dense, Flatten, LayerNorm, Parallel, Repeat, Serial
from ntk_analysis.networks import parametrized

X = np.random.default_rng(0).standard_normal((3, 5))
NETWORK = Serial(
    Dense(16, 1.5, 0.2),
    Activation("relu"),
    Repeat(Serial(Dense(16, 1.7, 0.1), Activation("relu")), 2),
    Dense(2, 1.2, 0.3),
)
IN_FULL = Serial(
    Dense(8, 1.0, 0.1),
    Activation("relu"),
    Dense(8, 1.2, 0.3, center=True),
    Activation("relu"),
    Dense(6, 1.3, 0.2, standardize=True),
    Activation("relu"),
    Dense(1),
)


def rates(network):
    layers = [layer for layer in network.in_order() if isinstance(layer, Dense | Conv)]
    return [(layer.w_rate, layer.b_rate) for layer in layers]


def test_rates_are_those_of_the_fan_ins():
    standard = parametrized(NETWORK, (-1, 5), "standard")
    hidden = (16 / 1.7, 1 / 0.1)
    assert rates(standard) == [(5 / 1.5, 1 / 0.2), hidden, hidden, (16 / 1.2, 1 / 0.3)]
    assert parametrized(standard, (-1, 5), "ntk") == NETWORK
    mean_field = parametrized(NETWORK, (-1, 5), "mean_field")
    assert rates(mean_field) == [(16, 16)] * 4
    *_, readout = mean_field.in_order()
    assert isinstance(readout, Dense)
    assert (readout.w_var, readout.b_var) == (1.2 / 16, 0.3 / 16)
    images = Serial(Conv(4, (3, 2), w_var=2.0), Activation("relu"), Flatten(), Dense(3))
    assert rates(parametrized(images, (-1, 4, 4, 3), "standard")) == [(3 * 2 * 3 / 2, 1.0), (64.0, 1.0)]


def test_drawn_parameters_are_the_weights_themselves():
    standard = parametrized(Dense(400, 1.7, 0.4), (-1, 300), "standard")
    assert isinstance(standard, Dense)
    _, params = standard.init(jax.random.key(0), (-1, 300))
    x = jax.random.normal(jax.random.key(1), (2, 300), params["w"].dtype)
    np.testing.assert_allclose(standard.apply(params, x), x @ params["w"] + params["b"][None], rtol=2e-5, atol=2e-5)
    assert float(params["w"].std()) == pytest.approx((1.7 / 300) ** 0.5, rel=0.01)
    assert float(params["b"].std()) == pytest.approx(0.4**0.5, rel=0.15)


def test_the_infinite_kernel_adds_up():
    """Of one hidden layer: each layer's own part, with its rates, by hand."""
    network = Serial(Dense(8, 1.5, 0.2), Activation("relu"), Dense(1, 1.2, 0.3))
    found = ntk.infinite_kernel(parametrized(network, (-1, 5), "standard"), X)
    plain = ntk.infinite_kernel(network, X)
    products, relu = X @ X.T / 5, activations.get("relu")
    q = np.diag(1.5 * products + 0.2)
    rho = np.clip((1.5 * products + 0.2) / np.sqrt(np.outer(q, q)), -1, 1)
    slopes, moments = (dual(q[:, None], q[None], rho) for dual in (relu.derivative_dual, relu.dual))
    wanted = 8 * moments + 1 + 1.2 * slopes * (5 * products + 1)
    np.testing.assert_array_equal(found.nngp, plain.nngp)
    np.testing.assert_allclose(found.ntk, wanted, rtol=3e-8)  # arc cosine on the diagonal


def test_what_has_no_rate_is_refused():
    with pytest.raises(ValueError, match="weights of variance 0"):
        parametrized(Dense(3, 0.0), (-1, 5), "standard")
    for network in (Serial(Dense(3), LayerNorm()), Parallel(Dense(3), Dense(3)), Activation("relu")):
        with pytest.raises(ValueError, match="which layer is the read-out is not known"):
            parametrized(network, (-1, 5), "mean_field")
    with pytest.raises(ValueError, match="got w_rate=0"):
        Dense(3, w_rate=0.0)
    with pytest.raises(ValueError, match="got b_rate=inf"):
        Conv(3, b_rate=float("inf"))


@pytest.mark.full
@pytest.mark.parametrize("parametrization", ["standard", "mean_field"])
def test_empirical_kernels_are_those_of_the_jacobian(parametrization):
    network = parametrized(IN_FULL, (-1, 5), parametrization)
    with jax.enable_x64(True):
        _, params = network.init(jax.random.key(0), (-1, 5))
        jacobian = jax.jacobian(lambda p: network.apply(p, jnp.asarray(X))[:, 0])(params)
        parts = [leaf.reshape(len(X), -1) for leaf in jax.tree.leaves(jacobian)]
        wanted = sum(np.asarray(part @ part.T) for part in parts)
        for method in ("layerwise", "jacobian"):
            found = ntk.empirical_ntk(network, params, X, layout="trace", method=method).ntk
            np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.full
def test_wide_networks_have_the_kernel_of_their_parametrization():
    wide = Serial(Dense(1000, 1.5, 0.2), Activation("relu"), Dense(1000, 1.7, 0.1), Activation("relu"), Dense(1))
    for parametrization in ("standard", "mean_field"):
        network = parametrized(wide, (-1, 5), parametrization)
        estimate = ntk.monte_carlo_kernel(network, X, draws=20)
        assert ntk.monte_carlo.compare(ntk.infinite_kernel(network, X), estimate).agrees
