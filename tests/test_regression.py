"""Kernel prediction: against integrated dynamics, sampled networks, linear algebra, neural-tangents, scikit-learn."""

import collections
import functools
import math
from dataclasses import replace

import jax
import mpmath
import numpy as np
import pytest
import scipy.integrate
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from ntk_analysis import data, spectrum
from ntk_analysis.empirical import empirical_nngp, empirical_ntk
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import BatchNorm, Dense, LayerNorm, Residual, Serial
from ntk_analysis.networks import convolutional, fully_connected, residual
from ntk_analysis.reference import load
from ntk_analysis.reference.comparison import as_neural_tangents_expects
from ntk_analysis.regression import GradientFlow, KernelClassifier, KernelRegressor, UnresolvedPredictionWarning

from .tiers import full

NETWORK = fully_connected(2, 64)
TIMES = np.array([0.0, 0.1, 1.0, 20.0, np.inf])
N, K, OUTPUTS = 7, 5, 2  # training inputs, test inputs, outputs: all different, so that no transposition goes unseen


@pytest.fixture(scope="module")
def problem():
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) for shape in ((N, 4), (N, OUTPUTS), (K, 4))]


def kernels(problem, which="ntk"):
    x, _, x_test = problem
    return [
        np.asarray(getattr(infinite_kernel(NETWORK, a, b), which)) for a, b in ((x, None), (x_test, x), (x_test, None))
    ]


@pytest.mark.full
@pytest.mark.parametrize("regularization", [0.0, 0.3])
def test_mean_is_the_integrated_flow(problem, regularization):
    # training outputs g and test outputs f of the linearised network, with weight decay r towards the start:
    # g' = -K (g - y) - r g, f' = -K_* (g - y) - r f
    x, y, x_test = problem
    theta, test, _ = kernels(problem)
    r = regularization * np.trace(theta) / N

    def flow(_, state):
        g, f = np.split(state.reshape(N + K, OUTPUTS), [N])
        return np.concatenate([-theta @ (g - y) - r * g, -test @ (g - y) - r * f]).ravel()

    start = np.zeros((N + K) * OUTPUTS)
    times = TIMES[:-1]
    solved = scipy.integrate.solve_ivp(
        flow, (0, times[-1]), start, method="LSODA", t_eval=times, rtol=1e-10, atol=1e-12
    )
    expected = solved.y.T.reshape(len(times), N + K, OUTPUTS)
    model = KernelRegressor(NETWORK, regularization=regularization).fit(x, y)
    # 100 steps' local errors of 1e-10
    np.testing.assert_allclose(model.predict(x_test, time=times), expected[:, N:], atol=1e-7)
    np.testing.assert_allclose(model.predict(x, time=times), expected[:, :N], atol=1e-7)


@pytest.mark.parametrize("which", ["ntk", "nngp"])
def test_mean_and_variance_over_sampled_linear_models(which):
    # f = phi(x).(a theta): NNGP phi a^2 phi', NTK phi phi' if all train, and the NNGP itself where a is in the features
    generator, draws, time = np.random.default_rng(1), 20_000, 0.7
    phi, phi_test = generator.standard_normal((N, 12)) / 3, generator.standard_normal((K, 12)) / 3
    y = generator.standard_normal(N)
    deviations = generator.uniform(0.2, 1.5, 12)
    if which == "nngp":
        phi, phi_test, deviations = phi * deviations, phi_test * deviations, np.ones(12)
    # each network solves its own dynamics in parameter space: theta' = -phi'(phi theta - y)
    starts = generator.standard_normal((draws, 12)) * deviations
    curvature, modes = np.linalg.eigh(phi.T @ phi)
    gone = -np.expm1(-time * curvature)
    target = np.linalg.pinv(phi) @ y
    ends = starts - (((starts - target) @ modes) * gone) @ modes.T
    outputs = ends @ phi_test.T

    prior = phi * deviations**2
    flow = GradientFlow.on(phi @ phi.T, y, which=which)
    mean = flow.mean(phi_test @ phi.T, time)
    nngps = prior @ phi.T, phi_test @ prior.T, phi_test * deviations**2 @ phi_test.T
    covariance = flow.covariance(phi_test @ phi.T, *nngps, time=time)
    variance = flow.covariance(phi_test @ phi.T, *nngps[:2], np.diag(nngps[2]), time=time)
    np.testing.assert_allclose(np.diag(covariance), variance, rtol=1e-12)

    sampled = np.cov(outputs.T)
    error = np.sqrt((sampled**2 + np.outer(np.diag(sampled), np.diag(sampled))) / draws)  # of Gaussians' covariances
    assert np.all(np.abs(outputs.mean(axis=0) - mean) <= 5 * np.sqrt(np.diag(sampled) / draws))
    assert np.all(np.abs(sampled - covariance) <= 5 * error)
    # wrong theories are caught: the start's spread, the end's, and (for the NTK) the Gaussian process' posterior
    wrong = [nngps[2], flow.covariance(phi_test @ phi.T, *nngps)]
    if which == "ntk":
        wrong.append(nngps[2] - nngps[1] @ np.linalg.solve(nngps[0], nngps[1].T))
    for other in wrong:
        assert np.any(np.abs(sampled - other) > 5 * error)


