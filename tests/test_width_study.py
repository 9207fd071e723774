"""The finite-width study on ensembles whose scaling is known, and on networks."""

import jax
import numpy as np
import pytest

from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.layers import Activation, Dense, Serial
from ntk_analysis.networks import fully_connected
from ntk_analysis.width_study import (
    Convergence,
    draw_kernels,
    fit_power_law,
    fluctuation_rate,
    output_covariance,
    squared_bias,
    width_study,
)

WIDTHS = (16, 32, 64, 128)
LIMIT = np.eye(4) + 1.0
STANDARD_ERRORS = 4


def ensemble(seed=0, draws=200, bias=6.0, exponent=-1.0, noise=4.0):
    """Kernels LIMIT (1 + bias width^exponent) + noise width^(-1/2) Gaussian."""
    rng = np.random.default_rng(seed)
    samples = [
        LIMIT * (1 + bias * width**exponent) + noise * width**-0.5 * rng.standard_normal((draws, 4, 4)) / 4
        for width in WIDTHS
    ]
    return Convergence.of(WIDTHS, samples, LIMIT)


def test_exponents_of_a_known_ensemble():
    found = ensemble(draws=2000)
    assert abs(found.bias_law.exponent + 1) < STANDARD_ERRORS * found.bias_law.error < 0.2
    assert found.bias_law.prefactor == pytest.approx(6, rel=0.3)
    unbiased = ensemble(draws=2000, bias=0.0)
    assert abs(unbiased.distance_law.exponent + 0.5) < STANDARD_ERRORS * unbiased.distance_law.error < 0.1


@pytest.mark.parametrize("bias", [0.0, 0.3, 6.0])
def test_bias_is_unbiased_and_its_standard_error_honest(bias):
    rng = np.random.default_rng(1)
    scales = np.array([3.0, 1.0, 0.3, 0.1])  # most of the variance in one direction, as in tangent kernels
    found = np.array([squared_bias(bias / 2 + scales * rng.standard_normal((30, 4))) for _ in range(2000)])
    estimates, errors = found.T
    assert abs(estimates.mean() - bias**2) < STANDARD_ERRORS * estimates.std() / 2000**0.5
    # near a bias of 0 the estimated variance is cut off at its least, which errs on the safe side
    assert 0.85 < np.mean(errors**2) / estimates.var() < (1.15 if bias == 6 else 2)
    if bias < 6:  # without subtracting the share of the fluctuation, a bias of 0 would be seen
        assert np.sum(scales**2) / 30 > 10 * estimates.std() / 2000**0.5


def test_more_draws_than_entries_is_the_same_sum():
    deviations = np.random.default_rng(2).standard_normal((9, 8))
    padded = np.concatenate([deviations, np.zeros((9, 20))], axis=1)
    np.testing.assert_allclose(squared_bias(deviations), squared_bias(padded), rtol=1e-12)


def test_fluctuation_of_the_diagonal_and_its_error():
    found = [ensemble(seed, draws=100) for seed in range(100)]
    # entries on the diagonal: mean 2 (1 + 6/width), standard deviation width^(-1/2)
    expected = [1 / width / (2 * (1 + 6 / width)) ** 2 for width in WIDTHS]
    values, errors = (np.array([getattr(f, name) for f in found]) for name in ("fluctuation", "fluctuation_error"))
    assert np.all(np.abs(values.mean(0) - expected) < STANDARD_ERRORS * values.std(0) / 10)
    np.testing.assert_allclose(errors.mean(0), values.std(0), rtol=0.3)  # of 100 repetitions: 7 %


def test_error_of_the_exponent_is_honest():
    laws = [ensemble(seed, draws=50, bias=0.0).distance_law for seed in range(200)]
    pulls = np.array([(law.exponent + 0.5) / law.error for law in laws])
    assert abs(pulls.mean()) < 0.4
    assert 0.6 < pulls.std() < 1.2  # chi^2 above 1 widens errors and chi^2 below 1 does not narrow them


def test_no_bias_is_not_resolved():
    found = ensemble(bias=0.0)
    assert np.isnan(found.bias_law.exponent)
    assert "not resolved" in found.summary()
    assert np.all(np.abs(found.bias_squared) < STANDARD_ERRORS * found.bias_squared_error)


def test_a_misfit_widens_the_error():
    widths, errors = np.array(WIDTHS), np.full(4, 1e-4)
    exact, bent = 3 * widths**-0.5, 3 * widths**-0.5 + 5 / widths
    assert fit_power_law(widths, exact, errors).exponent == pytest.approx(-0.5)
    law, loose = fit_power_law(widths, bent, errors), fit_power_law(widths, bent, 100 * errors)
    assert law.chi_squared > 100
    assert law.error > 0.3 * loose.error


