"""The memory of a training step as the device's allocator has counted it."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np

from ntk_analysis.common.memory import peak_bytes
from ntk_analysis.data import ImageSet
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.loop import Trainer, epoch_key
from ntk_analysis.training.memory.accounting import SIZES
from ntk_analysis.training.recipe import Recipe


def require_peak() -> None:
    """Raises ValueError where the default device does not tell the peak of its allocator."""
    if peak_bytes() is None:
        device = jax.devices()[0]
        raise ValueError(
            f"--measure reads the allocator of a GPU, and {device.device_kind} ({device.platform}) has no such count: "
            "--compile shows what XLA's program takes here"
        )


def measured_peak(recipe: Recipe, classes: int) -> int | None:
    """`peak_of_step` in a process of its own, whose allocator has served nothing else.

    Raises:
        RuntimeError: the step failed, as one does that the device has no room for.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's device
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(peak_of_step, recipe, classes).result()
    except RuntimeError as error:  # JAX's errors and a process that was killed, too
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(
            f"no step of {recipe.model} with {recipe.normalization} at batch {recipe.batch}: {told[0]}"
        ) from error


def peak_of_step(recipe: Recipe, classes: int = 100) -> int | None:
    """Peak in bytes of this process's allocator on the default device after one step of training on random images.

    It holds weights, momentum, gradients, what the backward pass keeps, XLA's temporaries and one batch of images.

    Args:
        recipe: recipe of training; its stem is the size of the images.
        classes: number of logits.

    Returns:
        The peak of all that the process has done on the device so far; None where the device does not tell.
    """
    trainer = Trainer(recipe, noise(recipe.batch, 2, SIZES[recipe.stem], classes))
    batches, keys = trainer.order(epoch_key(0, 1))
    jax.block_until_ready(trainer.step(trainer.init(0), (batches[0], keys[0])))
    return peak_bytes()


def noise(training: int, test: int, size: int = 32, classes: int = 100) -> Dataset:
    """Random colour images of this height and width, of which memory and throughput know no difference."""
    rng = np.random.default_rng(0)

    def images(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        return ImageSet(pixels, rng.integers(0, classes, count), "noise", classes)

    return Dataset(images(training), images(test))
