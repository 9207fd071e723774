"""Learning rates x seeds x normalisations of one recipe: the learning rate and the seed are arguments of one program.

Each normalisation is compiled once, in this process or once a worker of a cluster. On a CPU its runs go one after
another, and so have the bits of single runs of `loop.fit`. Elsewhere as many go at once, by vmap, as memory holds; they
differ from single runs by roundings, which training at large rates makes large.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from ntk_analysis.cluster import Workers
from ntk_analysis.normalizations import trained_name
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve, append_runs, read_runs
from ntk_analysis.training.runs import train_all, train_on


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep.

    Attributes:
        recipe: common to all; its learning rate, seed and normalisation are replaced.
        learning_rates: each once.
        seeds: each once.
        normalizations: keys of `normalization.NORMALIZATIONS`, each once.

    Raises:
        ValueError: none of something, one of them twice, or what no recipe takes.
    """

    recipe: Recipe
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]
    normalizations: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalizations", tuple(map(trained_name, self.normalizations)))
        for name in ("learning_rates", "seeds", "normalizations"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"got {name}={values}: expected one or more, each once")
        for normalization in self.normalizations:
            self.recipes(normalization)

    def recipes(self, normalization: str) -> list[Recipe]:
        """Of all runs of a normalisation, seeds innermost."""
        return [
            replace(self.recipe, normalization=normalization, learning_rate=rate, seed=seed)
            for rate, seed in product(self.learning_rates, self.seeds)
        ]


@dataclass(frozen=True, eq=False)
class Table:
    """What a sweep found. Behind the epoch in which a run diverged its accuracies are 0.

    Attributes:
        grid: the runs.
        train_accuracy: (normalizations, learning rates, seeds, epochs) float64 in [0, 1].
        test_accuracy: likewise.
        diverged_at: (normalizations, learning rates, seeds) the epoch in which training diverged, 0 if it did not.
        made_by: versions and devices of those that trained; all of them, where they differ.
    """

    grid: Grid
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    diverged_at: np.ndarray
    made_by: dict[str, str]

    def best(self, part: str = "test", epochs: int | None = None) -> np.ndarray:
        """Best accuracy in the first epochs, of all for None, (normalizations, learning rates, seeds).

        Args:
            part: "train" or "test".
            epochs: how many of the first.

        Raises:
            ValueError: another part; more epochs than were trained.
        """
        if part not in ("train", "test"):
            raise ValueError(f"got part={part!r}: expected 'train' or 'test'")
        values: np.ndarray = getattr(self, f"{part}_accuracy")
        epochs = values.shape[-1] if epochs is None else epochs
        if not 1 <= epochs <= values.shape[-1]:
            raise ValueError(f"got epochs={epochs}: expected 1 to {values.shape[-1]}, as many as were trained")
        return np.max(values[..., :epochs], -1)


def sweep(
    grid: Grid,
    dataset: Dataset,
    *,
    folder: Path | None = None,
    together: int | None = None,
    each: Callable[[Curve], None] = lambda curve: None,
    cluster: Workers | None = None,
) -> Table:
    """Trains all runs of the grid that are not finished yet. A run that diverges is a result.

    Args:
        grid: the runs.
        dataset: they are trained and tested on.
        folder: runs.jsonl there has a line for each finished run, on the disk before the next is awaited; runs found in
            it are not trained again. None: nothing is written. Only this process writes, so workers need not see it.
        together: so many runs at once by vmap; None: one on a CPU, elsewhere as many as memory holds.
        each: called with each run, found or trained.
        cluster: whose workers train, as `Workers(workers=2)` or `Workers("tcp://host:8786")`; what a worker was at when
            it died another one trains. None: this process trains.

    Raises:
        ValueError: together below 1; a damaged runs.jsonl.
        FileExistsError: the folder is a file.
        ConnectionError: no scheduler answers there, or it has no workers.
        RuntimeError: a run killed several workers.
    """
    if together is not None and together < 1:
        raise ValueError(f"got together={together}: expected at least 1")
    done = _finished(grid, dataset, folder)
    for curve in filter(None, done.values()):
        each(curve)
    missing = [[recipe for recipe in grid.recipes(name) if done[recipe] is None] for name in grid.normalizations]
    todo = list(filter(None, missing))
    trained = train_all(todo, dataset, together) if cluster is None else train_on(cluster, todo, dataset, together)
    with closing(trained):  # so that workers end also where writing fails
        for group in trained:
            if folder is not None:
                append_runs(folder, group, dataset)
            for curve in group:
                done[curve.recipe] = curve
                each(curve)
    return table(grid, [curve for curve in done.values() if curve is not None])


def _finished(grid: Grid, dataset: Dataset, folder: Path | None) -> dict[Recipe, Curve | None]:
    """The runs of a grid, in its order, and those of them that are in the folder."""
    found = {} if folder is None else read_runs(folder)
    digest = dataset.digest if found else ""
    done = dict[Recipe, Curve | None]()
    for recipe in (recipe for name in grid.normalizations for recipe in grid.recipes(name)):
        curve = found.get((recipe.digest, digest))
        done[recipe] = None if curve is None else curve.first(recipe.epochs)
    return done


def table(grid: Grid, curves: Sequence[Curve]) -> Table:
    """The curves as arrays; those of the grid, in its order."""
    shape = len(grid.normalizations), len(grid.learning_rates), len(grid.seeds)
    train, test = (np.zeros((math.prod(shape), grid.recipe.epochs)) for _ in range(2))
    diverged = np.zeros(math.prod(shape), int)
    for index, curve in enumerate(curves):
        for epoch in curve.epochs:
            train[index, epoch.epoch - 1], test[index, epoch.epoch - 1] = epoch.train_accuracy, epoch.test_accuracy
        diverged[index] = len(curve.epochs) if curve.epochs[-1].diverged else 0
    made_by = _all_of([curve.made_by for curve in curves])
    return Table(grid, train.reshape(*shape, -1), test.reshape(*shape, -1), diverged.reshape(shape), made_by)


def _all_of(records: Iterable[dict[str, str]]) -> dict[str, str]:
    """One record of several: a value of each name, or all that there are."""
    values = dict[str, dict[str, None]]()
    for name, value in (item for record in records for item in record.items()):
        values.setdefault(name, {})[value] = None
    return {name: "; ".join(found) for name, found in values.items()}
