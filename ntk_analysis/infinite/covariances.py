"""Sums and differences of covariances in the form (variance, variance, cosine distance).

A covariance between two families of variables is held as variances q1, q2 and the distance d of each pair:
K = sqrt(q1 q2) (1 - d). Adding a bias, adding a residual branch, averaging over a window and subtracting the mean are
then steps on d that never subtract nearly equal numbers. A sum K + P of parts with the shares a_i = sqrt(q_i / (q_i +
p_i)) and b_i = sqrt(p_i / (q_i + p_i)) has, (a_i, b_i) being unit vectors,
1 - correlation = ((a_1 - a_2)^2 + (b_1 - b_2)^2) / 2 + a_1 a_2 d + b_1 b_2 e.
All roots and quotients are those of one variable: the many pairs cost only products.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.angles import (
    difference,
    geometric_mean,
    into_range,
    no_derivative,
    safe_quotient,
    safe_sqrt,
)
from ntk_analysis.common.pytrees import Number, is_known


class Covariance(NamedTuple):
    """Covariance of paired variables: variances of either side and 1 - correlation; the three broadcast together."""

    variance1: jax.Array
    variance2: jax.Array
    distance: jax.Array

    @property
    def value(self) -> jax.Array:
        """Covariance sqrt(q1 q2) (1 - distance)."""
        return geometric_mean(self.variance1, self.variance2) * (1 - self.distance)


def scale(covariance: Covariance, factor: Number | jax.Array) -> Covariance:
    """The covariance times a factor >= 0."""
    return Covariance(covariance.variance1 * factor, covariance.variance2 * factor, covariance.distance)


def add(left: Covariance, right: Covariance, factor: Number | jax.Array = 1.0) -> Covariance:
    """Sum K + factor P of two covariances, for a factor >= 0, by which it can be differentiated at 0 too."""
    q1, q2 = left.variance1 + factor * right.variance1, left.variance2 + factor * right.variance2
    root1, root2 = safe_sqrt(q1), safe_sqrt(q2)
    lost = _lost(left, root1, root2) + _lost(right, root1, root2, factor)
    return Covariance(q1, q2, into_range(jnp.where((root1 > 0) & (root2 > 0), lost, left.distance)))


def add_constant(covariance: Covariance, variance: Number | jax.Array, factor: Number | jax.Array = 1.0) -> Covariance:
    """Sum factor K + variance of a covariance and a constant: a random bias shared by all inputs.

    It has its derivatives by both numbers, where one of them is 0 too: neither goes through a root. Where nothing is
    left of a variance, derivatives by a number that is 0 are NaN: behind an activation they are infinite.
    """
    if is_known(variance) and variance == 0:
        scaled = scale(covariance, factor)
        return scaled._replace(distance=_without_derivative(scaled.distance, factor, jnp.array(True)))
    q1, q2 = factor * covariance.variance1 + variance, factor * covariance.variance2 + variance
    root1, root2 = safe_sqrt(q1), safe_sqrt(q2)
    apart = difference(safe_quotient(jnp.ones_like(root1), root1), safe_quotient(jnp.ones_like(root2), root2))
    # the variance comes first: the square of one over a small root may leave the range of numbers
    lost = _lost(covariance, root1, root2, factor) + variance / 2 * apart * apart
    if is_known(variance) and variance >= np.finfo(lost.dtype).tiny:  # then no root is 0
        return Covariance(q1, q2, into_range(lost))
    some = (root1 > 0) & (root2 > 0)
    distance = into_range(jnp.where(some, lost, covariance.distance))
    for number in (variance, factor):
        distance = _without_derivative(distance, number, ~some)
    return Covariance(q1, q2, distance)


def _without_derivative(distance: jax.Array, number: Number | jax.Array, where: jax.Array) -> jax.Array:
    """The distance, with derivatives by a number that are NaN `where` the number is 0."""
    if is_known(number):
        return distance
    return distance * no_derivative(jnp.asarray(number, distance.dtype), where & (number == 0))


def mean(covariance: Covariance, axes: tuple[int, ...]) -> Covariance:
    """Mean of the covariance over these axes, along which no side may broadcast; the axes are removed."""
    q1, q2 = (jnp.mean(variance, axes, keepdims=True) for variance in covariance[:2])
    lost = jnp.mean(_lost(covariance, safe_sqrt(q1), safe_sqrt(q2)), axes)
    return Covariance(jnp.squeeze(q1, axes), jnp.squeeze(q2, axes), into_range(lost))


def _lost(part: Covariance, root1: jax.Array, root2: jax.Array, factor: Number | jax.Array = 1.0) -> jax.Array:
    """Share of factor * part in 1 - correlation of a sum with deviations root1, root2: two terms, neither negative."""
    share1 = safe_quotient(safe_sqrt(part.variance1), root1)
    share2 = safe_quotient(safe_sqrt(part.variance2), root2)
    apart = difference(share1, share2)
    return factor / 2 * apart * apart + factor * share1 * share2 * part.distance


def subtract_means(moment: Covariance, mean1: jax.Array, mean2: jax.Array) -> Covariance:
    """Covariance E[y y'] - E[y] E[y'] about the means, from the second moment."""
    centered1 = jnp.maximum(moment.variance1 - mean1**2, 0)
    centered2 = jnp.maximum(moment.variance2 - mean2**2, 0)
    kept1, taken1, gain1 = _shares(moment.variance1, centered1, mean1)
    kept2, taken2, gain2 = _shares(moment.variance2, centered2, mean2)
    rest = moment.distance - _half_square(kept1, kept2) - _half_square(taken1, taken2)
    distance = jnp.where((kept1 > 0) & (kept2 > 0), gain1 * gain2 * rest, moment.distance)
    return Covariance(centered1, centered2, into_range(distance))


def _shares(moment: jax.Array, centered: jax.Array, mean: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Deviation and mean as shares of the root of the second moment, and one over that root."""
    whole, deviation = safe_sqrt(moment), safe_sqrt(centered)
    return safe_quotient(deviation, whole), safe_quotient(mean, whole), safe_quotient(whole, deviation)


def _half_square(share1: jax.Array, share2: jax.Array) -> jax.Array:
    return difference(share1, share2) ** 2 / 2
