"""The studies of this paper: `studies/NAME/runs.jsonl`; studies/README.md has the commands that made them."""

import functools
from pathlib import Path

from ..studies import Study, read_study

STUDIES = Path(__file__).parent / "studies"
NARROW_VGG16 = "vgg16_cifar10"
WORDS = {
    NARROW_VGG16: "VGG16 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
    "vgg16_fashion": "VGG16 of a quarter of the channels, 2,500 images of Fashion-MNIST",
    "resnet18_cifar10": "ResNet18 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
}
"""What was trained in each study."""
TRAIN, TEST = 2500, 625  # images


@functools.cache
def study(name: str) -> Study:
    """The runs of studies/NAME; see `read_study`."""
    return read_study(STUDIES / name, WORDS[name])