def test_end_of_training_is_linear_algebra(problem):
    x, y, x_test = problem
    theta, theta_test, _ = kernels(problem)
    nngp, nngp_test, nngp_prior = kernels(problem, "nngp")
    mean, covariance = KernelRegressor(NETWORK).fit(x, y).predict(x_test, return_cov=True)
    B = np.linalg.solve(theta, theta_test.T).T
    np.testing.assert_allclose(mean, B @ y, rtol=1e-10)
    expected = nngp_prior + B @ nngp @ B.T - B @ nngp_test.T - nngp_test @ B.T
    np.testing.assert_allclose(covariance, expected, atol=1e-12)
    # the Gaussian process, and that it is another one
    mean, posterior = KernelRegressor(NETWORK, which="nngp").fit(x, y).predict(x_test, return_cov=True)
    np.testing.assert_allclose(mean, nngp_test @ np.linalg.solve(nngp, y), rtol=1e-10)
    known = nngp_prior - nngp_test @ np.linalg.solve(nngp, nngp_test.T)
    np.testing.assert_allclose(posterior, known, atol=1e-12)
    assert np.max(np.abs(posterior - covariance)) > 1e-3


def test_regularised_end_is_ridge_regression(problem):
    x, y, x_test = problem
    theta, test, _ = kernels(problem)
    ridge = theta + 0.2 * np.trace(theta) / N * np.eye(N)
    found = KernelRegressor(NETWORK, regularization=0.2).fit(x, y).predict(x_test)
    np.testing.assert_allclose(found, test @ np.linalg.solve(ridge, y), rtol=1e-10)


@pytest.mark.full
def test_scale_of_the_outputs_moves_one_network_and_not_the_mean(problem):
    x, y, x_test = problem
    louder = Serial(*NETWORK.layers[:-1], Dense(1, 9 * 2.0))  # read-out of gain 2: outputs and gradients times 3
    mean, deviation = KernelRegressor(NETWORK).fit(x, y).predict(x_test, return_std=True)
    same, wider = KernelRegressor(louder).fit(x, y).predict(x_test, return_std=True)
    np.testing.assert_allclose(same, mean, rtol=1e-9)
    np.testing.assert_allclose(wider, 3 * deviation, rtol=1e-9)
    assert np.min(deviation) > 0.01


def test_times_shapes_and_limits(problem):
    x, y, x_test = problem
    model = KernelRegressor(NETWORK).fit(x, y)
    mean, std = model.predict(x_test, time=TIMES, return_std=True)
    assert mean.shape == (5, K, OUTPUTS)
    assert std.shape == (5, K)
    np.testing.assert_array_equal(mean[0], 0)
    np.testing.assert_allclose(std[0] ** 2, np.diag(kernels(problem, "nngp")[2]), rtol=1e-12)
    one, one_std = model.predict(x_test, time=1.0, return_std=True)
    np.testing.assert_allclose(one, mean[2], rtol=1e-12)
    np.testing.assert_allclose(one_std, std[2], rtol=1e-12)
    np.testing.assert_allclose(model.predict(x_test), mean[-1], rtol=1e-12)
    np.testing.assert_allclose(
        np.squeeze(KernelRegressor(NETWORK, time=1.0).fit(x, y[:, 0]).predict(x_test)), one[:, 0]
    )
    _, covariances = model.predict(x_test, time=TIMES, return_cov=True)
    np.testing.assert_allclose(np.diagonal(covariances, axis1=1, axis2=2), std**2, atol=1e-13)
    # trained to the end, every network gives the training targets
    fitted, nothing = model.predict(x, return_std=True)
    np.testing.assert_allclose(fitted, y, atol=1e-10)
    assert np.all(nothing >= 0)
    assert np.max(nothing) < 1e-6  # root of rounding


def test_agrees_with_the_training_curve(problem):
    x, y, _ = problem
    kernel = infinite_kernel(NETWORK, x)
    curve = spectrum.training_curve(kernel, y, learning_rate=0.1, steps=np.array([0, 3, 10]), gradient_flow=True)
    flow = GradientFlow.on(kernel, y)
    np.testing.assert_allclose(flow.mean(kernel, np.array([0, 0.3, 1.0])) - y, curve.residuals, atol=1e-12)


