"""Batch normalisation at finite batch size: golden values, Monte Carlo, adjointness, fixed point, clear refusals."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import activations, batch_norm
from ntk_analysis.batch_norm import COARSE, FINE, large_batch_nngp, nngp, pull, push, quadrature_error, rule_error

from .tiers import full


def distances(B):
    return np.abs(np.arange(B)[:, None] - np.arange(B))


def exponential(B):
    return np.exp(-distances(B) / 3) + np.eye(B) / 2


def tangent(B):
    return 1 / (1 + distances(B))


def covariance(kind, B):
    rng = np.random.default_rng(B)
    if kind == "wishart":
        X = rng.standard_normal((B, 2 * B))
        return X @ X.T / B
    if kind == "low rank, duplicates":
        X = rng.standard_normal((B, max(5, B // 2)))
        X[1] = X[0]
        return X @ X.T
    return {"exponential": exponential(B), "equicorrelated": 0.5 * np.eye(B) + 0.5}[kind]


# golden values: second derivation by mpmath and an independent quadrature
GOLDEN: dict[tuple[str, str, int], list[float | None]] = {
    ("nngp", "relu", 4): [0.53781998, 0.10627859, 0.07471132],
    ("nngp", "relu", 16): [0.57125100, 0.27541762, 0.15374706],
    ("push", "relu", 4): [0.72474717, -0.15851613, -0.23848209, 2.67304684],
    ("push", "relu", 16): [0.39751524, 0.06203376, -0.03304189, 5.65664100],
    ("pull", "relu", 4): [1.41266534, -0.16419489, None, 4.54921397],
    ("pull", "relu", 16): [0.45940337, 0.09161264, None, 7.60033213],
    ("nngp", "identity", 4): [1.07563995, -0.22655720],
    ("nngp", "identity", 16): [1.14250200, 0.36240053],
    ("push", "identity", 4): [1.44949434, -0.27023758, None, 5.34609369],
    ("push", "identity", 16): [0.79503048, 0.24661749, None, 11.31328200],
}


@pytest.mark.parametrize(
    ("operation", "name", "B"),
    [*(case for case in GOLDEN if case[2] == 4), *full(*(case for case in GOLDEN if case[2] == 16))],
)
def test_golden_values(operation, name, B):
    """Golden values, Sigma = exp(-d/3) + I/2, Theta = 1/(1 + d), M = cos d with d = |i - j|."""
    others: dict[str, tuple[Any, ...]] = {"nngp": (), "push": (tangent(B),), "pull": (np.cos(distances(B)),)}
    A = getattr(batch_norm, operation)(exponential(B), *others[operation], name)
    computed = [A[0, 0], A[0, 1], A[0, -1], np.trace(A)]
    for value, golden in zip(computed, GOLDEN[operation, name, B], strict=False):
        assert golden is None or value == pytest.approx(golden, abs=6e-9)


@functools.partial(jax.jit, static_argnames="phi")
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def one_draw(x, theta, eps, phi):
    """y y^T and J theta J^T of one draw, J by automatic differentiation of phi(BN(x)) itself."""

    def batch_normalised(x):
        centered = x - jnp.mean(x)
        return phi(centered / jnp.sqrt(jnp.mean(centered**2) + eps))

    y, J = batch_normalised(x), jax.jacobian(batch_normalised)(x)
    return y[:, None] * y[None, :], J @ theta @ J.T


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("B", [6, *full(3, 16, 32)])
@pytest.mark.parametrize("kind", ["wishart", "exponential", "equicorrelated", "low rank, duplicates"])
def test_agrees_with_monte_carlo(kind, B, eps):
    """The tangent kernel at eps = 0 from rank 5 only, where the draws have a finite variance: E|Gx|^-4."""
    sigma, theta = covariance(kind, B), tangent(B)
    values, vectors = np.linalg.eigh(sigma)
    draws = 40_000 if B <= 6 else 4_000
    x = np.random.default_rng(0).standard_normal((draws, B)) * np.sqrt(np.maximum(values, 0)) @ vectors.T
    samples = one_draw(jnp.asarray(x), jnp.asarray(theta), eps, activations.relu)
    heavy_tailed = eps == 0 and (B < 6 or (kind.startswith("low") and B == 6))
    results = [nngp(sigma, eps=eps)] if heavy_tailed else [nngp(sigma, eps=eps), push(sigma, theta, eps=eps)]
    for sample, exact in zip(samples, results, strict=False):
        standard_error = np.asarray(jnp.std(sample, axis=0)) / np.sqrt(draws)
        deviation = np.abs(np.asarray(jnp.mean(sample, axis=0)) - exact)
        # two different inputs among three are opposite to each other: at the right angle up to 1e-8
        assert np.all(deviation <= 5 * standard_error + (1e-8 if B == 3 else 1e-12))
        assert np.max(standard_error) < 0.05 * np.max(np.abs(exact))  # else the line above shows nothing


@pytest.mark.full
@pytest.mark.parametrize("name", ["abs", "leaky_relu(0.2)", "identity"])
def test_other_activations_agree_with_monte_carlo(name):
    B, draws = 6, 40_000
    sigma, theta = covariance("wishart", B), tangent(B)
    x = np.random.default_rng(1).multivariate_normal(np.zeros(B), sigma, draws)
    samples = one_draw(jnp.asarray(x), jnp.asarray(theta), 0.0, activations.get(name))
    for sample, exact in zip(samples, (nngp(sigma, name), push(sigma, theta, name)), strict=True):
        standard_error = np.asarray(jnp.std(sample, axis=0)) / np.sqrt(draws)
        assert np.all(np.abs(np.asarray(jnp.mean(sample, axis=0)) - exact) <= 5 * standard_error + 1e-12)


@pytest.mark.parametrize(("name", "eps"), [("relu", 0.0), *full(("identity", 0.0), ("leaky_relu(0.2)", 0.1))])
def test_pull_is_the_adjoint_of_push(name, eps):
    rng = np.random.default_rng(2)
    for sigma in (exponential(6), covariance("low rank, duplicates", 6)):
        theta, M = (A + A.T for A in rng.standard_normal((2, len(sigma), len(sigma))))
        left = np.sum(push(sigma, theta, name, eps) * M)
        right = np.sum(theta * pull(sigma, M, name, eps))
        assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("name", ["relu", *full("abs")])
def test_scaling_the_covariance(name):
    sigma, theta = exponential(6), tangent(6)
    np.testing.assert_allclose(nngp(1e9 * sigma, name), nngp(sigma, name), rtol=1e-12)
    np.testing.assert_allclose(push(1e9 * sigma, theta, name), push(sigma, theta, name) / 1e9, rtol=1e-11)
    # with eps both scale together; a constant added to all inputs is removed
    np.testing.assert_allclose(nngp(7 * sigma + 5, name, 0.7), nngp(sigma, name, 0.1), rtol=1e-12)
    np.testing.assert_allclose(push(7 * sigma + 5, theta, name, 0.7), push(sigma, theta, name, 0.1) / 7, rtol=1e-11)
    assert np.max(np.abs(nngp(7 * sigma, name, 0.1) - nngp(sigma, name, 0.1))) > 1e-3


@pytest.mark.parametrize("B", [4, *full(16)])
def test_free_identities(B):
    sigma, theta = exponential(B), tangent(B)
    linear = nngp(sigma, "identity")
    assert np.trace(linear) == pytest.approx(B, rel=1e-9)
    assert np.sum(linear) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(2 * np.diag(nngp(sigma)), np.diag(linear), rtol=1e-13)
    np.testing.assert_allclose(2 * np.diag(push(sigma, theta)), np.diag(push(sigma, theta, "identity")), rtol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(
    ("B", "eps", "largest"),
    [(4, 0.0, 1e-13), (16, 0.0, 1e-9), (16, 0.1, 1e-12), (2, 1e-5, 1e-8)],
)
def test_quadrature_error_is_small_and_reported(B, eps, largest):
    sigma, theta = exponential(B), tangent(B)
    assert quadrature_error(sigma, eps=eps) < largest
    assert quadrature_error(sigma, theta, eps=eps) < largest


@pytest.mark.full
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize("B", [4, 5, 16, 64])
def test_rule_error_is_a_bound(B, eps):
    """For eigenvalues of one order of magnitude, as documented."""
    for sigma in (exponential(B), np.eye(B)):
        assert quadrature_error(sigma, eps=eps) < rule_error(B - 1)
        assert quadrature_error(sigma, tangent(B), eps=eps) < rule_error(B - 1)


def test_quadrature_error_reports_the_true_error():
    """At B = 4 the coarse rule loses the tail of push; its reported error is the distance to the fine rule."""
    sigma, theta = exponential(4), tangent(4)
    exact = push(sigma, theta, rule=FINE)
    true = np.max(np.abs(push(sigma, theta, rule=COARSE) - exact)) / np.max(np.abs(exact))
    assert 1e-8 < true < 1e-6
    assert quadrature_error(sigma, theta, rule=COARSE) == pytest.approx(true, rel=0.2)


@pytest.mark.full
@pytest.mark.parametrize(("large", "eps"), [(1, 0.0), (3, 0.0), (3, 1e-3), (8, 0.0)])
def test_the_nodes_suffice_for_eigenvalues_of_any_spread(large, eps):
    """A few eigenvalues 1e4 times as large as the others. Tolerance: rule_error, here against twice the nodes."""
    B = 64
    X = np.random.default_rng(large).standard_normal((B, large))
    sigma = 100 * X @ X.T + np.eye(B)
    assert quadrature_error(sigma, eps=eps) < rule_error(B - 1)
    assert quadrature_error(sigma, tangent(B), eps=eps) < rule_error(B - 1)


def arc_cosine(c):
    """J(c) = 2 phihat(c) and J'(c) of ReLU."""
    return (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi, 1 - np.arccos(c) / np.pi


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, 2.0), (1e-6, 1.0)])
@pytest.mark.parametrize("B", [4, *full(2, 16)])
def test_one_layer_to_the_fixed_point(B, a, b):
    c, _ = arc_cosine(-1 / (B - 1))
    expected = ((1 - c) * np.eye(B) + c) / 2
    np.testing.assert_allclose(nngp(a * np.eye(B) + b), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("B", "chi", "constant"),
    [(4, 3.08406095, 0.123386), *full((16, 1.58995042, 0.171580), (64, 1.49306294, 0.179320))],
)
def test_growth_rates_at_the_fixed_point(B, chi, constant):
    c, slope = arc_cosine(-1 / (B - 1))
    fixed = ((1 - c) * np.eye(B) + c) / 2
    G = np.eye(B) - 1 / B
    pushed = push(fixed, G)
    assert pushed[0, 0] - pushed[0, 1] == pytest.approx(chi, abs=6e-9)
    assert np.sum(pushed[0]) / chi == pytest.approx(constant, abs=6e-7)
    assert chi == pytest.approx((B - 2 + slope + c) / ((B - 3) * (1 - c)), abs=6e-9)
    # a constant shift of all pre-activations has no effect at all
    np.testing.assert_allclose(push(fixed, np.ones((B, B))), 0, atol=1e-12)
    # the naive theory, Step o T / v, is wrong about the constant mode at every batch size
    centered = G @ fixed @ G
    v = np.trace(centered) / B
    naive = (np.pi - np.arccos(np.clip(centered / v, -1, 1))) / (2 * np.pi) * G / v
    assert abs(np.sum(naive[0]) / np.sum(pushed[0]) - 1) > 0.1


