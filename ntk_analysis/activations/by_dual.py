"""Activations that are known by their dual: a formula of E[phi(u) phi(v)], and the function itself if there is one."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.angles import geometric_mean, into_range, opposite_error, safe_quotient, safe_sqrt
from ntk_analysis.activations.duals import EQUAL_WITHIN, Dual, Moment
from ntk_analysis.activations.functions import Activation
from ntk_analysis.common.importable import PickledByName

MomentFormula: TypeAlias = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(covariance, variance1, variance2) -> E[f(u) f(v)], of three scalars, written with jax.numpy."""
FEW, MANY = 24, 32  # nodes of two rules, whose difference is the stated error
ROUNDINGS = 8  # by which a covariance is moved to see what they do to a formula
NEAR = 1.0  # distance up to which the fall of the moment is integrated, so that it keeps its relative precision


@dataclass(frozen=True)
class FormulaDual(PickledByName, Dual):
    """The dual that a formula gives.

    From rho = 1 it falls by K d times the integral of its slope over t in [0, 1] at rho = 1 - d t. With t = s^2 the
    integrand is smooth in s also where the slope falls with the angle, as behind a kink.

    Attributes:
        formula: E[f(u) f(v)].
        slope: its derivative by the covariance.
    """

    formula: MomentFormula
    slope: MomentFormula

    def _second_moment(self, variance: jax.Array) -> jax.Array:
        return jnp.vectorize(self.formula)(variance, variance, variance)

    def _moment(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Moment:
        q1, q2, d = jnp.broadcast_arrays(variance1, variance2, distance)
        eps = float(np.finfo(d.dtype).eps)
        formula, largest = jnp.vectorize(self.formula), geometric_mean(q1, q2)
        value, value_error = self._with_rounding(largest * (1 - d), q1, q2)
        (square1, error1), (square2, error2) = (self._with_rounding(q, q, q) for q in (q1, q2))
        root1, root2 = safe_sqrt(square1), safe_sqrt(square2)
        inverse = safe_quotient(root1, square1) * safe_quotient(root2, square2)
        many = self._fall(MANY, largest, q1, q2, d)
        few = self._fall(FEW, (1 - ROUNDINGS * eps) * largest, q1, q2, d)
        equal = jnp.abs(q1 - q2) <= EQUAL_WITHIN * eps * jnp.maximum(q1, q2)
        together = formula(largest, q1, q2)
        unequal = jnp.where(equal, 0, root1 * root2 - together)
        lost = jnp.where(d <= NEAR, many, together - value) + unequal
        found = into_range(jnp.where(inverse > 0, lost * inverse, d))
        squares = error1 * safe_quotient(jnp.ones_like(d), square1) + error2 * safe_quotient(jnp.ones_like(d), square2)
        error = jnp.where(d <= NEAR, jnp.abs(many - few) * inverse, value_error * inverse + squares)
        error = error + jnp.where(equal, 0, ROUNDINGS * eps + squares) + opposite_error(d) + found * squares
        errors = jax.lax.stop_gradient((error, value_error * inverse + ROUNDINGS * eps))
        return Moment(value, found, *errors)

    def _with_rounding(self, covariance: jax.Array, q1: jax.Array, q2: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The formula's value, and by how much some roundings of the covariance move it: much near rho = 1, if bent."""
        formula = jnp.vectorize(self.formula)
        value = formula(covariance, q1, q2)
        moved = formula((1 - ROUNDINGS * float(np.finfo(covariance.dtype).eps)) * covariance, q1, q2)
        return value, jnp.abs(moved - value)

    def _fall(self, nodes: int, largest: jax.Array, q1: jax.Array, q2: jax.Array, d: jax.Array) -> jax.Array:
        """The fall from rho = 1 to 1 - d by a rule of so many nodes, `largest` being the covariance at rho = 1."""
        s, weights = (jnp.asarray(numbers, d.dtype) for numbers in _rule(nodes))
        slope, near = jnp.vectorize(self.slope), jnp.where((d > 0) & (d <= NEAR), d, NEAR / 2)

        def add(total: jax.Array, node: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            place, weight = node
            return total + 2 * place * weight * slope(largest * (1 - near * place**2), q1, q2), None

        mean = jax.lax.scan(add, jnp.zeros_like(d), (s, weights))[0]
        return jnp.where(d > 0, largest * d * mean, 0)


@functools.cache
def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre on [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return (places + 1) / 2, weights / 2


@dataclass(frozen=True)
class ByDual(PickledByName, Activation):
    """An activation that is given by the formula of its dual; `by_dual` makes it.

    Attributes:
        formula: E[phi(u) phi(v)] by covariance and variances.
        slope: E[phi'(u) phi'(v)], which is its derivative by the covariance (Price's theorem).
        curvature: derivative of the slope by the covariance.
        function: phi, for finite networks; None where there is none.
        label: name of the activation.
    """

    formula: MomentFormula
    slope: MomentFormula
    curvature: MomentFormula
    function: Callable[[jax.Array], jax.Array] | None
    label: str

    @property
    def name(self) -> str:
        return self.label

    @property
    def kinked(self) -> bool:
        return True  # it is not known: the formula may fall with the angle

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.function is None:
            raise NotImplementedError(f"{self.label} is known by its dual alone: finite networks need the function")
        return self.function(x)

    @property
    def dual(self) -> Dual:
        return FormulaDual(self.formula, self.slope)

    @property
    def derivative_dual(self) -> Dual:
        return FormulaDual(self.slope, self.curvature)

    def _mean(self, variance: jax.Array) -> jax.Array:
        # E[phi(u)] E[phi(v)] is the moment of independent u and v; of its root the sign is not known, nor needed
        return safe_sqrt(jnp.maximum(jnp.vectorize(self.formula)(jnp.zeros_like(variance), variance, variance), 0))


def by_dual(
    formula: MomentFormula,
    function: Callable[[jax.Array], jax.Array] | None = None,
    *,
    slope: MomentFormula | None = None,
    label: str | None = None,
) -> ByDual:
    """Returns the activation whose dual is this formula, for kernels; the infinite network needs nothing else.

    Nothing checks that the formula is the dual of the function, or of any: `check_layer` and `monte_carlo_kernel`
    compare both sides. A mean E[phi(u)] that changes its sign with the variance is taken for its absolute value, which
    matters behind centered weights alone.

    Args:
        formula: (covariance, variance1, variance2) -> E[phi(u) phi(v)], of three scalars, written with jax.numpy and
            differentiable.
        function: phi, elementwise, for finite networks.
        slope: (covariance, variance1, variance2) -> E[phi'(u) phi'(v)]; None for the derivative of the formula.
        label: name of the activation; None for that of the function or of the formula.
    """
    falls = jax.grad(formula) if slope is None else slope
    name = label or str(getattr(function or formula, "__name__", formula))
    return ByDual(formula, falls, jax.grad(falls), function, name)


@functools.cache
def exponential_normalized(gamma: float = 1.0, shift: float = -1.0) -> ByDual:
    """Returns the activation of dual sqrt(q1 q2) exp(gamma (rho + shift)), which is known by it alone.

    Shankar et al. 2020, 2003.02237, page 6.
    """

    def formula(covariance: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array:
        scale = geometric_mean(q1, q2)
        return scale * jnp.exp(gamma * (safe_quotient(covariance, scale) + shift))

    return by_dual(formula, label=f"exponential_normalized({gamma:g}, {shift:g})")
