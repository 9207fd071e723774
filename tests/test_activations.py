"""Gaussian facts of the activations against Monte Carlo, mpmath, automatic differentiation and each other."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_analysis import activations
from ntk_analysis.activations import NAMED, Quadrature, get
from ntk_analysis.activations.panels import panels

from .exact_duals import EXACT, drawn
from .tiers import full

INTEGRATED = [name for name, activation in NAMED.items() if isinstance(activation, Quadrature)]
SHOWN = ["tanh"]  # of those: one with kinks is in test_quadrature.py
EVERY = [name for name in NAMED if name not in INTEGRATED] + SHOWN
EVERY += full(*(name for name in INTEGRATED if name not in SHOWN))
SMOOTH_CLOSED = ["erf", "gelu", "sine"]
DRAWS = 1_000_000
AT_ONCE = 64
GRADIENTS_AT_ONCE = 12


def grid(*axes):
    """All combinations of these values, as one array for each axis."""
    return tuple(np.array(list(itertools.product(*axes))).T)


def at_once(function, *arguments):
    """The function at all points, filled up to one size: each primitive then compiles once for the whole module."""
    arrays = np.broadcast_arrays(*arguments)
    assert arrays[0].size <= AT_ONCE
    return function(*(np.resize(array, AT_ONCE) for array in arrays))[: arrays[0].size]


@pytest.fixture(scope="module")
def normal_pairs():
    return np.random.default_rng(0).standard_normal((2, DRAWS))


@pytest.mark.parametrize("name", [name for name in EVERY if name != "tanh"] + full("tanh"))
def test_moments_agree_with_monte_carlo(name, normal_pairs):
    activation = get(name)
    value_and_slope = jax.jit(lambda x: jax.jvp(activation, (x,), (jnp.ones_like(x),)))
    cases = np.array([(1.0, 1.0, 0.3), (0.5, 2.0, -0.7), (3.0, 0.2, 0.95), (1.3, 1.3, -1.0)])
    variances = cases[:, 0]
    exact = [at_once(dual, *cases.T) for dual in (activation.dual, activation.derivative_dual)]
    exact.append(at_once(activation.mean, variances))
    z1, z2 = normal_pairs
    for (q1, q2, rho), *moments in zip(cases, *exact, strict=True):
        value1, slope1 = map(np.asarray, value_and_slope(np.sqrt(q1) * z1))
        value2, slope2 = map(np.asarray, value_and_slope(np.sqrt(q2) * (rho * z1 + np.sqrt(1 - rho**2) * z2)))
        for samples, moment in zip((value1 * value2, slope1 * slope2, value1), moments, strict=True):
            standard_error = np.std(samples) / np.sqrt(DRAWS)
            # 1e-9 is more than the error stated anywhere here, for products that are 0 in every draw
            assert abs(np.mean(samples) - moment) <= 5 * standard_error + 1e-9


def mp_duals(name):
    """E[phi phi] and E[phi' phi'] at variances q and correlation r in 40 digits, as textbooks print them."""
    mp = mpmath.mp

    def piecewise(linear, bent):
        def value(q, r):
            t = mp.acos(r)
            return q * (linear**2 * r + bent**2 * (2 / mp.pi) * (mp.sin(t) + (mp.pi / 2 - t) * r))

        return value, lambda q, r: linear**2 + bent**2 * (1 - 2 * mp.acos(r) / mp.pi)

    def gelu_pair():
        def value(q, r):
            k, d = q * r, (1 + q) ** 2 - (q * r) ** 2
            arc = mp.mpf(1) / 4 + mp.asin(k / (1 + q)) / (2 * mp.pi)
            return k * arc + (q**2 + k**2 * (1 - q**2) / (1 + q) ** 2) / (2 * mp.pi * mp.sqrt(d))

        def slope(q, r):
            k, d = q * r, (1 + q) ** 2 - (q * r) ** 2
            arc = mp.mpf(1) / 4 + mp.asin(k / (1 + q)) / (2 * mp.pi)
            return arc + k * (2 / (1 + q) + 1 / d) / (2 * mp.pi * mp.sqrt(d))

        return value, slope

    return {
        "identity": piecewise(mp.mpf(1), mp.mpf(0)),
        "relu": piecewise(mp.mpf(1) / 2, mp.mpf(1) / 2),
        "leaky_relu": piecewise((1 + mp.mpf(0.01)) / 2, (1 - mp.mpf(0.01)) / 2),
        "abs": piecewise(mp.mpf(0), mp.mpf(1)),
        "erf": (
            lambda q, r: 2 / mp.pi * mp.asin(2 * q * r / (1 + 2 * q)),
            lambda q, r: 4 / mp.pi / mp.sqrt((1 + 2 * q) ** 2 - (2 * q * r) ** 2),
        ),
        "sine": (lambda q, r: mp.exp(-q) * mp.sinh(q * r), lambda q, r: mp.exp(-q) * mp.cosh(q * r)),
        "gelu": gelu_pair(),
    }[name]


@pytest.mark.parametrize("name", [name for name in NAMED if name not in INTEGRATED])
def test_distances_keep_their_digits_against_mpmath(name):
    activation = get(name)
    variance, correlation = grid((1.0, 0.3, 2.5), (1 - 1e-12, 1 - 1e-6, 0.6, -0.4, -0.999))
    for dual, exact in zip((activation.dual, activation.derivative_dual), mp_duals(name), strict=True):
        with mpmath.workdps(40):
            pairs = [(mpmath.mpf(q), mpmath.mpf(r)) for q, r in zip(variance, correlation, strict=True)]
            moments = np.array([float(exact(q, r)) for q, r in pairs])
            drops = np.array([float(1 - exact(q, r) / exact(q, mpmath.mpf(1))) for q, r in pairs])
        # rounding of order eps t in the angle t: 1e-16 / sqrt(2e-12) ~ 1e-10 at the closest pair
        distance = at_once(dual.cosine_distance, variance, variance, 1 - correlation)
        assert distance == pytest.approx(drops, rel=2e-9, abs=1e-15)
        assert at_once(dual, variance, variance, correlation) == pytest.approx(moments, rel=1e-13, abs=1e-15)


@pytest.mark.parametrize("name", ["gelu", "erf"])
def test_distances_at_unequal_variances_are_off_by_what_is_stated(name):
    """What unequal variances alone cost is of second order in their difference; it cancels for large or small ones."""
    dual, value = get(name).dual, EXACT[name].value
    q1 = np.array([1e-6, 0.02, 1.0, 1.0, 1.0, 3.0, 40.0, 300.0, 1e4])
    q2 = q1 * np.array([1.3, 0.9, 1 + 1e-5, 1.02, 2.0, 0.7, 1 + 1e-4, 1.2, 0.99])
    points = np.concatenate([np.stack([q1, q2, np.array([0.0] * 8 + [1e-12])]), drawn(40)], axis=1)
    with mpmath.workdps(60):
        exact = [tuple(map(mpmath.mpf, point)) for point in points.T]
        distances = [1 - value(p, q, d) / mpmath.sqrt(value(p, p, 0) * value(q, q, 0)) for p, q, d in exact]
    found, expected = dual.moment(*points), np.array(distances, np.float64)
    roundings = 8 * np.finfo(float).eps * expected  # of any distance
    assert np.all(np.abs(found.distance - expected) <= found.distance_error + roundings)
    # which is a statement: at moderate variances some ten roundings more
    moderate = (points[:2] > 0.1).all(axis=0) & (points[:2] < 4).all(axis=0) & (points[2] < 1)
    assert np.all(found.distance_error[moderate] <= 1e-14)


def test_tanh_keeps_its_digits_at_correlation_one():
    """(phi(u) - phi(v))^2 / 2 = (1 - rho) q phi'^2 up to terms of order (1 - rho)^2: one-dimensional integrals."""
    distance = 1 - (1 - 1e-12)

    def expectation(f):
        return mpmath.quad(lambda z: f(z) * mpmath.npdf(z), [-12, -4, 0, 4, 12])

    slopes = expectation(lambda z: mpmath.sech(z) ** 4)
    moment = expectation(lambda z: mpmath.tanh(z) ** 2)
    curvature = expectation(lambda z: (2 * mpmath.tanh(z) * mpmath.sech(z) ** 2) ** 2)
    tanh = get("tanh")
    assert at_once(tanh.dual.cosine_distance, [1.0], 1.0, distance) == pytest.approx(
        float(distance * slopes / moment), rel=1e-9
    )
    # the derivative's dual falls at phi''; its quadrature error is that of a function with a third-order pole
    expected = float(distance * curvature / slopes)
    assert at_once(tanh.derivative_dual.cosine_distance, [1.0], 1.0, distance) == pytest.approx(expected, rel=1e-7)


