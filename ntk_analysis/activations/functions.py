"""Activations and their Gaussian facts: E[phi], E[phi phi] and E[phi' phi'] for any variances and correlation.

Closed forms: identity, ReLU, leaky ReLU, absolute value (exact, Cho & Saul 2009), erf (Williams 1998), sine and GELU
(derived here by Stein's identity). All others and functions of the user are integrated between their kinks, at any
variance (`quadrature`); `quadrature_error` measures the error. Functions of JAX and NumPy that are one of these, such
as `jax.nn.relu` and `jnp.tanh`, are taken for it.
"""

import abc
import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations import closed_forms, quadrature
from ntk_analysis.activations.angles import (
    angle,
    geometric_mean,
    safe_sqrt,
    sine_minus_angle_cosine,
)
from ntk_analysis.activations.duals import ClosedForm, Dual, Moment, Numerical, known
from ntk_analysis.activations.panels import panels
from ntk_analysis.common.importable import PickledByName
from ntk_analysis.common.precision import (
    HeldArray,
    Real,
    compiled,
    float_array,
    is_traced,
    numpy_in_float64,
    wants_float64,
)
from ntk_analysis.common.purity import is_pure
from ntk_analysis.common.pytrees import Number, NumbersAsData, is_known

Elementwise: TypeAlias = Callable[[jax.Array], jax.Array]


class Joint(NamedTuple):
    """Expectations of phi over two Gaussians u and v.

    Attributes:
        phi: product moment E[phi(u) phi(v)].
        slope: product moment of slopes E[phi'(u) phi'(v)].
        squares: second moments E[phi(u)^2] and E[phi(v)^2], in the shapes of the variances.
        means: means E[phi(u)] and E[phi(v)].
    """

    phi: Moment
    slope: Moment
    squares: tuple[jax.Array, jax.Array]
    means: tuple[jax.Array, jax.Array]


class InVariance(NamedTuple):
    """Derivatives of expectations in the variance q of u, NumPy float64 in the shape of q.

    Attributes:
        square: derivative d E[phi(u)^2] / dq.
        mean: derivative d E[phi(u)] / dq.
        slope_square: derivative d E[phi'(u)^2] / dq.
    """

    square: np.ndarray
    mean: np.ndarray
    slope_square: np.ndarray


