"""Runs that differ in learning rate and seed: one after another, abreast by vmap, or as tasks of a cluster.

One after another is the rule on every device, by two measurements. Two CPU cores, an MLP of 19 hidden layers of 128
units on digits, 9 runs of 5 epochs, CPU time after 2 to 2.5 s of compilation: 1.32 s one after another, 1.33 s by
lax.map, 1.41 s by vmap. An NVIDIA H100, 21 runs of an MLP, compilation included: 26 s one after another, 41 s by vmap.
The plain loop also stops where a run diverges, and has the bits of single runs. `benchmarks/gpu.py sweeps` measures
another device. Convolutions never go abreast: mapped over weights they are grouped convolutions.
"""

import importlib
import math
import time
from collections.abc import Generator, Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis.common.cluster import ONE_AT_A_TIME, Workers, results
from ntk_analysis.common.provenance import made_by
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.loop import Trainer, epoch_key, epochs
from ntk_analysis.training.metrics import Epoch, epoch_record
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import LIBRARIES, Curve

Trained: TypeAlias = Generator[list[Curve], None, None]
KEPT = 4  # number of trainers, with programs and images, that a worker keeps; runs come sorted by trainer
SENDING = {"distributed.admin.large-graph-warning-threshold": "1TB"}  # the images are sent once, as they should be


def train(trainer: Trainer, recipes: Sequence[Recipe], together: int = 1) -> Iterator[list[Curve]]:
    """Yields groups of finished runs, each as soon as it is finished.

    Args:
        trainer: trainer of a recipe that differs from these in learning rate and seed only.
        recipes: recipes to train, at least one.
        together: number of runs at once.
    """
    parts = groups(recipes, together)
    for group in parts:
        yield train_group(trainer, group, len(parts[0]))


def train_all(todo: Sequence[Sequence[Recipe]], dataset: Dataset, together: int) -> Trained:
    """Yields the finished runs of several normalisations, trained by `train` in this process."""
    for recipes in todo:
        yield from train(Trainer(recipes[0], dataset), recipes, together)


def train_on(workers: Workers, todo: Sequence[Sequence[Recipe]], dataset: Dataset, together: int) -> Trained:
    """Yields the finished runs of several normalisations, trained on a cluster, each group of runs being one task.

    A group is trained again if its worker dies, and yielded once. The images reach the workers through the scheduler,
    so the workers need no common file system. Each worker compiles the programs of its runs once. On CPUs a run has the
    same bits as in this process.

    Args:
        workers: workers, each of which trains one group at a time.
        todo: recipes to train, grouped by normalisation, at least one of each.
        dataset: data set that they are trained and tested on.
        together: number of runs at once.

    Raises:
        ConnectionError: no scheduler answers at the address, or it has no workers.
        RuntimeError: a group killed several workers.
    """
    if not todo:
        return
    float64 = jnp.zeros(()).dtype == jnp.float64  # flag of the calling thread; workers have their own
    what, remedy = "run", "give a lower together= or a smaller batch"
    with workers.client() as client:
        with importlib.import_module("dask").config.set(SENDING):
            # a task and not data: if the last worker that has it dies, the scheduler sends it again
            sent = client.submit(_received, dataset, pure=False)
        parts = [groups(recipes, together) for recipes in todo]
        calls = [(group, len(part[0]), part[0][0], sent, float64) for part in parts for group in part]
        yield from results(client, _train_on_worker, calls, what, remedy=remedy)


def _train_on_worker(group: list[Recipe], size: int, like: Recipe, dataset: Dataset, float64: bool) -> list[Curve]:
    """Runs on a worker: `train_group`, with a trainer whose recipe differs in learning rate and seed only."""
    with ONE_AT_A_TIME, jax.enable_x64(float64):
        return train_group(_trainer(like, dataset), group, size)


@lru_cache(maxsize=KEPT)
def _trainer(recipe: Recipe, dataset: Dataset) -> Trainer:
    return Trainer(recipe, dataset)


def _received(dataset: Dataset) -> Dataset:
    return dataset


def groups(recipes: Sequence[Recipe], size: int) -> list[list[Recipe]]:
    """The fewest groups of at most this size, of about the same size, none larger than the first."""
    size = math.ceil(len(recipes) / math.ceil(len(recipes) / size))
    return [list(recipes[start : start + size]) for start in range(0, len(recipes), size)]


def train_group(trainer: Trainer, recipes: Sequence[Recipe], size: int) -> list[Curve]:
    """Trains these runs at once, by the program for `size` of them."""
    curves = [one(trainer, recipe) for recipe in recipes] if size == 1 else abreast(trainer, recipes, size)
    return [Curve(recipe, curve, made_by(*LIBRARIES)) for recipe, curve in zip(recipes, curves, strict=True)]


def one(trainer: Trainer, recipe: Recipe) -> tuple[Epoch, ...]:
    """Trains one run, until it ends or diverges."""
    start = trainer.init(recipe.seed, recipe.learning_rate)
    return tuple(epoch for _, epoch in epochs(trainer, recipe, start))


def abreast(trainer: Trainer, recipes: Sequence[Recipe], size: int) -> list[tuple[Epoch, ...]]:
    """Trains up to `size` runs at once; if there are fewer, the last is repeated: one program serves for all."""
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
