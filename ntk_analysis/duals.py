"""Dual activations: second moments E[f(u) f(v)] of a function of two correlated Gaussians.

Every dual answers in two ways: the moment itself, and the **cosine distance** between f(u) and f(v), one minus
E[f(u) f(v)] / sqrt(E[f(u)^2] E[f(v)^2]), which keeps its relative precision when u and v nearly coincide.
(Daniely et al. 2016 for the word; Cho & Saul 2009, Williams 1998 for the closed forms.)
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.gaussian import (
    geometric_mean,
    hermite_coefficients,
    into_range,
    safe_divide,
    safe_quotient,
    safe_sqrt,
    zero_where,
)
from ntk_analysis.precision import Real, compiled, float_array, numpy_in_float64

EQUAL_WITHIN = 64  # variances that differ by fewer roundings than this are the same number


class Dual(abc.ABC):
    """Second moments of f(u), f(v) for centred Gaussians u, v of variances q1, q2 and correlation rho.

    All arguments broadcast against each other. Python numbers and NumPy arrays are computed in float64 and answered in
    NumPy float64.
    """

    @abc.abstractmethod
    def _second_moment(self, variance: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _cosine_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array: ...

    @numpy_in_float64
    @compiled
    def second_moment(self, variance: Real) -> jax.Array:
        """E[f(u)^2], u ~ N(0, variance)."""
        return self._second_moment(float_array(variance))

    @numpy_in_float64
    @compiled
    def cosine_distance(self, variance1: Real, variance2: Real, distance: Real) -> jax.Array:
        """1 - corr(f(u), f(v)), uncentred, where distance = 1 - corr(u, v) is in [0, 2].

        With equal variances this is 1 - fhat(rho)/fhat(1), to full relative precision for distance -> 0. At variance
        0, where it is 0/0, the limit of a linear f stands: `distance` itself.
        """
        return self._cosine_distance(float_array(variance1), float_array(variance2), float_array(distance))

    @numpy_in_float64
    @compiled
    def at_distance(self, variance1: Real, variance2: Real, distance: Real) -> jax.Array:
        """E[f(u) f(v)], given the cosine distance 1 - rho."""
        return self._at_distance(float_array(variance1), float_array(variance2), float_array(distance))

    def _at_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array:
        scale = geometric_mean(self._second_moment(variance1), self._second_moment(variance2))
        return scale * (1 - self._cosine_distance(variance1, variance2, distance))

    @numpy_in_float64
    @compiled
    def __call__(self, variance1: Real, variance2: Real, correlation: Real) -> jax.Array:
        """E[f(u) f(v)], given the correlation rho in [-1, 1]."""
        return self.at_distance(variance1, variance2, 1 - float_array(correlation))


@dataclass(frozen=True)
class ClosedForm(Dual):
    """A dual given by its value for rho = 1 and by how far it falls from there.

    Attributes:
        coincident: (q1, q2) -> E[f(sqrt(q1) z) f(sqrt(q2) z)].
        drop: (q1, q2, distance) -> coincident - E[f(u) f(v)], written without cancellation at small distances.
        whole: `drop` counts from sqrt(E[f(u)^2] E[f(v)^2]), so that it holds what unequal variances cost. For
            homogeneous f, f(s x) = s^k f(x) with s > 0, both are the same.
        value: (q1, q2, distance) -> E[f(u) f(v)], where that costs less than the difference.
    """

    coincident: Callable[[jax.Array, jax.Array], jax.Array]
    drop: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    whole: bool = False
    value: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None

    def _second_moment(self, variance: jax.Array) -> jax.Array:
        return self.coincident(variance, variance)

    def _at_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array:
        if self.value is not None:
            return self.value(variance1, variance2, distance)
        if self.whole:
            start = geometric_mean(self._second_moment(variance1), self._second_moment(variance2))
        else:
            start = self.coincident(variance1, variance2)
        return start - self.drop(variance1, variance2, distance)

    def _cosine_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array:
        moment1, moment2 = self._second_moment(variance1), self._second_moment(variance2)
        root1, root2 = safe_sqrt(moment1), safe_sqrt(moment2)
        lost = self.drop(variance1, variance2, distance)
        if not self.whole:
            lost = lost + self._mismatch(variance1, variance2, root1 * root2)
        inverse = safe_quotient(root1, moment1) * safe_quotient(root2, moment2)
        return into_range(jnp.where(inverse > 0, lost * inverse, distance))

    def _mismatch(self, variance1: jax.Array, variance2: jax.Array, scale: jax.Array) -> jax.Array:
        """What unequal variances alone cost; second order in their difference, and rounding noise below that."""
        larger = jnp.maximum(variance1, variance2)
        equal = jnp.abs(variance1 - variance2) <= EQUAL_WITHIN * float(np.finfo(larger.dtype).eps) * larger
        lost = scale - self.coincident(variance1, variance2)
        return zero_where(equal | (lost < 0), lost)


@dataclass(frozen=True)
class HermiteSeries(Dual):
    """The dual of any function, from its Hermite coefficients: sum_k a_k(q1) a_k(q2) rho^k (Mehler)."""

    function: Callable[[jax.Array], jax.Array]
    nodes: int

    def _second_moment(self, variance: jax.Array) -> jax.Array:
        return jnp.sum(hermite_coefficients(self.function, variance, self.nodes) ** 2, axis=0)

    def _unit_coefficients(self, variance: jax.Array) -> jax.Array:
        coefficients = hermite_coefficients(self.function, variance, self.nodes)
        norm = safe_sqrt(jnp.sum(coefficients**2, axis=0, keepdims=True))
        linear = jnp.zeros((self.nodes,), variance.dtype).at[1].set(1).reshape((self.nodes,) + (1,) * variance.ndim)
        return safe_divide(coefficients, norm, linear)

    def _cosine_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array:
        """1/2 sum_k (a_k - b_k)^2 + sum_k a_k b_k (1 - rho^k): no cancellation, whatever the variances.

        1 - rho^k = distance (1 + rho + ... + rho^(k-1)), so the second sum is distance times a polynomial in rho
        whose coefficients are the tail sums of a_k b_k: one Horner pass from the top.
        """
        variance1, variance2, distance = _same_rank(variance1, variance2, distance)
        shape = jnp.broadcast_shapes(variance1.shape, variance2.shape, distance.shape)
        left, right = self._unit_coefficients(variance1), self._unit_coefficients(variance2)
        correlation = 1 - distance

        def horner(
            state: tuple[jax.Array, jax.Array, jax.Array], pair: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
            polynomial, tail, mismatch = state
            a, b = pair
            tail = tail + a * b
            return (polynomial * correlation + tail, tail, mismatch + (a - b) ** 2), None

        zero = jnp.zeros(shape, jnp.result_type(left, right, distance))
        start = (zero, zero, zero + (left[0] - right[0]) ** 2)
        (polynomial, _, mismatch), _ = jax.lax.scan(horner, start, (left[1:], right[1:]), reverse=True)
        return into_range(mismatch / 2 + distance * polynomial)


def _same_rank(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    rank = max(array.ndim for array in arrays)
    return tuple(array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays)
