"""Everything about one block, from its activation, normalisation and variances."""

import math
from collections.abc import Callable
from typing import Literal, SupportsIndex, TypeAlias, overload

import jax
import numpy as np

from ntk_analysis import activations
from ntk_analysis.activations import Activation
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.normalizations import infinite_name
from ntk_analysis.common.precision import Real
from ntk_analysis.meanfield.batch import BatchNormField, batch_norm_field
from ntk_analysis.meanfield.block import MeanField
from ntk_analysis.meanfield.fixed_points import with_fixed_points
from ntk_analysis.meanfield.phase import chi_1_at, chi_1_error, phase_of
from ntk_analysis.meanfield.variance import Vector, settled_variance, unbounded, variance_slope

AnyActivation: TypeAlias = str | Callable[[jax.Array], jax.Array] | Activation

SMALLEST = 1e-290  # positive variance: products with what 12 deviations weigh are normal numbers


@overload
def analyse(  # type: ignore[overload-overlap]  # a name known only at run time is taken for that of a scalar map
    activation: AnyActivation = "relu",
    *,
    normalization: Literal["batch", "batch_norm", "bn"],
    w_var: Real | None = None,
    b_var: Real = 0.0,
    batch_size: SupportsIndex | None = None,
) -> BatchNormField: ...


@overload
def analyse(
    activation: AnyActivation = "relu",
    *,
    normalization: str = "none",
    w_var: Real | None = None,
    b_var: Real = 0.0,
    batch_size: SupportsIndex | None = None,
) -> MeanField: ...


def analyse(
    activation: AnyActivation = "relu",
    *,
    normalization: str = "none",
    w_var: Real | None = None,
    b_var: Real = 0.0,
    batch_size: SupportsIndex | None = None,
) -> MeanField | BatchNormField:
    """Variance, chi_1, phase and fixed points of one block; for batch normalisation, the rates at its fixed point.

    Args:
        activation: name or elementwise JAX function; relu, leaky_relu, abs or identity for "batch".
        normalization: "none" (straight), "weight_mean" (MimicNorm's weight centering; "weight_standardization" is the
            same here), "batch", or an alias.
        w_var: weight variance; None is the activation's stable gain, which keeps q = 1, centering included. For "batch"
            any value > 0 and any b_var give the same result, because batch normalisation undoes both (eps = 0).
        b_var: bias variance.
        batch_size: inputs per batch, at least 4, for "batch" only; None is the limit of large batches.

    Raises:
        ValueError: a name is unknown, a variance is negative or not finite, or there is no stable gain because b_var >=
            1; batch_size is below 4, or given with another normalisation.
        NotImplementedError: the normalisation is not a scalar map of this kind, or it is "batch" before an activation
            that is not positively homogeneous.
    """
    if infinite_name(normalization) == "batch":
        _check_undone(w_var, b_var)
        return batch_norm_field(activations.get(activation), batch_size)
    if batch_size is not None:
        raise ValueError(f"got batch_size={batch_size} with normalization {normalization!r}: it goes with 'batch' only")
    phi, normalization = activations.get(activation), supported(normalization)
    centered = normalization == "weight_mean"
    b = _variance("b_var", b_var, "0 means no bias")
    hint = "leave it out for the stable gain"
    w = phi.stable_gain(b, centered=centered) if w_var is None else _variance("w_var", w_var, hint)
    q = float(settled_variance(phi, centered, np.array([w]), np.array([b]))[0])
    if math.isnan(q):
        raise ValueError(
            f"the variance of {phi} with w_var={w:g}, b_var={b:g} settles above {phi.largest_variance:.3g}, up to "
            "which its expectations are known: use a smaller w_var"
        )
    if not math.isfinite(q):
        return MeanField(phi, normalization, w, b, reason=unbounded(phi, centered, w, b))
    chi_1 = float(chi_1_at(phi, np.array([w]), np.array([q]))[0])
    error = float(chi_1_error(phi, centered=centered, w=np.array([w]), b=np.array([b]), q=np.array([q]))[0])
    scale_free = phi.homogeneous and b == 0 and q > 0
    slope = float(variance_slope(phi, centered, np.array([w]), np.array([q]))[0])
    phase = phase_of(chi_1, error)
    return with_fixed_points(MeanField(phi, normalization, w, b, q, chi_1, error, slope, phase, scale_free=scale_free))


def supported(normalization: str) -> str:
    """The normalisation for which a name or alias stands, if it is a scalar map: "none" or "weight_mean".

    Weight standardisation is weight centering at infinite width.
    """
    name = infinite_name(normalization)
    if name == "weight_standardization":
        return "weight_mean"
    if name == "batch":
        raise NotImplementedError(
            "batch normalisation has no phase diagram and no critical line, for it undoes w_var and b_var: use "
            "analyse(normalization='batch', batch_size=...)"
        )
    if name not in ("none", "weight_mean"):
        same = {"layer": "none", "layer_post": "weight_mean"}[name]
        raise NotImplementedError(
            f"layer normalisation leaves no variance to follow, so meanfield has no {name!r}: for ReLU its map of "
            f"correlations is that of {same!r} at the stable gain, so use that"
        )
    return name


def _check_undone(w_var: Real | None, b_var: Real) -> None:
    """Checks the variances that batch normalisation undoes: weights of 0 leave nothing to normalise."""
    _variance("b_var", b_var, "0 means no bias")
    if w_var is not None and _variance("w_var", w_var, "leave it out") == 0:
        raise ValueError("got w_var=0, expected a number > 0: batch normalisation of a constant is 0/0")


def variances(name: str, value: Real, hint: str = "use variances, not deviations") -> Vector:
    """One or several finite numbers >= 0, as a vector."""
    array = np.atleast_1d(concrete(value, name).astype(np.float64))
    if array.ndim > 1 or array.size == 0 or not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"got {name}={value}, expected finite numbers >= 0: {hint}")
    if np.any((array > 0) & (array < SMALLEST)):
        raise ValueError(f"got {name}={value}, expected 0 or at least {SMALLEST:g}: products with it underflow")
    return array


def _variance(name: str, value: Real, hint: str) -> float:
    if np.ndim(value):
        raise ValueError(f"got {name} of shape {np.shape(value)}, expected one number; phase_diagram takes arrays")
    return float(variances(name, value, hint)[0])
