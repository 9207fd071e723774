"""Activations and their Gaussian facts: E[phi], E[phi phi] and E[phi' phi'] for any variances and correlation.

Closed forms: identity, ReLU, leaky ReLU, absolute value (exact, Cho & Saul 2009), erf (Williams 1998), sine and GELU
(derived here by Stein's identity). tanh and functions of the user go by Gauss-Hermite quadrature, whose error grows
with the variance and is measured by `quadrature_error`.
"""

import abc
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import closed_forms
from ntk_analysis.duals import ClosedForm, Dual, HermiteSeries
from ntk_analysis.gaussian import (
    angle,
    geometric_mean,
    hermite_coefficients,
    safe_sqrt,
    sine_minus_angle_cosine,
)
from ntk_analysis.precision import Real, compiled, float_array, numpy_in_float64

Elementwise: TypeAlias = Callable[[jax.Array], jax.Array]


class Activation(abc.ABC):
    """A function applied to every unit, with what it does to Gaussian pre-activations.

    Attributes:
        name: how the activation is called in tables and on the command line.
        dual: E[phi(u) phi(v)] as a `Dual`.
        derivative_dual: E[phi'(u) phi'(v)] as a `Dual`.
        homogeneous: phi(s x) = s phi(x) for s > 0, so the correlation map does not depend on the variance.
    """

    homogeneous: bool = False

    @property
    @abc.abstractmethod
    def name(self) -> str: ...

    @abc.abstractmethod
    def __call__(self, x: jax.Array) -> jax.Array: ...

    @property
    @abc.abstractmethod
    def dual(self) -> Dual: ...

    @property
    @abc.abstractmethod
    def derivative_dual(self) -> Dual: ...

    @abc.abstractmethod
    def _mean(self, variance: jax.Array) -> jax.Array: ...

    @numpy_in_float64
    @compiled
    def mean(self, variance: Real) -> jax.Array:
        """E[phi(u)], u ~ N(0, variance)."""
        return self._mean(float_array(variance))

    def quadrature_error(self, variance: float = 1.0) -> float:
        """Measured relative error of the second moments of phi and phi' at this variance; 0.0 for closed forms."""
        del variance
        return 0.0

    def stable_gain(self, b_var: float = 0.0, *, centered: bool = False) -> float:
        """Weight variance that keeps a pre-activation variance of 1: (1 - b_var) / E[phi(z)^2], z ~ N(0, 1).

        Centred weights see Var[phi(z)] in place of the second moment: 2 / (1 - 1/pi) = 2.93388 for ReLU (MimicNorm,
        Theorem 3.2, n -> infinity). It is the edge of chaos only for homogeneous activations.

        Raises:
            ValueError: b_var is not in [0, 1), or phi has no variance to keep.
        """
        if not 0 <= b_var < 1:
            raise ValueError(
                f"b_var={b_var} leaves no room for the weights: the stable gain needs 0 <= b_var < 1; "
                "pass w_var explicitly for a larger bias"
            )
        kept = float(self.dual.second_moment(1.0))
        if centered:
            kept -= float(self.mean(1.0)) ** 2
        if not kept > 0:
            raise ValueError(
                f"activation {self.name!r} is constant{' after centering' * centered}: no gain keeps q = 1"
            )
        return (1 - b_var) / kept

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class PiecewiseLinear(Activation):
    """phi(x) = linear x + bent |x|: identity (1, 0), |x| (0, 1), ReLU (1/2, 1/2), leaky ReLU in between.

    With t the angle between u and v and d = 1 - cos t (theory: Cho & Saul 2009, arc-cosine kernels of order 1 and 0)
        E[|u||v|]         = sqrt(q1 q2) (1 - d + (2/pi) (sin t - t cos t)),
        E[sgn(u) sgn(v)]  = 1 - 2 t/pi,
    and the cross terms vanish by symmetry.
    """

    linear: float
    bent: float
    label: str

    homogeneous = True

    @property
    def name(self) -> str:
        return self.label

    def __call__(self, x: jax.Array) -> jax.Array:
        # the form with maximum and minimum is exact on each side, where linear x + bent |x| would round
        return (self.linear + self.bent) * jnp.maximum(x, 0) + (self.linear - self.bent) * jnp.minimum(x, 0)

    @property
    def dual(self) -> Dual:
        return ClosedForm(self._coincident, self._drop, whole=True)

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(self._derivative_coincident, self._derivative_drop, whole=True)

    def _mean(self, variance: jax.Array) -> jax.Array:
        return self.bent * math.sqrt(2 / math.pi) * safe_sqrt(variance)

    def _coincident(self, q1: jax.Array, q2: jax.Array) -> jax.Array:
        return (self.linear**2 + self.bent**2) * geometric_mean(q1, q2)

    def _drop(self, q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
        bend = (2 / math.pi) * self.bent**2 * sine_minus_angle_cosine(distance)
        return geometric_mean(q1, q2) * ((self.linear**2 + self.bent**2) * distance - bend)

    def _derivative_coincident(self, q1: jax.Array, q2: jax.Array) -> jax.Array:
        return (self.linear**2 + self.bent**2) * jnp.ones_like(q1 + q2)

    def _derivative_drop(self, q1: jax.Array, q2: jax.Array, distance: jax.Array) -> jax.Array:
        return self.bent**2 * (2 / math.pi) * angle(distance) * jnp.ones_like(q1 + q2)


@dataclass(frozen=True)
class Erf(Activation):
    """phi(x) = erf(x): E[phi phi] = (2/pi) arcsin(2 K / sqrt((1 + 2 q1)(1 + 2 q2))) (Williams 1998)."""

    @property
    def name(self) -> str:
        return "erf"

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.scipy.special.erf(x)

    @property
    def dual(self) -> Dual:
        return ClosedForm(closed_forms.erf_coincident, closed_forms.erf_lost, whole=True)

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(
            closed_forms.erf_derivative_coincident,
            closed_forms.erf_derivative_drop,
            value=closed_forms.erf_derivative,
        )

    def _mean(self, variance: jax.Array) -> jax.Array:
        return jnp.zeros_like(variance)


@dataclass(frozen=True)
class Sine(Activation):
    """phi(x) = sin(x): E[phi phi] = exp(-(q1 + q2)/2) sinh(K), E[phi' phi'] = exp(-(q1 + q2)/2) cosh(K)."""

    @property
    def name(self) -> str:
        return "sine"

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sin(x)

    @property
    def dual(self) -> Dual:
        return ClosedForm(
            functools.partial(closed_forms.wave_coincident, -1), functools.partial(closed_forms.wave_drop, -1)
        )

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(
            functools.partial(closed_forms.wave_coincident, 1), functools.partial(closed_forms.wave_drop, 1)
        )

    def _mean(self, variance: jax.Array) -> jax.Array:
        return jnp.zeros_like(variance)


@dataclass(frozen=True)
class Gelu(Activation):
    """phi(x) = x Phi(x), Phi the normal distribution function (Hendrycks & Gimpel 2016, exact form).

    With D = (1 + q1)(1 + q2) - K^2 and a = arcsin(K / sqrt((1 + q1)(1 + q2))), by Stein's identity twice:
        E[phi phi]   = K (1/4 + a/(2 pi)) + (q1 q2 + K^2 (1 - q1 q2) / ((1 + q1)(1 + q2))) / (2 pi sqrt(D)),
        E[phi' phi'] = 1/4 + a/(2 pi) + K (1/(1 + q1) + 1/(1 + q2) + 1/D) / (2 pi sqrt(D)).
    """

    @property
    def name(self) -> str:
        return "gelu"

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    @property
    def dual(self) -> Dual:
        return ClosedForm(closed_forms.gelu_coincident, closed_forms.gelu_drop)

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(
            closed_forms.gelu_derivative_coincident,
            closed_forms.gelu_derivative_drop,
            value=closed_forms.gelu_derivative,
        )

    def _mean(self, variance: jax.Array) -> jax.Array:
        return variance / jnp.sqrt(2 * math.pi * (1 + variance))


@functools.cache
def derivative_of(function: Elementwise) -> Elementwise:
    """phi'(x), elementwise, by forward-mode differentiation; one function for each, so that its programs are shared."""

    def derivative(x: jax.Array) -> jax.Array:
        _, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return cast(jax.Array, slope)

    return derivative


@dataclass(frozen=True)
class Quadrature(Activation):
    """Any elementwise JAX function, by Gauss-Hermite quadrature with `nodes` nodes.

    tanh with 128 nodes: relative error of E[phi^2] and E[phi'^2] 6e-13 and 2e-11 at variance 1, 1e-6 and 6e-5 at
    variance 4, 1e-3 and 5e-2 at variance 16; 256 nodes give 1e-9 and 1e-7 at variance 4. A function with a kink
    converges like 1/nodes only: `quadrature_error` measures it for any function and variance.
    """

    function: Elementwise
    nodes: int = 128

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", str(self.function))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)

    @property
    def dual(self) -> Dual:
        return HermiteSeries(self.function, self.nodes)

    @property
    def derivative_dual(self) -> Dual:
        return HermiteSeries(derivative_of(self.function), self.nodes)

    def _mean(self, variance: jax.Array) -> jax.Array:
        return hermite_coefficients(self.function, variance, self.nodes)[0]

    def quadrature_error(self, variance: float = 1.0) -> float:
        """Three times the relative change of E[phi^2] and E[phi'^2] (the larger) on three quarters of the nodes.

        Correlation one is where a truncated Hermite series is worst. For a function with a kink, whose error falls
        like 1/nodes, the change is a third of the error; for analytic functions it exceeds the error by itself.
        """
        coarse = Quadrature(self.function, 3 * self.nodes // 4)
        errors = [0.0]
        for fine_dual, coarse_dual in ((self.dual, coarse.dual), (self.derivative_dual, coarse.derivative_dual)):
            fine = float(fine_dual.second_moment(variance))
            if fine > 0:
                errors.append(abs(float(coarse_dual.second_moment(variance)) / fine - 1))
        return 3 * max(errors)


identity = PiecewiseLinear(1.0, 0.0, "identity")
relu = PiecewiseLinear(0.5, 0.5, "relu")
absolute = PiecewiseLinear(0.0, 1.0, "abs")
erf = Erf()
gelu = Gelu()
sine = Sine()
tanh = Quadrature(jnp.tanh)


def leaky_relu(slope: float = 0.01) -> Activation:
    """max(x, 0) + slope min(x, 0); `slope` is any finite number."""
    if not math.isfinite(slope):
        raise ValueError(f"got slope {slope} for leaky_relu, expected a finite number")
    return PiecewiseLinear((1 + slope) / 2, (1 - slope) / 2, f"leaky_relu({slope:g})")


NAMED: dict[str, Activation] = {
    "relu": relu,
    "leaky_relu": leaky_relu(),
    "abs": absolute,
    "erf": erf,
    "gelu": gelu,
    "tanh": tanh,
    "sine": sine,
    "identity": identity,
}
ALIASES = {"linear": "identity", "absolute": "abs", "sin": "sine"}


def get(activation: object) -> Activation:
    """The activation of this name ("leaky_relu(0.2)" with its slope), or of this elementwise JAX function.

    Raises:
        ValueError: no activation has this name; the message lists those that exist.
        TypeError: neither a name nor a function of one array that returns one of the same shape and dtype.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        return _named(activation)
    if callable(activation):
        _check_elementwise(activation)
        return Quadrature(activation)
    raise TypeError(f"got {activation!r} as activation, expected a name ({', '.join(NAMED)}) or a JAX function")


def _named(name: str) -> Activation:
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key in NAMED:
        return NAMED[key]
    if match := re.fullmatch(r"leaky_relu\((.+)\)", key):
        try:
            return leaky_relu(float(match[1]))
        except ValueError:
            raise ValueError(f"got {name!r}, expected a finite number as the slope, as in 'leaky_relu(0.2)'") from None
    raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(NAMED)}, or pass a JAX function")


def _check_elementwise(function: Elementwise) -> None:
    name = getattr(function, "__name__", repr(function))
    probe = jnp.asarray(np.linspace(-2, 2, 5), jnp.float32)
    try:
        values = jax.eval_shape(function, probe)
    except Exception as error:
        raise TypeError(f"activation {name} failed on a float32 array: {type(error).__name__}: {error}") from error
    if getattr(values, "shape", None) != probe.shape or values.dtype != probe.dtype:
        raise TypeError(f"activation {name} must map an array to one of the same shape and dtype, got {values}")
