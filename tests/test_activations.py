"""Gaussian facts of the activations against Monte Carlo, mpmath, automatic differentiation and each other."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis import activations
from ntk_analysis.activations import NAMED, Quadrature, get

EVERY = list(NAMED)
SMOOTH_CLOSED = ["erf", "gelu", "sine"]
DRAWS = 1_000_000


def derivative(activation, x):
    return jax.jvp(activation, (x,), (jnp.ones_like(x),))[1]


@pytest.fixture(scope="module")
def normal_pairs():
    return np.random.default_rng(0).standard_normal((2, DRAWS))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("q1", "q2", "rho"), [(1.0, 1.0, 0.3), (0.5, 2.0, -0.7), (3.0, 0.2, 0.95), (1.3, 1.3, -1.0)])
def test_moments_agree_with_monte_carlo(name, q1, q2, rho, normal_pairs):
    activation = get(name)
    z1, z2 = normal_pairs
    u = jnp.asarray(np.sqrt(q1) * z1)
    v = jnp.asarray(np.sqrt(q2) * (rho * z1 + np.sqrt(1 - rho**2) * z2))
    for samples, exact in (
        (activation(u) * activation(v), activation.dual(q1, q2, rho)),
        (derivative(activation, u) * derivative(activation, v), activation.derivative_dual(q1, q2, rho)),
        (activation(u), activation.mean(q1)),
    ):
        standard_error = float(jnp.std(samples)) / np.sqrt(DRAWS)
        assert abs(float(jnp.mean(samples)) - exact) <= 5 * standard_error + 1e-12


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


@pytest.mark.parametrize("name", [name for name in EVERY if name != "tanh"])
@pytest.mark.parametrize("variance", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("correlation", [1 - 1e-12, 1 - 1e-6, 0.6, -0.4, -0.999])
def test_distances_keep_their_digits_against_mpmath(name, variance, correlation):
    activation = get(name)
    with mpmath.workdps(40):
        for dual, exact in zip((activation.dual, activation.derivative_dual), mp_duals(name), strict=True):
            q, r = mpmath.mpf(variance), mpmath.mpf(correlation)
            drop = float(1 - exact(q, r) / exact(q, mpmath.mpf(1)))
            # rounding of order eps t in the angle t: 1e-16 / sqrt(2e-12) ~ 1e-10 at the closest pair
            assert dual.cosine_distance(variance, variance, 1 - correlation) == pytest.approx(drop, rel=2e-9, abs=1e-15)
            assert dual(variance, variance, correlation) == pytest.approx(float(exact(q, r)), rel=1e-13, abs=1e-15)


def test_tanh_keeps_its_digits_at_correlation_one():
    """(phi(u) - phi(v))^2 / 2 = (1 - rho) q phi'^2 up to terms of order (1 - rho)^2: one-dimensional integrals."""
    distance = 1 - (1 - 1e-12)

    def expectation(f):
        return mpmath.quad(lambda z: f(z) * mpmath.npdf(z), [-12, -4, 0, 4, 12])

    slopes = expectation(lambda z: mpmath.sech(z) ** 4)
    moment = expectation(lambda z: mpmath.tanh(z) ** 2)
    curvature = expectation(lambda z: (2 * mpmath.tanh(z) * mpmath.sech(z) ** 2) ** 2)
    tanh = get("tanh")
    assert tanh.dual.cosine_distance(1.0, 1.0, distance) == pytest.approx(float(distance * slopes / moment), rel=1e-9)
    # the derivative's dual falls at phi''; its quadrature error is that of a function with a third-order pole
    expected = float(distance * curvature / slopes)
    assert tanh.derivative_dual.cosine_distance(1.0, 1.0, distance) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("name", SMOOTH_CLOSED)
