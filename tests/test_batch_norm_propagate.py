"""One pass for a layer: agreement with the single integrals, mean, slope, and distances that keep their digits."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.special import beta

from ntk_analysis import activations
from ntk_analysis.batch_norm import FINE, nngp, propagate, push, rule_error

from .tiers import full


def distances(B):
    return np.abs(np.arange(B)[:, None] - np.arange(B))


def exponential(B):
    return np.exp(-distances(B) / 3) + np.eye(B) / 2


def tangent(B):
    return 1 / (1 + distances(B))


def wishart(B):
    X = np.random.default_rng(B).standard_normal((B, 2 * B))
    return X @ X.T / B


def apart(X):
    """Squared distances from differences, so to a relative rounding."""
    return np.sum((X[:, None] - X[None, :]) ** 2, axis=-1)


def entries_apart(sigma):
    q = np.diag(sigma)
    squared = q[:, None] + q - 2 * sigma
    np.fill_diagonal(squared, 0)
    return squared


@pytest.mark.parametrize(
    ("name", "B", "eps"),
    [
        ("relu", 6, 0.0),
        *full(("relu", 4, 0.0), ("relu", 16, 0.1), ("abs", 2, 0.1)),
        *full(("leaky_relu(0.2)", 16, 0.0), ("identity", 5, 1e-5)),
    ],
)
def test_agrees_with_the_single_integrals(name, B, eps):
    sigma, theta = exponential(B), tangent(B)
    first, pushed = nngp(sigma, name, eps), push(sigma, theta, name, eps)
    root = np.sqrt(np.diag(first))
    for squared in (None, entries_apart(sigma)):
        together = propagate(sigma, theta, name, eps, apart=squared)
        np.testing.assert_allclose(together.nngp, first, rtol=0, atol=1e-14)
        np.testing.assert_allclose(together.pushed, pushed, rtol=0, atol=1e-13 * np.max(np.abs(pushed)))
        np.testing.assert_allclose(together.distance, 1 - first / root[:, None] / root, rtol=0, atol=1e-14)


@functools.partial(jax.jit, static_argnames="phi")
@functools.partial(jax.vmap, in_axes=(0, None, None))
def one_draw(x, eps, phi):
    centered = x - jnp.mean(x)
    y, slope = jax.jvp(phi, (centered / jnp.sqrt(jnp.mean(centered**2) + eps),), (jnp.ones_like(x),))
    return y, slope[:, None] * slope[None, :]


@pytest.mark.parametrize("name", ["relu", *full("leaky_relu(0.2)")])
@pytest.mark.parametrize("eps", [0.0, *full(0.5)])
@pytest.mark.parametrize(("B", "matrix"), [(6, exponential), (6, wishart), *full((16, exponential))])
def test_mean_and_slope_agree_with_monte_carlo(B, matrix, eps, name):
    sigma, draws, phi = matrix(B), 40_000, activations.get(name)
    together = propagate(sigma, tangent(B), name, eps)
    x = np.random.default_rng(0).multivariate_normal(np.zeros(B), sigma, draws, method="cholesky")
    worst = []
    for sample, exact in zip(one_draw(jnp.asarray(x), eps, phi), (together.mean, together.slope), strict=True):
        standard_error = np.std(sample, axis=0) / np.sqrt(draws)
        assert np.all(np.abs(np.mean(sample, axis=0) - exact) <= 5 * standard_error + 1e-12)
        worst.append(np.max(standard_error))
    # wrong theories fail: Gaussian units of the mean batch variance (in a large batch they are not wrong enough for
    # these draws), and signs of the uncentered inputs
    if B == 6 and eps == 0:
        centered = sigma - sigma.mean(axis=0) - sigma.mean(axis=1)[:, None] + sigma.mean()
        naive = jax.jit(phi.mean)(np.diag(centered) / (np.trace(centered) / B))
        assert np.max(np.abs(naive - together.mean)) > 5 * worst[0]
    root = np.sqrt(np.diag(sigma))
    uncentered = jax.jit(phi.derivative_dual)(1.0, 1.0, np.clip(sigma / root[:, None] / root, -1, 1))
    assert np.max(np.abs(uncentered - together.slope)) > 5 * worst[1]


@pytest.mark.parametrize("B", [6, *full(4, 5, 16, 64)])
def test_mean_of_equal_inputs_has_a_closed_form(B):
    """xhat is uniform on a sphere of radius sqrt(B) in B - 1 dimensions, and has E|xhat_i| by a Beta function."""
    exact = np.sqrt(B - 1) * 2 / ((B - 2) * beta(0.5, (B - 2) / 2))
    means = propagate(np.eye(B), np.eye(B), "abs").mean
    np.testing.assert_allclose(means, exact, rtol=rule_error(B - 1))
    np.testing.assert_allclose(propagate(np.eye(B), np.eye(B), "abs", rule=FINE).mean, exact, rtol=1e-13)
    np.testing.assert_allclose(2 * propagate(7 * np.eye(B) + 3, np.eye(B)).mean, means, rtol=1e-12)
    # the large-batch value is another number
    assert np.all(np.abs(means - np.sqrt(2 / np.pi)) > 0.1 / B)


def precise_distance(X, i, j):
    """Cosine distance of relu(xhat_i) and relu(xhat_j), Sigma = X X^T, eps = 0, to 40 digits."""
    B = len(X)
    with mpmath.workdps(40):
        rows = mpmath.matrix(X.tolist())
        G = mpmath.eye(B) - mpmath.ones(B) / B
        values, vectors = mpmath.eigsy(G * rows * rows.T * G)

        def entry(weights, a, b):
            return mpmath.fsum(w * vectors[a, k] * vectors[b, k] for k, w in enumerate(weights))

        def moments(s):
            damping = [1 + 2 * s * value for value in values]
            damped = [s * value / by for value, by in zip(values, damping, strict=True)]
            a, b, c = entry(damped, i, i), entry(damped, j, j), entry(damped, i, j)
            t = mpmath.acos(c / mpmath.sqrt(a * b))
            mixed = mpmath.sqrt(a * b) * (mpmath.sin(t) + (mpmath.pi - t) * mpmath.cos(t)) / (2 * mpmath.pi)
            return mpmath.matrix([a / 2, b / 2, mixed]) / mpmath.sqrt(mpmath.fprod(damping))

        total = mpmath.matrix(3, 1)
        scale = (B - 1) / mpmath.fsum(values)
        for k in range(-62, 63):  # t = k/16 to 3.9, an error of 1e-13 here
            t = mpmath.mpf(k) / 16
            s = mpmath.exp(mpmath.pi / 2 * mpmath.sinh(t)) * scale / (B - 1)
            total += moments(s) * mpmath.cosh(t)
        return float(1 - total[2] / mpmath.sqrt(total[0] * total[1]))


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_near_duplicates_keep_their_digits(gap):
    """A relative rounding/angle, where the entries of the covariance leave rounding/angle^2."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((6, 8))
    X[1] = X[0] + gap * rng.standard_normal(8)
    sigma = X @ X.T
    exact = precise_distance(X, 0, 1)
    # the automatic rule is good to rule_error; the fine one shows the rounding
    assert propagate(sigma, sigma, apart=apart(X)).distance[0, 1] == pytest.approx(exact, rel=1e-8)
    assert propagate(sigma, sigma, rule=FINE, apart=apart(X)).distance[0, 1] == pytest.approx(exact, rel=1e-14 / gap)
    assert abs(propagate(sigma, sigma).distance[0, 1] / exact - 1) > 1e-18 / gap**2