class Activation(abc.ABC):
    """A function that is applied to every unit, with its expectations over Gaussian pre-activations.

    Attributes:
        name: name of the activation in tables and on the command line.
        dual: expectation E[phi(u) phi(v)] as a `Dual`.
        derivative_dual: expectation E[phi'(u) phi'(v)] as a `Dual`.
        homogeneous: whether phi(s x) = s phi(x) for s > 0, so that the correlation map does not depend on the variance.
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

    @property
    def jumps(self) -> bool:
        """Whether phi jumps: then E[phi(u) phi(v)] falls from u = v in proportion to the angle, in every direction."""
        return False

    @property
    def kinked(self) -> bool:
        """Whether phi or its slope jumps: then E[phi'(u) phi'(v)] falls from u = v in proportion to their angle."""
        return False

    @known
    @numpy_in_float64
    @compiled
    def mean(self, variance: Real) -> jax.Array:
        """Mean E[phi(u)] for u ~ N(0, variance); raises ValueError beyond `largest_variance`, as the duals do."""
        return self._mean(float_array(variance))

    def in_variance(self, variance: np.ndarray) -> InVariance:
        """Derivatives of the expectations in the variance, float64; raises ValueError beyond `largest_variance`."""
        with jax.enable_x64(True):
            return InVariance(*(np.asarray(x) for x in _in_variance(self, jnp.asarray(variance, jnp.float64))))

    @property
    def largest_variance(self) -> float:
        """Variance of u up to which the expectations are known; inf for closed forms.

        Beyond it `mean`, `joint` and the duals raise ValueError. Inside a JAX transformation, which can raise no error,
        their results there are NaN.
        """
        return math.inf

    @numpy_in_float64
    @compiled
    def quadrature_error(self, variance: Real = 1.0) -> jax.Array:
        """Bound on the relative errors of E[phi^2] and E[phi'^2], and of the error of E[phi] over sqrt(E[phi^2]).

        It is 0 for closed forms. Above `largest_variance` it is NaN, which raises no error here: nothing is known
        there.
        """
        return self._quadrature_error(float_array(variance))

    def _quadrature_error(self, variance: jax.Array) -> jax.Array:
        return jnp.zeros_like(variance)

    def joint(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Joint:
        """All expectations that a layer needs of u and v with 1 - rho = distance, computed together, for JAX arrays."""
        arguments = variance1, variance2, distance
        squares = self.dual.second_moment(variance1), self.dual.second_moment(variance2)
        means = self.mean(variance1), self.mean(variance2)
        moments = self.dual.moment_in_range(*arguments), self.derivative_dual.moment_in_range(*arguments)
        return Joint(*moments, squares, means)

    def stable_gain(self, b_var: Number = 0.0, *, centered: bool = False) -> Number:
        """Weight variance that keeps a pre-activation variance of 1: (1 - b_var) / E[phi(z)^2], z ~ N(0, 1).

        Centered weights see Var[phi(z)] in place of the second moment: 2 / (1 - 1/pi) = 2.93388 for ReLU (MimicNorm,
        Theorem 3.2, n -> infinity). The gain is the edge of chaos for homogeneous activations only.

        Raises:
            ValueError: b_var is not in [0, 1), or phi has no variance to keep.
        """
        if is_known(b_var) and not 0 <= b_var < 1:
            raise ValueError(
                f"b_var={b_var} leaves no room for the weights: the stable gain needs 0 <= b_var < 1; "
                "pass w_var explicitly for a larger bias"
            )
        kept = self.dual.second_moment(1.0)
        if centered:
            kept = kept - self.mean(1.0) ** 2
        if is_known(kept) and not kept > 0:
            raise ValueError(
                f"activation {self.name!r} is constant{' after centering' * centered}: no gain keeps q = 1"
            )
        gain: Any = (1 - b_var) / (float(kept) if is_known(kept) else kept)
        return gain

    def stable_gain_error(self, b_var: Number = 0.0, *, centered: bool = False) -> float:
        """Bound on the absolute error of `stable_gain`, which divides by E[phi^2], less E[phi]^2 if `centered`."""
        gain, square = self.stable_gain(b_var, centered=centered), float(self.dual.second_moment(1.0))
        relative = max(float(self.quadrature_error(1.0)), 4 * float(np.finfo(np.float64).eps))
        kept = (1 - b_var) / gain
        return gain * 3 * relative * square / kept

    def __str__(self) -> str:
        return self.name


@functools.partial(jax.jit, static_argnums=0)
def _in_variance(phi: Activation, variance: jax.Array) -> list[jax.Array]:
    averages = phi.dual.second_moment, phi.mean, phi.derivative_dual.second_moment
    return [jax.jvp(average, (variance,), (jnp.ones_like(variance),))[1] for average in averages]


class PiecewiseLinear(Activation):
    """phi(x) = linear x + bent |x|: identity (1, 0), |x| (0, 1), ReLU (1/2, 1/2), leaky ReLU in between.

    Let t be the angle between u and v and d = 1 - cos t (theory: Cho & Saul 2009, arc-cosine kernels of order 1 and 0):
        E[|u||v|]         = sqrt(q1 q2) (1 - d + (2/pi) (sin t - t cos t)),
        E[sgn(u) sgn(v)]  = 1 - 2 t/pi,
    and the cross terms vanish by symmetry.
    """

    __match_args__ = ("linear", "bent")
    homogeneous = True

    linear: float
    bent: float

    @property
    def kinked(self) -> bool:
        return self.bent != 0

    def __call__(self, x: jax.Array) -> jax.Array:
        # the form with maximum and minimum is exact on each side, where linear x + bent |x| would round
        return (self.linear + self.bent) * jnp.maximum(x, 0) + (self.linear - self.bent) * jnp.minimum(x, 0)

    @property
    def dual(self) -> Dual:
        return ClosedForm(self._coincident, self._drop, whole=True, of=self._numbers)

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(self._derivative_coincident, self._derivative_drop, whole=True, of=self._numbers)

    @property
    def _numbers(self) -> NumbersAsData | None:
        return self if isinstance(self, NumbersAsData) else None

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
class Bent(PiecewiseLinear):
    """One of the named piecewise linear functions: identity, ReLU or |x|, which have no number to change."""

    linear: float
    bent: float
    label: str

    @property
    def name(self) -> str:
        return self.label


LARGEST_SLOPE = 1e100  # of a leaky ReLU: its third power is a number of float64


@dataclass(frozen=True)
class LeakyRelu(NumbersAsData, PiecewiseLinear):
    """phi(x) = max(x, 0) + slope min(x, 0); the slope is a number by which networks can be differentiated.

    Raises:
        ValueError: the slope is not finite, or above 1e100, whose powers float64 does not hold.
    """

    slope: Number = 0.01

    def __post_init__(self) -> None:
        if is_known(self.slope) and not abs(self.slope) <= LARGEST_SLOPE:
            raise ValueError(
                f"got slope {self.slope:g} for leaky_relu, expected a finite number of at most {LARGEST_SLOPE:g}"
            )

    @property
    def linear(self) -> Number:  # type: ignore[override]
        return (1 + self.slope) / 2

    @property
    def bent(self) -> Number:  # type: ignore[override]
        return (1 - self.slope) / 2

    @property
    def kinked(self) -> bool:
        return not is_known(self.slope) or self.slope != 1

    @property
    def name(self) -> str:
        return f"leaky_relu({self.slope:g})" if is_known(self.slope) else "leaky_relu"


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
        return ClosedForm(
            closed_forms.erf_coincident, closed_forms.erf_lost, whole=True, cancels=closed_forms.erf_cancels
        )

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
            functools.partial(closed_forms.wave_coincident, -1),
            functools.partial(closed_forms.wave_drop, -1),
            mismatch=functools.partial(closed_forms.wave_mismatch, -1),
            cancels=closed_forms.as_variances_grow,
        )

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(
            functools.partial(closed_forms.wave_coincident, 1),
            functools.partial(closed_forms.wave_drop, 1),
            mismatch=functools.partial(closed_forms.wave_mismatch, 1),
            cancels=closed_forms.as_variances_grow,
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
        return ClosedForm(
            closed_forms.gelu_coincident, closed_forms.gelu_lost, whole=True, cancels=closed_forms.as_variances_grow
        )

    @property
    def derivative_dual(self) -> Dual:
        return ClosedForm(
            closed_forms.gelu_derivative_coincident,
            closed_forms.gelu_derivative_drop,
            value=closed_forms.gelu_derivative,
        )

    def _mean(self, variance: jax.Array) -> jax.Array:
        return variance / jnp.sqrt(2 * math.pi * (1 + variance))


@dataclass(frozen=True)
class Quadrature(PickledByName, Activation):
    """Any elementwise JAX function, by quadrature between its kinks, adapted to the variance: see `quadrature`.

    Attributes:
        function: JAX function of an array that returns an array of the same shape and dtype.
        kinks: points where it or its derivatives jump, besides the points that are found by measurement.
        label: name of the activation; None is the function's own name.
    """

    function: Elementwise
    kinks: tuple[float, ...] = ()
    label: str | None = None

    @property
    def jumps(self) -> bool:
        return panels(self.function, self.kinks).jumps

    @property
    def kinked(self) -> bool:
        return panels(self.function, self.kinks).bends

    @property
    def name(self) -> str:
        return self.label or str(getattr(self.function, "__name__", self.function))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.function(x)

    @property
    def dual(self) -> Dual:
        return Numerical(self.function, self.kinks)

    @property
    def derivative_dual(self) -> Dual:
        return Numerical(self.function, self.kinks, slope=True)

    @known
    def joint(self, variance1: jax.Array, variance2: jax.Array, distance: jax.Array) -> Joint:
        found, sides = quadrature.pair(self.function, self.kinks, variance1, variance2, distance=distance)
        phi, slope = (Moment(*(part[i] for part in found)) for i in range(2))
        squares, means = ((getattr(sides[0], name)[0], getattr(sides[1], name)[0]) for name in ("square", "mean"))
        return Joint(phi, slope, squares, means)

    @known
    def mean(self, variance: Real) -> HeldArray:
        if is_traced(variance) or not wants_float64(variance):
            return super().mean(variance)
        return self._tabulated(variance).mean[0][()]

    def quadrature_error(self, variance: Real = 1.0) -> HeldArray:
        if is_traced(variance) or not wants_float64(variance):
            return super().quadrature_error(variance)
        return self._tabulated(variance).error.max(axis=0)

    @known
    def in_variance(self, variance: np.ndarray) -> InVariance:
        found = quadrature.in_variance(self.function, self.kinks, variance)
        return InVariance(*(np.asarray(x) for x in (found.square[0], found.mean[0], found.square[1])))

    def _tabulated(self, variance: Real) -> quadrature.Averages:
        return quadrature.tabulated(self.function, self.kinks, np.asarray(variance, np.float64))

    @property
    def largest_variance(self) -> float:
        return self.dual.largest_variance

    def _mean(self, variance: jax.Array) -> jax.Array:
        return quadrature.averages(self.function, self.kinks, variance).mean[0]

    def _quadrature_error(self, variance: jax.Array) -> jax.Array:
        return jnp.max(quadrature.averages(self.function, self.kinks, variance).error, axis=0)


identity = Bent(1.0, 0.0, "identity")
relu = Bent(0.5, 0.5, "relu")
absolute = Bent(0.0, 1.0, "abs")
erf = Erf()
gelu = Gelu()
sine = Sine()
tanh = Quadrature(jnp.tanh, label="tanh")
sigmoid = Quadrature(jax.nn.sigmoid, label="sigmoid")
silu = Quadrature(jax.nn.silu, label="silu")
softplus = Quadrature(jax.nn.softplus, label="softplus")
elu = Quadrature(jax.nn.elu, (0.0,), "elu")
selu = Quadrature(jax.nn.selu, (0.0,), "selu")
celu = Quadrature(jax.nn.celu, (0.0,), "celu")
relu6 = Quadrature(jax.nn.relu6, (0.0, 6.0), "relu6")
softsign = Quadrature(jax.nn.soft_sign, (0.0,), "softsign")


def leaky_relu(slope: Number = 0.01) -> Activation:
    """The activation max(x, 0) + slope min(x, 0); `slope` is any finite number."""
    return LeakyRelu(slope)


def piecewise_linear(negative: float, positive: float) -> Activation:
    """The activation negative min(x, 0) + positive max(x, 0), by its slopes on both sides."""
    label = f"piecewise_linear({negative:g}, {positive:g})"
    return Bent((positive + negative) / 2, (positive - negative) / 2, label)


NAMED: dict[str, Activation] = {
    "relu": relu,
    "leaky_relu": leaky_relu(),
    "abs": absolute,
    "erf": erf,
    "gelu": gelu,
    "tanh": tanh,
    "sine": sine,
    "identity": identity,
    "sigmoid": sigmoid,
    "silu": silu,
    "softplus": softplus,
    "elu": elu,
    "selu": selu,
    "celu": celu,
    "relu6": relu6,
    "softsign": softsign,
}
ALIASES = {"linear": "identity", "absolute": "abs", "sin": "sine", "swish": "silu", "soft_sign": "softsign"}
FUNCTIONS: tuple[tuple[Callable[..., object], str], ...] = (
    (jax.nn.relu, "relu"),
    (jax.nn.leaky_relu, "leaky_relu"),
    *((function, "abs") for function in (jnp.abs, jnp.absolute, jax.lax.abs, np.abs, abs)),
    *((function, "tanh") for function in (jnp.tanh, jax.nn.tanh, jax.lax.tanh, np.tanh)),
    *((function, "sine") for function in (jnp.sin, jax.lax.sin, np.sin)),
    *((function, "erf") for function in (jax.scipy.special.erf, jax.lax.erf)),
    (jax.nn.identity, "identity"),
    *((function, "sigmoid") for function in (jax.nn.sigmoid, jax.lax.logistic)),
    (jax.nn.silu, "silu"),
    (jax.nn.softplus, "softplus"),
    (jax.nn.elu, "elu"),
    (jax.nn.selu, "selu"),
    (jax.nn.celu, "celu"),
    (jax.nn.relu6, "relu6"),
    (jax.nn.soft_sign, "softsign"),
)
"""Functions of JAX and NumPy that are named activations; `jax.nn.gelu` is one only if `approximate` is False."""


def get(activation: object) -> Activation:
    """The activation of this name ("leaky_relu(0.2)" with its slope), or of this elementwise JAX function.

    Raises:
        TypeError: the argument is neither a name nor a function of one array that returns one of the same shape and
            dtype, or it is a function of NumPy.
        ValueError: no activation has this name; the message lists the existing names. Or the function gives other
            values at the next call, or its values depend on the other numbers of the array.
    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        return _named(activation)
    if callable(activation):
        named = _of_function(activation)
        if named is not None:
            return named
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
            slope = float(match[1])
        except ValueError:
            slope = math.nan
        if not math.isfinite(slope):
            raise ValueError(f"got {name!r}, expected a finite number as the slope, as in 'leaky_relu(0.2)'")
        return leaky_relu(slope)
    raise ValueError(f"unknown activation {name!r}: choose one of {', '.join(NAMED)}, or pass a JAX function")


def _of_function(function: Callable[..., object]) -> Activation | None:
    """The named activation that this function of JAX or NumPy is, also with `functools.partial` settings; else None."""
    settings: dict[str, object] = {}
    if isinstance(function, functools.partial):
        if function.args:
            return None
        settings, function = function.keywords, function.func
    if function is jax.nn.gelu:
        return gelu if settings.get("approximate") is False else None
    name = next((name for known, name in FUNCTIONS if known is function), None)
    if name == "leaky_relu" and settings.keys() == {"negative_slope"}:
        return leaky_relu(cast(float, settings["negative_slope"]))
    return NAMED[name] if name is not None and not settings else None


@functools.lru_cache(maxsize=256)
def _check_elementwise(function: Elementwise) -> None:
    name = getattr(function, "__name__", repr(function))
    if (isinstance(function, np.ufunc) or getattr(np, name, None) is function) and hasattr(jnp, name):
        raise TypeError(f"got numpy.{name} as activation, which JAX cannot follow: pass jax.numpy.{name}")
    probe = jnp.asarray([-2, 1, -1, 2, 0.5], jnp.float32)
    try:
        values = jax.eval_shape(function, probe)
    except Exception as error:  # a user's function may raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise TypeError(
            f"activation {name} failed on a float32 JAX array ({reason}): write it with functions of jax.numpy"
        ) from error
    if getattr(values, "shape", None) != probe.shape or values.dtype != probe.dtype:
        got = f"{values.dtype}{list(values.shape)}" if hasattr(values, "dtype") else type(values).__name__
        raise TypeError(f"activation {name} must map an array to one of the same shape and dtype, got {got}")
    if not is_pure(function, probe):
        raise ValueError(f"activation {name} changes from call to call: use no counter and no random numbers")
    with jax.ensure_compile_time_eval():
        together = function(probe)
        alone = jnp.concatenate([function(probe[i : i + 1]) for i in range(len(probe))])
    if not np.allclose(together, alone, rtol=1e-5, atol=1e-5, equal_nan=True):
        raise ValueError(f"activation {name} must act on every number by itself, but its values depend on the others")
