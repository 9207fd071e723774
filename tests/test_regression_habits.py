"""The habits of scikit-learn's estimators: scores, weights, normalised targets, dtypes and shapes of inputs."""

import functools

import jax
import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score

from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import BatchNorm, Conv, Dense, Serial
from ntk_analysis.regression import GradientFlow, KernelClassifier, KernelRegressor, solve
from ntk_analysis.regression.probabilities import on_simplex

RNG = np.random.default_rng(0)
N, K, OUTPUTS = 24, 5, 3
X, X_TEST = RNG.standard_normal((N, 4)), RNG.standard_normal((K, 4))


def kernel(a, b):
    """A kernel without a constant part, of any two sets of inputs."""
    return np.exp(-np.sum((a[:, None] - b[None]) ** 2, axis=-1) / 8) * (1 + a @ b.T)


THETA, TEST = kernel(X, X), kernel(X_TEST, X)


@pytest.mark.parametrize(("classes", "scoring"), [(2, "roc_auc"), (3, "roc_auc_ovr"), (3, "neg_brier_score")])
def test_scores_of_cross_validation(classes, scoring):
    labels = np.digitize(X[:, 0], np.quantile(X[:, 0], np.arange(1, classes) / classes))
    scores = cross_val_score(KernelClassifier("precomputed", regularization=0.1), THETA, labels, cv=3, scoring=scoring)
    assert np.all(scores > (0.5 if "roc" in scoring else -np.inf))  # chance has 0.5, and NaN is above nothing


def test_decision_function_is_above_0_for_the_second_class():
    labels = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
    model = KernelClassifier("precomputed", time=0.3).fit(THETA, labels)
    score = model.decision_function(TEST)
    np.testing.assert_array_equal(model.predict(TEST), np.where(score > 0, "yes", "no"))
    np.testing.assert_allclose(model.predict_proba(TEST)[:, 1], np.clip((1 + score) / 2, 0, 1), atol=1e-12)
    assert roc_auc_score(labels, model.decision_function(THETA)) == 1
    three = KernelClassifier("precomputed").fit(THETA, np.arange(N) % 3)
    np.testing.assert_array_equal(three.decision_function(TEST), three.outputs(TEST))
    untrained = KernelClassifier("precomputed", time=0.0).fit(THETA, np.arange(N) % 3)
    np.testing.assert_allclose(untrained.predict_proba(TEST), 1 / 3)


def test_the_nearest_point_of_the_simplex():
    given = RNG.standard_normal((200, 4))
    found = on_simplex(given)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-14)
    assert np.min(found) == 0
    # of a convex set: no other point lies in the direction of what was given
    others = RNG.dirichlet(np.ones(4) / 2, 500)
    assert np.max(np.einsum("nc,nmc->nm", given - found, others[None] - found[:, None])) < 1e-14
    np.testing.assert_allclose(on_simplex(others), others, atol=1e-15)


def test_a_constant_target_is_met_by_normalised_targets_only():
    constant = np.full(N, 1000.0)
    plain = KernelRegressor("precomputed", regularization=0.1).fit(THETA, constant).predict(TEST)
    assert np.max(np.abs(plain - 1000)) > 100
    model = KernelRegressor("precomputed", regularization=0.1, normalize_y=True).fit(THETA, constant)
    np.testing.assert_array_equal(model.predict(TEST), np.full(K, 1000.0))
    # shifts and scales of the targets are those of the predictions
    y = RNG.standard_normal((N, OUTPUTS))
    shift, scale = np.array([5.0, -1e3, 0.0]), np.array([1e-3, 7.0, 1.0])
    model = KernelRegressor("precomputed", regularization=0.1, time=2.0, normalize_y=True)
    base, base_error = model.fit(THETA, y).predict(TEST, return_error=True)
    moved, error = model.fit(THETA, shift + scale * y).predict(TEST, return_error=True)
    np.testing.assert_allclose(moved, shift + scale * base, rtol=1e-9)
    np.testing.assert_allclose(error, scale * base_error, rtol=1e-6)


