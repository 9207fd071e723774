"""What every analysis takes as a kernel: an infinite one, an empirical one in any layout, a file or store, an array."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.memory import host_bytes
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.empirical import EmpiricalKernel, open_kernel
from ntk_analysis.infinite import Kernel, StoredKernel
from ntk_analysis.stores.store import Stored

AT_ONCE = 1024  # rows of a kernel in memory that are converted to float64 at once
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
        ValueError: none of the layouts of `Entries`, such as an infinite kernel at the positions of images; no, NaN or
            infinite entries; an unknown `which`.
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
        if values.ndim > 2:  # two axes of a picture would pass for those of outputs
            raise ValueError(
                f"{kernel!r} has positions, expected one output: end the network with Flatten() or GlobalAvgPool(), or "
                "take the array of one pair of positions"
            )
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


@dataclass(frozen=True)
class Rows:
    """A kernel (n1, n2) that is read some rows at a time, which a kernel in a store may be of any size.

    Attributes:
        shape: numbers of inputs.
        dtype: dtype in which the kernel arrived.
        log_scale: logarithm of the scale of what is read, as in `Entries`.
        size: number of rows that are read at once.
        read: function that reads rows, finite numbers (k, n2) of this dtype.
        symmetric: whether it is known to be of one set of inputs against itself.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    log_scale: float
    size: int
    read: Callable[[slice], np.ndarray]
    symmetric: bool = False

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in turn, each with the numbers of the inputs that they are of."""
        return ((rows, self.checked(rows)) for rows in self.slices)

    @property
    def slices(self) -> list[slice]:
        """The numbers of all rows, as many at a time as are read at once."""
        starts = range(0, self.shape[0], self.size)
        return [slice(start, min(start + self.size, self.shape[0])) for start in starts]

    def checked(self, rows: slice) -> np.ndarray:
        """These rows; ValueError if they are not finite."""
        values = self.read(rows)
        if not np.isfinite(values).all():
            raise ValueError(f"kernel has NaN or infinite entries in rows {rows.start} to {rows.stop - 1}")
        return values

    def held(self) -> "Rows":
        """These rows in memory, in their own dtype, if a quarter of what is free holds them; else as they are.

        It is for what reads them many times.
        """
        if math.prod(self.shape) * self.dtype.itemsize > host_bytes() // 4:
            return self
        whole = np.empty(self.shape, self.dtype)
        for rows, values in self:
            whole[rows] = values
        return replace(self, read=lambda rows: whole[rows])

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """The kernel times vectors, the columns of (n2, k), in float64; the kernel is read once."""
        found = np.empty((self.shape[0], *vectors.shape[1:]))
        for rows, values in self:
            found[rows] = values.astype(np.float64) @ vectors
        return found


def rows_of(kernel: AnyKernel, which: str = "ntk") -> Rows:
    """A kernel of one output, or the mean over outputs of a trace, to be read some rows at a time.

    A kernel in a store is read from disk, tile by tile; any other is in memory anyway.

    Raises:
        ValueError: the kernel has several outputs; or as `entries`, which has the other errors, too.
    """
    kernel = opened(kernel)
    if isinstance(kernel, StoredKernel) and which in ("ntk", "nngp"):
        stored, log_scale = kernel, float(kernel.log_scale) if which == "ntk" else 0.0

        def read(rows: slice) -> np.ndarray:
            return stored.scaled(rows, slice(None)) if which == "ntk" else np.asarray(stored[rows].nngp)

        return Rows(stored.shape, stored.dtype, log_scale, stored.plan.rows, read, stored.plan.symmetric)
    if isinstance(kernel, EmpiricalKernel) and on_disk(kernel) and kernel.plan.which == which:
        values, C, shape = kernel.values, kernel.plan.outputs, (kernel.plan.n1, kernel.plan.n2)

        def read_mean(rows: slice) -> np.ndarray:
            return values[rows].reshape(-1, shape[1]) / np.asarray(C, values.dtype)

        return Rows(shape, values.dtype, 0.0, kernel.plan.rows, read_mean, kernel.plan.symmetric)
    found, log_scale = entries(kernel, which)
    if found.ndim != 2:
        raise ValueError(
            f"the kernel has {found.shape[2]} outputs, expected one matrix: take the trace, or one output of it"
        )
    return Rows(found.shape, found.dtype, log_scale, min(len(found), AT_ONCE), lambda rows: found[rows])


def on_disk(kernel: AnyKernel) -> bool:
    """Whether `rows_of` reads this kernel from a store, without holding all of it."""
    if isinstance(kernel, EmpiricalKernel):
        return isinstance(kernel.values, Stored) and (kernel.values.ndim == 2 or kernel.plan.outputs == 1)
    return isinstance(kernel, StoredKernel)


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
