"""A Flax NNX model with batch norm: from_nnx takes its parameters out, and keeps its running statistics apart."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import from_nnx


def network() -> tuple[Callable[..., Any], Any, jax.Array]:
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        nnx.Linear(64, 128, rngs=rngs),
        # the fast variance, Flax's default, loses the digits of units whose mean is far from 0
        nnx.BatchNorm(128, use_fast_variance=False, rngs=rngs),
        nnx.relu,
        nnx.Linear(128, 10, rngs=rngs),
    )
    x = jnp.asarray(preprocess(load_digits().subset(32, seed=0).images, image_centering="dataset"), jnp.float32)
    return from_nnx(model, x, mode="eval")  # mode="train": of the batch's own statistics


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
