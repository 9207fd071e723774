"""Dual activations: second moments E[f(u) f(v)] of a function of two correlated Gaussians.

Every dual answers in two ways: the moment itself, and the **cosine distance** between f(u) and f(v), one minus
E[f(u) f(v)] / sqrt(E[f(u)^2] E[f(v)^2]), which keeps its relative precision when u and v nearly coincide.
(Daniely et al. 2016 for the word; Cho & Saul 2009, Williams 1998 for the closed forms.)
"""

import abc
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations import quadrature
from ntk_analysis.activations.angles import (
    geometric_mean,
    into_range,
    opposite_error,
    safe_divide,
    safe_quotient,
    safe_sqrt,
    zero_where,
)
from ntk_analysis.activations.panels import panels
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import (
    HeldArray,
    Real,
    compiled,
    float_array,
    is_traced,
    numpy_in_float64,
    wants_float64,
)
from ntk_analysis.common.pytrees import NumbersAsData

CLOSE = {"float64": 0.02, "float32": 0.3}  # difference of variances below which their mismatch is integrated
# what arguments of these names can be, and by how much the rounding of a caller's may pass it
RANGES = {"variance": (0.0, math.inf), "distance": (0.0, 2.0), "correlation": (-1.0, 1.0)}
ROUNDING = 1e-6
EQUAL_WITHIN = 64  # variances that differ by fewer roundings than this are the same number


class Moment(NamedTuple):
    """E[f(u) f(v)] in both forms, with the error of the quadrature, which is 0 for closed forms.

    Attributes:
        value: E[f(u) f(v)].
        distance: 1 - corr(f(u), f(v)), uncentered.
        distance_error: bound of the absolute error of `distance`.
        error: bound of the error of `value`, relative to sqrt(E[f(u)^2] E[f(v)^2]).
    """

    value: jax.Array
    distance: jax.Array
    distance_error: jax.Array
    error: jax.Array


P = ParamSpec("P")
R = TypeVar("R")


