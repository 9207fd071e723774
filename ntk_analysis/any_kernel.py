"""What every analysis takes as a kernel: an infinite one, an empirical one in any layout, a file or store, an array."""

from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.empirical import EmpiricalKernel, open_kernel
from ntk_analysis.infinite import Kernel, StoredKernel

OneArray = TypeVar("OneArray", jax.Array, np.ndarray)

AnyKernel: TypeAlias = Kernel | StoredKernel | EmpiricalKernel | str | Path | AnyArray
"""An infinite `Kernel`, one in a store, an `EmpiricalKernel`, the path of a saved one, or an array as in `Entries`."""


class Entries(NamedTuple):
    """The entries of a kernel as NumPy array; the kernel is values * exp(log_scale).

    Attributes:
        values: (n1, n2) for one output, or for the mean over outputs of a "trace"; (n1, n2, C) of a "diagonal" and
            (n1, n2, C, C) of a full kernel with C > 1 outputs. In their own dtype.
        log_scale: 0 but for the NTK of an infinite `Kernel`.
    """

    values: np.ndarray
    log_scale: float


def opened(kernel: AnyKernel) -> Kernel | StoredKernel | EmpiricalKernel | AnyArray:
    """The kernel, read from its file or store where a path is given; see `open_kernel` for errors."""
    # all of it is read next, which finds damage
    return open_kernel(kernel, check=False) if isinstance(kernel, str | Path) else kernel


def entries(kernel: AnyKernel, which: str = "ntk") -> Entries:
    """The entries of any kernel.

    The trace of an empirical kernel with C outputs, which is their sum, is divided by C: as the mean over outputs it is
    what the kernel of an infinitely wide network is compared with.

    Args:
        kernel: any kernel.
        which: "ntk" or "nngp"; of an array it only says what the array is.

    Raises:
        ValueError: none of the layouts of `Entries`; no, NaN or infinite entries; an unknown `which`.
        AttributeError: an empirical kernel that is not the one `which` names.
        FileNotFoundError, FileExistsError: a path without a kernel; see `open_kernel`.
        TypeError: not real numbers, or inside a JAX transformation.
    """
    if which not in ("ntk", "nngp"):
        raise ValueError(f"which={which!r} is not a kernel: use 'ntk' or 'nngp'")
    kernel, log_scale = opened(kernel), 0.0
    if isinstance(kernel, Kernel | StoredKernel):
        values = concrete(kernel.ntk_scaled if which == "ntk" else kernel.nngp, "kernel")
        log_scale = float(concrete(kernel.log_scale, "log_scale")) if which == "ntk" else 0.0
    elif isinstance(kernel, EmpiricalKernel):
        values = kernel.ntk if which == "ntk" else kernel.nngp
        if kernel.layout == "trace":
            values = values / np.asarray(kernel.plan.outputs, values.dtype)
    else:
        values = concrete(kernel, "kernel")
    over_outputs = values.shape[2:]
    if values.ndim not in (2, 3, 4) or over_outputs[:1] != over_outputs[-1:] or values.size == 0:
        raise ValueError(
            f"kernel has shape {values.shape}, expected (n1, n2), or (n1, n2, C, C) for C outputs, or (n1, n2, C) for "
            "the diagonal of it"
        )
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(
            f"kernel has NaN or infinite entries, as kernel{list(place)} = {values[place]}, expected finite ones: "
            "where they overflow, pass the Kernel itself, or compute it in float64"
        )
    return Entries(values.reshape(values.shape[:2]) if values[0, 0].size == 1 else values, log_scale)


def as_array(kernel: AnyKernel, which: str = "ntk") -> AnyArray:
    """The true values of any kernel; an array, traced ones too, as it is.

    Raises:
        OverflowError: the NTK of a `Kernel` does not fit its dtype.
        ValueError, AttributeError, FileNotFoundError, FileExistsError: `entries` raises it.
    """
    kernel = opened(kernel)
    if isinstance(kernel, Kernel | StoredKernel):
        return kernel.ntk if which == "ntk" else kernel.nngp
    return entries(kernel, which).values if isinstance(kernel, EmpiricalKernel) else kernel


def output_by_output(values: OneArray) -> OneArray:
    """A full kernel (n1, n2, C, C) as the matrix (n1 C, n2 C): row c n1 + a is output c on input a."""
    n1, n2, C, _ = values.shape
    return values.transpose(2, 0, 3, 1).reshape(C * n1, C * n2)
