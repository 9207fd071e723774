"""chi_1 and the phase that it decides: ordered, critical or chaotic."""

import numpy as np

from ntk_analysis.activations import Activation
from ntk_analysis.meanfield.variance import Vector

CLOSED_FORM_ERROR = 1e-13  # of chi_1 when no quadrature is involved: q_star is solved for, not given
LARGEST_TOLERANCE = 1e-8  # a worse quadrature must not turn a whole region of the phase diagram into its boundary


def chi_1_at(phi: Activation, w: Vector, q: Vector) -> Vector:
    """w_var E[phi'^2] at variance q."""
    # at q = 0 the limit q -> 0: a kinked phi' has no value at the single point 0
    return w * np.asarray(phi.derivative_dual.second_moment(np.maximum(q, 1e-300)))


def phase_of(chi_1: float, error: float) -> str:
    """Phase of a bounded variance, given chi_1 and its absolute error."""
    if abs(chi_1 - 1) <= min(error, LARGEST_TOLERANCE):
        return "critical"
    return "ordered" if chi_1 < 1 else "chaotic"