@pytest.mark.full
@pytest.mark.parametrize("name", SMOOTH_CLOSED)
def test_quadrature_reproduces_closed_forms(name):
    closed, quadrature = get(name), Quadrature(get(name))
    variances = (0.05, 0.7, 2.0)
    q1, q2, _ = points = grid(variances, variances, (-1.0, -0.83, -0.2, 0.0, 0.45, 0.97, 1.0))
    errors = {q: quadrature.quadrature_error(q) + 1e-12 for q in variances}
    allowed = np.array([errors[q] for q in np.maximum(q1, q2)])
    for ours, exact, arguments in (
        (quadrature.dual, closed.dual, points),
        (quadrature.derivative_dual, closed.derivative_dual, points),
        (quadrature.mean, closed.mean, (q1,)),
    ):
        assert np.all(np.abs(at_once(ours, *arguments) - at_once(exact, *arguments)) <= allowed)


def test_a_user_function_with_kinks_is_integrated_between_them():
    def hard(x):
        return jnp.clip(x, -1, 1)

    activation = get(hard)
    assert activation.name == "hard"
    assert panels(hard).kinks == pytest.approx((-1, 1), abs=1e-12)
    with mpmath.workdps(30):
        exact = mpmath.quad(lambda z: min(z**2, 1) * mpmath.npdf(z), [-12, -1, 0, 1, 12])
    assert abs(activation.dual.second_moment(1.0) / float(exact) - 1) <= activation.quadrature_error(1.0) < 1e-11


