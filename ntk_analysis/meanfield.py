"""One block of a network (dense layer and activation) as a map of two numbers, the variance q and the correlation rho.

    q'     = w_var V(q) + b_var,                  V(q) = E[phi(u)^2], minus E[phi(u)]^2 under weight centring
    T(rho) = (w_var C(q, rho) + b_var) / q,       C = E[phi(u) phi(v)], minus E[phi]^2;  at the fixed point q = q_star
    chi_1  = w_var E[phi'(u)^2],                  T'(rho) = w_var E[phi'(u) phi'(v)]

(Poole et al. 2016; Schoenholz et al. 2017; with centring MimicNorm, Theorem 3). chi_1 is the same expression with and
without centring, because subtracting a constant does not change phi'. Correlations are carried as cosine distances
1 - rho throughout, so that nothing cancels near rho = 1. Everything is float64, whatever JAX's x64 flag says.
"""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float64
from scipy.optimize import brentq

from ntk_analysis import activations, gram
from ntk_analysis.activations import Activation
from ntk_analysis.networks import normalization_named
from ntk_analysis.precision import Real

AnyActivation: TypeAlias = str | Callable[[jax.Array], jax.Array] | Activation
Vector: TypeAlias = Float64[np.ndarray, " n"]
Grid: TypeAlias = Float64[np.ndarray, "b w"]

EPS = float(np.finfo(np.float64).eps)
NOISE = 32 * EPS  # relative rounding error of one evaluation of the variance or of the correlation map
CLOSED_FORM_ERROR = 1e-13  # of chi_1 when no quadrature is involved: q_star is solved for, not given
LARGEST_TOLERANCE = 1e-8  # a worse quadrature must not turn a whole region of the phase diagram into its boundary
NEARLY_ZERO = 1e-8  # variance that stands for q -> 0: smooth maps are linear there up to 1e-8
DISTANCES = np.unique(np.concatenate([np.geomspace(1e-15, 1e-2, 391), np.linspace(1e-2, 2, 400)]))
DOWNWARD = np.concatenate([np.geomspace(1, 1e-14, 281), [0.0]])
UPWARD = np.concatenate([np.geomspace(1, 1e6, 121), np.geomspace(1e7, 1e150, 144)])


@dataclass(frozen=True)
class FixedPoint:
    """A correlation that a block maps to itself.

    Attributes:
        correlation: rho*.
        slope: T'(rho*).
        stable: nearby correlations approach it; at slope 1 decided by the direction in which they move.
        distance: 1 - rho*, to full relative precision where `correlation` rounds to 1.
    """

    correlation: float
    slope: float
    stable: bool
    distance: float


@dataclass(frozen=True)
class MeanField:
    """What one block does to variance and correlation, at the variance that the layers settle at.

    Attributes:
        activation: phi.
        normalization: "none" or "weight_mean".
        w_var: weight variance.
        b_var: bias variance.
        q_star: variance reached by iterating from q = 1; None where it grows without bound.
        chi_1: w_var E[phi'^2] at q_star: growth of a small perturbation, and of the NTK's diagonal, per layer.
        chi_1_error: its absolute error: measured quadrature error at q_star, 1e-13 for closed forms.
        variance_slope: dq'/dq at q_star. Above 1 the variance leaves q_star at the slightest perturbation: so does GELU
            at its stable gain (1.1441 straight, 1.0621 with weight centring): q = 1 is kept in exact arithmetic only.
        phase: "ordered" (chi_1 < 1), "critical" (equal within min(chi_1_error, 1e-8)) or "chaotic"; None without
            q_star. Where q_star = 0 it still speaks of chi_1, not of the scale-free map: they differ, by the factor
            variance_slope.
        fixed_points: of `transition`, in ascending order; empty where every correlation is fixed, or none is defined.
        correlation_length: -1/ln|slope| at the stable fixed point, in layers; inf at slope 1, 0 at slope 0.
        scale_free: homogeneous activation without bias at its stable gain: every q is fixed, q_star = 1 stands for all.
        every_correlation_fixed: T(rho) = rho up to rounding.
        reason: why a field is None or `fixed_points` is empty; otherwise "".
    """

    activation: Activation
    normalization: str
    w_var: float
    b_var: float
    q_star: float | None = None
    chi_1: float | None = None
    chi_1_error: float | None = None
    variance_slope: float | None = None
    phase: str | None = None
    fixed_points: tuple[FixedPoint, ...] = ()
    correlation_length: float | None = None
    scale_free: bool = False
    every_correlation_fixed: bool = False
    reason: str = ""

    def transition_distance(self, distance: Real) -> Float64[np.ndarray, "..."] | float:
        """1 - T(rho) as a function of 1 - rho in [0, 2]: T to full relative precision near rho = 1.

        At q_star = 0 it is the limit q -> 0: for homogeneous activations the map normalised by the variance, else rho.

        Raises:
            ValueError: no bounded variance (the message is `reason`), or a distance outside [0, 2].
        """
        if self.q_star is None or self.w_var == self.b_var == 0:
            raise ValueError(self.reason)
        before = np.asarray(distance, np.float64)
        if not np.all((before >= 0) & (before <= 2)):
            raise ValueError(
                "got a correlation outside [-1, 1], expected E[uv] / sqrt(E[u^2] E[v^2]); clip rounding off"
            )
        after = before if self.every_correlation_fixed else _evaluated(self, before)[0]
        return after if after.ndim else float(after)

    def transition(self, rho: Real) -> Float64[np.ndarray, "..."] | float:
        """T(rho): correlation after the block; see `transition_distance` for the limits and errors."""
        return 1 - self.transition_distance(1 - np.asarray(rho, np.float64))

    def trajectory(self, rho: Real, depth: Real) -> Float64[np.ndarray, "layers *batch"]:
        """rho, T(rho), T(T(rho)), ...: correlations after 0 to `depth` blocks, iterated in the cosine distance."""
        if isinstance(depth, float) or not np.issubdtype(np.asarray(depth).dtype, np.integer) or depth < 0:
            raise ValueError(f"got depth {depth}, expected an integer >= 0: the number of blocks")
        first = np.asarray(rho, np.float64)
        distance, correlations = 1 - first, [first]
        self.transition_distance(distance)  # rejects what is no correlation, at depth 0 too
        for _ in range(operator.index(depth)):  # type: ignore[arg-type]
            distance = np.asarray(self.transition_distance(distance))
            correlations.append(1 - distance)
        return np.stack(correlations)


