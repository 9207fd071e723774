"""Log marginal likelihood: against SciPy's normal density, its derivatives against differences, and its maximum."""

import jax
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone

from ntk_analysis.activations import leaky_relu
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Dense, Serial
from ntk_analysis.networks import fully_connected, residual
from ntk_analysis.regression import Family, GradientFlow, KernelRegressor

from .tiers import full

RNG = np.random.default_rng(0)
N = 9
X, Y, WEIGHTS = RNG.standard_normal((N, 4)), RNG.standard_normal((N, 2)), RNG.uniform(0.2, 3, N)


def linear(w_var, b_var) -> Serial:
    """A network whose kernel is w_var x.x'/4 + b_var."""
    return Serial(Dense(1, w_var, b_var))


def covariance_of(theta, weights):
    w_var, b_var, regularization = np.exp(theta)
    kernel = w_var * X @ X.T / 4 + b_var
    return kernel + np.diag(regularization * np.average(np.diag(kernel), weights=weights) / weights)


def log_density(theta, weights, y=Y):
    return sum(multivariate_normal(cov=covariance_of(theta, weights)).logpdf(column) for column in y.T)


def differences(function, theta, step=1e-3):
    """Central differences of order 4."""
    shifts = step * np.eye(len(theta))
    return np.array(
        [
            sum(w * function(theta + k * e) for w, k in ((1, -2), (-8, -1), (8, 1), (-1, 2))) / (12 * step)
            for e in shifts
        ]
    )


FAMILY = Family(linear, {"w_var": 1.5, "b_var": 0.3})


def test_it_is_the_density_of_the_targets():
    model = KernelRegressor(FAMILY, which="nngp", regularization=0.1).fit(X, Y, sample_weight=WEIGHTS)
    expected = log_density(np.log([1.5, 0.3, 0.1]), WEIGHTS)
    assert model.log_marginal_likelihood() == pytest.approx(expected, rel=1e-12)


@pytest.mark.full
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_the_density_at_any_hyperparameters(weights):
    w = np.ones(N) if weights is None else weights
    model = KernelRegressor(FAMILY, which="nngp", regularization=0.1).fit(X, Y, sample_weight=weights)
    theta = np.log([1.5, 0.3, 0.1])
    for other in (theta, theta + np.array([0.5, -1.0, 2.0])):
        value, slope = model.log_marginal_likelihood(other, eval_gradient=True)
        assert value == pytest.approx(log_density(other, w), rel=1e-12)
        np.testing.assert_allclose(slope, differences(lambda t: log_density(t, w), other), rtol=1e-8)


def test_the_likelihood_of_any_kernel():
    theta = covariance_of(np.log([1.5, 0.3, 0.5]), np.ones(N))
    one = KernelRegressor("precomputed", regularization=0.1).fit(theta, Y[:, 0])
    ridge = theta + 0.1 * np.mean(np.diag(theta)) * np.eye(N)
    assert one.log_marginal_likelihood() == pytest.approx(multivariate_normal(cov=ridge).logpdf(Y[:, 0]), rel=1e-12)
    # outputs that know of each other are one vector
    mixing = np.array([[1.0, 0.4], [0.4, 0.7]])
    full = GradientFlow.on(np.multiply.outer(theta, mixing), Y)
    expected = multivariate_normal(cov=np.kron(mixing, theta)).logpdf(Y.T.ravel())
    assert full.log_marginal_likelihood() == pytest.approx(expected, rel=1e-12)
    for asked in ({"theta": [0.0]}, {"eval_gradient": True}):
        with pytest.raises(ValueError, match="kernel of type str, which has no hyperparameters"):
            one.log_marginal_likelihood(**asked)


@pytest.mark.full
def test_the_maximum_is_where_the_targets_came_from():
    true, outputs = np.log([0.8, 2.0, 0.3]), 400
    C = covariance_of(true, np.ones(N))
    y = np.linalg.cholesky(C) @ np.random.default_rng(1).standard_normal((N, outputs))
    model = KernelRegressor(FAMILY, which="nngp", regularization=0.1, optimizer="fmin_l_bfgs_b").fit(X, y)
    found = np.log(list(model.hyperparameters_.values()))
    rows = [differences(lambda t, a=a: covariance_of(t, np.ones(N))[a], true) for a in range(N)]
    white = np.linalg.solve(C, np.stack(rows, axis=1))
    fisher = outputs / 2 * np.einsum("iab,jba->ij", white, white)
    assert (found - true) @ fisher @ (found - true) < 16.3  # chi-squared of 3, beyond it .001
    assert list(model.hyperparameters_) == ["w_var", "b_var", "regularization"]
    value, slope = model.log_marginal_likelihood(eval_gradient=True)
    assert value == model.log_marginal_likelihood_value_ >= model.log_marginal_likelihood(true)
    assert value == pytest.approx(model.log_marginal_likelihood(), rel=1e-10)
    assert np.max(np.abs(slope)) < 1e-2 * np.sqrt(np.max(np.diag(fisher)))
    # what predicts is the network that was found
    assert model.kernel_ == linear(model.hyperparameters_["w_var"], model.hyperparameters_["b_var"])
    r = model.regularization_ * np.mean(np.diag(infinite_kernel(model.kernel_, X).nngp))
    K = infinite_kernel(model.kernel_, X).nngp
    np.testing.assert_allclose(model.predict(X), K @ np.linalg.solve(K + r * np.eye(N), y), rtol=1e-6)


