"""Images on the device: raw pixels resident there, and the batches that networks see."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.data import DataError
from ntk_analysis.training.dataset import Dataset

SMALLEST = 32  # smallest image side for networks that halve images five times


class Resident(NamedTuple):
    """A data set on the device, with the statistics of its training pixels.

    Attributes:
        images: training images (n, h, w, c), uint8 or float32 as in the source.
        labels: training labels (n,), int32.
        test_images: test images (m, h, w, c).
        test_labels: test labels (m,), int32.
        mean: mean (c,) of each channel over the training pixels, float32.
        std: standard deviation (c,) of each channel over the training pixels, float32.
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
        DataError: a channel has the same value in all training pixels.
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
    """Pixels normalised by channel, as a float32 batch (batch, h, w, c).

    Args:
        images: raw pixels (batch, h, w, c).
        resident: data set whose mean and standard deviation are used.
        colour: whether the network takes colour images of at least 32 x 32. Then grey images are repeated in three
            channels, and small ones get a black border.
    """
    if colour:
        short = [max(0, SMALLEST - length) for length in images.shape[1:3]]
        images = jnp.pad(images, ((0, 0), *((each // 2, each - each // 2) for each in short), (0, 0)))
    x = (images.astype(jnp.float32) - resident.mean[None, None, None]) / resident.std[None, None, None]
    return jnp.repeat(x, 3, axis=-1) if colour and x.shape[-1] == 1 else x
