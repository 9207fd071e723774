"""ImageSet: images, their labels and the name under which results record them."""

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Integer, Real, UInt8

from ntk_analysis.data.files import DataError, check_labels

Images: TypeAlias = UInt8[np.ndarray, "n h w c"] | Float[np.ndarray, "n h w c"]

NO_LABEL = -1
CLASSES = 100_000  # at most: a network has an output for each


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images with their labels.

    Attributes:
        images: raw pixels (N, H, W, C) as in the source: uint8 grey levels or colours (0..255; the digits of
            scikit-learn 0..16), or floats if a user's file has floats.
        labels: integers (N,) in 0..num_classes-1; all -1 if the source has none.
        name: name that figures and verdicts record, such as "CIFAR-10".
        num_classes: number of classes of the data set (a subset may miss some); 0 if there are no labels.

    Raises:
        DataError: there are no images, shapes do not fit together, labels are out of range, there are more than
            100,000 classes, or pixels are NaN or infinite.
    """

    images: np.ndarray  # bare types here: __post_init__ checks shapes and dtypes always, not only in the tests
    labels: np.ndarray
    name: str
    num_classes: int

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.size == 0:
            raise DataError(f"{self.name}: images of shape {self.images.shape}; expected (N, H, W, C), none of them 0")
        if self.images.dtype != np.uint8 and not np.issubdtype(self.images.dtype, np.floating):
            raise DataError(f"{self.name}: images of dtype {self.images.dtype}; convert them to uint8 or floats")
        if self.labels.shape != (len(self.images),) or not np.issubdtype(self.labels.dtype, np.integer):
            raise DataError(
                f"{self.name}: {self.labels.dtype} labels of shape {self.labels.shape} for {len(self.images)} images; "
                "give one integer an image"
            )
        if self.num_classes > CLASSES:
            raise DataError(f"{self.name}: {self.num_classes} classes; give at most {CLASSES:,}")
        check_finite(self.name, self.images)
        if self.labelled:
            check_labels(self.name, self.labels, self.num_classes)
        elif (self.labels != NO_LABEL).any():
            raise DataError(f"{self.name}: labels but num_classes={self.num_classes}; give the number of classes")

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.num_classes > 0

    def subset(self, count: int, seed: int) -> "ImageSet":
        """A random choice of `count` images without replacement, in random order; the same seed gives the same choice.

        Raises:
            DataError: count is below 1 or above the number of images.
        """
        available = len(self.images)
        if not 1 <= count <= available:
            raise DataError(f"{self.name}: {count} images asked for; ask for 1 to {available}")
        chosen = np.random.default_rng(seed).choice(available, size=count, replace=False)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


def without_labels(images: Images, name: str) -> ImageSet:
    """The set of images whose source has no labels: all labels are -1, num_classes is 0."""
    return ImageSet(images, np.full(len(images), NO_LABEL), name, num_classes=0)


def check_finite(source: str, images: Real[np.ndarray, "n ..."]) -> None:
    """Refuse NaN and infinite pixels.

    Raises:
        DataError: some pixels are not finite; the message names the first images that have some.
    """
    wrong = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))
    if wrong.size:
        raise DataError(f"{source}: NaN or infinite pixels in {describe_rows(wrong)}; drop or repair them")


def describe_rows(rows: Integer[np.ndarray, " k"]) -> str:
    """The first few row numbers, for an error message: 'rows 3, 8, 9, 12, 20, ... (41 in all)'."""
    first = ", ".join(str(row) for row in rows[:5])
    return f"row{'s' * (len(rows) > 1)} {first}" + (f", ... ({len(rows)} in all)" if len(rows) > 5 else "")