def test_the_scale_of_a_kernel_is_only_that_of_time(problem):
    """A kernel e^400 times as large is trained e^400 times as fast, at scales that float64 does not hold too."""
    x, y, x_test = problem
    plain, plain_test = infinite_kernel(NETWORK, x), infinite_kernel(NETWORK, x_test, x)
    expected = GradientFlow.on(plain, y).mean(plain_test, 0.7)
    for log_scale in (400.0, 900.0):
        large, large_test = (replace(kernel, log_scale=np.float64(log_scale)) for kernel in (plain, plain_test))
        flow = GradientFlow.on(large, y)
        if log_scale < 700:
            np.testing.assert_allclose(flow.mean(large_test, 0.7 * np.exp(-log_scale)), expected, rtol=1e-12)
        relative = 0.7 * flow.eigenvalues_scaled[-1]
        np.testing.assert_allclose(flow.mean(large_test, relative, relative=True), expected, rtol=1e-12)
        assert np.max(np.abs(flow.mean(large_test) - expected)) > 1e-3


@pytest.mark.full
def test_kernel_beyond_float64(problem):
    x, y, x_test = problem
    network = fully_connected(2500, 1, "weight_mean")
    kernel = infinite_kernel(network, x)
    assert kernel.log_scale > 800
    with pytest.raises(OverflowError):
        _ = kernel.ntk
    model = KernelRegressor(network, relative_time=True).fit(x, y)
    mean, std = model.predict(x, time=[0, 1.0, np.inf], return_std=True)
    assert np.isfinite(model.predict(x_test)).all()
    assert np.isfinite(mean).all()
    assert np.isfinite(std).all()
    assert np.max(np.abs(mean[1] - mean[2])) > 1e-3  # in these units training has not ended
    absolute = KernelRegressor(network, time=1e-300).fit(x, y)
    np.testing.assert_array_equal(absolute.predict(x), mean[2])  # in true units it has, at once


def test_relative_time_counts_in_the_fastest_mode(problem):
    x, y, x_test = problem
    model = KernelRegressor(NETWORK, regularization=0.1).fit(x, y)
    relative = KernelRegressor(NETWORK, regularization=0.1, time=3.0, relative_time=True).fit(x, y)
    largest = model.flow_.eigenvalues_scaled[-1]
    np.testing.assert_allclose(relative.predict(x_test), model.predict(x_test, time=3 / largest), rtol=1e-12)


def cure(refusal):
    """The regularisation that a message recommends."""
    return float(str(refusal.value).split("set regularization to ")[1].split()[0])


def exact_mean(kernel, test, y, regularization, time=math.inf):
    """The definition, Theta_* A_t y, in 60 digits."""
    with mpmath.workdps(60):
        theta = mpmath.matrix(kernel.astype(np.float64).tolist())
        r = mpmath.mpf(regularization) * sum(theta[i, i] for i in range(len(kernel))) / len(kernel)
        values, vectors = mpmath.eigsy(theta + r * mpmath.eye(len(kernel)))
        a = [(1 if time == math.inf else -mpmath.expm1(-value * time)) / value for value in values]
        found = mpmath.matrix(test.astype(np.float64).tolist()) * vectors * mpmath.diag(a) * vectors.T
        return np.array((found * mpmath.matrix(y.tolist())).tolist(), dtype=np.float64).reshape(len(test), *y.shape[1:])


def test_singular_kernel_names_its_eigenvalue_and_the_cure(problem):
    x, y, x_test = problem
    twice, targets = np.concatenate([x[:-1], x[:1]]), np.concatenate([y[:-1], y[:1] + 1])
    with pytest.raises(ValueError, match="NTK of 7 inputs is not positive definite: smallest eigenvalue") as refused:
        KernelRegressor(NETWORK).fit(twice, targets)
    assert "merge duplicated inputs, of which 6 are distinct, and average their targets" in str(refused.value)
    merged = KernelRegressor(NETWORK).fit(x[:-1], np.concatenate([y[:1] + 0.5, y[1:-1]]))
    model = KernelRegressor(NETWORK, regularization=cure(refused)).fit(twice, targets)
    np.testing.assert_allclose(model.predict(x_test), merged.predict(x_test), atol=1e-6)
    # an indefinite matrix, too
    with pytest.raises(ValueError, match=r"smallest eigenvalue -1 .* set regularization to 2 or more; it is no kernel"):
        GradientFlow.on(np.array([[1.0, 2.0], [2.0, 1.0]]), np.zeros(2))
    # float32 resolves less, and says so
    close = np.eye(2) + (1 - 1e-6) * (1 - np.eye(2))
    GradientFlow.on(close, np.zeros(2))
    with pytest.raises(ValueError, match="float32 resolves"):
        KernelRegressor("precomputed").fit(close.astype(np.float32) * 1e-3 + np.float32(1), np.zeros(2))