def test_clusters_of_near_duplicates():
    """Three inputs close to one another, at two scales."""
    rng = np.random.default_rng(5)
    X = rng.standard_normal((6, 8))
    X[3] = X[0] + 1e-3 * rng.standard_normal(8)
    X[5] = X[3] + 1e-5 * rng.standard_normal(8)
    computed = propagate(X @ X.T, np.eye(6), rule=FINE, apart=apart(X)).distance
    for i, j in ((0, 3), (3, 5), (0, 5)):
        assert computed[i, j] == pytest.approx(precise_distance(X, i, j), rel=1e-8)
    # batch normalisation sees differences only: a common part of the inputs has no effect
    moved = propagate(X @ X.T + 100, np.eye(6), rule=FINE, apart=apart(X))
    np.testing.assert_allclose(moved.distance, computed, rtol=1e-12)


def test_duplicates_are_exactly_alike():
    X = np.random.default_rng(3).standard_normal((6, 6))
    X[1] = X[0]
    for squared in (None, apart(X)):
        together = propagate(X @ X.T, X @ X.T, apart=squared)
        assert together.distance[0, 1] == 0
        assert np.all(np.diag(together.distance) == 0)
        np.testing.assert_allclose(together.pushed[0], together.pushed[1], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(together.slope[0], together.slope[1])
        assert together.slope[0, 1] == together.slope[0, 0] == pytest.approx(0.5, rel=1e-15)


@pytest.mark.full
def test_gradients_match_finite_differences():
    B = 6
    rng = np.random.default_rng(6)
    X, direction = rng.standard_normal((2, B, 8))
    X[1] = X[0] + 3e-3 * rng.standard_normal(8)  # close enough to be refined, far enough for finite differences
    weights = jnp.asarray(np.cos(distances(B)))

    def loss(X):
        together = propagate(X @ X.T, jnp.asarray(tangent(B)), apart=jnp.sum((X[:, None] - X[None, :]) ** 2, axis=-1))
        parts = [jnp.sum(weights * A) for A in (together.nngp, together.pushed, together.slope)]
        return sum(parts) + jnp.sum(together.mean * weights[0]) + together.distance[0, 1] / 1e-5

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    _, slope = value_and_gradient(jnp.asarray(X))
    step = 1e-6
    above, below = (float(value_and_gradient(jnp.asarray(X + by * direction))[0]) for by in (step, -step))
    numeric = (above - below) / (2 * step)
    assert np.sum(slope * direction) == pytest.approx(numeric, rel=1e-5)
    # equal eigenvalues and exact duplicates
    for special in (np.eye(B), np.concatenate([X[:-1], X[:1]])):
        assert np.all(np.isfinite(value_and_gradient(jnp.asarray(special))[1]))


def test_precision():
    sigma, theta = exponential(6), tangent(6)
    expected = propagate(sigma, theta)
    with jax.enable_x64(False):
        plain = propagate(jnp.asarray(sigma, jnp.float32), theta)
        assert all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in plain)
        single = jax.jit(propagate)(jnp.asarray(sigma, jnp.float32), jnp.asarray(theta, jnp.float32))
    for part, exact in zip(single, expected, strict=True):
        assert part.dtype == jnp.float32
        np.testing.assert_allclose(part, exact, atol=1e-5)


