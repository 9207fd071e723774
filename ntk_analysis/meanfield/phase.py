"""chi_1 and the phase that it decides: ordered, critical or chaotic, or undecided where its error crosses 1."""

import numpy as np

from ntk_analysis.activations import Activation
from ntk_analysis.meanfield.variance import NOISE, Vector, kept_variance, variance_slope

CLOSED_FORM_ERROR = 1e-13  # error of chi_1 without quadrature: q_star is solved for, not given
LARGEST_TOLERANCE = 1e-8  # a larger error must not turn a whole region of the phase diagram into its boundary


def chi_1_at(phi: Activation, w: Vector, q: Vector) -> Vector:
    """Growth w_var E[phi'^2] at variance q."""
    # at q = 0 it is the limit q -> 0: a kinked phi' has no value at the single point 0
    return w * np.asarray(phi.derivative_dual.second_moment(np.maximum(q, 1e-300)))


def chi_1_error(phi: Activation, *, centered: bool, w: Vector, b: Vector, q: Vector) -> Vector:
    """Bound on the absolute error of `chi_1_at` at a fixed point q of the variance.

    It has two parts: the error of E[phi'^2], and the error of q, times the slope of chi_1 in q. Since q solves q = w
    V(q) + b, it is off by the error of w V over 1 - w V'(q).
    """
    relative = np.asarray(phi.quadrature_error(q))
    chi_1 = chi_1_at(phi, w, q)
    own = np.maximum(relative, CLOSED_FORM_ERROR) * np.maximum(chi_1, 1.0)
    if phi.homogeneous:
        return own
    slope = w * phi.in_variance(np.maximum(q, np.finfo(float).tiny)).slope_square
    kept = w * np.asarray(phi.dual.second_moment(q))
    off = 2 * relative * kept + NOISE * q
    apart = np.abs(1 - variance_slope(phi, centered, w, q))
    moved = np.divide(off, apart, out=np.full_like(off, np.inf), where=apart > 0)
    # where the error of q is not small against q, its slope says nothing; q = 0 is exact where w V(0) + b is 0
    shifted = np.where(moved < 0.1 * q, np.abs(slope) * moved, np.inf)
    exact = (q == 0) | ((np.abs(w * kept_variance(phi, centered, q) + b - q) <= NOISE * q) & (q == 1.0))
    return np.where(exact, own, own + shifted)


def phase_of(chi_1: float, error: float) -> str:
    """Phase of a bounded variance, given chi_1 and its absolute error."""
    if not abs(chi_1 - 1) > error:
        return "critical" if error <= LARGEST_TOLERANCE else "undecided"
    return "ordered" if chi_1 < 1 else "chaotic"