def test_rate_of_exponential_growth():
    ratio = np.array([0.01, 0.1, 0.4])
    rate, error = fluctuation_rate(ratio, np.expm1(4 * ratio), 0.01 * ratio)
    assert rate == pytest.approx(4)
    assert 0 < error < 0.1


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def one_hidden_layer(inputs):
    return width_study(lambda width: fully_connected(1, width), inputs, (8, 64), (800, 300))


@pytest.mark.full  # draws again
def test_one_hidden_layer_has_no_bias(one_hidden_layer):
    for found in (one_hidden_layer.ntk, one_hidden_layer.nngp):
        assert np.all(np.abs(found.bias_squared) < STANDARD_ERRORS * found.bias_squared_error)
        # a sum over independent units: the root mean square falls exactly so, the mean up to its shape
        assert abs(found.distance_law.exponent + 0.5) < STANDARD_ERRORS * found.distance_law.error
        assert found.distance_law.error < 0.05
    assert one_hidden_layer.summary().startswith("networks by width: 800 of 8, 300 of 64")


@pytest.mark.full  # draws again
def test_fluctuation_of_one_hidden_layer_is_exact(one_hidden_layer):
    # NNGP on the diagonal: 2 relu(g)^2 averaged over n units, of variance 4 * 3/2 - 1 = 5
    found = one_hidden_layer.nngp
    assert np.all(np.abs(found.fluctuation - 5 / found.widths) < STANDARD_ERRORS * found.fluctuation_error)


@pytest.mark.full
def test_wrong_kernel_is_a_bias_that_stays(inputs):
    wrong = Serial(Dense(8), Activation("relu"), Dense(1, 2.1))
    found = width_study(lambda width: fully_connected(1, width), inputs, (64, 256), 4000, limit=wrong).nngp
    assert np.all(found.bias_resolved)
    np.testing.assert_allclose(found.bias, 0.1 / 2.1, atol=STANDARD_ERRORS * found.bias_error.max())
    assert abs(found.bias_law.exponent) < STANDARD_ERRORS * found.bias_law.error


@pytest.mark.full  # draws networks
def test_draws_are_the_tangent_kernels_of_networks(inputs):
    network, x = fully_connected(2, 4, "batch", b_var=0.1, outputs=2), inputs.astype(np.float64)
    ((ntk, _),) = draw_kernels([network], x, [4])
    key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)[2]
    expected = empirical_ntk(network, network.init(key, x.shape)[1], x, layout="trace", method="jacobian").ntk / 2
    np.testing.assert_allclose(ntk[2], expected, rtol=1e-9)


def test_covariance_of_outputs_given_the_hidden_layers(inputs):
    outputs = 20_000
    network = fully_connected(1, 8, "weight_standardization", b_var=0.1, outputs=outputs)
    _, params = network.init(jax.random.key(0), inputs.shape)
    x = jax.numpy.asarray(inputs, float)
    y, covariance = np.asarray(network.apply(params, x)), np.asarray(output_covariance(network, params, x))
    error = np.std(y[:, None] * y[None], axis=-1) / outputs**0.5
    assert np.all(np.abs(y @ y.T / outputs - covariance) < STANDARD_ERRORS * error)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"widths": [8]}, ValueError, "at least two, ascending"),
        ({"widths": [16, 8]}, ValueError, "at least two, ascending"),
        ({"seeds": 3}, ValueError, "at least 4"),
        ({"seeds": [8, 8, 8]}, ValueError, "for 2 widths"),
        ({"make": lambda width: Dense(width)}, TypeError, "ends in Dense"),
        ({"x": np.full((3, 4), np.nan)}, ValueError, "NaN or infinite"),
        ({"x": np.ones(4)}, ValueError, "shape"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"make": lambda width: fully_connected(1, width), "x": np.ones((3, 4)), "widths": [8, 16], "seeds": 8}
    with pytest.raises(error, match=message):
        width_study(**(arguments | change))


@pytest.mark.parametrize(
    ("kernels", "limit", "message"),
    [
        (np.ones((3, 4, 4)), LIMIT, "3 draws"),
        (np.ones((5, 3, 3)), LIMIT, "shape"),
        (np.full((5, 4, 4), np.inf), LIMIT, "NaN or infinite"),
        (np.ones((5, 4, 4)), 0 * LIMIT, "not 0"),
    ],
)
def test_bad_ensembles(kernels, limit, message):
    with pytest.raises(ValueError, match=message):
        Convergence.of([8], [kernels], limit)
