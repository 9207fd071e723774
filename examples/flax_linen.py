"""A Flax Linen model: model.apply is f(params, x) as it is."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk


def network():
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    model = nn.Sequential([nn.Dense(128), nn.relu, nn.Dense(10)])
    x = jnp.asarray(preprocess(load_digits().subset(32, seed=0).images), jnp.float32)
    return model.apply, model.init(jax.random.key(0), x), x


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel.matrix()):.4g}")
