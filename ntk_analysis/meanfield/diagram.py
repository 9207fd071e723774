"""Phase diagram over weight and bias variances, and its critical line, the edge of chaos."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float64

from ntk_analysis import activations
from ntk_analysis.common.precision import Real
from ntk_analysis.meanfield.analysis import AnyActivation, supported, variances
from ntk_analysis.meanfield.phase import chi_1_at, chi_1_error, phase_of
from ntk_analysis.meanfield.variance import NOISE, Vector, kept_variance, settled_variance, variance_slope

Grid: TypeAlias = Float64[np.ndarray, "b w"]


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Growth chi_1 and variance over a grid; entry [i, j] belongs to b_var[i], w_var[j].

    Attributes:
        w_var: weight variances.
        b_var: bias variances.
        chi_1: growth chi_1 at q_star; inf where the variance is not `bounded`.
        q_star: variance reached from q = 1; inf where it is not `bounded`, NaN where it is not known.
        chi_1_error: bound on the absolute error of chi_1; NaN where the variance is not `bounded`.
        phase: "ordered", "critical", "chaotic" or "unbounded"; or "undecided", where the error is too large to tell or
            the variance settles beyond the activation's `largest_variance`.
        bounded: whether the variance settles.
    """

    w_var: Float64[np.ndarray, " w"]
    b_var: Float64[np.ndarray, " b"]
    chi_1: Grid
    q_star: Grid
    chi_1_error: Grid
    phase: np.ndarray
    bounded: Bool[np.ndarray, "b w"]


def phase_diagram(
    activation: AnyActivation = "tanh", *, normalization: str = "none", w_var: Real, b_var: Real
) -> PhaseDiagram:
    """`analyse` without the fixed points, for every pair of a weight and a bias variance (Schoenholz et al., Fig. 1).

    Raises:
        ValueError, NotImplementedError: an argument is refused, as by `analyse`.
    """
    phi, centered = activations.get(activation), supported(normalization) == "weight_mean"
    weights, biases = variances("w_var", w_var), variances("b_var", b_var)
    w, b = (grid.ravel() for grid in np.meshgrid(weights, biases))
    q = settled_variance(phi, centered, w, b)
    bounded = np.isfinite(q)
    chi_1 = np.full_like(q, np.inf)
    chi_1[bounded] = chi_1_at(phi, w[bounded], q[bounded])
    error = np.full_like(q, np.nan)
    error[bounded] = chi_1_error(phi, centered=centered, w=w[bounded], b=b[bounded], q=q[bounded])
    phase = np.where(np.isnan(q), "undecided", "unbounded")
    for i in np.flatnonzero(bounded):
        phase[i] = phase_of(chi_1[i], error[i])
    shape = len(biases), len(weights)
    return PhaseDiagram(weights, biases, *(grid.reshape(shape) for grid in (chi_1, q, error, phase, bounded)))


@dataclass(frozen=True, eq=False)
class CriticalLine:
    """The line where chi_1 = 1, as a curve with parameter q_star.

    Attributes:
        w_var: weight variances on the line.
        b_var: bias variances on the line.
        q_star: fixed point of the variance at which chi_1 is 1.
        variance_slope: slope dq'/dq at that fixed point. Above 1 (straight GELU below q = (3 + sqrt 17)/2) the variance
            leaves q_star, and iterating does not reach the line.
        w_var_error: bound on the absolute error of `w_var`.
        b_var_error: bound on the absolute error of `b_var`.
    """

    w_var: Vector
    b_var: Vector
    q_star: Vector
    variance_slope: Vector
    w_var_error: Vector
    b_var_error: Vector


def critical_line(
    activation: AnyActivation = "tanh", *, normalization: str = "none", q: Real | None = None
) -> CriticalLine:
    """The edge of chaos: w_var = 1 / E[phi'^2] and b_var = q - w_var V(q), for those q where b_var is not negative.

    Args:
        activation: name or elementwise JAX function.
        normalization: name of the normalisation, as for `analyse`.
        q: variances at which to look for the line; by default 301 from 0 to 3. For scale-free maps such as the straight
            ReLU the line is one point, returned with q_star = 1.

    Raises:
        ValueError: there is no line at these q, or a q is above the activation's `largest_variance`.
        NotImplementedError: the normalisation is refused, as by `analyse`.
    """
    phi, centered = activations.get(activation), supported(normalization) == "weight_mean"
    variance = variances("q", np.linspace(0, 3, 301) if q is None else q)
    if variance.max() > phi.largest_variance:
        raise ValueError(f"got q up to {variance.max():g}, expected at most {phi.largest_variance:.4g} for {phi}")
    slope = chi_1_at(phi, np.ones_like(variance), variance)
    w = np.divide(1, slope, out=np.full_like(slope, np.inf), where=slope > 0)
    kept = kept_variance(phi, centered, variance)
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
    relative = np.maximum(phi.quadrature_error(variance), NOISE)
    spent = w * np.asarray(phi.dual.second_moment(variance))
    slope = variance_slope(phi, centered, w, variance)
    return CriticalLine(w, b, variance, slope, relative * w, 4 * relative * spent + NOISE * variance)