@pytest.mark.parametrize("features", [1, 2, 5])
def test_inputs_are_called_duplicated_only_where_they_are(features):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((12, features))
    with pytest.raises(ValueError, match=f"only {features} eigenvalues are above rounding") as refused:
        GradientFlow.on(x @ x.T, np.zeros(12))  # a linear model has as many parameters as features
    assert "fewer parameters or features than inputs" in str(refused.value)
    assert "duplicated" not in str(refused.value)
    both = np.concatenate([x[: features + 1], x[: features + 1]])  # of both kinds
    with pytest.raises(ValueError, match=f"only {features} eigenvalues"):
        GradientFlow.on(both @ both.T, np.zeros(len(both)))
    full = np.concatenate([x[:features], x[:1], x[:1]])
    with pytest.raises(ValueError, match=f"merge duplicated inputs, of which {features} are distinct"):
        GradientFlow.on(full @ full.T, np.zeros(features + 2))


SINGULAR = {  # inputs, targets, and the means of the targets of those that are the same
    "four": (np.array([[0.2], [0.2], [1.4], [1.4]]), np.array([740.0, 680, 1260, 1200]), np.array([710.0, 1230])),
    "thrice": (np.repeat([[0.2, 1], [1.4, -1]], 3, axis=0), np.array([1.0, 2, 6, -4, 0, 1]), np.array([3.0, -1])),
    "offset": (np.array([[0.2], [0.2], [1.4], [1.4]]), np.array([1e6, 1e6 + 2, 5, 7.0]), np.array([1e6 + 1, 6.0])),
}
BIASED = fully_connected(1, 1, b_var=0.1)


@pytest.fixture(scope="module")
def singular_kernels():
    return {name: np.asarray(infinite_kernel(BIASED, x).ntk) for name, (x, _, _) in SINGULAR.items()}


@pytest.mark.parametrize("name", SINGULAR)
def test_the_recommended_regularisation_is_accurate(name, singular_kernels):
    _, y, means = SINGULAR[name]
    kernel, copies = singular_kernels[name], len(y) // len(means)
    with pytest.raises(ValueError, match="merge duplicated inputs, of which 2 are distinct") as refused:
        KernelRegressor("precomputed").fit(kernel, y)
    found, error = (
        KernelRegressor("precomputed", regularization=cure(refused)).fit(kernel, y).predict(kernel, return_error=True)
    )
    np.testing.assert_allclose(found, np.repeat(means, copies), rtol=1e-6, atol=1e-7 * np.max(np.abs(y)))
    assert np.all(error < 1e-5 * np.max(np.abs(y)))


@pytest.mark.parametrize("name", SINGULAR)
@pytest.mark.parametrize("time", [math.inf, 30.0, 0.01])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_stated_error_of_predictions_bounds_the_true_one(name, time, dtype, singular_kernels):
    _, y, _ = SINGULAR[name]
    kernel = singular_kernels[name]
    eps, small = float(np.finfo(dtype).eps), 0
    for regularization in np.geomspace(40 * eps, 1, 6):
        # the true kernel is not the one that was rounded
        expected = exact_mean(kernel, kernel, y, regularization, time)
        model = KernelRegressor("precomputed", time=time, regularization=regularization).fit(kernel.astype(dtype), y)
        found, error = model.predict(kernel.astype(dtype), return_error=True)
        assert np.all(np.abs(found - expected) <= error)
        small += np.max(error) < 1e4 * eps * np.max(np.abs(y))
    assert small >= 1  # it is no bound that holds because it is large
    if time == math.inf and dtype is np.float64:  # what rounding alone would say is wrong
        model = KernelRegressor("precomputed", regularization=9e-15).fit(kernel, y)
        with pytest.warns(UnresolvedPredictionWarning, match="may be off by .* use a larger regularization"):
            found = model.predict(kernel)
        off = np.max(np.abs(found - exact_mean(kernel, kernel, y, 9e-15)))
        assert off > 1e6 * eps * np.max(np.abs(y))
        assert off <= np.max(model.predict(kernel, return_error=True)[1])