@pytest.mark.full
def test_compiled_and_vectorised():
    sigma, theta = exponential(6), tangent(6)
    expected = propagate(sigma, theta)
    for part, exact in zip(jax.jit(propagate)(sigma, theta, apart=entries_apart(sigma)), expected, strict=True):
        np.testing.assert_allclose(part, exact, rtol=1e-12, atol=1e-14)
    both = jnp.stack([jnp.asarray(sigma), jnp.eye(6)]), jnp.stack([jnp.asarray(theta)] * 2)
    batched = jax.jit(jax.vmap(propagate))(*both)
    np.testing.assert_allclose(batched.mean[0], expected.mean, rtol=1e-12)


@pytest.mark.slow
def test_gradients_in_float32():
    """Rank 3 takes the fine rule, whose outermost nodes float32 cannot hold the gradients of."""
    X = np.random.default_rng(7).standard_normal((4, 8))
    X[1] = X[0] + 0.1 * X[1]
    with jax.enable_x64(False):
        sigma, squared = jnp.asarray(X @ X.T, jnp.float32), jnp.asarray(apart(X), jnp.float32)

        def loss(sigma, squared):
            together = propagate(sigma, sigma, apart=squared)
            return jnp.sum(together.mean) + jnp.sum(together.distance) + jnp.sum(together.pushed)

        single = jax.grad(loss, argnums=(0, 1))(sigma, squared)
        assert np.all(np.isfinite(jax.grad(lambda sigma: jnp.sum(push(sigma, sigma)))(sigma)))
    double = jax.grad(loss, argnums=(0, 1))(jnp.asarray(X @ X.T), jnp.asarray(apart(X)))
    for part, exact in zip(single, double, strict=True):
        assert part.dtype == jnp.float32
        np.testing.assert_allclose(part, exact, rtol=0, atol=1e-2 * np.max(np.abs(exact)))


AT_MEAN = np.pad(np.kron(np.eye(3), [[1.0, -1], [-1, 1]]), (0, 1))


@functools.cache
def compiled(name):
    return jax.jit(functools.partial(propagate, activation=name))


@pytest.mark.parametrize(
    ("sigma", "name", "undefined"),
    [
        (np.eye(7), "relu", []),
        (np.diag([1.0, 1, 0, 0, 0, 0, 0]), "relu", ["pushed"]),
        (np.ones((7, 7)), "relu", ["nngp", "distance", "pushed", "mean", "slope"]),
        (AT_MEAN, "relu", ["pushed", "slope"]),
        *full((AT_MEAN, "identity", [])),
    ],
)
def test_nan_stands_for_an_error_under_a_trace(sigma, name, undefined):
    parts = compiled(name)(sigma, tangent(7))._asdict().items()
    assert all(np.all(np.isnan(part)) or np.all(np.isfinite(part)) for _, part in parts)
    assert [field for field, part in parts if np.all(np.isnan(part))] == undefined


@pytest.mark.full
def test_the_gradient_of_an_error_is_nan_too():
    gradient = jax.jit(jax.grad(lambda sigma: jnp.sum(propagate(sigma, jnp.eye(7)).pushed)))(jnp.asarray(AT_MEAN))
    assert np.all(np.isnan(gradient))


@pytest.mark.parametrize(
    ("sigma", "squared", "words"),
    [
        (np.diag([1.0, 1, 0, 0, 0]), None, "rank 2"),
        (np.pad(np.kron(np.eye(3), [[1.0, -1], [-1, 1]]), (0, 1)), None, "input 6 is the mean"),
        (np.eye(5), 2 - np.eye(5), r"apart\[0, 0\] is 1, but sigma says 0"),
        (np.eye(5), 3 - 3 * np.eye(5), r"apart\[0, 1\] is 3, but sigma says 2"),
        (np.eye(5) + 1e20 * np.ones((5, 5)), np.eye(5) - 1, r"apart\[0, 1\] is -1"),
        (np.eye(5), np.full((5, 5), np.nan), r"apart\[0, 0\] is nan"),
        (np.eye(5), 2 - 2 * np.eye(4), "must be the same|Type-check error"),
    ],
)
def test_bad_input_is_named(sigma, squared, words):
    with pytest.raises(Exception, match=words):
        propagate(sigma, np.eye(len(sigma)), apart=squared)
