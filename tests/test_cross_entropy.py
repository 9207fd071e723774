"""Training on cross-entropy: against gradient descent in the space of parameters, and what is known at its ends."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from ntk_analysis.regression import CrossEntropyFlow, GradientFlow, KernelClassifier

RNG = np.random.default_rng(0)
N, K, CLASSES, FEATURES = 6, 4, 3, 9
PHI, PHI_TEST = RNG.standard_normal((N, FEATURES)) / 3, RNG.standard_normal((K, FEATURES)) / 3
LABELS = np.array([0, 1, 2, 1, 0, 2])
ONE_HOT = np.eye(CLASSES)[LABELS]
THETA, TEST = PHI @ PHI.T, PHI_TEST @ PHI.T


def descended(time, steps, *, decay=0.0, weights=None, start=None):
    """Test outputs of f = phi theta after gradient descent on its parameters (features, classes)."""
    theta0 = np.zeros((FEATURES, CLASSES)) if start is None else start
    theta, rate, w = theta0.copy(), time / steps, np.ones(N) if weights is None else weights
    for _ in range(steps):
        residual = w[:, None] * (softmax(PHI @ theta, axis=1) - ONE_HOT)
        theta -= rate * (PHI.T @ residual + decay * (theta - theta0))
    return PHI_TEST @ theta


def flow_of_descent(time, **options):
    """The limit of small learning rates, and the change from one step of the extrapolation to the next."""
    once, twice, fourfold = (descended(time, steps, **options) for steps in (500, 1000, 2000))
    first, second = 2 * twice - once, 2 * fourfold - twice
    found = (4 * second - first) / 3
    return found, np.max(np.abs(found - second))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decay": 0.3},
        {"weights": np.array([0.2, 1, 3, 1, 0.5, 2])},
        {"start": RNG.standard_normal((FEATURES, CLASSES))},
    ],
)
def test_it_is_gradient_descent_of_the_linearised_network(options):
    w, start = options.get("weights"), options.get("start", np.zeros((FEATURES, CLASSES)))
    mean_diagonal = np.average(np.diag(THETA), weights=w)
    times = np.array([5.0, 0.5])
    flow = CrossEntropyFlow.on(
        THETA,
        LABELS,
        times,
        regularization=options.get("decay", 0.0) / mean_diagonal,
        weights=w,
        initial=PHI @ start,
        tolerance=1e-10,
    )
    found = flow.outputs(TEST, PHI_TEST @ start)
    assert found.shape == (2, K, CLASSES)
    for outputs, time in zip(found, times, strict=True):
        expected, error = flow_of_descent(time, **options)
        assert error < 1e-5
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=error + 1e-8)
    np.testing.assert_array_equal(flow.probabilities(TEST, PHI_TEST @ start), softmax(found, axis=2))
    # squared loss trains otherwise
    squared = GradientFlow.on(THETA, ONE_HOT).mean(TEST, times)
    assert np.max(np.abs(found - found.mean(2, keepdims=True) - squared + squared.mean(2, keepdims=True))) > 0.05


def test_its_start_and_its_end():
    assert not CrossEntropyFlow.on(THETA, LABELS, 0.0).outputs(TEST).any()
    early = CrossEntropyFlow.on(THETA, LABELS, 1e-5).outputs(TEST)[0]
    np.testing.assert_allclose(early / 1e-5, TEST @ (ONE_HOT - 1 / CLASSES), rtol=0, atol=1e-5)
    # with weight decay training ends where the decay holds what the classes pull
    r = 0.2 * np.mean(np.diag(THETA))
    a = CrossEntropyFlow.on(THETA, LABELS, 1e4, regularization=0.2).coefficients[0]
    np.testing.assert_allclose(r * a, ONE_HOT - softmax(THETA @ a, axis=1), atol=1e-6)
    # without it the separable classes are learned
    late = CrossEntropyFlow.on(THETA, LABELS, 1e4)
    np.testing.assert_array_equal(np.argmax(late.outputs(THETA)[0], axis=1), LABELS)


def test_outputs_that_know_of_each_other():
    """A kernel Theta x M of outputs mixed by M = B B' is that of features that are mixed by B."""
    B = RNG.standard_normal((CLASSES, CLASSES))
    full, full_test = (np.multiply.outer(k, B @ B.T) for k in (THETA, TEST))
    found = CrossEntropyFlow.on(full, ONE_HOT, 2.0, tolerance=1e-10)

    def moved(theta):
        return PHI.T @ (ONE_HOT - softmax(PHI @ theta @ B.T, axis=1)) @ B

    theta, steps = np.zeros((FEATURES, CLASSES)), 500
    for _ in range(steps):  # Heun's method, of order 2
        first = moved(theta)
        theta = theta + 2.0 / steps * (first + moved(theta + 2.0 / steps * first)) / 2
    np.testing.assert_allclose(found.outputs(full_test)[0], PHI_TEST @ theta @ B.T, rtol=0, atol=1e-4)
    alike = CrossEntropyFlow.on(np.multiply.outer(THETA, np.eye(CLASSES)), LABELS, 2.0).coefficients
    np.testing.assert_allclose(alike, CrossEntropyFlow.on(THETA, LABELS, 2.0).coefficients, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"times": np.inf}, r"times=inf, expected finite numbers >= 0"),
        ({"times": [-1.0]}, "expected finite numbers >= 0"),
        ({"targets": 2 * ONE_HOT}, r"probabilities \(6, classes\), which sum to 1"),
        ({"targets": LABELS[:-1]}, r"expected labels \(6,\)"),
        ({"targets": np.zeros(N, int)}, "at least 2"),
        ({"initial": np.zeros((N, 2))}, r"initial has shape \(6, 2\)"),
        ({"regularization": -1.0}, "regularization=-1"),
        ({"weights": np.zeros(N)}, "weights have shape"),
        ({"kernel": np.multiply.outer(THETA, np.eye(2))}, "3 classes against a kernel of 2 outputs"),
        ({"kernel": TEST}, "expected \\(m, m\\)"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed, message):
    given = {"kernel": THETA, "targets": LABELS, "times": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        CrossEntropyFlow.on(given.pop("kernel"), given.pop("targets"), given.pop("times"), **given)
    with pytest.raises(ValueError, match=r"expected \(k, 6\)"):
        CrossEntropyFlow.on(THETA, LABELS, 1.0).outputs(TEST.T)


def test_the_classifier_is_the_flow():
    words = np.array(["no", "so", "yes"])[LABELS]
    weights = np.array([0.2, 1, 3, 0, 0.5, 2])
    kept = weights > 0
    model = KernelClassifier("precomputed", loss="cross_entropy", time=2.0, regularization=0.1)
    model.fit(THETA, words, sample_weight=weights)
    flow = CrossEntropyFlow.on(THETA[np.ix_(kept, kept)], words[kept], 2.0, regularization=0.1, weights=weights[kept])
    np.testing.assert_array_equal(model.predict_proba(TEST), flow.probabilities(TEST[:, kept])[0])
    np.testing.assert_array_equal(model.decision_function(TEST), flow.outputs(TEST[:, kept])[0])
    np.testing.assert_array_equal(model.predict(TEST), model.classes_[np.argmax(model.outputs(TEST), axis=1)])
    assert model.get_params() == clone(model).get_params()
    # of two classes the score is the logarithm of the odds
    odds = KernelClassifier("precomputed", loss="cross_entropy", time=2.0).fit(THETA, LABELS > 0)
    np.testing.assert_allclose(odds.decision_function(TEST), np.diff(np.log(odds.predict_proba(TEST)))[:, 0])


def test_longer_training_is_worth_more_on_what_was_trained():
    search = GridSearchCV(
        KernelClassifier("precomputed", loss="cross_entropy"),
        {"time": [0.01, 0.1, 1.0]},
        cv=[(np.arange(N), np.arange(N))],
        scoring="neg_log_loss",
    ).fit(THETA, LABELS)
    assert search.best_params_ == {"time": 1.0}
    flow = CrossEntropyFlow.on(THETA, LABELS, 1.0)
    expected = np.mean(log_softmax(flow.outputs(THETA)[0], axis=1)[np.arange(N), LABELS])
    np.testing.assert_allclose(search.best_score_, expected, rtol=1e-6)


def test_relative_time_counts_in_the_fastest_mode():
    weights = np.array([0.2, 1, 3, 1, 0.5, 2])
    r = 0.3 * np.average(np.diag(THETA), weights=weights)
    rate = np.max(np.linalg.eigvals(weights[:, None] * THETA).real) + r
    given = {"weights": weights, "regularization": 0.3}
    found = CrossEntropyFlow.on(THETA, LABELS, [0.0, 3.0], relative=True, **given)
    np.testing.assert_allclose(found.times, [0, 3 / rate])
    model = KernelClassifier("precomputed", loss="cross_entropy", time=3.0, relative_time=True, regularization=0.3)
    model.fit(5 * THETA, LABELS, sample_weight=weights)
    np.testing.assert_allclose(model.cross_entropy_flow_.times, [3 / rate / 5])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "hinge"}, "got loss='hinge', expected 'squared' or 'cross_entropy'"),
        ({"time": np.inf}, r"time=inf, expected a finite number: without weight decay"),
        ({"time": [1.0, 2.0]}, "expected a finite number"),
        ({"solver": "conjugate_gradients"}, "which solves squared losses: leave it out"),
    ],
)
def test_the_classifier_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        KernelClassifier("precomputed", **{"loss": "cross_entropy", "time": 1.0} | changed).fit(THETA, LABELS)
    model = KernelClassifier("precomputed", loss="cross_entropy", time=1.0).fit(THETA, LABELS)
    with pytest.raises(ValueError, match="take CrossEntropyFlow for several times"):
        model.outputs(TEST, time=2.0)
