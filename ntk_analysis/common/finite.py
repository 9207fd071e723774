"""The rule for results that are not finite: an error that names what was computed, the first pair, and why if known."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.precision import AnyArray


def all_finite(values: AnyArray) -> bool:
    """Whether no entry is NaN or infinite, asked where the array lies; on a CPU by NumPy, which compiles nothing."""
    if isinstance(values, jax.Array) and any(device.platform != "cpu" for device in values.devices()):
        return bool(jnp.all(jnp.isfinite(values)))
    return bool(np.isfinite(np.asarray(values)).all())


def require_finite(
    values: AnyArray, what: str, *, rows: int = 0, columns: int = 0, why: Callable[[int, int], str] | None = None
) -> None:
    """Raises ValueError for NaN or infinite entries, naming the first pair of inputs, row by row.

    Args:
        values: kernel (n1, n2, ...), or a tile of one; or an array (n, ...) of single inputs, if it has one axis.
        what: the kernel's name with that of its function, for the message.
        rows: number of rows of the kernel before the first row of the tile.
        columns: number of columns of the kernel before the first column of the tile.
        why: function that gives the known cause for the pair's row and column in the kernel; called for the error only.
    """
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    index = np.argwhere(~finite)[0].tolist()
    pair = [first + offset for first, offset in zip(index, (rows, columns), strict=False)]
    behind = f" and output{'s' * (len(index) > 3)} {', '.join(map(str, index[2:]))}" if index[2:] else ""
    inputs = f"inputs ({', '.join(map(str, pair))})" if len(pair) == 2 else f"input {pair[0]}"
    known = why(*pair) if why is not None else ""
    raise ValueError(
        f"{what} is {array[tuple(index)]} at {inputs}{behind}, expected finite numbers: "
        f"{known or 'check the inputs and the function there, or compute in float64'}"
    )
