"""Learning rates x seeds x normalisations of one recipe: the learning rate and the seed are arguments of one program.

Each normalisation is compiled once. On a CPU its runs go one after another, and so have the bits of single runs of
`loop.fit`. Elsewhere as many go at once, by vmap, as memory holds; they differ from single runs by roundings, which
training at large rates makes large.

Measured on two CPU cores, an MLP of 19 hidden layers of 128 units on digits, 9 runs of 5 epochs, CPU time after 2 to
2.5 s of compilation: 1.32 s one after another, 1.33 s by lax.map, 1.41 s by vmap. So nothing is gained by more than the
plain loop, which also stops where a run diverges. No GPU was measured: vmap there rests on such networks being too
small to fill one.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.files import write_whole
from ntk_analysis.memory import available_bytes
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.loop import Trainer, epoch_key
from ntk_analysis.training.memory import kept_by
from ntk_analysis.training.metrics import Epoch, epoch_record
from ntk_analysis.training.recipe import Recipe

LIBRARIES = ("ntk-analysis", "jax", "flax", "optax")
COPIES = 3  # of weights and optimiser: before a step, behind it, and the gradient
SHARE = 0.5  # of the free memory that runs side by side may take


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


@dataclass(frozen=True)
class Curve:
    """A finished run.

    Attributes:
        recipe: how it was trained.
        epochs: what was measured; the last one is that of the recipe, or that in which training diverged.
    """

    recipe: Recipe
    epochs: tuple[Epoch, ...]

    def first(self, epochs: int) -> "Curve | None":
        """The run as if it had been stopped there; None if it ended before, and did not diverge."""
        if len(self.epochs) < epochs and not self.epochs[-1].diverged:
            return None
        return Curve(replace(self.recipe, epochs=epochs), self.epochs[:epochs])


@dataclass(frozen=True, eq=False)
class Table:
    """What a sweep found. Behind the epoch in which a run diverged its accuracies are 0.

    Attributes:
        grid: the runs.
        train_accuracy: (normalizations, learning rates, seeds, epochs) float64 in [0, 1].
        test_accuracy: likewise.
        diverged_at: (normalizations, learning rates, seeds) the epoch in which training diverged, 0 if it did not.
    """

    grid: Grid
    train_accuracy: np.ndarray
    test_accuracy: np.ndarray
    diverged_at: np.ndarray

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
) -> Table:
    """Trains all runs of the grid that are not finished yet. A run that diverges is a result.

    Args:
        grid: the runs.
        dataset: they are trained and tested on.
        folder: runs.jsonl there has a line for each finished run, on the disk before the next begins; runs found in it
            are not trained again. None: nothing is written.
        together: so many runs at once by vmap; None: one on a CPU, elsewhere as many as memory holds.
        each: called with each run, found or trained.

    Raises:
        ValueError: together below 1; a damaged runs.jsonl.
        FileExistsError: the folder is a file.
    """
    if together is not None and together < 1:
        raise ValueError(f"got together={together}: expected at least 1")
    found = {} if folder is None else read_runs(folder)
    curves = []
    for normalization in grid.normalizations:
        recipes = grid.recipes(normalization)
        done = {recipe: _finished(found.get(key_of(recipe, dataset)), recipe.epochs) for recipe in recipes}
        todo = [recipe for recipe, curve in done.items() if curve is None]
        for curve in filter(None, done.values()):
            each(curve)
        trained = train(Trainer(todo[0], dataset), todo, together) if todo else ()
        for group in trained:
            if folder is not None:
                append_runs(folder, group, dataset)
            for curve in group:
                done[curve.recipe] = curve
                each(curve)
        curves += [curve for curve in done.values() if curve is not None]
    return table(grid, curves)


def train(trainer: Trainer, recipes: Sequence[Recipe], together: int | None = None) -> Iterator[list[Curve]]:
    """Groups of finished runs, as they come.

    Args:
        trainer: of these recipes but for their learning rates and seeds.
        recipes: at least one.
        together: as for `sweep`.
    """
    size = min(lanes(trainer) if together is None else together, len(recipes))
    size = math.ceil(len(recipes) / math.ceil(len(recipes) / size))  # groups of about the same size
    for start in range(0, len(recipes), size):
        group = recipes[start : start + size]
        epochs = [one(trainer, recipe) for recipe in group] if size == 1 else abreast(trainer, group, size)
        yield [Curve(recipe, curve) for recipe, curve in zip(group, epochs, strict=True)]


def lanes(trainer: Trainer) -> int:
    """How many runs to train at once on JAX's default device."""
    if jax.default_backend() == "cpu":
        return 1
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(trainer.init, 0)))
    with jax.numpy_dtype_promotion("standard"):  # as Flax needs it
        kept = sum(kept_by(trainer.shapes, trainer.input_shape).values())
    return max(1, int(SHARE * available_bytes() / (COPIES * state + kept)))