@pytest.mark.parametrize(("B", "largest"), [(16, 2.6e-2), *full((8, 3.6e-2), (256, 1.8e-3))])
def test_large_batch_approximation(B, largest):
    error = np.max(np.abs(large_batch_nngp(exponential(B)) - nngp(exponential(B))))
    assert error == pytest.approx(largest, abs=0.05 * 10 ** np.floor(np.log10(largest)))  # two digits are stated


def first_order(sigma):
    """The error of `large_batch_nngp` of ReLU to first order in 1/r, r = (tr S)^2 / tr S^2 the effective rank.

    With |G x|^2 = tr S (1 + delta), E[y y^T] = E[phi phi^T (1 - delta + delta^2)]/v, where E delta^2 = 2/r and
    E[phi phi^T delta] is the derivative of V(S) along 2 S^2 / tr S.
    """
    S = sigma - sigma.mean(0) - sigma.mean(1)[:, None] + sigma.mean()

    def moments(S):
        root = np.sqrt(np.diag(S))
        distance = np.maximum(1 - S / np.outer(root, root), 0)
        return activations.relu.dual.at_distance(root[:, None] ** 2, root[None, :] ** 2, distance)

    square, trace, step = S @ S, np.trace(S), 1e-5
    along = (moments(S + step * square) - moments(S - step * square)) / (2 * step)
    return len(S) / trace * (moments(S) * 2 * np.trace(square) / trace**2 - 2 * along / trace), trace**2 / np.trace(
        square
    )