@pytest.mark.parametrize("name", [name for name in EVERY if name not in (*SHOWN, "gelu")] + full(*SHOWN, "gelu"))
def test_values_and_gradients_are_finite_at_the_edges(name):
    activation = get(name)
    q1, q2 = np.array([(1.0, 1.0), (0.7, 2.0), (0.0, 1.0), (0.0, 0.0)]).repeat(3, axis=0).T
    points = (q1, q2, np.tile([-1.0, 0.4, 1.0], 4))
    for function, arguments in (
        (activation.dual, points),
        (activation.derivative_dual, points),
        (activation.mean, (q1,)),
    ):
        assert np.all(np.isfinite(at_once(function, *arguments)))
        for gradient in gradients(function, *arguments):
            assert np.all(np.isfinite(gradient))


@functools.cache
def gradient_program(function, count):
    return jax.jit(jax.grad(lambda *points: jnp.sum(function(*points)), tuple(range(count))))


def gradients(function, *arguments):
    """By each argument, at all points."""
    arrays = [jnp.asarray(np.resize(array, GRADIENTS_AT_ONCE)) for array in np.broadcast_arrays(*arguments)]
    assert np.size(arguments[0]) <= GRADIENTS_AT_ONCE
    by_each = gradient_program(function, len(arrays))(*arrays)
    return [gradient[: np.size(arguments[0])] for gradient in by_each]


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SHOWN] + full(*SHOWN))
def test_price_theorem(name):
    """d E[phi phi] / d rho = sqrt(q1 q2) E[phi' phi'], at correlation one too, where the chain rule is 0 x infinity."""
    activation = get(name)
    points = grid((0.8,), (1.5,), (-0.5, 0.0, 0.9, 1.0))
    slope = gradients(activation.dual, *points)[2]
    expected = np.sqrt(0.8 * 1.5) * at_once(activation.derivative_dual, *points)
    assert np.asarray(slope) == pytest.approx(expected, rel=1e-6)  # tanh: quadrature error of phi' at variance 1.5


