"""What every reader shares: one kind of error, and a file that is read whole or not at all, if it fits into memory."""

import stat
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Integer

from ntk_analysis.common.memory import gib, host_bytes

COPIES = 2  # arrays of a file's size that are alive at once: what was read, and what it is converted into
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}

T = TypeVar("T")


class DataError(ValueError):
    """Data cannot be read, downloaded or used; one line says what was got, what was expected, and what to do."""


def file_size(path: Path) -> int:
    """Number of bytes of a file.

    Raises:
        DataError: the file is missing or may not be read, or it is a folder, a pipe, a socket or a device: those have
            no size, and may have no end.
    """
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            with path.open("rb"):
                return found.st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    kind = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
    raise DataError(f"{path}: cannot be read, it is {kind}; give a file, into which its bytes were saved")


def require_fits(path: Path, size: int) -> None:
    """Raises DataError if an array of this many bytes does not fit into the memory that is free, before it is read."""
    needed, free = COPIES * size, host_bytes()
    if needed > free:
        raise DataError(
            f"{path}: its arrays are {gib(size)}, to read them takes about {gib(needed)}, {gib(free)} are available; "
            "save fewer images, or get more memory"
        )


def read_bytes(path: Path) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: the file is missing, is none, may not be read, or does not fit into memory.
    """
    require_fits(path, file_size(path))
    return path.read_bytes()


def for_split(split: str, train: T, test: T) -> T:
    """The one of `train` and `test` that the split names.

    Raises:
        ValueError: the split is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} is unknown; use 'train' or 'test'")
    return train if split == "train" else test


def check_labels(source: Path | str, labels: Integer[np.ndarray, " n"], num_classes: int) -> None:
    """Refuse labels outside 0..num_classes-1.

    Raises:
        DataError: a label is out of range; the message names the first, and its source.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{source}: image {wrong[0]} has label {labels[wrong[0]]}, expected 0..{num_classes - 1}; "
            "the file is damaged or of another data set, get it again"
        )