@pytest.mark.parametrize("which", ["ntk", "nngp"])
def test_the_stated_error_counts_what_the_kernel_says_it_is_off_by(which, problem):
    """Kernels whose every entry, distance and variance is moved by as much as they say it may be."""
    x, y, x_test = problem
    x_test = 3 * x_test  # their kernel is larger than that of the training inputs
    own, cross = infinite_kernel(NETWORK, x), infinite_kernel(NETWORK, x_test, x)
    error, generator = 1e-5, np.random.default_rng(0)

    def moved(kernel, largest, signs):
        return replace(
            kernel,
            variance1=kernel.variance1 * (1 + error),
            variance2=kernel.variance2 * (1 + error),
            distance=kernel.distance + error * signs,
            ntk_scaled=kernel.ntk_scaled + error * largest * signs,
            approximation_error=error,
        )

    signs, largest = np.sign(generator.standard_normal((N, N))), np.max(own.ntk)
    off = moved(own, largest, np.triu(signs) + np.triu(signs, 1).T)
    beside = np.sqrt(largest * np.max(infinite_kernel(NETWORK, x_test).ntk))
    off_test = moved(cross, beside, np.sign(generator.standard_normal((K, N))))
    flow = GradientFlow.on(off, y, which=which, regularization=0.1)
    apart = np.abs(flow.mean(off_test) - GradientFlow.on(own, y, which=which, regularization=0.1).mean(cross))
    assert np.all(apart <= flow.mean_error(off_test))
    assert np.max(flow.mean_error(off_test)) < 100 * np.max(apart)
    silent = replace(off, approximation_error=0.0), replace(off_test, approximation_error=0.0)
    rounding = GradientFlow.on(silent[0], y, which=which, regularization=0.1).mean_error(silent[1])
    assert np.all(apart > 100 * rounding)
    # a part says it relative to its own entries
    part = off[:2, 2:4]
    assert part.approximation_error * np.max(np.abs(part.ntk)) == pytest.approx(error * np.max(off.ntk))


def test_error_has_the_shape_of_the_mean_and_comes_last(problem):
    x, y, x_test = problem
    model = KernelRegressor(NETWORK).fit(x, y)
    mean, std, error = model.predict(x_test, time=TIMES, return_std=True, return_error=True)
    assert mean.shape == error.shape == (len(TIMES), K, OUTPUTS)
    assert std.shape == (len(TIMES), K)
    np.testing.assert_array_equal(mean, model.predict(x_test, time=TIMES))
    assert np.all(error[0] == 0)
    assert np.all((error[1:] > 0) & (error[1:] < 1e-10))
    wide = np.concatenate([10 * y, y], axis=1)  # of each output its own
    several = KernelRegressor(NETWORK).fit(x, wide).predict(x_test, return_error=True)[1]
    np.testing.assert_allclose(several[:, :2], 10 * several[:, 2:], rtol=1e-10)


@pytest.mark.full
@pytest.mark.parametrize("depth", [1, 3, 10])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_the_stated_error_holds_for_float32_kernels_of_networks(depth, activation):
    generator = np.random.default_rng(depth)
    x, x_test, y = (generator.standard_normal(shape) for shape in ((40, 3), (10, 3), 40))
    network = fully_connected(depth, 1, activation=activation, b_var=0.1)
    theta, test = infinite_kernel(network, x).ntk, infinite_kernel(network, x_test, x).ntk
    narrow, narrow_test = (
        infinite_kernel(network, *(a.astype(np.float32) for a in pair)).ntk for pair in ((x,), (x_test, x))
    )
    for regularization in (1e-3, 1e-2, 1e-1):
        expected = KernelRegressor("precomputed", regularization=regularization).fit(theta, y).predict(test)
        model = KernelRegressor("precomputed", regularization=regularization).fit(narrow, y)
        found, error = model.predict(narrow_test, return_error=True)
        assert np.all(np.abs(found - expected) <= error)


@pytest.mark.full
def test_three_hundred_doubled_inputs():
    generator = np.random.default_rng(0)
    x, y, x_test = (generator.standard_normal(shape) for shape in ((150, 4), 300, (20, 4)))
    expected = KernelRegressor(BIASED).fit(x, (y[:150] + y[150:]) / 2).predict(x_test)
    with pytest.raises(ValueError, match="of which 150 are distinct") as refused:
        KernelRegressor(BIASED).fit(np.concatenate([x, x]), y)
    model = KernelRegressor(BIASED, regularization=cure(refused)).fit(np.concatenate([x, x]), y)
    np.testing.assert_allclose(model.predict(x_test), expected, atol=1e-5)


def test_precomputed_kernel_is_the_same_regression(problem):
    x, y, x_test = problem
    theta, test, _ = kernels(problem)
    found = KernelRegressor("precomputed", time=0.5).fit(theta, y)
    expected = KernelRegressor(NETWORK, time=0.5).fit(x, y)
    np.testing.assert_allclose(found.predict(test), expected.predict(x_test), rtol=1e-12)
    # as many test as training inputs: a transposed kernel has the right shape
    shifted = x + 0.3
    square = np.asarray(infinite_kernel(NETWORK, shifted, x).ntk)
    np.testing.assert_allclose(found.predict(square), expected.predict(shifted), rtol=1e-12)
    with pytest.raises(ValueError, match="NNGP beside the kernel"):
        found.predict(test, return_std=True)


