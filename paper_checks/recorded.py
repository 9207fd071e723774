"""Runs too long for a check, trained once and committed: `studies/NAME/runs.jsonl`, as `ntk-analysis sweep` writes it.

Each line names recipe, seed, data set, hardware and library versions; studies/README.md has the commands. Checks read
them as they read runs of their own: every number is computed from the epochs.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntk_analysis.training.run_file import Curve, read_runs

STUDIES = Path(__file__).parent / "studies"
NARROW_VGG16 = "vgg16_cifar10"
WORDS = {
    NARROW_VGG16: "VGG16 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
    "vgg16_fashion": "VGG16 of a quarter of the channels, 2,500 images of Fashion-MNIST",
    "resnet18_cifar10": "ResNet18 of a quarter of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded)",
}
"""What was trained in each study."""
TRAIN, TEST = 2500, 625  # images


@dataclass(frozen=True, eq=False)
class Study:
    """Runs of one network on one data set.

    Attributes:
        condition: what was trained, in words.
        curves: by normalisation, learning rate and seed.
    """

    condition: str
    curves: dict[tuple[str, float, int], Curve]

    def rates(self, normalization: str) -> list[float]:
        """Learning rates at which it was trained with the first seed, ascending."""
        return sorted(rate for name, rate, seed in self.curves if (name, seed) == (normalization, 0))

    def best(self, part: str, normalization: str, rate: float, epochs: int | None = None) -> np.ndarray:
        """Best accuracy on "train" or "test" images in the first epochs, of all for None, by seed."""
        seeds = sorted(seed for name, at, seed in self.curves if (name, at) == (normalization, rate))
        runs = [self.curves[normalization, rate, seed].epochs[:epochs] for seed in seeds]
        return np.array([max(getattr(epoch, f"{part}_accuracy") for epoch in run) for run in runs])

    def largest(self, normalization: str, least: float) -> float:
        """The rate up to which the first seed's training accuracy exceeds `least`; half the smallest for none."""
        rates = self.rates(normalization)
        fails = (rate for rate in rates if self.best("train", normalization, rate)[0] <= least)
        first = next(fails, float("inf"))
        return max((rate for rate in rates if rate < first), default=rates[0] / 2)


@functools.cache
def study(name: str) -> Study:
    """The runs of studies/NAME.

    Raises:
        ValueError: no runs there, a damaged file, or runs of different recipes.
    """
    curves = list(read_runs(STUDIES / name).values())
    found = {(c.recipe.normalization, c.recipe.learning_rate, c.recipe.seed): c for c in curves}
    kinds = {(c.recipe.model, c.recipe.width, c.recipe.batch, c.recipe.epochs) for c in curves}
    if len(kinds) != 1 or len(found) < len(curves):
        raise ValueError(f"{STUDIES / name}: got runs of {len(kinds)} recipes, expected one: keep each study to itself")
    _, _, batch, epochs = kinds.pop()
    return Study(f"{WORDS[name]}, batch {batch}, {epochs} epochs, recorded", found)