def known(method: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the method refuses, by a ValueError, variances that are none or lie beyond its object's
    `largest_variance`, and distances or correlations that two Gaussians cannot have.

    Inside a JAX transformation nothing is raised, and what is computed there is NaN.
    """
    signature = inspect.signature(method)
    numbers = [name for name in signature.parameters if name.startswith(tuple(RANGES))]

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        f = cast(Any, args[0])
        if not is_traced(args[1:], kwargs):
            given = signature.bind(*args, **kwargs).arguments
            for name in numbers:
                q, (least, most) = concrete(given[name], name), RANGES[name.rstrip("12")]
                slack = ROUNDING if most < math.inf else 0.0
                wrong = ~((q >= least - slack) & (q <= most + slack))
                if np.any(wrong):
                    wanted = f"a number from {least:g} to {most:g}" if most < math.inf else "a number of at least 0"
                    raise ValueError(f"got {name} = {q[wrong].flat[0]:.6g}, expected {wanted}")
                if name.startswith("variance") and np.any(q > f.largest_variance):
                    raise ValueError(
                        f"got a variance of {np.nanmax(q):.6g}, but expectations of {f} are known up to "
                        f"{f.largest_variance:.6g} (`largest_variance`): use a smaller variance, as by a smaller w_var "
                        "or inputs of |x|^2 = d"
                    )
        return method(*args, **kwargs)

    return checked


class Dual(abc.ABC):
    """Second moments of f(u), f(v) for centered Gaussians u, v of variances q1, q2 and correlation rho.

    All arguments broadcast against each other. Python numbers and NumPy arrays are computed in float64 and answered in
    NumPy float64.

    An integrated f is known up to some variance only, its `largest_variance`. Beyond it every method
    raises ValueError, and inside a JAX transformation the answer there is NaN.
    """

    @abc.abstractmethod
    def _second_moment(self, variance: jax.Array) -> jax.Array: ...

    @abc.abstractmethod
    def _moment(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Moment: ...

    @property
    def largest_variance(self) -> float:
        """Up to which the moments are known; inf for closed forms."""
        return math.inf

    @known
    @numpy_in_float64
    @compiled
    def second_moment(self, variance: Real) -> jax.Array:
        """E[f(u)^2], u ~ N(0, variance)."""
        return self._second_moment(float_array(variance))

    @known
    @numpy_in_float64
    @compiled
    def moment(self, variance1: Real, variance2: Real, distance: Real) -> Moment:
        """E[f(u) f(v)] and the cosine distance between f(u) and f(v), with their errors, at 1 - rho = distance."""
        given = float_array(distance)
        possible = jnp.where(jnp.abs(given - 1) <= 1 + ROUNDING, into_range(given), jnp.nan)
        return self._moment(float_array(variance1), float_array(variance2), possible)

    @compiled
    def moment_in_range(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Moment:
        """`moment` of JAX arrays, of which it is known that they are variances and distances, as those of layers."""
        return self._moment(variance1, variance2, distance)

    @known
    @numpy_in_float64
    @compiled
    def cosine_distance(self, variance1: Real, variance2: Real, distance: Real) -> jax.Array:
        """1 - corr(f(u), f(v)), uncentered, where distance = 1 - corr(u, v) is in [0, 2].

        With equal variances this is 1 - fhat(rho)/fhat(1), to full relative precision for distance -> 0. At variance
        0, where it is 0/0, the limit of a linear f stands: `distance` itself.
        """
        return self.moment(variance1, variance2, distance).distance

    @known
    @numpy_in_float64
    @compiled
    def at_distance(self, variance1: Real, variance2: Real, distance: Real) -> jax.Array:
        """E[f(u) f(v)], given the cosine distance 1 - rho."""
        return self.moment(variance1, variance2, distance).value

    @known
    @numpy_in_float64
    @compiled
    def __call__(self, variance1: Real, variance2: Real, correlation: Real) -> jax.Array:
        """E[f(u) f(v)], given the correlation rho in [-1, 1]."""
        return self.at_distance(variance1, variance2, 1 - float_array(correlation))


@dataclass(frozen=True)
class ClosedForm(NumbersAsData, Dual):
    """A dual given by its value for rho = 1 and by how far it falls from there.

    Attributes:
        coincident: (q1, q2) -> E[f(sqrt(q1) z) f(sqrt(q2) z)].
        drop: (q1, q2, distance) -> coincident - E[f(u) f(v)], written without cancellation at small distances.
        whole: `drop` counts from sqrt(E[f(u)^2] E[f(v)^2]), so that it holds what unequal variances cost. For
            homogeneous f, f(s x) = s^k f(x) with s > 0, both are the same.
        value: (q1, q2, distance) -> E[f(u) f(v)], where that costs less than the difference.
        mismatch: (q1, q2) -> sqrt(E[f(u)^2] E[f(v)^2]) - coincident without cancellation, where it is known; unless
            `whole`.
        cancels: (q1, q2, cosine distance of f(u) and f(v)) -> size of the numbers that cancel in that distance, whose
            roundings it is off by; None where none do but by those of `mismatch`.
        of: the activation whose numbers the functions use, None where they use none.
    """

    coincident: Callable[[jax.Array, jax.Array], jax.Array]
    drop: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    whole: bool = False
    value: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    mismatch: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    cancels: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    of: NumbersAsData | None = None

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

    def _moment(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Moment:
        value = self._at_distance(variance1, variance2, distance)
        found = self._cosine_distance(variance1, variance2, distance)
        error = jax.lax.stop_gradient(self._distance_error(variance1, variance2, distance, found))
        return Moment(value, found, error, jnp.zeros((), value.dtype))

    def _distance_error(self, q1: jax.Array, q2: jax.Array, distance: jax.Array, found: jax.Array) -> jax.Array:
        """The errors beyond a few roundings of the cosine distance itself: see `opposite_error` and `_mismatch`."""
        eps = float(np.finfo(found.dtype).eps)
        error = opposite_error(distance)
        if self.cancels is not None:
            error = error + 8 * eps * self.cancels(q1, q2, found)
        if self.whole or self.mismatch is not None:
            return error
        step = jnp.abs(safe_divide(q1 - q2, jnp.minimum(q1, q2), 0.0))
        close = step < CLOSE[found.dtype.name]
        return error + 4 * eps * jnp.minimum(step**2, 1) + jnp.where(close, step**4 / 1000, 0) * found

    def _cosine_distance(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> jax.Array:
        moment1, moment2 = self._second_moment(variance1), self._second_moment(variance2)
        root1, root2 = safe_sqrt(moment1), safe_sqrt(moment2)
        lost = self.drop(variance1, variance2, distance)
        if not self.whole:
            lost = lost + self._mismatch(variance1, variance2, root1 * root2)
        inverse = safe_quotient(root1, moment1) * safe_quotient(root2, moment2)
        return into_range(jnp.where(inverse > 0, lost * inverse, distance))

    def _mismatch(self, variance1: jax.Array, variance2: jax.Array, scale: jax.Array) -> jax.Array:
        """Part of the distance that unequal variances alone make, of second order in their difference.

        With L = log coincident as a function of x = log q1 and y = log q2 it is exp(L(x, y)) (exp(m) - 1), where
        2 m = L(x, x) + L(y, y) - 2 L(x, y) is the integral of d^2 L / dx dy over the square from y to x: for variances
        that are close a rule of two nodes in either direction takes the place of the difference.
        """
        larger = jnp.maximum(variance1, variance2)
        equal = jnp.abs(variance1 - variance2) <= EQUAL_WITHIN * float(np.finfo(larger.dtype).eps) * larger
        if self.mismatch is not None:
            return zero_where(equal, self.mismatch(variance1, variance2))
        together = self.coincident(variance1, variance2)
        lost = scale - together
        direct = zero_where(equal | (lost < 0), lost)
        step = safe_divide(variance1 - variance2, variance2, 0.0)
        near = (jnp.abs(step) < CLOSE[step.dtype.name]) & (variance2 > 0)

        def close() -> jax.Array:
            apart = jnp.log1p(jnp.where(near, step, 0))
            low, high = (
                jnp.log(jnp.where(near, variance2, 1)) + apart * (0.5 + side / math.sqrt(12)) for side in (-1, 1)
            )
            corners = self._mixed(jnp.stack([low, low, high]), jnp.stack([low, high, high]))
            mean = (corners[0] + 2 * corners[1] + corners[2]) / 4
            return jnp.where(near, zero_where(equal, together * jnp.expm1(apart**2 * mean / 2)), direct)

        return jax.lax.cond(jnp.any(near & (step != 0)), close, lambda: direct)

    def _mixed(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """d^2 log coincident(e^x, e^y) / dx dy."""

        def by_x(y: jax.Array) -> jax.Array:
            return jax.jvp(lambda x: jnp.log(self.coincident(jnp.exp(x), jnp.exp(y))), (x,), (jnp.ones_like(x),))[1]

        return jax.jvp(by_x, (y,), (jnp.ones_like(y),))[1]


@dataclass(frozen=True)
class Numerical(Dual):
    """The dual of any function or of its slope, see `quadrature`.

    Attributes:
        function: elementwise.
        kinks: points at which it or its derivatives jump, beside those that are found.
        slope: whether f is the function's derivative.
    """

    function: Callable[[jax.Array], jax.Array]
    kinks: tuple[float, ...] = ()
    slope: bool = False

    def __str__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))

    @property
    def largest_variance(self) -> float:
        return (panels(self.function, self.kinks).reach / quadrature.ENOUGH) ** 2

    @known
    def second_moment(self, variance: Real) -> HeldArray:
        if is_traced(variance) or not wants_float64(variance):
            return super().second_moment(variance)
        found = quadrature.tabulated(self.function, self.kinks, np.asarray(variance, np.float64))
        return found.square[int(self.slope)][()]  # NumPy, as for every NumPy caller

    def _second_moment(self, variance: jax.Array) -> jax.Array:
        return quadrature.averages(self.function, self.kinks, variance).square[int(self.slope)]

    def _moment(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Moment:
        found, _ = quadrature.pair(self.function, self.kinks, variance1, variance2, distance=distance)
        return Moment(*(part[int(self.slope)] for part in found))
