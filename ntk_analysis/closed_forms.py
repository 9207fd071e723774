"""Closed forms of the duals of erf, sine and GELU, for `duals.ClosedForm`.

For f = phi and f = phi' each has `coincident`(q1, q2) = E[f(sqrt(q1) z) f(sqrt(q2) z)] and `drop`(q1, q2, distance),
how far E[f(u) f(v)] falls from there at correlation 1 - distance, written so that nothing cancels at small distances.
"""

import math

import jax
import jax.numpy as jnp

from ntk_analysis.gaussian import arcsine_difference, geometric_mean


def erf_cosine(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Correlation of the arguments inside the arcsine, at rho = 1."""
    return geometric_mean(2 * q1 / (1 + 2 * q1), 2 * q2 / (1 + 2 * q2))


def erf_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """(2/pi) arcsin of it (Williams 1998)."""
    return (2 / math.pi) * jnp.arcsin(erf_cosine(q1, q2))


def erf_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[erf erf]."""
    return (2 / math.pi) * arcsine_difference(erf_cosine(q1, q2), distance)


def erf_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[erf' erf'] = (4/pi) / sqrt((1 + 2 q1)(1 + 2 q2) - 4 K^2), at K^2 = q1 q2."""
    return (4 / math.pi) / jnp.sqrt(1 + 2 * q1 + 2 * q2)


def erf_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[erf' erf']."""
    smaller = 1 + 2 * q1 + 2 * q2
    return (4 / math.pi) * _inverse_root_drop(smaller, 4 * q1 * q2 * distance * (2 - distance))


def _inverse_root_drop(x: jax.Array, increase: jax.Array) -> jax.Array:
    """1/sqrt(x) - 1/sqrt(x + increase) without cancellation."""
    root, larger = jnp.sqrt(x), jnp.sqrt(x + increase)
    return increase / ((root + larger) * root * larger)


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


def gelu_cosine(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """K / sqrt((1 + q1)(1 + q2)) at rho = 1."""
    return geometric_mean(q1 / (1 + q1), q2 / (1 + q2))


def gelu_bend(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """Coefficient of K^2 in E[phi phi], see `activations.Gelu`."""
    return (1 - q1 * q2) / ((1 + q1) * (1 + q2))


def gelu_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi phi] at rho = 1, see `activations.Gelu`."""
    product, determinant = q1 * q2, 1 + q1 + q2
    orthant = 1 / 4 + jnp.arcsin(gelu_cosine(q1, q2)) / (2 * math.pi)
    rest = product * (1 + gelu_bend(q1, q2)) / (2 * math.pi * jnp.sqrt(determinant))
    return geometric_mean(q1, q2) * orthant + rest


def gelu_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi phi]."""
    largest, product, cosine = geometric_mean(q1, q2), q1 * q2, gelu_cosine(q1, q2)
    square_lost = product * distance * (2 - distance)
    orthant = 1 / 4 + jnp.arcsin(cosine) / (2 * math.pi)
    linear = largest * distance * orthant
    turned = largest * (1 - distance) * arcsine_difference(cosine, distance) / (2 * math.pi)
    determinant, bend = 1 + q1 + q2, gelu_bend(q1, q2)
    numerator = product * (1 + bend)
    rest = numerator * _inverse_root_drop(determinant, square_lost)
    rest = rest + bend * square_lost / jnp.sqrt(determinant + square_lost)
    return linear + turned + rest / (2 * math.pi)


def gelu_derivative_coincident(q1: jax.Array, q2: jax.Array) -> jax.Array:
    """E[phi' phi'] at rho = 1, see `activations.Gelu`."""
    determinant = 1 + q1 + q2
    weight = 1 / (1 + q1) + 1 / (1 + q2) + 1 / determinant
    orthant = 1 / 4 + jnp.arcsin(gelu_cosine(q1, q2)) / (2 * math.pi)
    return orthant + geometric_mean(q1, q2) * weight / (2 * math.pi * jnp.sqrt(determinant))


def gelu_derivative_drop(q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
    """Fall of E[phi' phi']."""
    largest, determinant = geometric_mean(q1, q2), 1 + q1 + q2
    square_lost = q1 * q2 * distance * (2 - distance)
    covariance, larger = largest * (1 - distance), determinant + square_lost
    fixed_weight = 1 / (1 + q1) + 1 / (1 + q2)
    weight = fixed_weight + 1 / determinant
    root_drop = _inverse_root_drop(determinant, square_lost)
    # K w / sqrt(D) falls through K, through 1/sqrt(D) and through the 1/D inside the weight w, one after another
    rest = largest * distance * weight / jnp.sqrt(determinant)
    rest = rest + covariance * weight * root_drop
    rest = rest + covariance * square_lost / (determinant * larger * jnp.sqrt(larger))
    return arcsine_difference(gelu_cosine(q1, q2), distance) / (2 * math.pi) + rest / (2 * math.pi)