@given(
    q1=st.floats(0.05, 2.0),
    q2=st.floats(0.05, 2.0),
    rho=st.floats(-1.0, 1.0),
)
def test_quadrature_reproduces_closed_forms(name, q1, q2, rho):
    closed, quadrature = get(name), Quadrature(get(name))
    error = 10 * quadrature.quadrature_error(max(q1, q2)) + 1e-12
    assert quadrature.dual(q1, q2, rho) == pytest.approx(closed.dual(q1, q2, rho), abs=error)
    assert quadrature.derivative_dual(q1, q2, rho) == pytest.approx(closed.derivative_dual(q1, q2, rho), abs=error)
    assert quadrature.mean(q1) == pytest.approx(closed.mean(q1), abs=error)


def test_quadrature_error_covers_the_true_error():
    """Measured against tanh's moments from a trapezoid rule, spectrally accurate for analytic integrands."""
    z = np.arange(-14_000, 14_001) * 1e-3
    weight = np.exp(-(z**2) / 2)
    weight /= weight.sum()
    for variance, stated in ((1.0, (6e-13, 2.5e-11)), (4.0, (1.2e-6, 6e-5)), (16.0, (1.5e-3, 5e-2))):
        x = np.sqrt(variance) * z
        tanh = get("tanh")
        for dual, values, documented in zip(
            (tanh.dual, tanh.derivative_dual), (np.tanh(x) ** 2, np.cosh(x) ** -4), stated, strict=True
        ):
            true_error = abs(dual.second_moment(variance) / np.sum(values * weight) - 1)
            assert true_error <= documented
            assert true_error <= tanh.quadrature_error(variance) + 1e-12


def test_a_kinked_user_function_states_a_large_error():
    def hard(x):
        return jnp.clip(x, -1, 1)

    activation = get(hard)
    assert 1e-3 < activation.quadrature_error(1.0) < 0.5
    assert activation.name == "hard"


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(("q1", "q2"), [(1.0, 1.0), (0.7, 2.0), (0.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("rho", [-1.0, 0.4, 1.0])
def test_values_and_gradients_are_finite_at_the_edges(name, q1, q2, rho):
    activation = get(name)
    for dual in (activation.dual, activation.derivative_dual):
        value, gradient = jax.value_and_grad(lambda q, p, r, d=dual: d(q, p, r), argnums=(0, 1, 2))(q1, q2, rho)
        assert np.all(np.isfinite([value, *gradient]))
    assert np.isfinite(jax.grad(activation.mean)(q1))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.9, 1.0])
def test_price_theorem(name, rho):
    """d E[phi phi] / d rho = sqrt(q1 q2) E[phi' phi'], at correlation one too, where the chain rule is 0 x infinity."""
    activation = get(name)
    slope = jax.grad(lambda r: activation.dual(0.8, 1.5, r))(rho)
    expected = np.sqrt(0.8 * 1.5) * activation.derivative_dual(0.8, 1.5, rho)
    assert slope == pytest.approx(expected, rel=1e-6)  # tanh: quadrature error of phi' at variance 1.5


@pytest.mark.parametrize("name", EVERY)
def test_moments_are_symmetric_and_bounded(name):
    activation = get(name)
    for q1, q2, rho in itertools.product((0.3, 1.0), (0.5, 2.0), (-1.0, -0.2, 0.8)):
        dual = activation.dual
        assert dual(q1, q2, rho) == pytest.approx(dual(q2, q1, rho), abs=1e-14)
        assert abs(dual(q1, q2, rho)) <= np.sqrt(dual.second_moment(q1) * dual.second_moment(q2)) * (1 + 1e-12)


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
        batched = jax.vmap(lambda r: get("tanh").dual(1.0, 1.0, r))(jnp.linspace(0, 1, 4))
        assert batched.shape == (4,)


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
        (lambda x: x @ x.T @ x["no"], TypeError, "failed"),
    ],
)
def test_bad_activations_are_named(bad, error, words):
    with pytest.raises(error, match=words):
        get(bad)


def test_bias_that_leaves_no_gain():
    with pytest.raises(ValueError, match="b_var=1"):
        get("relu").stable_gain(1.0)
    with pytest.raises(ValueError, match="constant"):
        get(jnp.ones_like).stable_gain(centered=True)
