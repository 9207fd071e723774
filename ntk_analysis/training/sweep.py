"""Learning rates x seeds x normalisations of one recipe: the learning rate and the seed are arguments of one program.

Each normalisation is compiled once, in this process or once a worker of a cluster. Its runs go one after another, and
so have the bits of single runs of `loop.fit`; see `runs` for what was measured. Runs that go at once, by vmap, differ
from these by roundings, which training at large rates makes large.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from ntk_analysis.common.cluster import Workers
from ntk_analysis.common.lock import locked
from ntk_analysis.common.normalizations import trained_name
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.loop import Trainer
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve, append_runs, read_runs
from ntk_analysis.training.runs import train_all, train_on


@dataclass(frozen=True)
class Grid:
    """The runs of a sweep.

    Attributes:
        recipe: recipe of all runs; its learning rate, seed and normalisation are replaced.
        learning_rates: learning rates, each once.
        seeds: seeds, each once.
        normalizations: names or aliases of `normalizations.TABLE` that models have, each once.

    Raises:
        ValueError: one of the lists is empty or has a value twice, or a value is one that no recipe takes.
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
        """The recipes of all runs with this normalisation, seeds innermost."""
        return [
            replace(self.recipe, normalization=normalization, learning_rate=rate, seed=seed)
            for rate, seed in product(self.learning_rates, self.seeds)
        ]


@dataclass(frozen=True, eq=False)
class Table:
    """The results of a sweep. After the epoch in which a run diverged, its accuracies are 0.

    Attributes:
        grid: grid of the runs.
        train_accuracy: training accuracies in [0, 1], float64 (normalizations, learning rates, seeds, epochs).
        test_accuracy: test accuracies in [0, 1], float64 (normalizations, learning rates, seeds, epochs).
        diverged_at: epoch in which training diverged, 0 if it did not, of shape (normalizations, learning rates,
            seeds).
        made_by: versions and devices of the processes that trained; all of them, where they differ.
    """

    grid: Grid
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    diverged_at: np.ndarray
    made_by: dict[str, str]

    def best(self, part: str = "test", epochs: int | None = None) -> np.ndarray:
        """Best accuracy in the first epochs, or in all for None, of shape (normalizations, learning rates, seeds).

        Args:
            part: accuracy to take, "train" or "test".
            epochs: number of first epochs to look at; None is all.

        Raises:
            ValueError: part is another word, or epochs is more than were trained.
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
    together: int = 1,
    each: Callable[[Curve], None] = lambda curve: None,
    cluster: Workers | None = None,
) -> Table:
    """Trains all runs of the grid that are not finished yet. A run that diverges is a result.

    Args:
        grid: grid of the runs.
        dataset: data set that they are trained and tested on.
        folder: folder for runs.jsonl, which has a line for each finished run, on the disk before the next run is
            awaited; runs found in it are not trained again. None: nothing is written. Only this process writes, so
            workers need not see the folder.
        together: number of runs of an MLP that vmap trains at once.
        each: function that is called with each run, found or trained.
        cluster: workers that train, such as `Workers(workers=2)` or `Workers("tcp://host:8786")`; if a worker dies,
            another one trains its runs. None: this process trains.

    Raises:
        ValueError: together is below 1, or above it for convolutions; a network of the grid cannot be trained on such
            images, or runs.jsonl is damaged.
        FileExistsError: the folder is a file.
        BlockingIOError: another sweep writes to the folder.
        OSError: the disk is full; runs that are finished stay.
        ConnectionError: no scheduler answers at the address, or it has no workers.
        RuntimeError: a run killed several workers.
    """
    if together < 1:
        raise ValueError(f"got together={together}: expected at least 1")
    if together > 1 and grid.recipe.model != "mlp":
        raise ValueError(
            f"got together={together} for {grid.recipe.model}: runs of convolutions go one after another; leave it out"
        )
    with nullcontext() if folder is None else locked(folder):
        done = finished(grid, dataset, folder)
        for curve in filter(None, done.values()):
            each(curve)
        missing = [[recipe for recipe in grid.recipes(name) if done[recipe] is None] for name in grid.normalizations]
        todo = list(filter(None, missing))
        for first, *_ in todo:
            _check_trainable(first, dataset)
        trained = train_all(todo, dataset, together) if cluster is None else train_on(cluster, todo, dataset, together)
        with closing(trained):  # so that workers end also where writing fails
            for group in trained:
                if folder is not None:
                    append_runs(folder, group, dataset)
                for curve in group:
                    done[curve.recipe] = curve
                    each(curve)
    return table(grid, [curve for curve in done.values() if curve is not None])


def _check_trainable(recipe: Recipe, dataset: Dataset) -> None:
    """Raises what is wrong with a network of the grid, under its name, before the first one is trained."""
    try:
        Trainer(recipe, dataset)
    except ValueError as error:
        raise ValueError(f"{recipe.normalization}: {error}") from error


def finished(grid: Grid, dataset: Dataset, folder: Path | None) -> dict[Recipe, Curve | None]:
    """The runs of a grid, in its order, each with its curve if the folder has one, else with None.

    Raises:
        ValueError: runs.jsonl in the folder is damaged.
        FileExistsError: the folder is a file.
    """
    found = {} if folder is None else read_runs(folder)
    digest = dataset.digest if found else ""
    done = dict[Recipe, Curve | None]()
    for recipe in (recipe for name in grid.normalizations for recipe in grid.recipes(name)):
        curve = found.get((recipe.digest, digest))
        done[recipe] = None if curve is None else curve.first(recipe.epochs)
    return done


def table(grid: Grid, curves: Sequence[Curve]) -> Table:
    """The table of the curves, which are given in the order of the grid."""
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
    """One record made of several: the value of each name, or all its values if they differ."""
    values = dict[str, dict[str, None]]()
    for name, value in (item for record in records for item in record.items()):
        values.setdefault(name, {})[value] = None
    return {name: "; ".join(found) for name, found in values.items()}
