"""Batch normalisation behind the activation: plain Monte Carlo, honest errors, the linear case in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ntk_analysis import activations
from ntk_analysis.batch_norm import after_activation, nngp, push

from .tiers import full


def distances(B):
    return np.abs(np.arange(B)[:, None] - np.arange(B))


SIGMA, THETA = np.exp(-distances(6) / 3) + np.eye(6) / 2, 1 / (1 + distances(6))


def gaussian_draws(sigma, draws, seed=0):
    values, vectors = np.linalg.eigh(sigma)
    return np.random.default_rng(seed).standard_normal((draws, len(sigma))) * np.sqrt(np.maximum(values, 0)) @ vectors.T


@functools.partial(jax.jit, static_argnames="phi")
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def one_draw(x, theta, eps, phi):
    """y, y y^T, J theta J^T and the same with J lacking -y y^T/B, of one draw; J by automatic differentiation."""

    def batch_normalised(x):
        f = phi(x)
        return (f - jnp.mean(f)) / jnp.sqrt(jnp.var(f) + eps)

    y, J = batch_normalised(x), jax.jacobian(batch_normalised)(x)
    f, slope = jax.jvp(phi, (x,), (jnp.ones_like(x),))
    wrong = (jnp.eye(len(x)) - 1 / len(x)) * slope[None, :] / jnp.sqrt(jnp.var(f) + eps)
    return y, y[:, None] * y[None, :], J @ theta @ J.T, wrong @ theta @ wrong.T


@pytest.mark.parametrize("name", ["relu", "tanh", *full("erf", "gelu", "leaky_relu(0.2)")])
@pytest.mark.parametrize("kind", ["exponential", "low rank, duplicates"])
def test_agrees_with_monte_carlo(name, kind):
    sigma, draws = SIGMA, 40_000
    if kind != "exponential":
        X = np.random.default_rng(1).standard_normal((6, 4))
        X[1] = X[0]
        sigma = X @ X.T / 4
    sampled = after_activation(sigma, THETA, name, 0.1, samples=2**10)
    assert sampled.pushed is not None
    assert sampled.pushed_error is not None
    x = jnp.asarray(gaussian_draws(sigma, draws))
    samples = one_draw(x, jnp.asarray(THETA), 0.1, activations.get(name))
    results = [
        (sampled.mean, sampled.mean_error),
        (sampled.nngp, sampled.nngp_error),
        (sampled.pushed, sampled.pushed_error),
    ]
    for (value, error), plain in zip(results, samples[:3], strict=True):
        standard_error = np.asarray(jnp.std(plain, axis=0)) / np.sqrt(draws)
        combined = np.sqrt(error**2 + standard_error**2)
        assert np.all(np.abs(value - np.asarray(jnp.mean(plain, axis=0))) <= 5 * combined + 1e-12)
        assert np.max(combined) < 0.05 * np.max(np.abs(sampled.nngp))  # else the line above shows nothing
    # the theory that forgets how the batch variance moves
    wrong = samples[3]
    standard_error = np.asarray(jnp.std(wrong, axis=0)) / np.sqrt(draws)
    deviation = np.abs(sampled.pushed - np.asarray(jnp.mean(wrong, axis=0)))
    assert np.max(deviation / np.sqrt(sampled.pushed_error**2 + standard_error**2)) > 20


@pytest.mark.full
@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_a_linear_activation_has_closed_forms(eps):
    sampled = after_activation(SIGMA, THETA, "identity", eps, samples=2**12)
    assert sampled.pushed is not None
    assert sampled.pushed_error is not None
    assert np.all(np.abs(sampled.nngp - nngp(SIGMA, "identity", eps)) <= 5 * sampled.nngp_error)
    assert np.all(np.abs(sampled.pushed - push(SIGMA, THETA, "identity", eps)) <= 5 * sampled.pushed_error)
    assert np.all(np.abs(sampled.mean) <= 5 * sampled.mean_error)
    assert np.max(sampled.nngp_error) < 1e-3


def test_the_standard_error_is_honest():
    """Spread of 30 seeds against the errors reported, entry by entry: a ratio of variances of 29 and 30 * 15 dof."""
    runs = [after_activation(SIGMA, THETA, "relu", 0.1, samples=2**8, seed=seed) for seed in range(30)]
    upper = np.triu_indices(6)
    low, high = stats.f.ppf([1e-4, 1 - 1e-4], 29, 30 * 15)
    for name in ("nngp", "pushed"):
        spread = np.var([getattr(run, name)[upper] for run in runs], axis=0, ddof=1)
        reported = np.mean([getattr(run, f"{name}_error")[upper] ** 2 for run in runs], axis=0)
        assert np.all((low < spread / reported) & (spread / reported < high))


@pytest.mark.parametrize(("name", "nngp_gain", "push_gain"), [("relu", 4, 1.2), *full(("tanh", 4, 2))])
def test_quasi_monte_carlo_beats_monte_carlo(name, nngp_gain, push_gain):
    """At equal samples, over all entries; less for the tangent kernel of a phi with a kink, which jumps with x."""
    samples, repeats = 2**12, 16
    sampled = after_activation(SIGMA, THETA, name, 0.1, samples=samples, repeats=repeats)
    plain = one_draw(jnp.asarray(gaussian_draws(SIGMA, 40_000)), jnp.asarray(THETA), 0.1, activations.get(name))
    assert sampled.pushed_error is not None
    for error, draws, gain in ((sampled.nngp_error, plain[1], nngp_gain), (sampled.pushed_error, plain[2], push_gain)):
        plain_error = np.std(draws, axis=0) / np.sqrt(samples * repeats)
        assert np.mean(plain_error**2) > gain**2 * np.mean(error**2)


def test_invariants_and_determinism():
    sampled = after_activation(SIGMA, THETA, samples=2**8)
    again = after_activation(SIGMA, THETA, samples=2**8)
    assert sampled.pushed is not None
    np.testing.assert_array_equal(sampled.pushed, again.pushed)
    assert not np.array_equal(sampled.nngp, after_activation(SIGMA, THETA, samples=2**8, seed=1).nngp)
    # y has mean zero over the batch; eps and dead batches keep the trace below B
    np.testing.assert_allclose(np.sum(sampled.nngp, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.sum(sampled.pushed, axis=0), 0, atol=1e-10 * np.max(sampled.pushed))
    assert 0.9 * 6 < np.trace(sampled.nngp) < 6
    # scaling the covariance and eps together changes nothing for a homogeneous activation
    scaled = after_activation(9 * SIGMA, THETA, eps=9e-5, samples=2**8)
    np.testing.assert_allclose(scaled.nngp, sampled.nngp, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(scaled.pushed, sampled.pushed / 9, rtol=1e-9, atol=1e-12)


def test_without_theta_there_is_no_push():
    sampled = after_activation(SIGMA, samples=2**8)
    assert sampled.pushed is None
    assert sampled.pushed_error is None
    np.testing.assert_array_equal(sampled.nngp, after_activation(SIGMA, THETA, samples=2**8).nngp)


def test_float64_whatever_comes_in():
    with jax.enable_x64(False):
        single = after_activation(jnp.asarray(SIGMA, jnp.float32), samples=2**8)
    assert isinstance(single.nngp, np.ndarray)
    assert single.nngp.dtype == np.float64
    np.testing.assert_allclose(single.nngp, after_activation(SIGMA, samples=2**8).nngp, atol=1e-5)


def test_several_blocks_are_one_sequence(monkeypatch):
    expected = after_activation(SIGMA, THETA, samples=2**8)
    monkeypatch.setattr("ntk_analysis.batch_norm.sampling.BLOCK_ENTRIES", 200)
    np.testing.assert_allclose(after_activation(SIGMA, THETA, samples=2**8).pushed, expected.pushed, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eps": 0.0}, "eps=0 makes .* ill-defined"),
        ({"eps": -1.0}, "eps="),
        ({"samples": 1000}, "samples=1000, expected a power of 2"),
        ({"samples": 1}, "samples=1,"),
        ({"repeats": 1}, "repeats=1, expected at least 2"),
        ({"sigma": np.diag([1.0, 1, 1, 1, 1, -0.1])}, "smallest eigenvalue is -0.1"),
        ({"sigma": np.diag([1.0, 1, 1, 1, 1, 0])}, "input 5 has variance 0"),
        ({"theta": np.eye(6) + np.eye(6, k=1)}, "transpose"),
        ({"theta": np.eye(5)}, "must be the same|Type-check error"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(Exception, match=words):
        after_activation(**{"sigma": SIGMA, "theta": THETA, "samples": 2**4, **arguments})


def test_not_inside_a_trace():
    with pytest.raises(NotImplementedError, match="outside jit"):
        jax.jit(after_activation)(SIGMA)
