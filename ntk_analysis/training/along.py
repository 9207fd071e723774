"""A run of `train`, checkpoint by checkpoint: what `diagnosis.diagnose_along` measures of it."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntk_analysis.common.pytrees import Tree
from ntk_analysis.diagnosis.along_training import AlongTraining, Checkpoint, diagnose_along
from ntk_analysis.networks import from_nnx
from ntk_analysis.training.dataset import Dataset, load_dataset
from ntk_analysis.training.inputs import batch_inputs, on_device
from ntk_analysis.training.loop import State, Trainer

COUNT = 64  # number of training images, unless another one is asked for


def diagnose_run(
    folder: str | Path, *, dataset: Dataset | None = None, count: int = COUNT, memory: str | int | None = None
) -> AlongTraining:
    """What training did to the network of a run: `diagnose_along` at its start and at each checkpoint that is kept.

    The network is in training mode, and the first images it was trained on are its batch. `train --keep-every 1` keeps
    the checkpoints of all epochs.

    Args:
        folder: folder of a run of `train`; it is only read.
        dataset: data set of the run; None loads it by the name on record.
        count: number of images.
        memory: memory that a tile or product may take, as for `empirical_ntk`.

    Raises:
        FileNotFoundError: the folder has no run.
        ValueError: the data set is not that of the run, or a checkpoint is damaged; as `diagnose_along`.
    """
    from ntk_analysis.training.checkpoint import read_run, read_states  # orbax takes seconds to import

    recipe, data = read_run(Path(folder))
    dataset = load_dataset(data["name"]) if dataset is None else dataset
    if dataset.digest != data["sha256"]:
        raise ValueError(
            f"{folder} was trained on other images ({data['name']}), got {dataset.name}: give its data set"
        )
    trainer = Trainer(recipe, dataset)
    start = trainer.init(recipe.seed)
    return along_states(trainer, [(0, start), *read_states(Path(folder), start)], count=count, memory=memory)


def along_states(
    trainer: Trainer, states: Iterable[tuple[int, State]], *, count: int = COUNT, memory: str | int | None = None
) -> AlongTraining:
    """The same of states that are at hand, each with the number of epochs that it has been trained.

    Args:
        trainer: trainer of the run.
        states: (epoch, state) in the order of training, the start first.
        count: number of images.
        memory: memory that a tile or product may take.

    Raises:
        ValueError: there is no state; as `diagnose_along`.
    """
    recipe, resident = trainer.recipe, on_device(trainer.dataset)
    x = batch_inputs(resident.images[:count], resident, colour=recipe.model != "mlp")
    states = list(states)
    if not states:
        raise ValueError("got no state, expected at least one: (epoch, state)")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as Flax needs them
        f: Any = from_nnx(trainer.model(states[0][1]), x, mode="train")[0]

        def rate(state: State) -> float:
            step = jnp.maximum(state.step - 1, 0)  # of the last step done
            return float(recipe.rate(step, trainer.steps_per_epoch, state.learning_rate))

        return diagnose_along(
            f,
            [Checkpoint(epoch, state.params, rate(state)) for epoch, state in states],
            x,
            loss=recipe.loss,
            momentum=recipe.momentum if recipe.optimizer == "sgd" else 0.0,
            labels=np.asarray(resident.labels[:count]),
            activations=lambda params, x: hidden_inputs(f.model(params, x), f.applied, jnp.asarray(x)),
            memory=memory,
        )


def hidden_inputs(model: nnx.Module, call: Any, x: Tree) -> list[np.ndarray]:
    """What each dense layer and convolution but the first is given, in the order of the calls: hidden activations.

    Args:
        model: a module that may be changed.
        call: function (model, x) that calls it.
        x: its inputs.
    """
    seen: list[jax.Array] = []
    for _, part in nnx.iter_modules(model):
        if isinstance(part, nnx.Linear | nnx.Conv):
            object.__setattr__(part, "__class__", _watched(type(part)))
            object.__setattr__(part, "_seen", seen)
    call(model, x)
    return [np.asarray(layer) for layer in seen[1:]]


@cache
def _watched(kind: type[Any]) -> type[Any]:
    """The class whose modules note what they are called with."""

    def noting(self: Any, x: jax.Array, *others: Any, **options: Any) -> Any:
        self._seen.append(x)
        return kind.__call__(self, x, *others, **options)

    return type(kind.__name__, (kind,), {"__call__": noting})
