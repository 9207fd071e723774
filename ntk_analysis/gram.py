"""Sums and differences of covariances in the form (variance, variance, cosine distance).

A covariance between two families of variables is held as variances q1, q2 and the distance d of each pair:
K = sqrt(q1 q2) (1 - d). Adding a bias, adding a residual branch, averaging over a window and subtracting the mean are
then steps on d that never subtract nearly equal numbers. They rest on Lagrange's identity
(q1 + p1)(q2 + p2) - (sqrt(q1 q2) + sqrt(p1 p2))^2 = (sqrt(q1 p2) - sqrt(p1 q2))^2.
"""

from collections.abc import Sequence
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
    difference = jnp.where((q1 == q2) & (p1 == p2), 0, safe_sqrt(q1) * safe_sqrt(p2) - safe_sqrt(p1) * safe_sqrt(q2))
    mismatch = _square_over(difference, total + first + second)
    lost = mismatch + first * left.distance + second * right.distance
    return Covariance(q1 + p1, q2 + p2, into_range(safe_divide(lost, total, left.distance)))


def add_constant(covariance: Covariance, variance: float) -> Covariance:
    """K + variance: a random bias shared by all inputs."""
    constant = jnp.full_like(covariance.variance1, variance), jnp.full_like(covariance.variance2, variance)
    return add(covariance, Covariance(*constant, jnp.zeros_like(covariance.distance)))


def average(parts: Sequence[Covariance], count: int) -> Covariance:
    """(P_1 + P_2 + ...) / count, the parts of one shape; fewer parts than `count` leave zeros."""
    q1, q2 = (sum(variances[1:], variances[0]) / count for variances in list(zip(*parts, strict=True))[:2])
    root1, root2 = safe_sqrt(q1), safe_sqrt(q2)
    lost = [_lost(part, root1, root2) for part in parts]
    return Covariance(q1, q2, into_range(sum(lost[1:], lost[0]) / count))


def mean(covariance: Covariance, axes: tuple[int, ...]) -> Covariance:
    """Mean over these axes, which no side may broadcast along; they are removed."""
    q1, q2 = (jnp.mean(variance, axes, keepdims=True) for variance in covariance[:2])
    lost = jnp.mean(_lost(covariance, safe_sqrt(q1), safe_sqrt(q2)), axes)
    return Covariance(jnp.squeeze(q1, axes), jnp.squeeze(q2, axes), into_range(lost))


def _lost(part: Covariance, root1: jax.Array, root2: jax.Array) -> jax.Array:
    """This part's share of 1 - correlation of a sum with deviations root1 and root2: two terms, neither negative."""
    share1 = safe_divide(safe_sqrt(part.variance1), root1, 0.0)
    share2 = safe_divide(safe_sqrt(part.variance2), root2, 0.0)
    mismatch = jnp.where(share1 == share2, 0, (share1 - share2) ** 2 / 2)
    return mismatch + share1 * share2 * part.distance


def subtract_means(moment: Covariance, mean1: jax.Array, mean2: jax.Array) -> Covariance:
    """E[y y'] - E[y] E[y']: a second moment made a covariance about the means."""
    centered1 = jnp.maximum(moment.variance1 - mean1**2, 0)
    centered2 = jnp.maximum(moment.variance2 - mean2**2, 0)
    whole, rest = geometric_mean(moment.variance1, moment.variance2), geometric_mean(centered1, centered2)
    difference = jnp.where(
        (centered1 == centered2) & (mean1 == mean2),  # as in add
        0,
        safe_sqrt(centered1) * mean2 - safe_sqrt(centered2) * mean1,
    )
    lost = whole * moment.distance - _square_over(difference, whole + rest + mean1 * mean2)
    return Covariance(centered1, centered2, into_range(safe_divide(lost, rest, moment.distance)))


def _square_over(difference: jax.Array, denominator: jax.Array) -> jax.Array:
    """difference^2 / denominator, 0 where that is 0/0; the square of a covariance alone may leave the dtype's range."""
    return difference * safe_divide(difference, denominator, 0.0)