@pytest.mark.full
def test_the_spread_of_normalised_targets_has_their_scale():
    network = Serial(Dense(8), Dense(1))
    y = RNG.standard_normal((N, OUTPUTS)) * [1.0, 10.0, 0.1] + 3
    plain = KernelRegressor(network, regularization=0.1).fit(X, y)
    model = KernelRegressor(network, regularization=0.1, normalize_y=True).fit(X, y)
    _, std = model.predict(X_TEST, return_std=True, time=[0.0, 1.0])
    _, covariance = model.predict(X_TEST, return_cov=True, time=[0.0, 1.0])
    assert std.shape == (2, K, OUTPUTS)
    np.testing.assert_allclose(np.einsum("tkkc->tkc", covariance), std**2, rtol=1e-9)
    np.testing.assert_allclose(std[0], np.multiply.outer(plain.predict(X_TEST, return_std=True, time=0.0)[1], y.std(0)))
    assert KernelRegressor(network, regularization=0.1, normalize_y=True).fit(X, y[:, 0]).predict(
        X_TEST, return_std=True
    )[1].shape == (K,)


@pytest.mark.parametrize("solver", ["modes", "conjugate_gradients"])
def test_a_weight_is_a_number_of_inputs(solver):
    counts = np.array([0, 1, 2, 3] * (N // 4))
    rows = np.repeat(np.arange(N), counts)
    y = RNG.standard_normal((N, 2)) + 1
    for normalize_y in (False, True):
        model = KernelRegressor("precomputed", regularization=0.1, solver=solver, normalize_y=normalize_y)
        weighted = model.fit(THETA, y, sample_weight=counts).predict(TEST)
        repeated = model.fit(THETA[np.ix_(rows, rows)], y[rows]).predict(TEST[:, rows])
        np.testing.assert_allclose(weighted, repeated, rtol=1e-6 if solver != "modes" else 1e-9)
    classes = KernelClassifier("precomputed", regularization=0.1, solver=solver)
    labels = np.arange(N) % 3
    np.testing.assert_allclose(
        classes.fit(THETA, labels, sample_weight=counts).outputs(TEST),
        classes.fit(THETA[np.ix_(rows, rows)], labels[rows]).outputs(TEST[:, rows]),
        atol=1e-6 if solver != "modes" else 1e-12,
    )


def test_weighted_regressions_are_those_of_scikit_learn():
    weights, y = RNG.uniform(0.1, 3, N), RNG.standard_normal(N)
    r = 0.2 * np.average(np.diag(THETA), weights=weights)
    theirs = KernelRidge(alpha=r, kernel="precomputed").fit(THETA, y, sample_weight=weights).predict(TEST)
    ours = KernelRegressor("precomputed", regularization=0.2).fit(THETA, y, sample_weight=weights).predict(TEST)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    found = solve(THETA, y, regularization=0.2, weights=weights, tolerance=1e-10)
    np.testing.assert_allclose(found.predict(TEST), theirs, rtol=1e-7)
    exact = np.linalg.solve(THETA + r * np.diag(1 / weights), y)
    assert np.linalg.norm(found.coefficients_scaled - exact) <= found.error_scaled
    # the course of training: a step of gradient descent moves outputs by the kernel times the weighted errors
    step = 1e-7
    early = GradientFlow.on(THETA, y, weights=weights).mean(TEST, step)
    np.testing.assert_allclose(early / step, TEST @ (weights * y), rtol=1e-4)
    # posterior of observations with noise r / w, without what fresh noise adds
    flow = GradientFlow.on(THETA, y, which="nngp", regularization=0.2, weights=weights)
    prior = kernel(X_TEST, X_TEST)
    gain = np.linalg.solve(THETA + r * np.diag(1 / weights), TEST.T).T
    expected = prior - TEST @ gain.T - gain @ TEST.T + gain @ THETA @ gain.T
    np.testing.assert_allclose(flow.covariance(TEST, THETA, TEST, prior), expected, atol=1e-12)


def test_the_stated_error_of_weighted_predictions():
    weights, y = 10 ** RNG.uniform(-2, 2, N), RNG.standard_normal(N)
    exact = KernelRegressor("precomputed", regularization=1e-3).fit(THETA, y, sample_weight=weights).predict(TEST)
    narrow = THETA.astype(np.float32), TEST.astype(np.float32)
    model = KernelRegressor("precomputed", regularization=1e-3).fit(narrow[0], y, sample_weight=weights)
    found, error = model.predict(narrow[1], return_error=True)
    assert np.all(np.abs(found - exact) <= error)
    assert np.all(error < 10 * np.max(np.abs(y)))


def full_kernel(a, b):
    """A kernel of two outputs that know of each other, and that is of no use if they are taken in another order."""
    own, mixed = kernel(a, b), np.cos(a[:, :1] - b[:, 0])
    return np.stack([own + mixed, mixed, mixed, own * 0.5 + mixed]).reshape(2, 2, *own.shape).transpose(2, 3, 0, 1)


def test_full_kernels_keep_the_shapes_of_targets():
    theta, test, y = full_kernel(X, X), full_kernel(X_TEST, X), RNG.standard_normal((N, 2))
    matrix, against = (k.transpose(0, 2, 1, 3).reshape(2 * len(k), -1) for k in (theta, test))
    expected = (against @ np.linalg.solve(matrix, y.ravel())).reshape(K, 2)
    for model in (KernelRegressor("precomputed"), KernelRegressor(lambda a, b: full_kernel(a, a if b is None else b))):
        given, new = (theta, test) if model.kernel == "precomputed" else (X, X_TEST)
        np.testing.assert_allclose(model.fit(given, y).predict(new), expected, rtol=1e-7)
        mean, error = model.predict(new, time=[0.0, 1.0, np.inf], return_error=True)
        assert mean.shape == error.shape == (3, K, 2)
    weights = np.full(N, 2.0)
    twice = GradientFlow.on(theta, y, weights=weights).mean(test, 0.5)
    np.testing.assert_allclose(twice, GradientFlow.on(theta, y).mean(test, 1.0), rtol=1e-9)
    for wrong in (y[:, 0], y.ravel(), y[:, [0, 1, 1]]):
        with pytest.raises(ValueError, match=r"targets have shape .* expected finite \(24, 2\)"):
            GradientFlow.on(theta, wrong)
    with pytest.raises(ValueError, match=r"expected \(k, 24, 2, 2\)"):
        GradientFlow.on(theta, y).mean(against)
    assert np.all(np.isfinite(cross_val_score(KernelRegressor("precomputed"), theta, y, cv=3)))


def test_inputs_of_functions_keep_their_dtype():
    seen = []

    def source(a, b):
        seen.append(a.dtype)
        return np.eye(len(a), len(a if b is None else b))

    for dtype in (np.int32, np.float32, np.uint8, bool, np.float64):
        KernelRegressor(source).fit(X.astype(dtype), X[:, 0]).predict(X_TEST.astype(dtype))
        assert {*seen} == {np.dtype(dtype)}
        seen.clear()


@pytest.mark.full
def test_tokens():
    tokens, more = RNG.integers(0, 6, (7, 3)), RNG.integers(0, 6, (3, 3))
    params = {"table": RNG.standard_normal((6, 8)), "out": RNG.standard_normal((8, 2))}

    def network(params, x):
        return params["table"][x].mean(axis=1) @ params["out"]

    model = KernelRegressor(functools.partial(empirical_ntk, network, params), regularization=0.1)
    y = RNG.standard_normal((7, 2))
    found = model.fit(tokens, y).predict(more)
    rows, others = (np.concatenate(
        [np.asarray(leaf).reshape(2 * len(x), -1) for leaf in jax.tree.leaves(jax.jacobian(network)(params, x))], axis=1
    ) for x in (tokens, more))  # fmt: skip
    theta = rows @ rows.T
    ridge = theta + 0.1 * np.mean(np.diag(theta)) * np.eye(len(theta))
    np.testing.assert_allclose(found, (others @ rows.T @ np.linalg.solve(ridge, y.ravel())).reshape(3, 2), rtol=1e-5)


def test_positions_are_no_outputs():
    images = RNG.standard_normal((4, 3, 3, 2))
    found = infinite_kernel(Conv(8), images)
    assert found.ntk.shape == (4, 4, 3, 3)
    with pytest.raises(ValueError, match=r"has positions, expected one output: end the network with Flatten"):
        GradientFlow.on(found, RNG.standard_normal((4, 3)))


def test_weights_that_are_refused():
    y = X[:, 0]
    model = KernelRegressor("precomputed", regularization=0.1)
    for weights, message in (
        (np.zeros(N), "weight"),
        (np.full(N, -1.0), "[Nn]egative"),
        (np.ones(N - 1), "inconsistent|shape"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(THETA, y, sample_weight=weights)
    for weights in (np.zeros(N), np.ones(N - 1), np.full(N, np.nan)):
        with pytest.raises(ValueError, match=r"weights have shape .* > 0: leave out inputs of 0"):
            GradientFlow.on(THETA, y, weights=weights)
    coupled = KernelRegressor(Serial(Dense(8), BatchNorm(0.1), Dense(1)), regularization=0.1)
    with pytest.raises(ValueError, match="statistics count every input once"):
        coupled.fit(X, y, sample_weight=np.ones(N))