@pytest.mark.parametrize("name", EVERY)
def test_moments_are_symmetric_and_bounded(name):
    dual = get(name).dual
    q1, q2, rho = grid((0.3, 1.0), (0.5, 2.0), (-1.0, -0.2, 0.8))
    moment = at_once(dual, q1, q2, rho)
    assert moment == pytest.approx(at_once(dual, q2, q1, rho), abs=1e-14)
    largest = np.sqrt(at_once(dual.second_moment, q1) * at_once(dual.second_moment, q2))
    assert np.all(np.abs(moment) <= largest * (1 + 1e-12))


def test_relu_golden_values():
    """Golden values of the theory: phihat(0), phihat(1), phihat'(0), phihat'(1)."""
    relu = get("relu")
    assert relu.dual(1.0, 1.0, 0.0) == pytest.approx(1 / (2 * np.pi), rel=1e-15)
    assert relu.dual(1.0, 1.0, 1.0) == pytest.approx(0.5, rel=1e-14)
    assert relu.derivative_dual(1.0, 1.0, 0.0) == pytest.approx(0.25, rel=1e-15)
    assert relu.derivative_dual(1.0, 1.0, 1.0) == pytest.approx(0.5, rel=1e-14)
    assert relu.stable_gain() == 2.0
    assert relu.stable_gain(centered=True) == pytest.approx(2 / (1 - 1 / np.pi), rel=1e-14)
    assert relu.stable_gain(0.25) == 1.5


def test_dtype_follows_the_caller():
    relu = get("relu")
    with jax.enable_x64(False):
        assert isinstance(relu.dual(1.0, 1.0, 0.5), np.float64)
        assert relu.dual(np.ones(3), 1.0, 0.5).dtype == np.float64
        single = jnp.ones(3)
        assert relu.dual(single, single, single * 0.5).dtype == jnp.float32
        assert jax.jit(lambda q: relu.dual(q, q, 0.5))(1.0).dtype == jnp.float32
        batched = jax.jit(jax.vmap(lambda r: get("tanh").dual(1.0, 1.0, r)))(jnp.linspace(0, 1, 4))
        assert batched.shape == (4,)


NUMBERS = itertools.count(1)


def test_activations_are_values():
    assert activations.leaky_relu(0.2) == get("leaky_relu(0.2)")
    assert hash(get("gelu")) == hash(activations.Gelu())
    assert get("linear") is activations.identity
    assert str(get("leaky_relu(0.2)")) == "leaky_relu(0.2)"


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("rleu", ValueError, "choose one of relu"),
        ("leaky_relu(x)", ValueError, "finite number"),
        (3, TypeError, "expected a name"),
        (lambda x: x.sum(), TypeError, "same shape"),
        (lambda x: (x, x), TypeError, "same shape.*got tuple"),
        (lambda x: x @ x.T @ x["no"], TypeError, "failed"),
        (np.exp, TypeError, r"pass jax\.numpy\.exp$"),
        (np.sinc, TypeError, r"pass jax\.numpy\.sinc$"),
        (lambda x: np.tanh(x), TypeError, r"TracerArrayConversionError.*write it with functions of jax\.numpy$"),
        (lambda x: jnp.tanh(x) * np.random.default_rng().normal(), ValueError, "changes from call to call"),
        (lambda x: jnp.tanh(x) * next(NUMBERS), ValueError, "changes from call to call"),
        (jax.nn.softmax, ValueError, "every number by itself"),
        (jnp.sort, ValueError, "every number by itself"),
    ],
    ids=[
        "unknown",
        "slope",
        "number",
        "sum",
        "tuple",
        "fails",
        "ufunc",
        "function",
        "calls",
        "random",
        "counter",
        "softmax",
        "sort",
    ],
)
def test_bad_activations_are_named(bad, error, words):
    with pytest.raises(error, match=words):
        get(bad)