def analyse(
    activation: AnyActivation = "relu",
    *,
    normalization: str = "none",
    w_var: Real | None = None,
    b_var: Real = 0.0,
) -> MeanField:
    """Variance, chi_1, phase and fixed points of one block.

    Args:
        activation: name or elementwise JAX function.
        normalization: "none" (straight) or "weight_mean" (MimicNorm's weight centering), or an alias.
        w_var: weight variance; None is the activation's stable gain, which keeps q = 1, centring included.
        b_var: bias variance.

    Raises:
        ValueError: unknown name, negative or non-finite variance, no stable gain for b_var >= 1.
        NotImplementedError: a normalisation that is no scalar map of this kind.
    """
    phi, normalization = activations.get(activation), _supported(normalization)
    centered = normalization == "weight_mean"
    b = _variance("b_var", b_var, "0 means no bias")
    hint = "leave it out for the stable gain"
    w = phi.stable_gain(b, centered=centered) if w_var is None else _variance("w_var", w_var, hint)
    q = float(_settled_variance(phi, centered, np.array([w]), np.array([b]))[0])
    if not math.isfinite(q):
        return MeanField(phi, normalization, w, b, reason=_unbounded(phi, centered, w, b))
    chi_1 = float(_chi_1(phi, np.array([w]), np.array([q]))[0])
    error = max(phi.quadrature_error(q), CLOSED_FORM_ERROR) * max(chi_1, 1.0)
    scale_free = phi.homogeneous and b == 0 and q > 0
    slope = float(_variance_slope(phi, centered, np.array([w]), np.array([q]))[0])
    phase = _phase(chi_1, error)
    return _with_fixed_points(MeanField(phi, normalization, w, b, q, chi_1, error, slope, phase, scale_free=scale_free))


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """chi_1 and the variance over a grid; entry [i, j] belongs to b_var[i], w_var[j].

    Attributes:
        w_var: weight variances.
        b_var: bias variances.
        chi_1: inf where not `bounded`.
        q_star: variance reached from q = 1; inf where not `bounded`.
        phase: "ordered", "critical", "chaotic" or "unbounded".
        bounded: whether the variance settles.
    """

    w_var: Float64[np.ndarray, " w"]
    b_var: Float64[np.ndarray, " b"]
    chi_1: Grid
    q_star: Grid
    phase: np.ndarray
    bounded: Bool[np.ndarray, "b w"]


