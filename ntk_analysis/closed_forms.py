"""Closed forms of the duals of erf, sine and GELU, for `duals.ClosedForm`.

For f = phi and f = phi' each has `coincident`(q1, q2) = E[f(sqrt(q1) z) f(sqrt(q2) z)] and `drop`(q1, q2, distance),
how far E[f(u) f(v)] falls from there at correlation 1 - distance, written so that nothing cancels at small distances
(`erf_lost` counts from sqrt(E[f(u)^2] E[f(v)^2])).
"""

import math

import jax
import jax.numpy as jnp

from ntk_analysis.gaussian import geometric_mean, nearly_equal, quadrant_angle, safe_divide, safe_sqrt, zero_where


def determinant(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> jax.Array:
    """D = (1 + p1)(1 + p2) - K^2, where K = sqrt(p1 p2) (1 - distance): a sum of what is not negative."""
    return 1 + p1 + p2 + p1 * p2 * (distance * (2 - distance))


def inverse_root(x: jax.Array) -> jax.Array:
    """1/sqrt(x) of positive x; as a quotient, because XLA's inverse root costs more than root and quotient together."""
    return jnp.sqrt(x) / x


def arcsine(p1: jax.Array, p2: jax.Array) -> jax.Array:
    """arcsin(K / sqrt((1 + p1)(1 + p2))) at K = sqrt(p1 p2): twice the angle of tangent sin / (1 + cos)."""
    return 2 * quadrant_angle(geometric_mean(p1, p2), jnp.sqrt(1 + p1) * jnp.sqrt(1 + p2) + jnp.sqrt(1 + p1 + p2))


def erf_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf erf] = (2/pi) arcsin(2 K / sqrt((1 + 2 q1)(1 + 2 q2))) (Williams 1998), at rho = 1."""
    return (2 / math.pi) * arcsine(2 * q1, 2 * q2)


def erf_lost(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """sqrt(E[erf(u)^2] E[erf(v)^2]) - E[erf(u) erf(v)], without cancellation.

    With p = 2 q, w_i = sqrt(1 + 2 p_i), the angles a_i = arcsin(p_i / (1 + p_i)), their mean b and the angle c of the
    moment, the tangent of (b - c) / 2 is (sin b - sin c) / (cos b + cos c). Here it is extended by
    2 sqrt((1 + p1)(1 + p2)), and sin b - sin c is split at sqrt(sin a_1 sin a_2), from which sin b is
    sin^2((a_1 - a_2) / 2) away over their sum. Last, sqrt(a_1 a_2) = b - (sqrt(a_1) - sqrt(a_2))^2 / 2.
    """
    p1, p2 = 2 * q1, 2 * q2
    w1, w2, largest = jnp.sqrt(1 + 2 * p1), jnp.sqrt(1 + 2 * p2), geometric_mean(p1, p2)
    v1, v2 = 2 * p1 / (1 + w1), 2 * p2 / (1 + w2)  # w - 1
    apart = safe_divide((v1 - v2) ** 2, v1 * v2 + v1 + v2 + 2 * largest, 0.0)
    shares = (safe_sqrt(arcsine(p1, p1)) - safe_sqrt(arcsine(p2, p2))) ** 2 / 2
    apart, shares = (zero_where(nearly_equal(q1, q2), value) for value in (apart, shares))
    turned = quadrant_angle(apart + 2 * largest * distance, w1 + w2 + 2 * jnp.sqrt(determinant(p1, p2, distance)))
    return (2 / math.pi) * (2 * turned - shares)


def erf_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf' erf'] at rho = 1."""
    return (4 / math.pi) * inverse_root(1 + 2 * q1 + 2 * q2)


def erf_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[erf' erf'] = (4/pi) / sqrt((1 + 2 q1)(1 + 2 q2) - 4 K^2)."""
    return (4 / math.pi) * inverse_root(determinant(2 * q1, 2 * q2, distance))


def erf_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[erf' erf']."""
    return (4 / math.pi) * _inverse_root_drop(2 * q1, 2 * q2, distance)


def _inverse_root_drop(p1: jax.Array, p2: jax.Array, distance: jax.Array) -> jax.Array:
    """1/sqrt(D) at rho = 1 less 1/sqrt(D) at rho = 1 - distance."""
    smaller, larger = 1 + p1 + p2, determinant(p1, p2, distance)
    increase = p1 * p2 * (distance * (2 - distance))
    root1, root2 = jnp.sqrt(smaller), jnp.sqrt(larger)
    return increase / ((root1 + root2) * root1 * root2)