def waves(x):
    return jnp.cos(x) + 1


@pytest.mark.parametrize("phi", ["tanh", *full("relu6", waves, jnp.exp)], ids=["tanh", "relu6", "cosine", "exp"])
def test_variances_beyond_what_is_known_are_refused(phi):
    """By every public call outside of transformations; inside them answers and derivatives are NaN, there only."""
    phi = get(phi)
    largest = phi.largest_variance
    beyond = [1.01 * largest, 1e300, np.inf, np.array([1.0, 2 * largest]), jnp.float32(2 * largest)]
    calls = [phi.mean]
    for dual in (phi.dual, phi.derivative_dual):
        calls.append(dual.second_moment)
        for method in (dual, dual.moment, dual.cosine_distance, dual.at_distance):
            calls += [lambda q, method=method: method(q, 1.0, 0.5), lambda q, method=method: method(1.0, q, 0.5)]
    known = re.escape(f"{largest:.6g}")
    words = rf"got a variance of .*, but expectations of .*{phi.name}.* are known up to {known} .*: use a smaller"
    for call, q in itertools.product(calls, beyond):
        with pytest.raises(ValueError, match=words):
            call(q)
    with pytest.raises(ValueError, match=words):
        phi.dual.second_moment(variance=2 * largest)
    with pytest.raises(ValueError, match=words):
        phi.in_variance(np.array([2 * largest]))
    assert np.isfinite(phi.dual.second_moment(largest))
    assert np.isnan(phi.quadrature_error(2 * largest)), "asks what is known"
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(phi.dual.second_moment)))(jnp.array([2 * largest, largest / 2]))
    for traced in (value, slope):
        assert np.array_equal(np.isnan(traced), [True, False])


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_numbers_that_no_gaussians_have_are_refused(name):
    """Where NaN would come out, or, by a root that is guarded at 0, a number."""
    phi = get(name)
    for variance in (np.nan, -1.0, -1e-9, np.array([1.0, np.nan])):
        calls = [
            lambda: phi.mean(variance),  # noqa: B023
            lambda: phi.dual.second_moment(variance),  # noqa: B023
            lambda: phi.derivative_dual(1.0, variance, 0.5),  # noqa: B023
            lambda: phi.dual.moment(variance, 1.0, 0.5),  # noqa: B023
        ]
        for call in calls:
            with pytest.raises(ValueError, match=r"got variance\d? = (nan|-1|-1e-09), expected a number of at least 0"):
                call()
    for correlation in (1.01, -2.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"got correlation = .*, expected a number from -1 to 1"):
            phi.dual(1.0, 1.0, correlation)
    with pytest.raises(ValueError, match=r"got distance = 2\.5, expected a number from 0 to 2"):
        phi.dual.cosine_distance(1.0, 1.0, 2.5)
    assert np.isfinite(phi.dual(1.0, 1.0, np.nextafter(1, 2)))


def test_bias_that_leaves_no_gain():
    with pytest.raises(ValueError, match="b_var=1"):
        get("relu").stable_gain(1.0)
    with pytest.raises(ValueError, match="constant"):
        get(jnp.ones_like).stable_gain(centered=True)