def phase_diagram(
    activation: AnyActivation = "tanh", *, normalization: str = "none", w_var: Real, b_var: Real
) -> PhaseDiagram:
    """`analyse` without the fixed points, for every pair of a weight and a bias variance (Schoenholz et al., Fig. 1).

    Raises:
        ValueError, NotImplementedError: as `analyse`.
    """
    phi, centered = activations.get(activation), _supported(normalization) == "weight_mean"
    weights, biases = _variances("w_var", w_var), _variances("b_var", b_var)
    w, b = (grid.ravel() for grid in np.meshgrid(weights, biases))
    q = _settled_variance(phi, centered, w, b)
    bounded = np.isfinite(q)
    chi_1 = np.full_like(q, np.inf)
    chi_1[bounded] = _chi_1(phi, w[bounded], q[bounded])
    phase = np.where(chi_1 < 1, "ordered", np.where(bounded, "chaotic", "unbounded"))
    for i in np.flatnonzero(np.abs(chi_1 - 1) <= LARGEST_TOLERANCE):
        phase[i] = _phase(chi_1[i], max(phi.quadrature_error(float(q[i])), CLOSED_FORM_ERROR))
    shape = len(biases), len(weights)
    return PhaseDiagram(weights, biases, *(grid.reshape(shape) for grid in (chi_1, q, phase, bounded)))


@dataclass(frozen=True, eq=False)
class CriticalLine:
    """Where chi_1 = 1, as a curve with parameter q_star.

    Attributes:
        w_var: weight variances.
        b_var: bias variances.
        q_star: fixed point of the variance at which chi_1 is 1.
        variance_slope: dq'/dq there. Above 1 (straight GELU, all along) the variance leaves q_star, and iterating does
            not reach the line.
    """

    w_var: Vector
    b_var: Vector
    q_star: Vector
    variance_slope: Vector


def critical_line(
    activation: AnyActivation = "tanh", *, normalization: str = "none", q: Real | None = None
) -> CriticalLine:
    """The edge of chaos: w_var = 1 / E[phi'^2] and b_var = q - w_var V(q), for the q where that is not negative.

    Args:
        activation: name or elementwise JAX function.
        normalization: as in `analyse`.
        q: variances at which to look; by default 301 from 0 to 3. For scale-free maps such as the straight ReLU the
            line is one point, returned with q_star = 1.

    Raises:
        ValueError: no line at these q.
        NotImplementedError: as `analyse`.
    """
    phi, centered = activations.get(activation), _supported(normalization) == "weight_mean"
    variance = _variances("q", np.linspace(0, 3, 301) if q is None else q)
    slope = _chi_1(phi, np.ones_like(variance), variance)
    w = np.divide(1, slope, out=np.full_like(slope, np.inf), where=slope > 0)
    kept = _kept_variance(phi, centered, variance)
    spent = np.multiply(w, kept, out=np.full_like(slope, np.inf), where=slope > 0)
    b = np.where(np.abs(variance - spent) <= NOISE * variance, 0.0, variance - spent)
    if phi.homogeneous and not b.any():
        w, b, variance = w[:1], b[:1], np.ones(1)
    on_line = b >= 0
    if not on_line.any():
        raise ValueError(
            f"no critical line for {phi} with normalization {normalization!r} at the q asked for: chi_1 = 1 would need "
            "b_var < 0 or E[phi'^2] > 0; pass other q, or look at the phase diagram"
        )
    w, b, variance = w[on_line], b[on_line], variance[on_line]
    return CriticalLine(w, b, variance, _variance_slope(phi, centered, w, variance))


def _supported(normalization: str) -> str:
    name = normalization_named(normalization)
    if name not in ("none", "weight_mean"):
        raise NotImplementedError(f"meanfield with normalization {name!r} comes later: use 'none' or 'weight_mean'")
    return name


def _variances(name: str, value: Real, hint: str = "use variances, not deviations") -> Vector:
    array = np.atleast_1d(np.asarray(value, np.float64))
    if array.ndim > 1 or array.size == 0 or not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"got {name}={value}, expected finite numbers >= 0: {hint}")
    return array


def _variance(name: str, value: Real, hint: str) -> float:
    if np.ndim(value):
        raise ValueError(f"got {name} of shape {np.shape(value)}, expected one number; phase_diagram takes arrays")
    return float(_variances(name, value, hint)[0])


def _phase(chi_1: float, error: float) -> str:
    if abs(chi_1 - 1) <= min(error, LARGEST_TOLERANCE):
        return "critical"
    return "ordered" if chi_1 < 1 else "chaotic"


# --- variance ---------------------------------------------------------------------------------------------------------


def _kept_variance(phi: Activation, centered: bool, q: Vector) -> Vector:
    """V(q); overflow of fast-growing activations becomes a huge number."""
    with np.errstate(over="ignore", invalid="ignore"):
        kept = np.asarray(phi.dual.second_moment(q))
        kept = np.maximum(kept - np.asarray(phi.mean(q)) ** 2, 0) if centered else kept
    return np.nan_to_num(kept, nan=1e300, posinf=1e300)