def one(trainer: Trainer, recipe: Recipe) -> tuple[Epoch, ...]:
    """One run, until it ends or diverges."""
    state = trainer.init(recipe.seed, recipe.learning_rate)
    epochs = list[Epoch]()
    while len(epochs) < recipe.epochs and not (epochs and epochs[-1].diverged):
        start = time.perf_counter()
        state, metrics = trainer.epoch(state, epoch_key(recipe.seed, len(epochs) + 1))
        metrics = jax.device_get(metrics)  # waits for the device
        seconds = time.perf_counter() - start
        epochs.append(epoch_record(len(epochs) + 1, metrics, trainer.ignorant_loss, seconds))
    return tuple(epochs)


def abreast(trainer: Trainer, recipes: Sequence[Recipe], size: int) -> list[tuple[Epoch, ...]]:
    """Up to `size` runs at once; the last one is repeated where there are fewer, so that one program does for all."""
    lane = [*recipes, *[recipes[-1]] * (size - len(recipes))]
    seeds = jnp.asarray([recipe.seed for recipe in lane], jnp.int32)
    rates = jnp.asarray([recipe.learning_rate for recipe in lane], jnp.float32)
    state = jax.vmap(trainer.init)(seeds, rates)
    curves: list[list[Epoch]] = [[] for _ in recipes]
    for number in range(1, recipes[0].epochs + 1):
        start = time.perf_counter()
        state, stacked = jax.vmap(trainer.epoch)(state, jax.vmap(epoch_key, (0, None))(seeds, number))
        stacked = jax.device_get(stacked)
        seconds = (time.perf_counter() - start) / len(recipes)
        for index, curve in enumerate(curves):
            if not (curve and curve[-1].diverged):
                metrics = jax.tree.map(lambda values, index=index: values[index], stacked)
                curve.append(epoch_record(number, metrics, trainer.ignorant_loss, seconds))
        if all(curve[-1].diverged for curve in curves):
            break
    return list(map(tuple, curves))


def table(grid: Grid, curves: Iterable[Curve]) -> Table:
    """The curves as arrays; those of the grid, in its order."""
    shape = len(grid.normalizations), len(grid.learning_rates), len(grid.seeds)
    train, test = (np.zeros((math.prod(shape), grid.recipe.epochs)) for _ in range(2))
    diverged = np.zeros(math.prod(shape), int)
    for index, curve in enumerate(curves):
        for epoch in curve.epochs:
            train[index, epoch.epoch - 1], test[index, epoch.epoch - 1] = epoch.train_accuracy, epoch.test_accuracy
        diverged[index] = len(curve.epochs) if curve.epochs[-1].diverged else 0
    return Table(grid, train.reshape(*shape, -1), test.reshape(*shape, -1), diverged.reshape(shape))


# ---- the file of finished runs


def key_of(recipe: Recipe, dataset: Dataset) -> tuple[str, str]:
    """What makes two runs the same: recipe, with learning rate, seed and normalisation, and images."""
    return recipe.digest, dataset.digest


def read_runs(folder: Path) -> dict[tuple[str, str], Curve]:
    """The finished runs in a folder by their key; of two with the same key the later, which went further.

    What a kill left of a last line is cut off.

    Raises:
        ValueError: a line that is no run.
        FileExistsError: the folder is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder or a path that does not exist yet")
    path = _runs(folder)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            recipe = Recipe.from_json(json.dumps(record["recipe"]))
            epochs = tuple(Epoch.from_json(json.dumps(epoch)) for epoch in record["epochs"])
            if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)) or not epochs:
                raise ValueError("its epochs are not 1, 2, ...")
            found[recipe.digest, record["data"]["sha256"]] = Curve(recipe, epochs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: line {number} is no finished run ({error}); delete it, or give another folder"
            ) from error
    if whole != text:
        write_whole(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))
    return found


def append_runs(folder: Path, curves: Sequence[Curve], dataset: Dataset) -> None:
    """Adds a line for each; they are on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"data": {"name": dataset.name, "sha256": dataset.digest}, "made by": hardware_and_versions()}
    lines = [
        json.dumps(
            {
                "recipe": asdict(curve.recipe),
                **about,
                "epochs": [json.loads(epoch.to_json()) for epoch in curve.epochs],
            },
            allow_nan=False,
        )
        for curve in curves
    ]
    with _runs(folder).open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def hardware_and_versions() -> dict[str, Any]:
    """What a run was made by and on."""
    device = jax.local_devices()[0]
    return {
        **{name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "device": f"{device.device_kind} ({platform.machine()}, {os.cpu_count()} cores)",
    }


def _runs(folder: Path) -> Path:
    return folder / "runs.jsonl"


def _finished(curve: Curve | None, epochs: int) -> Curve | None:
    return None if curve is None else curve.first(epochs)