@pytest.mark.full
def test_bounds_restarts_and_an_optimizer_of_ones_own():
    family = Family(linear, {"w_var": 1.5, "b_var": 0.3}, {"w_var": "fixed", "b_var": (0.2, 0.4)})
    tried = []

    def at_the_corner(objective, start, bounds):
        value, slope = objective(start)
        assert objective(start, eval_gradient=False) == value
        assert slope.shape == start.shape == (2,)
        tried.append(start)
        return bounds[:, 1], value

    model = KernelRegressor(
        family, which="nngp", regularization=0.1, optimizer=at_the_corner, n_restarts_optimizer=3, random_state=0
    )
    model = clone(model).fit(X, Y)
    assert model.hyperparameters_ == pytest.approx({"b_var": 0.4, "regularization": 1e5})
    assert model.kernel_ == linear(1.5, model.hyperparameters_["b_var"])
    assert len(tried) == 4
    assert len(np.unique(tried, axis=0)) == 4
    normalised = KernelRegressor(FAMILY, which="nngp", regularization=0.1, normalize_y=True)
    assert normalised.fit(X, 5 + 7 * Y).log_marginal_likelihood() == pytest.approx(
        normalised.fit(X, Y).log_marginal_likelihood(), rel=1e-10
    )


@pytest.mark.full
@pytest.mark.parametrize("which", ["nngp", "ntk"])
@pytest.mark.parametrize(
    "network",
    [fully_connected(2, 16, w_var=1.5, b_var=0.1, activation=leaky_relu(0.3)), residual(2, 8, scale=0.4, b_var=0.1)],
)
def test_derivatives_by_all_numbers_of_a_network(network, which):
    model = KernelRegressor(network, regularization=0.05, which=which).fit(X, Y)
    value, slope = model.log_marginal_likelihood(eval_gradient=True)
    assert value == pytest.approx(model.log_marginal_likelihood(), rel=1e-10)
    start = model._likelihood().free.start
    expected = differences(model.log_marginal_likelihood, start)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-8 * np.max(np.abs(slope)))


@pytest.mark.full
def test_the_scale_of_residual_branches_is_a_number():
    def entries(scale):
        return infinite_kernel(residual(2, 8, scale=scale), X).ntk.sum()

    with jax.enable_x64(True):
        slope = jax.jit(jax.vmap(jax.grad(entries)))(np.array([0.3, 0.6]))
    for scale, found in zip((0.3, 0.6), slope, strict=True):
        assert found == pytest.approx(differences(lambda t: float(entries(t[0])), np.array([scale]))[0], rel=1e-8)


def test_integers_in_arrays_are_numbers_of_layers():
    for two in (np.array(2), np.int32(2), jax.numpy.asarray(2)):
        assert Dense(4, two) == Dense(4, 2.0)
        assert hash(Dense(4, two)) == hash(Dense(4, 2.0))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "newton"}, "got optimizer='newton', expected 'fmin_l_bfgs_b', a function or None"),
        ({"kernel": "precomputed"}, "kernel of type str, which has no hyperparameters"),
        ({"kernel": Family(linear, {"w_var": 0.0, "b_var": 1.0})}, r"w_var starts at 0.0 .* expected 0 < lowest"),
        (
            {"kernel": Family(linear, {"w_var": 1.0, "b_var": 1.0}, {"width": (1, 2)})},
            "got bounds of width, expected some of w_var, b_var",
        ),
        (
            {"kernel": Family(linear, {"w_var": 1.0, "b_var": 1.0}, dict.fromkeys(("w_var", "b_var"), "fixed"))},
            "no hyperparameter is free",
        ),
        *full(({"kernel": FAMILY}, "not positive definite at the hyperparameters that were tried")),
    ],
)
def test_what_has_no_maximum_is_refused(changed, message):
    model = KernelRegressor(FAMILY, which="nngp", optimizer="fmin_l_bfgs_b").set_params(**changed)
    with pytest.raises(ValueError, match=message):
        model.fit(X @ X.T if model.kernel == "precomputed" else X, Y)
