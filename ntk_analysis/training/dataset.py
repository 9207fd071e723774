"""What a network is trained and tested on: two sets of labelled images, by name or path."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ntk_analysis import data
from ntk_analysis.data import DataError, ImageSet
from ntk_analysis.stores.manifest import fingerprint

TEST_FRACTION = 0.2
SHIPPED = {"digits": data.load_digits, "mnist5k": data.load_mnist5k}
"""Loaders of the shipped data sets by name; none of the sets has its own test split."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images to train on and images to test on.

    Attributes:
        train: labelled images to train on.
        test: labelled images to test on, of the same shape and classes.

    Raises:
        DataError: images have no labels, or the two parts differ in shape or number of classes.
    """

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for images in (self.train, self.test):
            if not images.labelled:
                raise DataError(f"{images.name}: images without labels; training needs labels, give .npz or a folder")
        shapes = [(part.images.shape[1:], part.num_classes) for part in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise DataError(
                f"{self.train.name}: training images and classes {shapes[0]}, those to test on {shapes[1]}; "
                "they must be the same"
            )

    @property
    def name(self) -> str:
        """Name of the data set, taken from its images."""
        return self.train.name

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def digest(self) -> str:
        """SHA-256 of all pixels and labels."""
        found = fingerprint([(part.images, part.labels) for part in (self.train, self.test)])
        assert found is not None
        return found


def hold_out(images: ImageSet, fraction: float = TEST_FRACTION, seed: int = 0) -> Dataset:
    """A random part of the images to test on, the rest to train on.

    Args:
        images: labelled images.
        fraction: fraction of the images that is tested on, in (0, 1).
        seed: seed of the choice. It is none of training's seeds, so that all runs on a data set have the same test
            images.

    Raises:
        DataError: there are too few images for two parts.
        ValueError: fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"got fraction={fraction}: expected a number between 0 and 1")
    tested = round(fraction * len(images.images))
    if not 0 < tested < len(images.images):
        raise DataError(f"{images.name}: {len(images.images)} images, too few to hold out {fraction:.0%} of them")
    order = np.random.default_rng(seed).permutation(len(images.images))
    parts = (
        replace(images, images=images.images[rows], labels=images.labels[rows]) for rows in np.split(order, [-tested])
    )
    return Dataset(*parts)


def load_dataset(source: str | Path) -> Dataset:
    """A shipped data set by name, or the images at a path.

    Args:
        source: "digits", "mnist5k", a folder of MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100 files with both splits, or
            a .npz with labels. All but folders have a fifth of their images held out, by a seed that never changes.

    Raises:
        DataError: there are no such images, or they have no labels.
        ImportError: the package that ships them is not installed.
    """
    if source in SHIPPED:
        return hold_out(SHIPPED[str(source)]())
    path = Path(source)
    if not path.exists():
        raise DataError(f"no data set {str(source)!r}: give {', '.join(SHIPPED)}, or the path of a folder or .npz file")
    if path.is_dir():
        return Dataset(data.read_images(path, "train"), data.read_images(path, "test"))
    images = data.read_images(path)
    if not images.labelled:
        raise DataError(f"{path}: images without labels; training needs labels, give a .npz with labels or a folder")
    return hold_out(images)