@pytest.mark.full
def test_precomputed_kernel_is_cut_by_cross_validation(problem):
    x, y, _ = problem
    theta, _, _ = kernels(problem)
    scores = cross_val_score(KernelRegressor("precomputed", time=0.5), theta, y, cv=3)
    np.testing.assert_allclose(scores, cross_val_score(KernelRegressor(NETWORK, time=0.5), x, y, cv=3), rtol=1e-10)


def linearised(network, params, x, y, x_test, time):
    """The network linearised where it stands, trained in parameter space: columns of J are parameters."""

    def jacobian(inputs):
        rows = jax.jit(jax.jacobian(network.apply))(params, inputs)
        return np.concatenate([np.asarray(leaf).reshape(len(inputs) * 2, -1) for leaf in jax.tree.leaves(rows)], axis=1)

    J, J_test = jacobian(x), jacobian(x_test)
    start, start_test = (np.asarray(jax.jit(network.apply)(params, inputs)) for inputs in (x, x_test))
    left, singular, right = np.linalg.svd(J, full_matrices=False)
    moved = right.T @ (-np.expm1(-(singular**2) * time) / singular * (left.T @ (y - start).ravel()))
    return start, start_test, start_test + (J_test @ moved).reshape(start_test.shape)


def small_network():
    """A network of two outputs, and its parameters."""
    network = fully_connected(2, 8, outputs=OUTPUTS)
    return network, jax.jit(lambda key: network.init(key, (-1, 4))[1])(jax.random.key(0))


@pytest.mark.full  # kernels of coupled outputs are compared in test_empirical.py
def test_empirical_kernel_of_coupled_outputs_is_the_linearised_network(problem):
    x, y, x_test = problem
    network, params = small_network()
    start, start_test, expected = linearised(network, params, x, y, x_test, 0.4)
    model = KernelRegressor(functools.partial(empirical_ntk, network.apply, params), time=0.4).fit(x, y - start)
    np.testing.assert_allclose(model.predict(x_test) + start_test, expected, atol=1e-10)


@pytest.mark.full
def test_the_trace_of_an_empirical_kernel_stands_for_the_average_output(problem):
    x, y, _ = problem
    network, params = small_network()
    trace = functools.partial(empirical_ntk, network.apply, params, layout="trace")
    average = np.asarray(empirical_ntk(network.apply, params, x, layout="diagonal").values).mean(axis=-1)
    found = KernelRegressor(trace, time=0.4).fit(x, y).flow_
    np.testing.assert_allclose(found.eigenvalues_scaled, np.linalg.eigvalsh(average), rtol=1e-10)
    nngp = functools.partial(empirical_nngp, network.apply, params, layout="trace")
    with pytest.raises(ValueError, match="NNGP of 7 inputs is not positive definite"):  # of rank 2
        KernelRegressor(nngp, which="nngp").fit(x, y)


def test_a_last_batch_normalisation_is_refused(problem):
    x, _, _ = problem
    for model in (KernelRegressor, KernelClassifier):
        with pytest.raises(NotImplementedError, match="depends on the outputs drawn"):
            model(fully_connected(2, 8, last_batch_norm=True)).fit(x, np.arange(N) % 2)


@pytest.mark.parametrize(
    "network",
    [
        fully_connected(1, 8, "batch", eps=0.1),
        *full(
            fully_connected(2, 8, "batch", eps=0.1),
            residual(2, 8, "batch", eps=0.1),
            Serial(Dense(8), Residual(Serial(BatchNorm(0.1), Dense(8))), Dense(1)),
        ),
    ],
)
def test_batch_normalisation_predicts_behind_the_training_batch(network, problem):
    """Statistics are those of the training inputs; training and test inputs as one batch predict something else."""
    x, y, x_test = problem
    model = KernelRegressor(network, regularization=1e-3).fit(x, y)
    mean, covariance = model.predict(x_test, return_cov=True)
    kernel = infinite_kernel(network, x, x_test, statistics="x1")

    def predicted(own, cross):
        ridge = 1e-3 * np.mean(np.diag(own)) * np.eye(len(own))
        return cross @ np.linalg.solve(own + ridge, y)

    np.testing.assert_allclose(mean, predicted(kernel.train.ntk, kernel.cross.ntk), rtol=0, atol=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), model.predict(x_test, return_std=True)[1], rtol=1e-9)
    joint = infinite_kernel(network, np.concatenate([x, x_test]))
    cut = predicted(joint[:N, :N].ntk, joint[N:, :N].ntk)
    assert np.max(np.abs(mean - cut)) > 1e-3


