"""IDX, the format of MNIST and Fashion-MNIST.

A file is 00 00, a type byte (08: unsigned bytes), the number of dimensions, each dimension as a big-endian 32-bit
integer, then the data in row-major order.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ntk_analysis.common.messages import one_line
from ntk_analysis.data.files import DataError, check_labels, file_size, for_split, require_fits
from ntk_analysis.data.images import ImageSet

GZIP_MAGIC = b"\x1f\x8b"
IDX_MAGIC = b"\x00\x00\x08"
MAX_DIMENSIONS = 4


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of unsigned bytes, gzip-compressed or not (told by the content, not by the name).

    Args:
        path: path of the file, for example `train-images-idx3-ubyte.gz`.

    Returns:
        Array uint8, in the file's own shape: (N, H, W) for MNIST images, (N,) for labels.

    Raises:
        DataError: the file is missing, truncated, not IDX, of another type, empty, or has bytes after the data.
    """
    path = Path(path)
    file_size(path)  # refuses what is no file
    with path.open("rb") as file:
        packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(0)
        try:
            return read_array(path, gzip.GzipFile(fileobj=file) if packed else file)
        except (OSError, EOFError, zlib.error) as error:
            damaged = f"damaged or truncated{' gzip' * packed} ({one_line(error)})"
            raise DataError(f"{path}: {damaged}; get the file again") from error


def read_array(path: Path, stream: io.BufferedIOBase) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file's content, of which no more is unpacked than its header announces."""
    shape = idx_shape(path, stream.read(4 + 4 * MAX_DIMENSIONS))
    expected = math.prod(shape)
    require_fits(path, expected)
    stream.seek(4 + 4 * len(shape))
    content = stream.read(expected + 1)
    if len(content) != expected:
        problem = f"truncated: {len(content)}" if len(content) < expected else "followed by foreign bytes: more"
        raise DataError(f"{path}: {problem} bytes of data, expected {expected} for shape {shape}; get the file again")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()  # frombuffer alone is read-only


def read_mnist(directory: str | Path, split: str = "train", name: str = "MNIST") -> ImageSet:
    """One split of MNIST, or of any data set distributed in its four files, such as Fashion-MNIST.

    The files are `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and
    `t10k-labels-idx1-ubyte`; `.gz` at the end and `.idx` in place of `-idx` are accepted.

    Args:
        directory: folder that holds the files.
        split: part of the data set, "train" or "test".
        name: name to record with results; the files do not say which data set they are.

    Returns:
        Images uint8 (N, H, W, 1), and labels int64 (N,) in 0..9.

    Raises:
        ValueError: the split is unknown.
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    images_path, labels_path = (mnist_file(Path(directory), split, kind) for kind in ("images", "labels"))
    images, labels = read_rank(images_path, 3), read_rank(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}; "
            "take both files from the same download"
        )
    check_labels(labels_path, labels, num_classes=10)
    return ImageSet(images[..., None], labels.astype(np.int64), name, num_classes=10)


def holds_mnist(directory: Path) -> bool:
    """Whether a folder has a file that is named like one of MNIST's."""
    names = (name for split in ("train", "test") for kind in ("images", "labels") for name in spellings(split, kind))
    return any((directory / name).is_file() for name in names)


def mnist_file(directory: Path, split: str, kind: str) -> Path:
    """The file of "images" or "labels" of a split, under any of its usual names."""
    names = spellings(split, kind)
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise DataError(f"{directory}: no {kind} of the {split} split; expected a file named {' or '.join(names)}")


def spellings(split: str, kind: str) -> list[str]:
    """The names in use for one of the four files."""
    prefix = for_split(split, train="train", test="t10k")
    rank = {"images": 3, "labels": 1}[kind]
    return [f"{prefix}-{kind}{mark}idx{rank}-ubyte{end}" for mark in "-." for end in ("", ".gz")]


def read_rank(path: Path, rank: int) -> UInt8[np.ndarray, "..."]:
    """The array of `read_idx`; refuses another number of axes, as images (3) and labels (1) are easily swapped."""
    array = read_idx(path)
    if array.ndim != rank:
        raise DataError(f"{path}: {array.ndim}-dimensional array, expected {rank} dimensions; is the file misnamed?")
    return array


def idx_shape(path: Path, content: bytes) -> tuple[int, ...]:
    """The shape that an IDX header announces: 1 to 4 dimensions, none of them 0."""
    rank = content[3] if len(content) > 3 else 0
    if not content.startswith(IDX_MAGIC) or not 1 <= rank <= MAX_DIMENSIONS:
        raise DataError(
            f"{path}: begins with {content[:4].hex(' ') or 'nothing (empty file)'}, expected 00 00 08 and 01..04, "
            "an IDX file of unsigned bytes; give an MNIST-like file"
        )
    if len(content) < 4 + 4 * rank:
        raise DataError(f"{path}: header truncated to {len(content)} of {4 + 4 * rank} bytes; get the file again")
    shape = struct.unpack_from(f">{rank}I", content, 4)
    if 0 in shape:
        raise DataError(f"{path}: announces shape {shape}, an empty array; expected data, get the file again")
    return shape
