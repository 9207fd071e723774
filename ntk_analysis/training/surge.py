"""How the last batch norm's running variance moves in the first steps of training (the paper's Supp. Fig. 3)."""

import jax
import numpy as np

from ntk_analysis.training.loop import Trainer, epoch_key, last_bn_variance


def variance_by_step(trainer: Trainer, *, epochs: int = 2, seed: int | None = None) -> np.ndarray:
    """The last batch norm's running variance along the steps that `fit` makes; it starts at 1 for every network.

    Args:
        trainer: trainer of a network with a last batch norm.
        epochs: number of whole epochs, at least 1.
        seed: seed of weights and shuffles; None is the recipe's.

    Returns:
        Variances (steps + 1, classes) in float32, before the first step and after each. Once training diverged they are
        NaN or infinite.

    Raises:
        ValueError: the network has no last batch norm, or epochs is below 1.
    """
    if epochs < 1:
        raise ValueError(f"got epochs={epochs}: expected at least 1")
    seed = trainer.recipe.seed if seed is None else seed
    state = trainer.init(seed)
    found = [last_bn_variance(trainer.model(state))]
    if found[0] is None:
        raise ValueError(f"{trainer.recipe.normalization} has no last batch norm: choose last_bn or mimic_norm")
    for epoch in range(1, epochs + 1):
        key = epoch_key(seed, epoch)
        last = trainer.last_batch(key)
        for batch in (*zip(*trainer.order(key), strict=True), *([] if last is None else [last])):
            state, _ = trainer.step(state, batch)
            found.append(last_bn_variance(trainer.model(state)))
    return np.stack(jax.device_get(found))