@pytest.mark.full
def test_new_points_of_batch_normalised_networks_do_not_see_one_another(problem):
    x, y, x_test = problem
    model = KernelRegressor(fully_connected(2, 8, "batch", eps=0.1)).fit(x, y)
    np.testing.assert_allclose(model.predict(x_test[:1]), model.predict(x_test)[:1], rtol=0, atol=1e-9)
    # what was trained on is met: training inputs as new points lie in the span of the batch
    np.testing.assert_allclose(model.predict(x), y, atol=1e-6)
    labels = np.arange(N) % 3
    classifier = KernelClassifier(fully_connected(2, 8, "batch", eps=0.1)).fit(x, labels)
    np.testing.assert_array_equal(classifier.predict(x), labels)


@pytest.mark.full
def test_at_eps_0_batch_normalised_networks_need_six_training_inputs(problem):
    y = problem[1]
    x, x_test = np.random.default_rng(1).standard_normal((2, N, 9))  # more features than inputs
    network = fully_connected(1, 8, "batch")
    with pytest.raises(ValueError, match=r"rank >= 5.* at least 6 distinct training inputs, or eps > 0"):
        KernelRegressor(network, regularization=1e-3).fit(x[:5], y[:5]).predict(x_test)
    assert np.all(np.isfinite(KernelRegressor(network, regularization=1e-3).fit(x, y).predict(x_test)))


@pytest.mark.full
def test_empirical_kernels_of_coupled_batches_are_refused(problem):
    x, y, _ = problem
    network = fully_connected(2, 8, "batch")
    _, params = network.init(jax.random.key(0), (-1, 4))
    with pytest.raises(NotImplementedError, match="is not that of a network that predicts"):
        KernelRegressor(functools.partial(empirical_ntk, network.apply, params)).fit(x, y[:, :1])


@pytest.mark.full
def test_like_neural_tangents(problem):
    x, y, x_test = problem
    theta, theta_test, theta_prior = kernels(problem)
    nngp, nngp_test, nngp_prior = kernels(problem, "nngp")
    with as_neural_tangents_expects():
        module = load()
        blocks = {
            ("train", "train"): (nngp, theta),
            ("test", "train"): (nngp_test, theta_test),
            ("test", "test"): (nngp_prior, theta_prior),
        }

        def kernel_fn(x1, x2, get, **_):
            rows, columns = ("train" if v is None or len(v) == N else "test" for v in (x1, x1 if x2 is None else x2))
            pair = dict(zip(("nngp", "ntk"), map(jax.numpy.asarray, blocks[rows, columns]), strict=True))
            return pair[get] if isinstance(get, str) else collections.namedtuple("Kernel", get)(*(pair[g] for g in get))

        predict = module.predict.gradient_descent_mse_ensemble(kernel_fn, x, y, diag_reg=0.0)
        for time in (0.3, None):
            theirs = predict(t=None if time is None else time * N * OUTPUTS, x_test=x_test, get="ntk", compute_cov=True)
            model = KernelRegressor(NETWORK, time=math.inf if time is None else time).fit(x, y)
            mean, covariance = model.predict(x_test, return_cov=True)
            np.testing.assert_allclose(mean, np.asarray(theirs.mean), atol=1e-9)
            np.testing.assert_allclose(covariance, np.asarray(theirs.covariance), atol=1e-9)


CHECKED = (
    KernelRegressor(NETWORK, regularization=1e-3),
    KernelClassifier(NETWORK, regularization=1e-3),
    KernelClassifier(NETWORK, regularization=1e-3, loss="cross_entropy", time=10.0),
)


@pytest.mark.slow
@parametrize_with_checks(list(CHECKED))
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


def test_clone_parameters_and_grid_search(problem):
    _, y, _ = problem
    model = KernelRegressor(NETWORK, which="nngp", regularization=0.1, time=2.0)
    assert clone(model).get_params() == model.get_params()
    theta, _, _ = kernels(problem)
    choices = {"time": [0.1, 1.0], "regularization": [0.0, 0.1]}
    search = GridSearchCV(KernelRegressor("precomputed"), choices, cv=2).fit(theta, y)
    assert set(search.best_params_) == set(choices)


@pytest.mark.full
def test_grid_search_over_networks(problem):
    x, y, _ = problem
    model = KernelRegressor(NETWORK, which="nngp", regularization=0.1, time=2.0)
    search = GridSearchCV(model, {"time": [0.1, 1.0], "which": ["ntk", "nngp"]}, cv=2).fit(x, y)
    assert set(search.best_params_) == {"time", "which"}


