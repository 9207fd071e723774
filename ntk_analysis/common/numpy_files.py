"""What NumPy's own files, .npy and .npz, hold: it is checked by their headers, before it is read or unpacked."""

import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Shaped

from ntk_analysis.common.memory import gib, host_bytes


class Header(NamedTuple):
    """What the header of a .npy file announces."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Number of bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: io.BufferedIOBase, size: int) -> Header:
    """The header of a .npy file, after which the stream stands where the array begins.

    Args:
        stream: the file, at its beginning.
        size: number of bytes of the whole file.

    Raises:
        ValueError: it is no header, or the array that it announces is longer or shorter than the rest of the file.
    """
    version = np.lib.format.read_magic(stream)
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
    if read is None:
        raise ValueError(f"its format of arrays is {version[0]}.{version[1]}, expected 1.0 or 2.0")
    try:
        shape, _, dtype = read(stream)
    except Exception as error:  # NumPy lets through what Python's tokenizer raises on a damaged header
        raise ValueError(str(error)) from error
    header, rest = Header(shape, dtype), size - stream.tell()
    if not dtype.hasobject and header.size != rest:
        problem = "foreign bytes after" if header.size < rest else "bytes are missing of"
        raise ValueError(f"{problem} the {shape} array")
    return header


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of an .npz file, by name.

    Args:
        path: path of the file.
        names: names of the arrays; those that are not there are left out. None: all that are there.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryError: the arrays need more memory than is free; nothing was unpacked then.
        ValueError: it is no .npz file, or it is damaged.
    """
    if path.exists() and not (path.is_file() and zipfile.is_zipfile(path)):
        raise ValueError("it is no .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            found = there if names is None else [name for name in names if name in there]
            needed = sum(_announced(archive, name) for name in found)
            if needed > (free := host_bytes()):
                raise MemoryError(f"the arrays of {path} are {gib(needed)}, {gib(free)} are available: get more memory")
            return {name: _member(archive, name) for name in found}
    except (MemoryError, OSError, ValueError):
        raise
    except Exception as error:  # damage in a zip file surfaces as any of a dozen types
        raise ValueError(str(error)) from error


def _announced(archive: zipfile.ZipFile, name: str) -> int:
    """Number of bytes of an array, of which only the header is unpacked."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        return read_header(cast(io.BufferedIOBase, stream), member.file_size).size


def _member(archive: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, "..."]:
    with archive.open(f"{name}.npy") as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
