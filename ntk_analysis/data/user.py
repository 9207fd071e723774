"""What a user passes as `--data PATH`: a folder, an IDX file, or NumPy arrays."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ntk_analysis.data.arrays import NPY_MAGIC, ZIP_MAGIC, read_npy, read_npz, to_images
from ntk_analysis.data.cifar import CIFAR10, CIFAR100, holds_cifar, read_cifar10, read_cifar100
from ntk_analysis.data.files import DataError, file_size
from ntk_analysis.data.idx import GZIP_MAGIC, IDX_MAGIC, holds_mnist, read_idx, read_mnist
from ntk_analysis.data.images import ImageSet, without_labels


def read_images(path: str | Path, split: str = "train") -> ImageSet:
    """The images at a path, in any of these forms; files are recognised by content, not by name.

    - A folder with the files of MNIST (or Fashion-MNIST), CIFAR-10 or CIFAR-100: see `read_mnist`, `read_cifar10`,
      `read_cifar100`.
    - An IDX file of images, gzip-compressed or not: no labels.
    - A `.npy` array of images: (N, H, W, C), (N, H, W), or (N, d) for vectors, which become (N, 1, d, 1). No labels.
    - A `.npz` with such an array under `images`, `x`, or as the only array besides labels, and optionally integer
      labels (N,) under `labels` or `y`.

    Integer and boolean arrays become uint8 (they must fit 0..255), float32 and float64 stay, other floats become
    float64. Nothing is ever unpickled.

    Args:
        path: path of a folder or file.
        split: part of the data set, "train" or "test"; only folders have splits, other sources ignore it.

    Returns:
        An ImageSet; without labels in the source its labels are all -1 and num_classes is 0.

    Raises:
        ValueError: the split of a folder is unknown.
        DataError: the path is missing, damaged, not of one of these formats, or has values that cannot be images.
    """
    path = Path(path)
    if path.is_dir():
        return read_directory(path, split)
    file_size(path)  # refuses what is no file
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(NPY_MAGIC):
        return without_labels(to_images(str(path), read_npy(path)), path.name)
    if head.startswith(ZIP_MAGIC):
        return read_npz(path)
    if head.startswith((IDX_MAGIC, GZIP_MAGIC)):
        return without_labels(to_images(str(path), read_idx(path)), path.name)
    raise DataError(
        f"{path}: begins with {head.hex(' ') or 'nothing (empty file)'}, neither IDX nor .npy nor .npz; "
        "convert the images to a NumPy array and numpy.save it"
    )


def read_directory(directory: Path, split: str) -> ImageSet:
    """The one data set whose files a folder has."""
    # MNIST's files do not say whether they are MNIST, so the folder lends its name
    mnist = partial(read_mnist, name=f"{directory.resolve().name} (MNIST format)")
    readers: dict[str, Callable[[Path, str], ImageSet]] = {}
    if holds_mnist(directory):
        readers["MNIST"] = mnist
    if holds_cifar(directory, CIFAR10):
        readers["CIFAR-10"] = read_cifar10
    if holds_cifar(directory, CIFAR100):
        readers["CIFAR-100"] = read_cifar100
    if len(readers) != 1:
        raise DataError(
            f"{directory}: files of {' and '.join(readers) or 'no known data set'}; "
            "expected a folder with those of exactly one of MNIST (IDX), CIFAR-10 or CIFAR-100 (binary version)"
        )
    return next(iter(readers.values()))(directory, split)
