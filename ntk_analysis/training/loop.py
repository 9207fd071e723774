"""Training: whole epochs in one compiled program, the images resident on the device.

Convolutions on a CPU are the exception: there each step is a program, called in turn (see `in_turn`).

    trainer = Trainer(Recipe(depth=3, width=128), load_dataset("digits"))
    state = trainer.init(seed)
    state, metrics = trainer.epoch(state, epoch_key(seed, 1))

Both are pure, and `vmap` goes over seeds and learning rates. All randomness, dropout's too, comes from the seed and the
number of the epoch, so that a run that is resumed behind any epoch is the run that was never interrupted. `fit` is the
plain run.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ntk_analysis.common.memory import require_memory
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.training.augmentation import DROPOUT, augmented
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.inputs import Resident, batch_inputs, on_device
from ntk_analysis.training.metrics import Epoch, Metrics, epoch_record
from ntk_analysis.training.normalization import LastBatchNorm
from ntk_analysis.training.recipe import Recipe

COPIES = 2  # states that are alive at once: before and after a step
REST = nnx.Not(
    nnx.Any(nnx.Param, nnx.RngState)
)  # what a state holds beside parameters: keys of dropout are a step's own


class State(NamedTuple):
    """The arrays that training changes, and the learning rate, as a tree that vmap, scan and checkpoints take.

    Attributes:
        params: `nnx.State` of the parameters, in float32.
        rest: `nnx.State` of running statistics and of whatever else the model holds but keys of dropout, which are made
            anew in each step.
        optimizer_state: state of the optax optimizer.
        learning_rate: the largest learning rate, a float32 scalar.
        step: number of steps done, an int32 scalar.
    """

    params: Any
    rest: Any
    optimizer_state: Any
    learning_rate: jax.Array
    step: jax.Array


def epoch_key(seed: int | jax.Array, epoch: int | jax.Array) -> jax.Array:
    """The random key of epoch 1, 2, ... of a seed; the key of epoch 0 draws the initial weights."""
    return jax.random.fold_in(jax.random.key(seed), epoch)


class Trainer:
    """A recipe on a data set, as pure functions: `init`, `epoch` and `evaluate`.

    The recipe's seed, learning rate and number of epochs are arguments of these functions, not constants of the
    programs.

    Attributes:
        recipe: recipe of training.
        dataset: data set that the network is trained and tested on.
        steps_per_epoch: number of batches in an epoch, a smaller last one included.
        left_over: number of images in that smaller last batch, 0 if there is none.
        shapes: the network in training mode, with descriptions in place of arrays.
        parameters: number of parameters.
        input_shape: shape of a batch as the network gets it.

    Raises:
        ValueError: the batch is larger than the data set, one image is left over for the last one, a network to center
            has no weights for it, or the network does not take such images.
        MemoryError: parameters and optimizer do not fit into memory.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset) -> None:
        images = dataset.train.images
        if recipe.batch > len(images):
            raise ValueError(f"got batch={recipe.batch}: {dataset.name} has {len(images)} images to train on")
        if recipe.model != "mlp" and images.shape[-1] not in (1, 3):
            raise ValueError(f"{recipe.model} takes images of 1 or 3 channels, {dataset.name} has {images.shape[-1]}")
        self.recipe = recipe
        self.dataset = dataset
        self.left_over = 0 if recipe.drop_last else len(images) % recipe.batch
        if self.left_over == 1:
            raise ValueError(
                f"got batch={recipe.batch} and drop_last=False: one image of {len(images)} is left over, and a batch "
                "of one has no statistics; give another batch, or drop it"
            )
        self.steps_per_epoch = len(images) // recipe.batch + bool(self.left_over)
        model: Any = nnx.eval_shape(lambda: self._model(jax.random.key(0)))
        self.parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        self.shapes = model
        self._rng_state = nnx.state(model, nnx.RngState)
        self._optimizer = recipe.transformation(model)
        self._training = nnx.graphdef(model)
        model.eval()
        self._evaluating = nnx.graphdef(model)
        model.train()
        model.set_attributes(nnx.Dropout, deterministic=True, raise_if_not_found=False)
        self._by_batch = nnx.graphdef(model)
        model.train()
        self._resident = on_device(dataset)
        inputs = jax.eval_shape(
            lambda resident: self._inputs(resident.images[: recipe.batch], resident), self._resident
        )
        self.input_shape = inputs.shape
        # the images are an argument: constants would be compiled into the programs
        self._init = _compiled(self._initial)
        self._step, self._add_test = _compiled(self._descend), _compiled(self._add_batch)
        whole = recipe.model == "mlp" or jax.default_backend() != "cpu"
        self._scan: Callable[..., Any] = jax.lax.scan if whole else in_turn
        self._epoch = (_compiled if whole else _promoting)(self._pass)
        self._evaluate = (_compiled if whole else _promoting)(self._mean_test)
        self._add_own = _compiled(partial(self._add_batch, training=True))
        self._evaluate_own = (_compiled if whole else _promoting)(self._mean_by_batch)
        state = jax.eval_shape(self.init, 0)  # raises its error now where a network has nothing to center
        needed = COPIES * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        require_memory(needed, f"training {self.parameters:,} parameters", "use a smaller width, or a smaller model")

    def init(self, seed: int | jax.Array, learning_rate: float | jax.Array | None = None) -> State:
        """The state before the first epoch.

        Args:
            seed: seed of the initial weights.
            learning_rate: the largest learning rate; None is the recipe's.
        """
        rate = self.recipe.learning_rate if learning_rate is None else learning_rate
        return self._init(epoch_key(seed, 0), jnp.asarray(rate, jnp.float32))

    def epoch(self, state: State, key: jax.Array) -> tuple[State, Metrics]:
        """One pass over the shuffled training images, then over the test images; `epoch_key` gives `key`."""
        return self._epoch(state, key, self._resident)

    def order(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of each whole batch of an epoch (steps, batch), and a key for each batch (steps,)."""
        images, keys = self._shuffled(key)
        whole = len(images) // self.recipe.batch
        return images[: whole * self.recipe.batch].reshape(whole, self.recipe.batch), keys[:whole]

    def last_batch(self, key: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """The images that whole batches leave over (left_over,), for the epoch's last step, and a key.

        None if there are none, or if they are dropped.
        """
        images, keys = self._shuffled(key)
        return (images[-self.left_over :], keys[-1]) if self.left_over else None

    def step(self, state: State, batch: tuple[jax.Array, jax.Array]) -> tuple[State, tuple[jax.Array, ...]]:
        """State after a step on an entry of `order` or on `last_batch`, and the step's rate, loss and accuracy."""
        found: tuple[State, tuple[jax.Array, ...]] = self._step(self._resident, state, batch)
        return found

    def evaluate(self, state: State, *, training: bool = False) -> tuple[jax.Array, jax.Array]:
        """Mean loss and accuracy on the test images, float32 scalars.

        Args:
            state: state of the network.
            training: whether batch norms take their statistics from each batch of test images, as in training, in place
                of the remembered ones. Images are then taken in their order, and those left over are not counted.

        Raises:
            ValueError: `training` is asked for, and there are fewer test images than a batch has.
        """
        if not training:
            return self._evaluate(state, self._resident)
        if len(self.dataset.test.images) < self.recipe.batch:
            raise ValueError(
                f"got {len(self.dataset.test.images)} test images, fewer than batch={self.recipe.batch}: statistics of "
                "a batch need a whole one"
            )
        return self._evaluate_own(state, self._resident)

    def model(self, state: State) -> nnx.Module:
        """The network with this state's parameters, in evaluation mode."""
        return self._merged(self._evaluating, state.params, state.rest, jax.random.key(0))  # no dropout here

    @property
    def ignorant_loss(self) -> float:
        """Loss of a network that knows nothing: all classes equally probable, or outputs 0 for the squared loss."""
        return math.log(self.dataset.classes) if self.recipe.loss == "cross_entropy" else 0.5

    def _model(self, key: jax.Array) -> nnx.Module:
        inputs = math.prod(self.dataset.train.images.shape[1:])
        return self.recipe.build(nnx.Rngs(key), classes=self.dataset.classes, inputs=inputs)

    def _initial(self, key: jax.Array, learning_rate: jax.Array) -> State:
        model = self._model(key)
        params, rest = nnx.state(model, nnx.Param), nnx.state(model, REST)
        return State(params, rest, self._optimizer.init(params), learning_rate, jnp.zeros((), jnp.int32))

    def _pass(self, state: State, key: jax.Array, resident: Resident) -> tuple[State, Metrics]:
        state, (rates, losses, accuracies) = self._scan(partial(self._step, resident), state, self.order(key))
        rate, loss, accuracy = rates[-1], jnp.mean(losses), jnp.mean(accuracies)
        batch = self.last_batch(key)
        if batch is not None:
            state, (rate, *last) = self._step(resident, state, batch)
            share = self.left_over / len(resident.images)
            loss, accuracy = (
                (1 - share) * mean + share * own for mean, own in zip((loss, accuracy), last, strict=True)
            )
        test_loss, test_accuracy = self._mean_test(state, resident)
        variance = last_bn_variance(self.model(state))
        return state, Metrics(rate, loss, accuracy, test_loss, test_accuracy, variance)

    def _shuffled(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images of an epoch in their order, and a key for each of its batches."""
        shuffle, batches = jax.random.split(key)
        images = jax.random.permutation(shuffle, len(self.dataset.train.images))
        return images, jax.random.split(batches, self.steps_per_epoch)

    def _merged(self, graph: Any, params: Any, rest: Any, key: jax.Array) -> Any:
        """The network with these arrays, whose layers of dropout draw from this key, each from its own."""
        leaves, tree = jax.tree.flatten(self._rng_state)
        drawn = [
            jax.random.fold_in(key, number) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros_like(leaf)
            for number, leaf in enumerate(leaves)
        ]
        return nnx.merge(graph, params, rest, jax.tree.unflatten(tree, drawn), copy=True)

    def _descend(
        self, resident: Resident, state: State, batch: tuple[jax.Array, jax.Array]
    ) -> tuple[State, tuple[jax.Array, ...]]:
        rows, key = batch
        images, labels = resident.images[rows], resident.labels[rows]
        x = self._inputs(augmented(key, images, self.recipe.rotation) if self.recipe.augment else images, resident)

        def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            model = self._merged(self._training, params, state.rest, jax.random.fold_in(key, DROPOUT))
            losses, hits = self._judge(model, x, labels)
            return jnp.mean(losses), (jnp.mean(hits), nnx.state(model, REST))

        (value, (accuracy, rest)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        rate = self.recipe.rate(state.step, self.steps_per_epoch, state.learning_rate)
        updates, optimizer_state = self._optimizer.update(
            gradient, state.optimizer_state, state.params, learning_rate=rate
        )
        params = optax.apply_updates(state.params, updates)
        return State(params, rest, optimizer_state, state.learning_rate, state.step + 1), (rate, value, accuracy)

    def _mean_test(self, state: State, resident: Resident) -> tuple[jax.Array, jax.Array]:
        count = len(resident.test_images)
        batch = min(self.recipe.batch, count)
        batches = jnp.arange(-(-count // batch) * batch).reshape(-1, batch)  # the last batch is filled up

        total, _ = self._scan(partial(self._add_test, state, resident), jnp.zeros(2, jnp.float32), batches)
        return total[0] / count, total[1] / count

    def _mean_by_batch(self, state: State, resident: Resident) -> tuple[jax.Array, jax.Array]:
        batches = len(resident.test_images) // self.recipe.batch
        rows = jnp.arange(batches * self.recipe.batch).reshape(batches, -1)

        total, _ = self._scan(partial(self._add_own, state, resident), jnp.zeros(2, jnp.float32), rows)
        return total[0] / rows.size, total[1] / rows.size

    def _add_batch(
        self, state: State, resident: Resident, total: jax.Array, rows: jax.Array, *, training: bool = False
    ) -> tuple[jax.Array, None]:
        """Adds losses and hits of these test images to the total; rows beyond the last image do not count."""
        count = len(resident.test_images)
        kept = jnp.minimum(rows, count - 1)
        x = self._inputs(resident.test_images[kept], resident)
        graph = self._by_batch if training else self._evaluating
        model = self._merged(graph, state.params, state.rest, jax.random.key(0))
        found = jnp.stack(self._judge(model, x, resident.test_labels[kept]))
        return total + jnp.sum(jnp.where((rows < count)[None], found, 0), 1), None

    def _inputs(self, images: jax.Array, resident: Resident) -> jax.Array:
        return batch_inputs(images, resident, colour=self.recipe.model != "mlp")

    def _judge(self, model: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Loss and hit (0 or 1) of each image, in float32."""
        logits = model(x).astype(jnp.float32)
        if self.recipe.loss == "cross_entropy":
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        else:
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
            losses = jnp.sum((logits - targets) ** 2, 1) / 2
        return losses, (jnp.argmax(logits, 1) == labels).astype(jnp.float32)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        trainer: the trainer that made the run; `trainer.model(run.state)` is the network.
        state: state after the last epoch.
        epochs: the measured epochs, in their order.
    """

    trainer: Trainer
    state: State
    epochs: tuple[Epoch, ...]

    @property
    def diverged_at(self) -> int | None:
        """The epoch in which training diverged, which is the last one; None if it did not diverge."""
        return self.epochs[-1].epoch if self.epochs[-1].diverged else None


def fit(
    trainer: Trainer,
    *,
    folder: Path | None = None,
    resume: bool = False,
    keep_every: int | None = None,
    each: Callable[[Epoch], None] = lambda epoch: None,
) -> Run:
    """Trains for the recipe's epochs, or until training diverges, which is recorded and is not an error.

    Args:
        trainer: trainer with recipe and data set.
        folder: folder for checkpoints and metrics.jsonl, written after each epoch; None: nothing is written.
        resume: whether to go on with the run in the folder, if there is one.
        keep_every: number of epochs; the checkpoints of its multiples are kept. None: only the last two are.
        each: function that is called with each epoch that this call trains, once the epoch is on the disk.

    Raises:
        FileExistsError: the folder has a run that is not to be resumed.
        ValueError: the run to be resumed has another recipe or other images, or no checkpoint that is intact.
        BlockingIOError: another process trains in the folder.
        OSError: the disk is full; what was trained before stays.
    """
    recipe = trainer.recipe
    with ExitStack() as stack:
        kept = None
        if folder is not None:
            from ntk_analysis.training.checkpoint import run_folder  # orbax takes seconds to import

            context = run_folder(folder, recipe, trainer.dataset, resume=resume, keep_every=keep_every)
            kept = stack.enter_context(context)
        state, done = trainer.init(recipe.seed), list[Epoch]()
        if kept is not None:
            state, done = kept.restore(state)
        for now, epoch in epochs(trainer, recipe, state, done):
            state = now
            done.append(epoch)
            if kept is not None:
                kept.save(state, epoch)
            each(epoch)
    return Run(trainer, state, tuple(done))


def epochs(trainer: Trainer, recipe: Recipe, state: State, done: Sequence[Epoch] = ()) -> Iterator[tuple[State, Epoch]]:
    """Trains the epochs behind those done, until the last or until training diverges: the state and record of each.

    Args:
        trainer: trainer of this recipe; its own may have another learning rate or seed.
        recipe: recipe with the number of epochs, and the seed of shuffles and augmentation.
        state: state after the epochs that are done.
        done: records of those epochs.
    """
    diverged = bool(done) and done[-1].diverged
    for number in range(len(done) + 1, recipe.epochs + 1):
        if diverged:
            return
        start = time.perf_counter()
        state, metrics = trainer.epoch(state, epoch_key(recipe.seed, number))
        metrics = jax.device_get(metrics)  # waits for the device
        epoch = epoch_record(number, metrics, trainer.ignorant_loss, time.perf_counter() - start)
        diverged = epoch.diverged
        yield state, epoch


def in_turn(step: Callable[..., Any], state: Tree, xs: Tree) -> tuple[Any, Any]:
    """`jax.lax.scan` as a Python loop, which calls each step from here: for convolutions on a CPU.

    XLA's CPU backend does not use its fast convolutions inside a loop. One step of gradient descent on a 3 x 3
    convolution of 256 channels, with 128 images of 8 x 8, took 14.4 s in a scan and .073 s by itself (2 cores, JAX
    0.10.2).
    """
    found = []
    for index in range(len(jax.tree.leaves(xs)[0])):
        state, value = step(state, jax.tree.map(lambda leaf, index=index: leaf[index], xs))
        found.append(value)
    return state, jax.tree.map(lambda *values: jnp.stack(values), *found)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(_promoting(function))


def _promoting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run with JAX's usual promotion of dtypes, which Flax and Optax need."""

    def called(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args)

    return called


def last_bn_variance(model: nnx.Module) -> jax.Array | None:
    """Running variances (classes,) of a model's last batch norm; None if it has none."""
    found = [module.var[...] for _, module in nnx.iter_modules(model) if isinstance(module, LastBatchNorm)]
    return found[0] if found else None