def _chi_1(phi: Activation, w: Vector, q: Vector) -> Vector:
    # at q = 0 the limit q -> 0: a kinked phi' has no value at the single point 0
    return w * np.asarray(phi.derivative_dual.second_moment(np.maximum(q, 1e-300)))


def _settled_variance(phi: Activation, centered: bool, w: Vector, b: Vector) -> Vector:
    """Fixed points of q' = w V(q) + b reached from q = 1 (V increasing: monotonically); inf where there is none.

    The first sign change of q' - q in the direction in which the first step goes, on a grid, then by bisection. Signs
    below the rounding error do not count: at w_var = 2 and b_var > 0 ReLU would otherwise stop where q + b_var == q.
    """
    start = w * _kept_variance(phi, centered, np.ones(1)) + b - 1
    q = np.where(np.abs(start) <= NOISE, 1.0, np.inf)
    low, high = np.ones_like(q), np.ones_like(q)
    kept_up, kept_down = _kept_variance(phi, centered, UPWARD), _kept_variance(phi, centered, DOWNWARD)
    for i in np.flatnonzero(start > NOISE):
        ends = np.flatnonzero(w[i] * kept_up + b[i] - UPWARD < -NOISE * UPWARD)
        if ends.size:
            low[i], high[i] = UPWARD[ends[0] - 1], UPWARD[ends[0]]
    for i in np.flatnonzero(start < -NOISE):
        gain = w[i] * kept_down + b[i] - DOWNWARD
        end = np.flatnonzero(np.append(gain[:-1] > NOISE * DOWNWARD[:-1], True))[0]
        high[i] = DOWNWARD[end - 1]
        low[i] = DOWNWARD[end] or min(gain[-1], high[i])  # at q = 0 what a layer adds bounds the root from below
    q[low == 0] = 0.0
    todo = (low < high) & (low > 0)
    if todo.any():
        q[todo] = _bisected(lambda x: w[todo] * _kept_variance(phi, centered, x) + b[todo], low[todo], high[todo])
    return q


def _bisected(after: Callable[[Vector], Vector], low: Vector, high: Vector) -> Vector:
    """Roots of after(q) = q, with after(low) > low > 0 and after(high) < high, to the last digit of q."""
    while True:
        middle = np.sqrt(low) * np.sqrt(high)
        if not np.any((middle > low) & (middle < high)):
            return after(high)
        grows = after(middle) > middle
        low, high = np.where(grows, middle, low), np.where(grows, high, middle)


def _variance_slope(phi: Activation, centered: bool, w: Vector, q: Vector) -> Vector:
    """w dV/dq by automatic differentiation; at q = 0 the limit, up to 1e-7 for smooth activations."""

    def kept(x: jax.Array) -> jax.Array:
        moment = phi.dual.second_moment(x)
        return moment - phi.mean(x) ** 2 if centered else moment

    with jax.enable_x64(True):
        inside = jnp.asarray(np.where(q > 0, q, 1.0 if phi.homogeneous else NEARLY_ZERO))
        _, slope = jax.jvp(kept, (inside,), (jnp.ones_like(inside),))
        return w * np.asarray(slope)


def _unbounded(phi: Activation, centered: bool, w: float, b: float) -> str:
    far = np.array([1e12])
    kept = float(_kept_variance(phi, centered, far)[0] / far[0])
    growth = w * kept
    rate = f"a factor {growth:.12g}" if growth > 1 + NOISE else f"b_var = {b:g}"
    cure = f"a w_var below {1 / kept:.6g} keeps it bounded" if kept < 1e6 else "lower w_var, or bound the activation"
    setting = f"{phi} with {'centred weights, ' * centered}w_var={w:.12g}, b_var={b:g}"
    return f"{setting}: the variance grows without bound, by {rate} per layer; {cure}"


