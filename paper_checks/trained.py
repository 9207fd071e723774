"""Trained networks for the claims about training: MLPs of width 128 on digits, each trained once for all of them.

The paper trains VGG and ResNets on CIFAR-100 and ImageNet. What these rows say, they say of these MLPs.
"""

import functools

import numpy as np
from scipy.stats import t

from ntk_analysis.training.dataset import Dataset, load_dataset
from ntk_analysis.training.loop import Trainer
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve
from ntk_analysis.training.runs import train
from ntk_analysis.training.sweep import Grid, Table, table

DATA = "digits"
WIDTH = 128
CONFIDENCE = 0.99


@functools.cache
def digits() -> Dataset:
    """1438 images to train on, 359 to test on."""
    return load_dataset(DATA)


@functools.cache
def trainer(depth: int, normalization: str) -> Trainer:
    """One compilation for all rates and seeds: SGD of momentum 0.9, batches of 128, a constant learning rate."""
    return Trainer(Recipe(depth=depth, width=WIDTH, normalization=normalization), digits())


@functools.cache
def curves(
    depth: int, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int
) -> tuple[Curve, ...]:
    """The runs, seeds innermost."""
    recipes = _grid(depth, normalization, rates, seeds, epochs).recipes(normalization)
    return tuple(curve for group in train(trainer(depth, normalization), recipes) for curve in group)


def best(
    part: str, depth: int, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int
) -> np.ndarray:
    """Best training or test accuracy in these epochs, (rates, seeds)."""
    grid = _grid(depth, normalization, rates, seeds, epochs)
    found: Table = table(grid, curves(depth, normalization, rates, seeds, epochs))
    return found.best(part)[0]


def _grid(depth: int, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...], epochs: int) -> Grid:
    return Grid(Recipe(depth=depth, width=WIDTH, epochs=epochs), rates, seeds, (normalization,))


def seeds_of(seed: int, count: int) -> tuple[int, ...]:
    """Others for every seed of a check."""
    return tuple(range(seed * count, (seed + 1) * count))


def interval(values: np.ndarray, least: float) -> float:
    """Half the width of the confidence interval of the mean, and `least` where the values hardly differ."""
    count = len(values)
    return float(max(t.isf((1 - CONFIDENCE) / 2, count - 1) * values.std(ddof=1) / count**0.5, least))


def because(count: int, least: str) -> str:
    """Where `interval` comes from."""
    return f"Student's t at 99 % for {count} seeds, at least {least}"
