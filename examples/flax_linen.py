"""A Flax Linen model with batch norm: from_linen takes its parameters out, and keeps its running statistics apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import from_linen


class Network(nn.Module):
    """One hidden layer behind batch norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(128)(x)
        # the fast variance, Flax's default, loses the digits of units whose mean is far from 0
        x = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(x)
        return nn.Dense(10)(nn.relu(x))


def network() -> tuple[Callable[..., Any], Any, jax.Array]:
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    model = Network()
    x = jnp.asarray(preprocess(load_digits().subset(32, seed=0).images, image_centering="dataset"), jnp.float32)
    variables = model.init(jax.random.key(0), x, train=False)  # the collections params and batch_stats
    return from_linen(model, variables, x, mode="eval")  # mode="train": of the batch's own statistics


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
