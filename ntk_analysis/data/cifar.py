"""CIFAR-10 and CIFAR-100 in their binary version.

A file is a row of records: the label bytes (CIFAR-10: class; CIFAR-100: coarse class, fine class), then 3,072 pixel
bytes: the red, the green and the blue plane, each 32 x 32 in row-major order.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from ntk_analysis.data.files import DataError, check_labels, for_split, read_bytes
from ntk_analysis.data.images import ImageSet

PIXEL_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Distribution:
    """A CIFAR distribution: where its files are and what they hold.

    Attributes:
        name: name of the data set.
        folder: folder inside the archive.
        train: files of the training split, in order.
        test: files of the test split.
        classes: number of classes of each label byte of a record; the last byte is the label that is read.
    """

    name: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    classes: tuple[int, ...]


CIFAR10 = Distribution(
    name="CIFAR-10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test=("test_batch.bin",),
    classes=(10,),
)
CIFAR100 = Distribution(
    name="CIFAR-100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    classes=(20, 100),
)


def read_cifar10(directory: str | Path, split: str = "train") -> ImageSet:
    """One split of CIFAR-10, binary version: data_batch_1.bin to data_batch_5.bin, or test_batch.bin.

    The files may hold fewer than their original 10,000 records, so a file cut off exactly between two records passes.

    Args:
        directory: folder that holds the files, or the folder above (`cifar-10-batches-bin` is then entered).
        split: part of the data set, "train" or "test".

    Returns:
        Images uint8 (N, 32, 32, 3), and labels int64 (N,) in 0..9.

    Raises:
        ValueError: the split is unknown.
        DataError: a file is missing, truncated or not of this format.
    """
    return read_cifar(Path(directory), split, CIFAR10)


def read_cifar100(directory: str | Path, split: str = "train") -> ImageSet:
    """One split of CIFAR-100, binary version (train.bin or test.bin), with its 100 fine labels.

    The files may hold fewer records than the original, so a file cut off exactly between two records passes.

    Args:
        directory: folder that holds the files, or the folder above (`cifar-100-binary` is then entered).
        split: part of the data set, "train" or "test".

    Returns:
        Images uint8 (N, 32, 32, 3), and labels int64 (N,) in 0..99.

    Raises:
        ValueError: the split is unknown.
        DataError: a file is missing, truncated or not of this format.
    """
    return read_cifar(Path(directory), split, CIFAR100)


def holds_cifar(directory: Path, distribution: Distribution) -> bool:
    """Whether a folder, or the archive's folder in it, has a file of this data set."""
    folders = (directory, directory / distribution.folder)
    return any((folder / name).is_file() for folder in folders for name in distribution.train + distribution.test)


def read_cifar(directory: Path, split: str, distribution: Distribution) -> ImageSet:
    """All files of one split, one after the other."""
    names = for_split(split, distribution.train, distribution.test)
    inside = directory / distribution.folder
    folder = inside if inside.is_dir() else directory
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder}: {', '.join(missing)} missing; expected the {split} split of {distribution.name}, binary "
            "version; extract the whole archive there"
        )
    images, labels = zip(*(read_batch(folder / name, distribution) for name in names), strict=True)
    return ImageSet(np.concatenate(images), np.concatenate(labels), distribution.name, distribution.classes[-1])


def read_batch(
    path: Path, distribution: Distribution
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], Int64[np.ndarray, " n"]]:
    """Images and labels of one file."""
    content = read_bytes(path)
    label_bytes = len(distribution.classes)
    record = label_bytes + PIXEL_BYTES
    if not content or len(content) % record:
        raise DataError(
            f"{path}: {len(content)} bytes, expected a multiple of {record} (one {distribution.name} record); "
            "the file is truncated or foreign, get it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    for column, classes in enumerate(distribution.classes):
        check_labels(path, records[:, column], classes)
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, label_bytes - 1].astype(np.int64)
