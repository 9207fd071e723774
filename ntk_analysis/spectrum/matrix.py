"""A kernel as the matrix whose eigenvalues are taken: checked, exactly symmetric, float64."""

import math
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from ntk_analysis.precision import AnyArray, Real


@runtime_checkable
class ScaledKernel(Protocol):
    """What this module needs of a `Kernel`: its NNGP, and its NTK as ntk_scaled * exp(log_scale)."""

    @property
    def nngp(self) -> AnyArray:
        """Covariance of the pre-activations, (m, m)."""

    @property
    def ntk_scaled(self) -> AnyArray:
        """Tangent kernel without its scale, (m, m)."""

    @property
    def log_scale(self) -> Real:
        """Logarithm of the tangent kernel's scale."""


AnyKernel: TypeAlias = ScaledKernel | AnyArray


class Matrix(NamedTuple):
    """A checked kernel: exactly symmetric, float64."""

    entries: Float64[np.ndarray, "m m"]
    log_scale: float
    entry_error: float
    dtype: np.dtype


def as_matrix(kernel: AnyKernel, which: str) -> Matrix:
    """The part of the kernel that `which` names, checked."""
    if which not in ("ntk", "nngp"):
        raise ValueError(f"which={which!r} is not a kernel: use 'ntk' or 'nngp'")
    log_scale: Real = 0.0
    given: Any = kernel
    if isinstance(kernel, ScaledKernel):
        given, log_scale = (kernel.ntk_scaled, kernel.log_scale) if which == "ntk" else (kernel.nngp, 0.0)
    array = concrete(given, "kernel")
    entries = array.astype(np.float64)
    _check_entries(entries)
    log = float(concrete(log_scale, "log_scale"))
    if not math.isfinite(log):
        raise ValueError(f"log_scale is {log}, expected a finite number: check how the kernel was computed")
    return Matrix((entries + entries.T) / 2, log, _entry_error(entries, array.dtype), array.dtype)


def concrete(value: Any, name: str) -> np.ndarray:
    """An array of real numbers outside any JAX transformation, of its own dtype."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name} is a JAX tracer, spectrum works on concrete arrays: call it outside jit, grad, vmap")
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers: convert it")
    return array


def _check_entries(entries: Float64[np.ndarray, "..."]) -> None:
    if entries.ndim != 2 or entries.shape[0] != entries.shape[1]:
        raise ValueError(f"kernel has shape {entries.shape}, expected (m, m): take one set of inputs against itself")
    if entries.size == 0:
        raise ValueError("kernel is empty, shape (0, 0), expected m >= 1 inputs: pass at least one")
    if not np.isfinite(entries).all():
        row, column = np.argwhere(~np.isfinite(entries))[0].tolist()
        raise ValueError(
            f"kernel[{row}, {column}] is {entries[row, column]}, expected finite entries: where they overflow, pass "
            "the Kernel itself, or compute it in float64"
        )
    largest = np.max(np.abs(entries))
    if largest == 0:
        raise ValueError("kernel is zero everywhere, expected a positive eigenvalue: check inputs and variances")
    if largest > np.finfo(np.float64).max / (2 * len(entries)):
        raise OverflowError(
            f"kernel's entries reach {largest:.2g}, its eigenvalues exceed float64: pass the Kernel itself"
        )


def _entry_error(entries: Float64[np.ndarray, "m m"], dtype: np.dtype) -> float:
    """How far entries may be off: rounding of the dtype, or the asymmetry where larger, if rounding can explain it."""
    eps, largest = machine_eps(dtype), float(np.max(np.abs(entries)))
    asymmetry = float(np.max(np.abs(entries - entries.T))) / 2
    # Entries (i, j) and (j, i) round apart by about eps per summand and layer, and an arccos near correlation 1 loses
    # half the digits: sqrt(eps) covers both. A kernel between two different sets of inputs is off by order one.
    if asymmetry > math.sqrt(eps) * largest:
        raise ValueError(
            f"kernel is not symmetric: it differs from its transpose by {2 * asymmetry:.2g} with entries up to "
            f"{largest:.2g}, more than {dtype} explains: take one set of inputs against itself"
        )
    return max(eps * largest, asymmetry)


def machine_eps(dtype: np.dtype) -> float:
    """Rounding of the dtype, no finer than the float64 computed in; integers are exact."""
    given = dtype if jnp.issubdtype(dtype, jnp.floating) else np.float64
    return max(float(jnp.finfo(given).eps), float(np.finfo(np.float64).eps))  # type: ignore[no-untyped-call]
