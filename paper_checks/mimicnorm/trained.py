"""Trained networks for the claims about training: MLPs of width 128, each trained once for all of them.

The paper trains VGG and ResNets on CIFAR-100 and ImageNet. What these rows say, they say of these MLPs.
"""

import functools
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from ntk_analysis.training.dataset import Dataset, load_dataset
from ntk_analysis.training.loop import Trainer
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve
from ntk_analysis.training.runs import train
from ntk_analysis.training.sweep import Grid, Table, table

WIDTH = 128
CONFIDENCE = 0.99
NAMES = {"digits": "digits", "mnist5k": "5,000 MNIST"}
"""Data sets, 1,438 and 4,000 images to train on, 359 and 1,000 to test on, and what rows call them."""


@dataclass(frozen=True)
class Mlp:
    """An MLP on a data set, whatever its normalisation.

    Attributes:
        depth: number of hidden layers.
        data: name of the data set, a key of `NAMES`.
    """

    depth: int
    data: str = "digits"

    @property
    def condition(self) -> str:
        """Words for what was trained."""
        return f"MLP on {NAMES[self.data]}, {self.depth} hidden layers"

    @property
    def dataset(self) -> Dataset:
        """The images that it is trained and tested on."""
        return _dataset(self.data)

    def trainer(self, normalization: str) -> Trainer:
        """Returns one compilation for all rates and seeds: SGD of momentum 0.9, batches of 128, a constant rate."""
        return _trainer(self, normalization)

    def curves(
        self, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int
    ) -> tuple[Curve, ...]:
        """Returns the runs, seeds innermost."""
        return _curves(self, normalization, rates, seeds, epochs)

    def best(
        self, part: str, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int
    ) -> np.ndarray:
        """Returns the best training or test accuracy in these epochs, (rates, seeds)."""
        grid = self.grid(normalization, rates, seeds, epochs)
        found: Table = table(grid, self.curves(normalization, rates, seeds, epochs))
        return found.best(part)[0]

    def grid(self, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int) -> Grid:
        """Returns the grid of the recipes of these runs."""
        return Grid(Recipe(depth=self.depth, width=WIDTH, epochs=epochs), rates, seeds, (normalization,))


@functools.cache
def _dataset(name: str) -> Dataset:
    return load_dataset(name)


@functools.cache
def _trainer(subject: Mlp, normalization: str) -> Trainer:
    return Trainer(Recipe(depth=subject.depth, width=WIDTH, normalization=normalization), subject.dataset)


@functools.cache
def _curves(
    subject: Mlp, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int
) -> tuple[Curve, ...]:
    recipes = subject.grid(normalization, rates, seeds, epochs).recipes(normalization)
    groups = train(subject.trainer(normalization), recipes)
    return tuple(curve for group in groups for curve in group)


def seeds_of(seed: int, count: int) -> tuple[int, ...]:
    """Returns seeds of networks, which differ for every seed of a check."""
    return tuple(range(seed * count, (seed + 1) * count))


def interval(values: np.ndarray, least: float) -> float:
    """Returns half the width of the mean's confidence interval, and `least` where the values hardly differ."""
    count = len(values)
    return float(max(t.isf((1 - CONFIDENCE) / 2, count - 1) * values.std(ddof=1) / count**0.5, least))


def because(count: int, least: str) -> str:
    """Returns words for where `interval` comes from."""
    return f"Student's t at 99 % for {count} seeds, at least {least}"
