"""A network written by hand: any pure JAX function f(params, x) has an empirical tangent kernel.

`ntk-analysis diagnose examples/hand_written.py:network` says how well it can be trained.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk

WIDTHS = (64, 128, 128, 10)
Params: TypeAlias = list[jax.Array]


def f(params: Params, x: jax.Array) -> jax.Array:
    """ReLU layers, He's gain in the weights themselves: the standard parametrisation."""
    for weights in params[:-1]:
        x = jax.nn.relu(x @ weights)
    return x @ params[-1]


def network() -> tuple[Callable[[Params, jax.Array], jax.Array], Params, jax.Array]:
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) - 1)
    sizes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=True)
    params = [jax.random.normal(key, (rows, columns)) * (2 / rows) ** 0.5 for key, rows, columns in sizes]
    return (
        f,
        params,
        jnp.asarray(preprocess(load_digits().subset(32, seed=0).images, image_centering="dataset"), jnp.float32),
    )


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