# --- correlation ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("phi", "centered"))
def _move(
    phi: Activation, centered: bool, w: jax.Array, b: jax.Array, q: jax.Array, distance: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosine distance after the block, and T' = w q E[phi' phi'] / (w V + b)."""
    second = phi.dual.second_moment(q)
    covariance = gram.Covariance(second, second, phi.dual.cosine_distance(q, q, distance))
    if centered:
        covariance = gram.subtract_means(covariance, phi.mean(q), phi.mean(q))
    bias = gram.Covariance(b, b, jnp.zeros_like(distance))
    after = gram.add(gram.scale(covariance, w), bias)
    slope = w * q * phi.derivative_dual.at_distance(q, q, distance) / after.variance1
    return after.distance, slope


def _evaluated(block: MeanField, distance: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine distances after the block and slopes there, at q_star; at q_star = 0 in the limit q -> 0."""
    q = block.q_star or (1.0 if block.activation.homogeneous else NEARLY_ZERO)
    with jax.enable_x64(True):
        numbers = (jnp.asarray(x, jnp.float64) for x in (block.w_var, block.b_var, q, distance))
        after, slope = _move(block.activation, block.normalization == "weight_mean", *numbers)
        return np.asarray(after), np.asarray(slope)


def _with_fixed_points(block: MeanField) -> MeanField:
    if block.w_var == block.b_var == 0:
        return replace(block, reason="w_var = b_var = 0: every pre-activation is 0, and 0 has no correlation")
    after, _ = _evaluated(block, DISTANCES)
    gain = after / DISTANCES - 1
    smooth_limit = block.q_star == 0 and not block.activation.homogeneous
    if np.all(np.abs(gain) <= (100 * NEARLY_ZERO if smooth_limit else NOISE)):
        where = "in the limit q -> 0" if smooth_limit else "to rounding"
        slope = block.chi_1 if smooth_limit else block.variance_slope  # both are w_var phi'(0)^2
        reason = f"every correlation is fixed: T(rho) = rho {where}"
        return replace(block, every_correlation_fixed=True, variance_slope=slope, reason=reason)
    # sin t - t cos t, which bends the maps of kinked activations, has lost the digits eps/t at the angle t
    noise = NOISE / 4 * (1 + 1 / np.sqrt(DISTANCES)) if block.activation.homogeneous else NOISE
    # the series of T and of T' differ by the quadrature's error: a slope of 1 must not turn into a root beside rho = 1
    noise = np.maximum(noise, min(block.activation.quadrature_error(block.q_star or 0.0), LARGEST_TOLERANCE))
    signs = np.where(np.abs(gain) <= noise, 0, np.sign(gain))
    points = tuple(_fixed_point(block, distance, signs) for distance in _fixed_distances(block, after, signs))
    block = replace(block, fixed_points=points)
    attractors = [point for point in points if point.stable]
    if not attractors:
        return replace(block, reason="the stable fixed point is too close to rho = 1 to be told from it")
    return replace(block, correlation_length=_correlation_length(attractors[-1].slope, _tolerance(block)))


def _fixed_distances(block: MeanField, after: np.ndarray, signs: np.ndarray) -> list[float]:
    """All 1 - rho with T(rho) = rho, descending: sign changes on the grid of distances, refined, and the two ends."""
    resolved = np.flatnonzero(signs)
    turns = np.flatnonzero(signs[resolved][1:] != signs[resolved][:-1])
    brackets = [(DISTANCES[resolved[i]], DISTANCES[resolved[i + 1]]) for i in turns]

    def gain(distance: float) -> float:
        return float(_evaluated(block, distance)[0]) - distance

    def root(low: float, high: float) -> float:
        if low < 1 < high and abs(gain(1.0)) <= NOISE:  # rho = 0 of odd and of centred maps, however flat they are
            return 1.0
        return float(brentq(gain, low, high, xtol=EPS * low, rtol=4 * EPS))

    roots = [root(low, high) for low, high in brackets]
    opposite = [2.0] if abs(after[-1] - 2) <= NOISE and not any(2 - x <= NOISE for x in roots) else []
    return [*opposite, *reversed(roots), 0.0]


def _fixed_point(block: MeanField, distance: float, signs: np.ndarray) -> FixedPoint:
    slope = float(_evaluated(block, distance)[1])
    if abs(abs(slope) - 1) > _tolerance(block):
        return FixedPoint(1 - distance, slope, abs(slope) < 1, distance)
    resolved = signs != 0
    nearer = signs[resolved & (distance * (1 - NOISE) > DISTANCES)][-1:]
    farther = signs[resolved & (distance * (1 + NOISE) < DISTANCES)][:1]
    # marginal: correlations on either inner side have to move towards it
    return FixedPoint(1 - distance, slope, bool(np.all(nearer > 0) and np.all(farther < 0)), distance)


def _tolerance(block: MeanField) -> float:
    return min(block.chi_1_error or 0.0, LARGEST_TOLERANCE)


def _correlation_length(slope: float, tolerance: float) -> float:
    if abs(slope) <= EPS:
        return 0.0
    return math.inf if abs(abs(slope) - 1) <= tolerance else -1 / math.log(abs(slope))
