"""A Flax NNX model: nnx.split takes its parameters out, nnx.merge puts them back."""

import jax.numpy as jnp
from flax import nnx

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk


def network():
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = jnp.asarray(preprocess(load_digits().subset(32, seed=0).images), jnp.float32)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params, x


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel.matrix()):.4g}")
