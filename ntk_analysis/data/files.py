"""What every reader shares: one kind of error, and a file that is read whole or not at all."""

from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Integer

T = TypeVar("T")


class DataError(ValueError):
    """Data cannot be read, downloaded or used; one line says what was got, what was expected, and what to do."""


def read_bytes(path: Path) -> bytes:
    """The whole content of a file.

    Raises:
        DataError: the file is missing or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


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