def test_the_large_batch_approximation_is_of_first_order():
    """What is left behind the first order falls like 1/r^2; without it, like 1/r."""
    found = []
    for B in (16, 64):
        error, (expected, rank) = nngp(exponential(B)) - large_batch_nngp(exponential(B)), first_order(exponential(B))
        found.append((np.max(np.abs(error)), np.max(np.abs(error - expected)), rank))
    (plain, corrected, rank), (plain_later, corrected_later, rank_later) = found
    grown = np.log(rank_later / rank)
    assert round(np.log(plain / plain_later) / grown) == 1
    assert round(np.log(corrected / corrected_later) / grown) == 2


@pytest.mark.full
def test_large_batch_approximation_takes_any_activation():
    B = 32
    expected = nngp(exponential(B), "abs", 0.1)
    assert np.max(np.abs(large_batch_nngp(exponential(B), "abs", 0.1) - expected)) < 5e-2
    tanh = large_batch_nngp(exponential(B), "tanh")
    assert np.all(np.linalg.eigvalsh(tanh) > 0)
    assert np.all(np.diag(tanh) < 1)


def test_duplicates_are_exactly_alike():
    """An arccos of their correlation would put them 1e-8 apart."""
    X = np.random.default_rng(3).standard_normal((6, 6))
    X[1] = X[0]
    sigma = X @ X.T / 6
    first, second = nngp(sigma), push(sigma, sigma)
    for A in (first, second):
        np.testing.assert_allclose(A[0], A[1], rtol=0, atol=1e-12)
        assert A[0, 0] == pytest.approx(A[0, 1], abs=1e-12)


