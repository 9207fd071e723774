"""The studies of this paper: `studies/NAME/runs.jsonl`; studies/README.md has the commands that made them."""

import functools
import math
from pathlib import Path

from scipy.stats import t

from ..studies import Study, read_study
from ..tolerances import Tolerance, sampling
from .trained import CONFIDENCE

STUDIES = Path(__file__).parent / "studies"
NARROW_VGG16 = "vgg16_cifar10"
FULL_VGG16 = "vgg16_cifar100"
PUBLISHED_VGG16 = "vgg16_published_narrow"
FULL_RESNET18 = "resnet18_cifar100"
WORDS = {
    NARROW_VGG16: "VGG16 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
    "vgg16_fashion": "VGG16 of a quarter of the channels, 2,500 images of Fashion-MNIST",
    PUBLISHED_VGG16: "the authors' VGG16 with a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
    FULL_VGG16: "VGG16 of all its channels with one linear layer, CIFAR-100",
    FULL_RESNET18: "ResNet18 without convolution biases, CIFAR-100, bfloat16",
    "resnet18_cifar100_start": "ResNet18 without convolution biases, CIFAR-100",
    "resnet18_cifar10": "ResNet18 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
}
"""What was trained in each study."""
TRAIN, TEST = 2500, 625  # images


@functools.cache
def study(name: str) -> Study:
    """The runs of studies/NAME; see `read_study`."""
    return read_study(STUDIES / name, WORDS[name])


def of_single_runs(found: Study, part: str, epochs: int | None = None) -> Tolerance:
    """Returns the error of a difference of two runs of one seed each, from the settings of the study with several."""
    deviation, freedom = found.spread(part, epochs)
    size = float(t.isf((1 - CONFIDENCE) / 2, freedom)) * math.sqrt(2) * deviation
    reason = f"two runs of one seed each: Student's t at 99 % with the spread of {freedom} pairs of other seeds"
    return sampling(size, reason, 1)
