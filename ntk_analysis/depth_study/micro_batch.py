"""What small batches do to batch norm: finite networks beside `meanfield.evaluation_mode`, and trained ones."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.loop import Trainer, epochs
from ntk_analysis.training.recipe import Recipe


def second_moments(
    depth: int, width: int, *, batch_size: int, batches: int, running_variance: str, new: int, seed: int
) -> np.ndarray:
    """Second moments of xhat of new points, by layer, in one finite ReLU network with batch norm: (depth,).

    The statistics are averages over `batches` batches, as in `meanfield.evaluation_mode`; inputs are orthogonal and of
    variance 1, so that the first pre-activations are independent normal numbers.

    Args:
        depth: number of batch norms.
        width: units of each layer.
        batch_size: inputs per batch.
        batches: number of batches.
        running_variance: "unbiased" or "biased", the variance of a batch that is remembered.
        new: number of new points to average over.
        seed: seed of the weights.
    """
    generator, seen = np.random.default_rng(seed), batches * batch_size
    correction = batch_size / (batch_size - 1) if running_variance == "unbiased" else 1.0
    h, found = generator.standard_normal((seen + new, width)), []
    for _ in range(depth):
        training, others = h[:seen].reshape(batches, batch_size, width), h[seen:]
        means, variances = training.mean(1, keepdims=True), training.var(1, keepdims=True)
        evaluated = (others - means.mean(0)) / np.sqrt(correction * variances.mean(0))
        found.append(float(np.mean(evaluated**2)))
        xhat = np.concatenate([((training - means) / np.sqrt(variances)).reshape(seen, width), evaluated])
        h = np.maximum(xhat, 0) @ generator.standard_normal((width, width)) * math.sqrt(2 / width)
    return np.array(found)


class Trained(NamedTuple):
    """Test accuracies of one trained network, in [0, 1].

    Attributes:
        seed: seed of the weights and of the order of the images.
        training: accuracy in training mode, with the statistics of each batch of test images.
        evaluation: accuracy in evaluation mode, with the remembered statistics.
    """

    seed: int
    training: float
    evaluation: float


def train(recipe: Recipe, dataset: Dataset, seeds: tuple[int, ...]) -> list[Trained]:
    """Trains networks by one recipe from several seeds and tests each in both modes, at the recipe's batch size.

    Raises:
        ValueError: the recipe or data set is refused, as by `Trainer`.
    """
    trainer, found = Trainer(recipe, dataset), []
    for seed in seeds:
        state = trainer.init(seed)
        for now, _ in epochs(trainer, replace(recipe, seed=seed), state):
            state = now
        training, evaluation = (float(trainer.evaluate(state, training=mode)[1]) for mode in (True, False))
        found.append(Trained(seed, training, evaluation))
    return found