def test_near_duplicates_keep_their_digits():
    """E[(y_0 - y_1)^2] scales like the squared distance of the inputs, down to 1e-6 of their variance."""
    X = np.random.default_rng(4).standard_normal((6, 10))
    difference = []
    for gap in (1e-2, 1e-3):
        X[1] = X[0] + gap * np.eye(10)[0]
        A = nngp(X @ X.T)
        difference.append((A[0, 0] + A[1, 1] - 2 * A[0, 1]) / gap**2)
    assert difference[1] == pytest.approx(difference[0], rel=2e-2)


@pytest.mark.parametrize(("operation", "eps"), [(push, 0.0), *full((nngp, 0.1))])
def test_gradients_match_finite_differences(operation, eps):
    """At equal eigenvalues too, where the derivative of an eigendecomposition is infinite."""
    theta = () if operation is nngp else (jnp.asarray(tangent(6)),)
    weights = jnp.asarray(np.cos(distances(6) * 1.3))
    direction = np.random.default_rng(5).standard_normal((6, 6))
    direction = direction + direction.T

    def loss(sigma):
        return jnp.sum(weights * operation(sigma, *theta, eps=eps))

    derivative = jax.jit(jax.grad(loss))
    for sigma in (exponential(6), 0.5 * np.eye(6) + 0.5):
        gradient = derivative(jnp.asarray(sigma))
        assert np.all(np.isfinite(gradient))
        step = 1e-5
        numeric = (loss(sigma + step * direction) - loss(sigma - step * direction)) / (2 * step)
        assert np.sum(gradient * direction) == pytest.approx(float(numeric), rel=1e-6)


