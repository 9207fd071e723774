"""Batch norm on new points: golden values, the exact integrals, Monte Carlo through several layers, what is refused."""

import itertools
import math

import mpmath
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from ntk_analysis import batch_norm
from ntk_analysis.meanfield import evaluation_mode

from .tiers import full

# second derivation: theory.md, section 9
GOLDEN = [
    pytest.param(4, "biased", [1.4617, 1.9753, 3.923, 62.6], id="B=4, biased"),
    pytest.param(4, "unbiased", [0.8236, 0.5228, 0.4224, 0.4156], id="B=4, unbiased"),
    pytest.param(16, "biased", [1.0859, 1.1473, 1.2685, 1.683], id="B=16, biased"),
    pytest.param(16, "unbiased", [0.9545, 0.8349, 0.7009, 0.6088], id="B=16, unbiased"),
]
SLOPES = {"relu": 0.0, "leaky_relu(-0.5)": -0.5, "abs": -1.0}


@pytest.mark.parametrize(("B", "variance", "expected"), GOLDEN)
def test_golden_values_of_many_batches(B, variance, expected):
    found = evaluation_mode(batch_size=B, running_variance=variance).second_moments(20)
    np.testing.assert_allclose(found[[1, 4, 9, 19]], expected, rtol=3e-4)


def test_golden_values_of_a_frozen_batch():
    frozen = evaluation_mode(batch_size=16, batches=1, running_variance="biased")
    np.testing.assert_allclose(
        frozen.second_moments(30)[[0, 2, 9, 19, 29]], [1.308, 1.905, 12.98, 1380, 2.97e5], rtol=2e-3
    )
    rates = [evaluation_mode(batch_size=B, batches=1, running_variance="biased").rate for B in (8, 16, 10**7)]
    np.testing.assert_allclose(rates, [2.1337, 1.7230, math.pi / (math.pi - 1)], rtol=5e-5)
    assert frozen.first == pytest.approx(17 / 13, rel=1e-14)
    assert frozen.settles_at == math.inf


def test_golden_values_of_where_it_ends():
    settled = [evaluation_mode(batch_size=B).settles_at for B in (4, 8, 16, 64, 256)]
    np.testing.assert_allclose(settled, [0.4156, 0.5018, 0.5932, 0.7523, 0.8615], atol=6e-5)
    many = [evaluation_mode(batch_size=B, running_variance="biased") for B in (4, 16, 64, 256, 1024)]
    assert [int(np.argmax(one.second_moments(400) > 10)) + 1 for one in many] == [15, 39, 80, 155, 302]
    assert all(one.settles_at == math.inf for one in many)


@pytest.mark.parametrize("name", full("relu", "abs", "leaky_relu(-0.5)"))  # of ReLU the claim `micro` does it, too
def test_one_batch_is_the_exact_kernel(name):
    """The integrals of `batch_norm`, taken through the layers of one frozen batch and of two new points."""
    B, gain = 8, 2.0
    sigma, weights = np.eye(B + 1), np.append(np.full(B, 1 / B), 0)
    expected = []
    for _ in range(6):
        linear = batch_norm.nngp(sigma, "identity", weights=weights)
        assert linear[0, 0] == pytest.approx(1, rel=1e-10)
        expected.append(linear[-1, -1])
        sigma = gain * np.asarray(batch_norm.nngp(sigma, name, weights=weights))
    found = evaluation_mode(name, batch_size=B, batches=1, running_variance="biased")
    np.testing.assert_allclose(found.second_moments(6), expected, rtol=1e-9)


