"""Images in NumPy's own files, .npy and .npz. Nothing is ever unpickled."""

import io
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int64, Shaped

from ntk_analysis.common.memory import gib
from ntk_analysis.common.messages import one_line
from ntk_analysis.common.numpy_files import read_header
from ntk_analysis.data.files import DataError, file_size, require_fits
from ntk_analysis.data.images import CLASSES, Images, ImageSet, without_labels

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
RATIO, LARGE = 200, 2**30  # no images of so many bytes are packed into so small a part of them


def read_npy(path: Path) -> Shaped[np.ndarray, "..."]:
    """The array of a .npy file.

    Raises:
        DataError: the file is damaged, truncated, has bytes after the data, or holds Python objects.
    """
    size = file_size(path)
    with path.open("rb") as stream:
        return parse_npy(path, stream, size)


def read_npz(path: Path) -> ImageSet:
    """The images of a .npz file (`images`, `x`, or its only array besides labels) and its `labels` or `y`, if any.

    Raises:
        DataError: the file is damaged, has no array or several that could be the images, or has values that cannot be
            images or labels.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            images_name, labels_name = choose_arrays(path, names)
            images = parse_member(path, archive, images_name)
            labels = parse_member(path, archive, labels_name) if labels_name else None
    except DataError:
        raise
    except Exception as error:  # damage in a zip file surfaces as any of a dozen types
        raise unreadable(path, error) from error
    pixels = to_images(f"{path}: {images_name}", images)
    if labels is None:
        return without_labels(pixels, path.name)
    labels = to_labels(f"{path}: {labels_name}", labels, count=len(pixels))
    return ImageSet(pixels, labels, path.name, num_classes=int(labels.max()) + 1)


def choose_arrays(path: Path, names: list[str]) -> tuple[str, str | None]:
    """The names of the images and of the labels (None where there are none) among the arrays of a .npz file."""
    labels = next((name for name in ("labels", "y") if name in names), None)
    others = [name for name in names if name not in ("labels", "y")]
    images = next((name for name in ("images", "x") if name in others), others[0] if len(others) == 1 else None)
    if images is None:
        raise DataError(
            f"{path}: arrays {', '.join(names) or 'none'}; expected the images as `images`, `x` or the only array, "
            "save them with numpy.savez(path, images=...)"
        )
    return images, labels


def parse_member(path: Path, archive: zipfile.ZipFile, name: str) -> Shaped[np.ndarray, "..."]:
    """An array of a .npz file; the zip header says what it takes before it is unpacked."""
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > max(LARGE, RATIO * member.compress_size):
        raise DataError(
            f"{path}: {name} unpacks from {gib(member.compress_size)} to {gib(member.file_size)}, as no images do; if "
            "it is meant, save it by numpy.savez"
        )
    with archive.open(member) as stream:
        return parse_npy(path, cast(io.BufferedIOBase, stream), member.file_size)


def parse_npy(path: Path, stream: io.BufferedIOBase, size: int) -> Shaped[np.ndarray, "..."]:
    """The array of a .npy file of this size, which must be what its header announces: that is checked first."""
    try:
        announced = read_header(stream, size).size
    except Exception as error:  # damage in a zip file surfaces as any of a dozen types
        raise unreadable(path, error) from error
    require_fits(path, announced)
    stream.seek(0)
    try:
        return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file from which NumPy cannot or may not make an array."""
    return DataError(f"{path}: not a whole array of numbers ({one_line(error)}); save it again as uint8 or float32")


def to_images(source: str, array: Shaped[np.ndarray, "..."]) -> Images:
    """An array of numbers as images (N, H, W, C), uint8 or floating: see `read_images` for the rules.

    Raises:
        DataError: entries are not numbers, integers are outside 0..255, the shape is not (N, ...), or channels come
            before pixels.
    """
    pixels = to_pixels(source, array)
    if pixels.size == 0 or not 2 <= pixels.ndim <= 4:
        raise DataError(f"{source}: shape {array.shape}; expected (N, H, W, C), (N, H, W) or (N, d), none of them 0")
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] > 4:
        raise DataError(f"{source}: shape {array.shape} has the channels first; transpose it to (N, H, W, C)")
    if pixels.ndim == 2:
        pixels = pixels[:, None, :]
    return pixels if pixels.ndim == 4 else pixels[..., None]


def to_pixels(source: str, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The numbers as uint8, float32 or float64."""
    if array.dtype.kind == "f":
        return array.astype(np.float32 if array.itemsize == 4 else np.float64, copy=False)
    if array.dtype.kind not in "biu":
        raise DataError(f"{source}: dtype {array.dtype}; expected real numbers, save the array as uint8 or float32")
    if array.size and not (array.min() >= 0 and array.max() <= 255):
        raise DataError(
            f"{source}: integers {array.min()}..{array.max()}; expected 0..255, save other scales as float32"
        )
    return array.astype(np.uint8, copy=False)


def to_labels(source: str, labels: Shaped[np.ndarray, "..."], count: int) -> Int64[np.ndarray, " n"]:
    """Class numbers, one for each image.

    Raises:
        DataError: labels are not integers, are negative or 100,000 and more, or are not as many as the images.
    """
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (count,):
        raise DataError(
            f"{source}: {labels.dtype} labels of shape {labels.shape}; save integers of shape ({count},), one an image"
        )
    if labels.min() < 0:
        raise DataError(f"{source}: label {labels.min()}; expected class numbers from 0 up")
    if labels.max() >= CLASSES:
        raise DataError(
            f"{source}: label {labels.max()}; expected class numbers from 0 to {CLASSES - 1:,}, which "
            "numpy.unique(labels, return_inverse=True)[1] makes of any others"
        )
    return labels.astype(np.int64)
