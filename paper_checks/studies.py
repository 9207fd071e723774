"""Runs too long for a check, trained once and committed: a folder's `runs.jsonl`, as `ntk-analysis sweep` writes it.

Each line names recipe, seed, data set, hardware and library versions. Checks read them as they read runs of their own:
every number is computed from the epochs.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntk_analysis.training.run_file import Curve, read_runs

SAME = ("model", "width", "classifier", "architecture", "initialization", "batch", "epochs")
"""Fields of a recipe that all runs of a study have in common."""


@dataclass(frozen=True, eq=False)
class Study:
    """Runs of one network on one data set.

    Attributes:
        condition: what was trained, in words.
        curves: the runs by normalisation, learning rate and seed.
    """

    condition: str
    curves: dict[tuple[str, float, int], Curve]

    def rates(self, normalization: str) -> list[float]:
        """Returns the learning rates at which it was trained with the first seed, ascending."""
        return sorted(rate for name, rate, seed in self.curves if (name, seed) == (normalization, 0))

    def best(self, part: str, normalization: str, rate: float, epochs: int | None = None) -> np.ndarray:
        """Returns the best accuracy on "train" or "test" images in the first `epochs`, or in all for None, by seed."""
        seeds = sorted(seed for name, at, seed in self.curves if (name, at) == (normalization, rate))
        runs = [self.curves[normalization, rate, seed].epochs[:epochs] for seed in seeds]
        return np.array([max(getattr(epoch, f"{part}_accuracy") for epoch in run) for run in runs])

    def spread(self, part: str, epochs: int | None = None) -> tuple[float, int]:
        """Returns the standard deviation of `best` over seeds, pooled over settings of several seeds, and its freedom.

        The settings of one seed have no spread of their own.

        Raises:
            ValueError: no setting has two seeds.
        """
        settings = {(name, rate) for name, rate, _ in self.curves}
        found = [values for name, rate in sorted(settings) if len(values := self.best(part, name, rate, epochs)) > 1]
        freedom = sum(len(values) - 1 for values in found)
        if not freedom:
            raise ValueError(f"{self.condition}: no setting has two seeds, so nothing tells how runs differ")
        return float(np.sqrt(sum(np.sum((values - values.mean()) ** 2) for values in found) / freedom)), freedom

    def largest(self, normalization: str, least: float) -> float:
        """Returns the rate up to which the first seed's accuracy exceeds `least`; half the smallest where none does."""
        rates = self.rates(normalization)
        fails = (rate for rate in rates if self.best("train", normalization, rate)[0] <= least)
        first = next(fails, float("inf"))
        return max((rate for rate in rates if rate < first), default=rates[0] / 2)


def read_study(folder: Path, network: str) -> Study:
    """Reads the runs of a folder.

    Args:
        folder: where `runs.jsonl` is.
        network: what was trained, in words; the batch size and the number of epochs are added to it.

    Raises:
        ValueError: no runs there, a damaged file, or runs of different recipes.
    """
    curves = list(read_runs(folder).values())
    found = {(c.recipe.normalization, c.recipe.learning_rate, c.recipe.seed): c for c in curves}
    kinds = {tuple(getattr(c.recipe, name) for name in SAME) for c in curves}
    if len(kinds) != 1 or len(found) < len(curves):
        raise ValueError(f"{folder}: got runs of {len(kinds)} recipes, expected one: keep each study to itself")
    *_, batch, epochs = kinds.pop()
    return Study(f"{network}, batch {batch}, {epochs} epochs, recorded", found)