def test_classes_are_those_of_the_largest_output(problem):
    theta, test, _ = kernels(problem)
    names = np.array(list("babcacb"))
    model = KernelClassifier("precomputed", time=2.0).fit(theta, names)
    one_hot = (names[:, None] == np.array(list("abc"))) - 1 / 3
    outputs = KernelRegressor("precomputed", time=2.0).fit(theta, one_hot).predict(test)
    np.testing.assert_allclose(model.outputs(test), outputs, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(test), np.array(list("abc"))[np.argmax(outputs, axis=1)])
    assert KernelClassifier("precomputed").fit(theta, names).score(theta, names) == 1


@pytest.mark.full
def test_digits():
    images = data.load_digits().subset(300, 0)
    x = data.preprocess(images.images, image_centering="dataset")
    model = KernelClassifier(fully_connected(2, 64)).fit(x[:200], images.labels[:200])
    assert model.score(x[:200], images.labels[:200]) == 1
    assert model.score(x[200:], images.labels[200:]) > 0.85  # chance is 0.1
    np.testing.assert_allclose(model.outputs(x[200:]).sum(axis=1), 0, atol=1e-10)
    names = np.array(list("abcdefghij"))[images.labels]
    named = KernelClassifier(fully_connected(2, 64)).fit(x[:200], names[:200])
    assert named.score(x[200:], names[200:]) == model.score(x[200:], images.labels[200:])


@pytest.mark.full
def test_images():
    images = data.load_digits().subset(300, 0)
    pictures = images.images / 16.0
    found = KernelClassifier(convolutional(1, 8)).fit(pictures[:100], images.labels[:100])
    assert found.score(pictures[200:], images.labels[200:]) > 0.8


def test_predictions_that_are_not_finite():
    """Beyond float64, each quantity by itself finite."""
    kernel = np.diag([1.0, 2.0, 4.0])
    flow = GradientFlow.on(1e-300 * kernel, 1e9 * np.eye(3)[:, :2])
    test = np.array([[1e-300, 0, 0], [1.0, 0, 0]])
    for time in (np.inf, [0.0, np.inf]):
        with pytest.raises(
            ValueError, match=r"the predicted mean is inf at input 1, expected finite numbers: .*float64"
        ):
            flow.mean(test, time)
    assert np.array_equal(flow.mean(test, 0.0), np.zeros((2, 2)))
    np.testing.assert_allclose(flow.mean(test[:1]), [[1e9, 0]], rtol=1e-14)
    for start, where in ((np.ones(2), "input 1"), (np.eye(2), r"inputs \(1, 1\)")):
        with pytest.raises(ValueError, match=rf"the predicted covariance is .* at {where}"):
            flow.covariance(test, kernel, test, start)
    model = KernelRegressor("precomputed").fit(1e-300 * kernel, 1e9 * np.ones(3))
    with pytest.raises(ValueError, match="the predicted mean is inf at input 1"):
        model.predict(test)
    for place, name in enumerate(("nngp", "nngp_test_train", "nngp_test")):
        parts = [kernel, test, np.ones(2)]
        parts[place] = np.full_like(parts[place], np.nan)
        with pytest.raises(ValueError, match=f"^{name} is nan at input"):
            flow.covariance(test, *parts)


def test_bad_input(problem):
    x, y, x_test = problem
    with pytest.raises(NotFittedError):
        KernelRegressor(NETWORK).predict(x)
    with pytest.raises(ValueError, match="regularization=-1"):
        KernelRegressor(NETWORK, regularization=-1).fit(x, y)
    with pytest.raises(ValueError, match="expected a network"):
        KernelRegressor("rbf").fit(x, y)
    with pytest.raises(ValueError, match="not a kernel"):
        KernelRegressor(NETWORK, which="gram").fit(x, y)
    with pytest.raises(NotImplementedError, match="on the inputs"):
        KernelRegressor(LayerNorm()).fit(x, y)
    model = KernelRegressor(NETWORK).fit(x, y)
    for time in (-1.0, np.nan, [], [[1.0]]):
        with pytest.raises(ValueError, match="time="):
            model.predict(x_test, time=time)
    theta, test, _ = kernels(problem)
    with pytest.raises(ValueError, match="expected \\(k, 7\\)"):
        model.flow_.mean(test.T)
    with pytest.raises(ValueError, match="targets have shape"):
        GradientFlow.on(theta, y[:-1])
    with pytest.raises(ValueError, match="NNGP of shapes"):
        model.flow_.covariance(test, theta, test.T, np.ones(K))
    with pytest.raises(ValueError, match="do not belong together"):
        model.flow_.covariance(test, theta, test, np.zeros(K))
    with pytest.raises(ValueError, match="at least 2"):
        KernelClassifier(NETWORK).fit(x, np.zeros(N, int))