def drawn(name, B, k, variance, layers, seed, draws=8_000, new=12):
    """Second moments of new points by Monte Carlo over units, layer by layer."""
    generator, slope = np.random.default_rng(seed), SLOPES[name]
    sigma, found = np.eye(k * B + new), []
    for _ in range(layers):
        values, vectors = np.linalg.eigh(sigma)
        x = generator.standard_normal((draws, k * B + new)) @ (vectors * np.sqrt(np.maximum(values, 0))).T
        batches, others = x[:, :-new].reshape(draws, k, B), x[:, -new:]
        means, variances = batches.mean(2), batches.var(2)
        trained = (batches - means[..., None]) / np.sqrt(variances[..., None])
        remembered = variances.mean(1) * (B / (B - 1) if variance == "unbiased" else 1)
        evaluated = (others - means.mean(1)[:, None]) / np.sqrt(remembered)[:, None]
        found.append(np.mean(evaluated**2))
        xhat = np.concatenate([trained.reshape(draws, -1), evaluated], 1)
        y = np.maximum(xhat, 0) + slope * np.minimum(xhat, 0)
        sigma = y.T @ y / draws
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "B", "k", "variance"),
    [
        pytest.param("relu", 4, 4, "biased", id="Flax"),
        *full(
            ("relu", 4, 4, "unbiased"),
            ("leaky_relu(-0.5)", 5, 3, "unbiased"),
            ("abs", 3, 10, "biased"),
            ("relu", 2, 20, "unbiased"),
        ),
    ],
)
def test_averages_over_batches_by_monte_carlo(name, B, k, variance):
    """Errors are carried from layer to layer, so they are measured over repetitions of the whole."""
    exact = evaluation_mode(name, batch_size=B, batches=k, running_variance=variance).second_moments(3)
    found = np.array([drawn(name, B, k, variance, 3, seed) for seed in range(6)])
    error = found.std(0, ddof=1) / math.sqrt(6)
    np.testing.assert_array_less(
        abs(found.mean(0) - exact), 8 * error
    )  # Student's t of 6, as rare as 3.5 of a normal law
    assert np.all(error < 0.01 * exact)


@pytest.mark.parametrize("name", ["relu", *full("abs", "leaky_relu(-0.5)")])
def test_what_settles_is_where_the_layers_lead(name):
    cases = itertools.product((3, 4, 8, 64), (2, 3, 4, 5, 8, 100, None), ("unbiased", "biased"))
    for B, k, variance in cases:
        field = evaluation_mode(name, batch_size=B, batches=k, running_variance=variance)
        square, root, constant = field.terms
        value = field.first
        for _ in range(20_000):
            value = square * value - root * math.sqrt(value) + constant
            if value > 1e12:
                assert (square * value - root * math.sqrt(value)) / value == pytest.approx(field.rate, rel=1e-5)
                value = math.inf
                break
        assert value == pytest.approx(field.settles_at, rel=1e-6), (B, k, variance)


def test_many_batches_are_the_limit():
    for variance in ("biased", "unbiased"):
        few, many = (evaluation_mode(batch_size=4, batches=k, running_variance=variance) for k in (10**9, None))
        np.testing.assert_allclose(few.second_moments(10), many.second_moments(10), rtol=1e-7)


def test_quotients_of_gamma_functions():
    from ntk_analysis.meanfield.evaluation import _gamma_ratio

    for n in (2, 3, 15, 16, 255, 10_001, 10**9):
        exact = mpmath.gammaprod([mpmath.mpf(n - 1) / 2], [mpmath.mpf(n) / 2])
        assert _gamma_ratio(float(n)) == pytest.approx(float(exact), rel=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        pytest.param({"batch_size": 1}, ValueError, "batch_size=1, expected an integer of at least 2", id="no batch"),
        pytest.param(
            {"batch_size": 4.0},
            (ValueError, TypeCheckError),  # annotations are checked in CI: they come first
            "batch_size=4.0, expected an integer|Type-check error",
            id="no integer",
        ),
        pytest.param({"batch_size": True}, ValueError, "batch_size=True, expected an integer", id="no number"),
        pytest.param({"batch_size": 4, "batches": 0}, ValueError, "batches=0, expected an integer", id="no batches"),
        pytest.param({"batch_size": 3, "batches": 1}, ValueError, "infinite with fewer than 3 dev", id="frozen 3"),
        pytest.param({"batch_size": 2, "batches": 2}, ValueError, "infinite with fewer than 3 dev", id="2 of 2"),
        pytest.param(
            {"batch_size": 4, "running_variance": "flax"}, ValueError, "choose one of unbiased, biased", id="no name"
        ),
        pytest.param({"activation": "abs", "batch_size": 2}, ValueError, "both outputs of a batch are equal", id="abs"),
        pytest.param({"activation": "tanh", "batch_size": 4}, NotImplementedError, "'tanh' have no closed", id="tanh"),
        pytest.param({"activation": "identity", "batch_size": 4}, NotImplementedError, "no closed", id="identity"),
    ],
)
def test_what_has_no_second_moment_is_one_clear_line(arguments, error, told):
    with pytest.raises(error, match=told) as raised:
        evaluation_mode(**arguments)
    assert isinstance(raised.value, TypeCheckError) or "\n" not in str(raised.value)


def test_more_layers_than_float64_holds():
    frozen = evaluation_mode(batch_size=8, batches=1, running_variance="biased")
    with pytest.raises(ValueError, match="beyond float64 from layer 9"):
        frozen.second_moments(1000)
    with pytest.raises(ValueError, match="got depth=0, expected an integer of at least 1"):
        frozen.second_moments(0)
