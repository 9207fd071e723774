"""Finite networks under gradient descent, against their own tangent kernel and the identities of a last batch norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.descent import against_linearised, linearised, loss_curve, scale_invariance, trained_outputs
from ntk_analysis.layers import Dense, LastBatchNorm, Residual, Serial
from ntk_analysis.networks import fully_connected

from .test_empirical import drawn as drawn_at_random
from .tiers import full

RNG = np.random.default_rng(0)
X = RNG.standard_normal((10, 6))
Y = RNG.standard_normal((10, 2))
EPS = np.finfo(np.float64).eps


def cubic(params, x):
    """Linear in its parameters, not in its inputs, with a part that does not depend on them."""
    return (x**3) @ params + jnp.sin(x[:, :1])


def drawn(network):
    return drawn_at_random(network, X.shape[1:])[0]


@pytest.mark.parametrize("x64", [False, *full(True)])
def test_a_model_linear_in_its_parameters_is_its_own_linearisation(x64):
    params, cubes = RNG.standard_normal((6, 2)), X**3
    rate = 0.7 / np.linalg.norm(cubes @ cubes.T, 2)
    with jax.enable_x64(x64):
        predicted = linearised(cubic, params, X, Y, learning_rate=rate, steps=50)
        outputs = trained_outputs(cubic, params, X, Y, learning_rate=rate, steps=50)
    # 50 steps, each of products of some 10 terms, of numbers up to the largest output
    np.testing.assert_allclose(outputs, predicted.outputs, rtol=0, atol=500 * EPS * np.abs(outputs).max())
    assert predicted.stable
    assert outputs.shape == (51, 10, 2)
    np.testing.assert_allclose(np.sum((outputs - Y) ** 2, axis=(1, 2)) / 2, predicted.loss, rtol=1e-12)
    assert not linearised(cubic, params, X, Y, learning_rate=3 * rate, steps=5).stable


def test_trained_outputs_have_the_loss_curve():
    network = fully_connected(2, 8, outputs=2)
    params = drawn(network)
    outputs = trained_outputs(network, params, X, Y, learning_rate=0.01, steps=8)
    losses = loss_curve(network, params, X, Y, learning_rate=0.01, steps=8)
    np.testing.assert_allclose(np.sum((outputs - Y) ** 2, axis=(1, 2)) / 2, losses, rtol=1e-12)


def test_the_first_step_leaves_the_prediction_at_second_order():
    network = fully_connected(2, 8, "weight_mean", "erf", outputs=2)
    params = drawn(network)

    def gap(rate):
        predicted = linearised(network, params, X, Y, learning_rate=rate, steps=1).outputs[1]
        return np.max(np.abs(trained_outputs(network, params, X, Y, learning_rate=rate, steps=1)[1] - predicted))

    # a wrong kernel leaves it at first order, with ratio 10; the third order is a relative correction of about 1e-3
    assert gap(1e-3) / gap(1e-4) == pytest.approx(100, rel=0.05)


def test_networks_linear_in_their_weights_are_at_no_distance():
    study = against_linearised(
        lambda width: Serial(Dense(1)), X, Y[:, :1], widths=(1, 2), draws=2, learning_rate=0.03, steps=10, seed=1
    )
    # 10 steps, each of products of some 10 terms
    assert study.distances.max() < 100 * EPS
    np.testing.assert_allclose(study.loss, study.loss_linearised, rtol=1e-12)
    assert np.all(study.loss[..., -1] < 0.9 * study.loss[..., 0])
    assert len(np.unique(study.loss[..., 0])) == 4, "each is drawn by itself"
    assert study.time == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("normalization", full("weight_mean", "none"))
def test_wide_networks_are_closer_to_their_prediction(normalization):
    study = against_linearised(
        lambda width: fully_connected(1, width, normalization, "erf"),
        X,
        Y[:, :1],
        widths=(8, 128),
        draws=12,
        learning_rate=0.05,
        steps=20,
    )
    (narrow, wide), (error, wide_error) = study.distance, study.error
    assert narrow - wide > 3 * np.hypot(error, wide_error)
    # width^(-1/2) is a bound; the fit of two widths goes through both points
    assert -1.6 < study.law.exponent < -0.5
    assert study.time == 1
    assert study.loss.shape == study.loss_linearised.shape == (2, 12, 21)
    np.testing.assert_allclose(study.loss[..., 0], study.loss_linearised[..., 0], rtol=1e-12)


@pytest.mark.parametrize(("normalization", "batch"), [("weight_mean", 7), *full(("none", None), ("batch", 7))])
def test_a_last_batch_norm_hides_the_scale_of_every_layer(normalization, batch):
    network = fully_connected(3, 16, normalization, outputs=2, last_batch_norm=True)
    found = scale_invariance(network, drawn(network), X, Y, learning_rate=0.3, steps=30, batch=batch)
    assert found.products.shape == (31, 4)
    assert found.variance.shape == (31, 2)
    # rounding of the sums behind a gradient, some 10^3 terms; of |W|^2, its 256 terms
    assert np.max(np.abs(found.cosines)) < 1e3 * EPS
    assert np.max(np.abs(found.growth_error)) < 256 * EPS
    grown = found.squared_norms[-1] / found.squared_norms[0]
    assert np.all(grown > 1 + 1e6 * EPS)  # there is something to be explained
    np.testing.assert_allclose(found.effective_learning_rate[-1], 0.3 / found.squared_norms[-1], rtol=EPS)


@pytest.mark.parametrize(
    ("change", "layers"),
    [
        ({"eps": 0.1}, slice(0, 4)),
        *full(
            ({"activation": "tanh"}, slice(0, 3)),  # all but the read-out
            ({"b_var": 0.5}, slice(0, 2)),  # weights and biases together still scale what stands before the read-out
        ),
    ],
)
def test_where_the_scale_is_seen_it_is_told(change, layers):
    network = fully_connected(3, 16, outputs=2, last_batch_norm=True, **change)
    found = scale_invariance(network, drawn(network), X, Y, learning_rate=0.1, steps=3)
    assert np.all(np.abs(found.cosines[:, layers]).max(axis=0) > 1e-6)


def test_variance_and_norms_are_those_of_the_network():
    network = fully_connected(2, 8, outputs=2, last_batch_norm=True)
    params = drawn(network)
    found = scale_invariance(network, params, X, Y, learning_rate=0.1, steps=1)
    outputs = Serial(*network.layers[:-1]).apply(params[:-1], X)
    np.testing.assert_allclose(found.variance[0], np.var(outputs, axis=0), rtol=1e-12)
    norms = [np.sum(leaf**2) for leaf in jax.tree.leaves(params)]
    np.testing.assert_allclose(found.squared_norms[0], norms, rtol=1e-12)
    np.testing.assert_allclose(found.loss[0], np.sum((network.apply(params, X) - Y) ** 2) / 2, rtol=1e-12)


def test_bad_training():
    params = RNG.standard_normal((6, 2))
    with pytest.raises(ValueError, match=r"targets have shape \(10,\), the network's outputs \(10, 2\)"):
        linearised(cubic, params, X, Y[:, 0], learning_rate=0.1, steps=2)
    with pytest.raises(ValueError, match="steps=0"):
        trained_outputs(cubic, params, X, Y, learning_rate=0.1, steps=0)
    with pytest.raises(ValueError, match="positive"):
        linearised(cubic, params, X, Y, learning_rate=-1.0, steps=2)
    with pytest.raises(OverflowError, match="exceeds float64"):
        linearised(cubic, params, X, Y, learning_rate=100.0, steps=1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (8,)}, "at least two, ascending"),
        ({"widths": (16, 8)}, "at least two, ascending"),
        ({"draws": 1}, "draws=1"),
        *full(({"learning_rate": 1.0, "steps": 30}, "diverged at learning_rate=1")),
    ],
)
def test_bad_study(change, message):
    arguments = {"widths": (4, 8), "draws": 2, "learning_rate": 0.1, "steps": 2} | change
    with pytest.raises(ValueError, match=message):
        against_linearised(lambda width: fully_connected(1, width, activation="identity"), X, Y[:, :1], **arguments)


def test_bad_scale_invariance():
    plain = fully_connected(1, 4, outputs=2)
    with pytest.raises(TypeError, match="does not end in LastBatchNorm"):
        scale_invariance(plain, drawn(plain), X, Y, learning_rate=0.1, steps=2)
    network = fully_connected(1, 4, outputs=2, last_batch_norm=True)
    plain_arguments: dict[str, Any] = {"learning_rate": 0.1, "steps": 2}
    changes: dict[str, dict[str, Any]]
    changes = {"positive": {"learning_rate": 0.0}, "batch of 2": {"batch": 2}, "steps": {"steps": 0}}
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            scale_invariance(network, drawn(network), X, Y, **plain_arguments | change)


def test_the_branch_of_a_residual_layer_is_not_scale_invariant():
    """What stands beside it in the sum does not grow with it; the layers before and behind it are as of a chain."""
    network = Serial(Dense(4), Residual(Dense(4)), Dense(2), LastBatchNorm(eps=0.0))
    found = scale_invariance(network, drawn(network), X, Y, learning_rate=0.1, steps=2)
    first, branch, last = np.abs(found.products).max(axis=0)
    assert max(first, last) < 1e-12
    assert branch > 1e-3
