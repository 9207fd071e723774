"""Sums and differences of covariances in the form (variance, variance, cosine distance).

A covariance between two families of variables is held as variances q1, q2 and the distance d of each pair:
K = sqrt(q1 q2) (1 - d). Adding a bias, adding a residual branch and subtracting the mean are then steps on d that never
subtract nearly equal numbers. All three rest on Lagrange's identity
(q1 + p1)(q2 + p2) - (sqrt(q1 q2) + sqrt(p1 p2))^2 = (sqrt(q1 p2) - sqrt(p1 q2))^2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk_analysis.gaussian import geometric_mean, into_range, safe_divide, safe_sqrt


class Covariance(NamedTuple):
    """Covariance of paired variables: variances of either side and 1 - correlation; the three broadcast together."""

    variance1: jax.Array
    variance2: jax.Array
    distance: jax.Array

    @property
    def value(self) -> jax.Array:
        """sqrt(q1 q2) (1 - distance)."""
        return geometric_mean(self.variance1, self.variance2) * (1 - self.distance)


def scale(covariance: Covariance, factor: float | jax.Array) -> Covariance:
    """factor K, factor >= 0."""
    return Covariance(covariance.variance1 * factor, covariance.variance2 * factor, covariance.distance)


def add(left: Covariance, right: Covariance) -> Covariance:
    """K + P."""
    q1, q2, p1, p2 = left.variance1, left.variance2, right.variance1, right.variance2
    total = geometric_mean(q1 + p1, q2 + p2)
    first, second = geometric_mean(q1, q2), geometric_mean(p1, p2)
    # compared, because a fused multiply-add may leave a rounding where the two products are the same
    mismatch = jnp.where(
        (q1 == q2) & (p1 == p2), 0, (safe_sqrt(q1) * safe_sqrt(p2) - safe_sqrt(p1) * safe_sqrt(q2)) ** 2
    )
    lost = safe_divide(mismatch, total + first + second, 0.0) + first * left.distance + second * right.distance
    return Covariance(q1 + p1, q2 + p2, into_range(safe_divide(lost, total, left.distance)))


def add_constant(covariance: Covariance, variance: float) -> Covariance:
    """K + variance: a random bias shared by all inputs."""
    constant = jnp.full_like(covariance.variance1, variance), jnp.full_like(covariance.variance2, variance)
    return add(covariance, Covariance(*constant, jnp.zeros_like(covariance.distance)))


def subtract_means(moment: Covariance, mean1: jax.Array, mean2: jax.Array) -> Covariance:
    """E[y y'] - E[y] E[y']: a second moment made a covariance about the means."""
    centered1 = jnp.maximum(moment.variance1 - mean1**2, 0)
    centered2 = jnp.maximum(moment.variance2 - mean2**2, 0)
    whole, rest = geometric_mean(moment.variance1, moment.variance2), geometric_mean(centered1, centered2)
    mismatch = jnp.where(
        (centered1 == centered2) & (mean1 == mean2),  # as in add
        0,
        (safe_sqrt(centered1) * mean2 - safe_sqrt(centered2) * mean1) ** 2,
    )
    lost = whole * moment.distance - safe_divide(mismatch, whole + rest + mean1 * mean2, 0.0)
    return Covariance(centered1, centered2, into_range(safe_divide(lost, rest, moment.distance)))
