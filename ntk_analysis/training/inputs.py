"""Images on the device: raw pixels resident there, and the batches that networks see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.data import DataError
from ntk_analysis.training.dataset import Dataset

SMALLEST = 32  # images of networks that halve them five times


class Resident(NamedTuple):
    """A data set on the device.

    Attributes:
        images: (n, h, w, c) to train on, uint8 or float32, as the source has them.
        labels: (n,) int32.
        test_images: (m, h, w, c).
        test_labels: (m,) int32.
        mean: (c,) float32, of the training pixels by channel.
        std: (c,) their standard deviations.
    """

    images: jax.Array
    labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array
    mean: jax.Array
    std: jax.Array


def on_device(dataset: Dataset) -> Resident:
    """The data set on JAX's default device.

    Raises:
        DataError: a channel that has the same value in all training pixels.
    """
    pixels = dataset.train.images
    mean, std = (statistic(pixels, axis=(0, 1, 2), dtype=np.float64) for statistic in (np.mean, np.std))
    if not np.all(std > 0):
        raise DataError(f"{dataset.name}: a channel is the same in all training pixels; drop it")
    parts = [
        array
        for part in (dataset.train, dataset.test)
        for array in (
            part.images if part.images.dtype == np.uint8 else part.images.astype(np.float32),
            part.labels.astype(np.int32),
        )
    ]
    return Resident(*map(jnp.asarray, (*parts, mean.astype(np.float32), std.astype(np.float32))))


def batch_inputs(images: jax.Array, resident: Resident, *, colour: bool) -> jax.Array:
    """Pixels normalised by channel, float32 (batch, h, w, c).

    Args:
        images: (batch, h, w, c) raw pixels.
        resident: gives mean and standard deviation.
        colour: whether the network takes colour images of at least 32 x 32: grey ones are repeated in three channels,
            small ones get a black border.
    """
    if colour:
        short = [max(0, SMALLEST - length) for length in images.shape[1:3]]
        images = jnp.pad(images, ((0, 0), *((each // 2, each - each // 2) for each in short), (0, 0)))
    x = (images.astype(jnp.float32) - resident.mean[None, None, None]) / resident.std[None, None, None]
    return jnp.repeat(x, 3, axis=-1) if colour and x.shape[-1] == 1 else x