def wave_coincident(sign: int, q1: jax.Array, q2: jax.Array) -> jax.Array:
    """exp(-(q1 + q2)/2) sinh(K) for sign = -1 (sine), cosh(K) for sign = 1 (cosine), at K = sqrt(q1 q2)."""
    # both exponents are <= 0, so large variances underflow to the right limit and never overflow
    covariance, mean_variance = geometric_mean(q1, q2), (q1 + q2) / 2
    if sign < 0:
        return -jnp.exp(covariance - mean_variance) * jnp.expm1(-2 * covariance) / 2
    return (jnp.exp(covariance - mean_variance) + jnp.exp(-covariance - mean_variance)) / 2


def wave_drop(sign: int, q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of the same."""
    covariance, mean_variance = geometric_mean(q1, q2), (q1 + q2) / 2
    lost = covariance * distance
    waves = jnp.exp(covariance - mean_variance) - sign * jnp.exp(lost - covariance - mean_variance)
    return -jnp.expm1(-lost) * waves / 2


def gelu_orthant(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """P(z < u, z' < v) for independent standard normal z, z', at rho = 1: the factor of K in E[phi phi]."""
    return 1 / 4 + arcsine(q1, q2) / (2 * math.pi)


def gelu_orthant_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of the same: half the difference of two angles has the tangent (sin a - sin b) / (cos a + cos b)."""
    cosines = jnp.sqrt(1 + q1 + q2) + jnp.sqrt(determinant(q1, q2, distance))
    return quadrant_angle(geometric_mean(q1, q2) * distance, cosines) / math.pi


def gelu_weight(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """1/(1 + q1) + 1/(1 + q2)."""
    return 1 / (1 + q1) + 1 / (1 + q2)


def gelu_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi phi] at rho = 1, see `activations.Gelu`."""
    rest = q1 * q2 * gelu_weight(q1, q2) * inverse_root(1 + q1 + q2)
    return geometric_mean(q1, q2) * gelu_orthant(q1, q2) + rest / (2 * math.pi)


def gelu_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi phi]."""
    largest, product = geometric_mean(q1, q2), q1 * q2
    bend = (1 / (1 + q1)) * (1 / (1 + q2)) * (1 - product)  # coefficient of K^2
    rest = gelu_weight(q1, q2) * _inverse_root_drop(q1, q2, distance)
    rest = rest + bend * (distance * (2 - distance)) * inverse_root(determinant(q1, q2, distance))
    linear = distance * gelu_orthant(q1, q2) + (1 - distance) * gelu_orthant_drop(q1, q2, distance)
    return largest * linear + product * rest / (2 * math.pi)


def gelu_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi' phi'] at rho = 1."""
    return gelu_orthant(q1, q2) + geometric_mean(q1, q2) * _gelu_slope(q1, q2, 1 + q1 + q2)


def gelu_derivative(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """E[phi' phi'], see `activations.Gelu`."""
    slope = _gelu_slope(q1, q2, determinant(q1, q2, distance))
    covariance = geometric_mean(q1, q2) * (1 - distance)
    return gelu_orthant(q1, q2) - gelu_orthant_drop(q1, q2, distance) + covariance * slope


def _gelu_slope(q1: jax.Array, q2: jax.Array, determinant: jax.Array) -> jax.Array:
    """(1/(1 + q1) + 1/(1 + q2) + 1/D) / (2 pi sqrt(D))."""
    inverse = inverse_root(determinant)
    return (gelu_weight(q1, q2) + inverse**2) * inverse / (2 * math.pi)


def gelu_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi' phi']."""
    largest, smaller, larger = geometric_mean(q1, q2), 1 + q1 + q2, determinant(q1, q2, distance)
    covariance, increase = largest * (1 - distance), q1 * q2 * (distance * (2 - distance))
    weight = gelu_weight(q1, q2) + 1 / smaller
    # K w / sqrt(D) falls through K, through 1/sqrt(D) and through the 1/D inside the weight w, one after another
    rest = largest * distance * weight / jnp.sqrt(smaller)
    rest = rest + covariance * weight * _inverse_root_drop(q1, q2, distance)
    rest = rest + covariance * increase / (smaller * larger * jnp.sqrt(larger))
    return gelu_orthant_drop(q1, q2, distance) + rest / (2 * math.pi)
