"""Everything about one block, from its activation, normalisation and variances."""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np

from ntk_analysis import activations
from ntk_analysis.activations import Activation
from ntk_analysis.meanfield.block import MeanField
from ntk_analysis.meanfield.fixed_points import with_fixed_points
from ntk_analysis.meanfield.phase import CLOSED_FORM_ERROR, chi_1_at, phase_of
from ntk_analysis.meanfield.variance import Vector, settled_variance, unbounded, variance_slope
from ntk_analysis.networks import normalization_named
from ntk_analysis.precision import Real

AnyActivation: TypeAlias = str | Callable[[jax.Array], jax.Array] | Activation


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
    phi, normalization = activations.get(activation), supported(normalization)
    centered = normalization == "weight_mean"
    b = _variance("b_var", b_var, "0 means no bias")
    hint = "leave it out for the stable gain"
    w = phi.stable_gain(b, centered=centered) if w_var is None else _variance("w_var", w_var, hint)
    q = float(settled_variance(phi, centered, np.array([w]), np.array([b]))[0])
    if not math.isfinite(q):
        return MeanField(phi, normalization, w, b, reason=unbounded(phi, centered, w, b))
    chi_1 = float(chi_1_at(phi, np.array([w]), np.array([q]))[0])
    error = max(phi.quadrature_error(q), CLOSED_FORM_ERROR) * max(chi_1, 1.0)
    scale_free = phi.homogeneous and b == 0 and q > 0
    slope = float(variance_slope(phi, centered, np.array([w]), np.array([q]))[0])
    phase = phase_of(chi_1, error)
    return with_fixed_points(MeanField(phi, normalization, w, b, q, chi_1, error, slope, phase, scale_free=scale_free))


def supported(normalization: str) -> str:
    """The normalisation a name or alias stands for, if it is a scalar map: "none" or "weight_mean"."""
    name = normalization_named(normalization)
    if name not in ("none", "weight_mean"):
        raise NotImplementedError(f"meanfield with normalization {name!r} comes later: use 'none' or 'weight_mean'")
    return name


def variances(name: str, value: Real, hint: str = "use variances, not deviations") -> Vector:
    """Finite numbers >= 0, one or several, as a vector."""
    array = np.atleast_1d(np.asarray(value, np.float64))
    if array.ndim > 1 or array.size == 0 or not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"got {name}={value}, expected finite numbers >= 0: {hint}")
    return array


def _variance(name: str, value: Real, hint: str) -> float:
    if np.ndim(value):
        raise ValueError(f"got {name} of shape {np.shape(value)}, expected one number; phase_diagram takes arrays")
    return float(variances(name, value, hint)[0])
