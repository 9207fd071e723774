"""Covariances as variances and distances: sums and differences against 50 digits, where doubles would cancel."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.covariances import Covariance

VARIANCE = st.floats(1e-3, 1e3)
DISTANCE = st.floats(1e-14, 2.0)


def pair(q1, q2, distance):
    return Covariance(*(jnp.asarray(value, jnp.float64) for value in (q1, q2, distance)))


def exact(covariance):
    q1, q2, d = (mpmath.mpf(float(value)) for value in covariance)
    return q1, q2, mpmath.sqrt(q1 * q2) * (1 - d)


def distance_of(q1, q2, k):
    return float(1 - k / mpmath.sqrt(q1 * q2))


@given(q1=VARIANCE, q2=VARIANCE, d=DISTANCE, p1=VARIANCE, p2=VARIANCE, e=DISTANCE)
def test_sum(q1, q2, d, p1, p2, e):
    left, right = pair(q1, q2, d), pair(p1, p2, e)
    with mpmath.workdps(50):
        expected = distance_of(*(a + b for a, b in zip(exact(left), exact(right), strict=True)))
    total = covariances.add(left, right)
    # unequal ratios q1/q2 and p1/p2 cost eps^2 absolutely, which is nothing beside 1e-14
    assert float(total.distance) == pytest.approx(expected, rel=1e-11)
    assert float(total.value) == pytest.approx(float(left.value + right.value), rel=1e-10, abs=1e-12 * (q1 + p1))


@given(q1=VARIANCE, q2=VARIANCE, d=DISTANCE, bias=st.floats(0, 10), factor=st.floats(1e-3, 1e3))
def test_constant_and_factor(q1, q2, d, bias, factor):
    covariance = pair(q1, q2, d)
    shifted = covariances.add_constant(covariances.scale(covariance, factor), bias)
    with mpmath.workdps(50):
        expected = distance_of(*(mpmath.mpf(factor) * value + mpmath.mpf(bias) for value in exact(covariance)))
    assert float(shifted.distance) == pytest.approx(expected, rel=1e-11)
    assert float(shifted.variance1) == pytest.approx(factor * q1 + bias, rel=1e-15)


@given(q=VARIANCE, d=st.floats(1e-14, 0.5), share1=st.floats(0, 0.5), share2=st.floats(0, 0.5))
def test_difference(q, d, share1, share2):
    """Means of at most half the second moment; where both are equal, digits do not depend on the distance."""
    moment = pair(q, q, d)
    for first, second in ((share1, share1), (share1, share2)):
        m1, m2 = (jnp.sqrt(share * q) for share in (first, second))
        with mpmath.workdps(50):
            a, b = mpmath.mpf(float(m1)), mpmath.mpf(float(m2))
            q1, q2, k = exact(moment)
            q1, q2, k = q1 - a * a, q2 - b * b, k - a * b
            if abs(k) > mpmath.sqrt(q1 * q2):
                continue  # not a covariance: these means do not fit this distance
            expected = distance_of(q1, q2, k)
        centered = covariances.subtract_means(moment, m1, m2)
        assert float(centered.distance) == pytest.approx(expected, rel=1e-9, abs=1e-14 * (first != second))


@jax.jit
def distances_to_itself(q, p):
    whole = covariances.add(Covariance(q, q, 0 * q), Covariance(p, p, 0 * p))
    mean = 0.5 * jnp.sqrt(q)
    return whole.distance, covariances.subtract_means(Covariance(q, q, 0 * q), mean, mean).distance


@given(q=VARIANCE, p=VARIANCE)
def test_a_variable_with_itself_stays_at_distance_zero(q, p):
    """Under jit too, where a fused multiply-add must not leave a rounding behind."""
    for dtype in (np.float32, np.float64):
        assert distances_to_itself(jnp.asarray(q, dtype), jnp.asarray(p, dtype)) == (0, 0)


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1, 2))
def with_nothing_added(q1, q2, distance):
    covariance = covariances.add_constant(Covariance(q1, q2, distance), 0.0)
    centered = covariances.subtract_means(covariance, 0 * q1, 0 * q2)
    return centered.value + centered.distance


@pytest.mark.parametrize("distance", [0.0, 0.5, 2.0])
def test_zero_variances_leave_values_and_gradients_finite(distance):
    value, gradient = with_nothing_added(*map(jnp.asarray, (0.0, 1.0, distance)))
    assert np.all(np.isfinite([value, *gradient]))
    assert float(covariances.add(pair(0, 1, distance), pair(0, 1, distance)).distance) == distance
    with_bias = covariances.add_constant(pair(0, 0, distance), 0.3)
    assert float(with_bias.distance) == 0  # nothing is left but the shared bias


def test_shapes_broadcast_as_columns_and_rows():
    covariance = Covariance(jnp.ones((2, 1)), jnp.ones((1, 3)), jnp.full((2, 3), 0.5))
    shifted = jax.jit(covariances.add_constant, static_argnums=1)(covariance, 1.0)
    assert [value.shape for value in shifted] == [(2, 1), (1, 3), (2, 3)]
    np.testing.assert_allclose(shifted.value, 1.5)