def test_precision_and_transformations():
    sigma, theta = exponential(6), tangent(6)
    expected = push(sigma, theta)
    with jax.enable_x64(False):
        for A in (sigma, jnp.asarray(sigma, jnp.float32)):
            assert isinstance(push(A, theta), np.ndarray)
            assert push(A, theta).dtype == np.float64
        np.testing.assert_array_equal(push(sigma, theta), expected)
        single = jax.jit(push)(jnp.asarray(sigma, jnp.float32), jnp.asarray(theta, jnp.float32))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(push)(sigma, theta), expected, rtol=1e-12)
    both = jax.jit(jax.vmap(nngp))(jnp.stack([jnp.asarray(sigma), jnp.eye(6)]))
    np.testing.assert_allclose(both[1], nngp(np.eye(6)), rtol=1e-12)


@pytest.mark.parametrize("operation", [push, *full(pull)])
def test_what_cannot_be_checked_under_a_trace_is_nan_and_never_a_number(operation):
    """Too small a rank, an input on the kink."""
    compiled = jax.jit(operation)
    assert np.all(np.isnan(compiled(np.diag([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), tangent(7))))
    at_mean = np.pad(np.kron(np.eye(3), [[1.0, -1], [-1, 1]]), (0, 1))
    assert np.all(np.isnan(compiled(at_mean, tangent(7))))
    straight = jax.jit(functools.partial(operation, activation="identity"))(at_mean, tangent(7))
    assert np.all(np.isfinite(straight))


def test_small_batches_need_eps():
    with pytest.raises(ValueError, match=r"batch of 3 .* rank 2.* from rank 3: use a larger batch.*eps > 0"):
        push(np.eye(3), np.eye(3))
    with pytest.raises(ValueError, match="rank 2"):
        jax.jit(push)(np.eye(3), np.eye(3))
    assert np.all(np.isfinite(push(np.eye(3), np.eye(3), eps=1e-3)))


@pytest.mark.full
def test_two_inputs_are_plus_and_minus_one():
    """Or minus and plus one."""
    np.testing.assert_allclose(nngp(np.eye(2), "identity"), [[1, -1], [-1, 1]], atol=1e-12)
    np.testing.assert_allclose(nngp(np.eye(2)), np.eye(2) / 2, atol=1e-12)


SYMMETRIC_NAN = np.where(np.eye(4) > 0, np.nan, 0.0)


@pytest.mark.parametrize(
    ("sigma", "theta", "words"),
    [
        (np.ones((4, 3)), np.eye(4), r"expected \(B, B\)"),
        (SYMMETRIC_NAN, np.eye(4), r"sigma\[0, 0\] is nan"),
        (np.diag([1.0, 1.0, 1.0, -0.1]), np.eye(4), "smallest eigenvalue is -0.1"),
        (np.eye(4) + np.eye(4, k=1), np.eye(4), "transpose"),
        (np.eye(4), SYMMETRIC_NAN, "theta"),
        (np.eye(4), np.eye(5), "must be the same"),
        (np.diag([1.0, 1.0, 0.0, 0.0, 0.0]), np.eye(5), "rank 2"),
        (np.ones((5, 5)), np.eye(5), "rank 0"),
        (np.kron(np.diag([1.0, 1, 1]), [[1.0, -1], [-1, 1]]), np.eye(6), None),
        (np.pad(np.kron(np.eye(3), [[1.0, -1], [-1, 1]]), (0, 1)), np.eye(7), "input 6 is the mean"),
    ],
)
def test_bad_input_is_named(sigma, theta, words):
    if words is None:
        assert np.all(np.isfinite(push(sigma, theta)))
        return
    # with shape annotations checked, as here, a wrong shape is caught before our own message
    with pytest.raises(
        Exception, match=f"{words}|Type-check error" if "expected" in words or "must" in words else words
    ):
        push(sigma, theta)


def test_unsupported_activations_and_eps():
    with pytest.raises(NotImplementedError, match="'tanh' has no one-dimensional integral"):
        nngp(np.eye(4), "tanh")
    for eps in (-1.0, np.nan):
        with pytest.raises(ValueError, match="eps="):
            nngp(np.eye(4), eps=eps)


def test_float32_covariances_have_float32_rank():
    """A rank-2 covariance rounded to float32 has a third eigenvalue of rounding, which is none."""
    X = np.random.default_rng(6).standard_normal((6, 2))
    with pytest.raises(ValueError, match="rank 2"):
        push((X @ X.T).astype(np.float32), np.eye(6, dtype=np.float32))
