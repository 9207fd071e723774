"""A PyTorch user's network: its weights as arrays, and its forward pass in a few lines of JAX.

`ntk-analysis diagnose examples/pytorch_weights.py:network` says how well it can be trained. Units stand first here:
`ntk-analysis check --network examples/pytorch_weights.py:network --axes weight=1`.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import spectrum
from ntk_analysis.data import load_digits, preprocess
from ntk_analysis.empirical import empirical_ntk

WIDTHS = (64, 128, 128, 10)


def state_dict() -> dict[str, np.ndarray]:
    """{name: tensor.numpy() for name, tensor in model.state_dict().items()} of nn.Sequential(Linear, ReLU, ...).

    Drawn here by nn.Linear's own law, so that the example runs without PyTorch.
    """
    rng, state = np.random.default_rng(0), {}
    for layer, (rows, columns) in enumerate(pairwise(WIDTHS)):
        state[f"{2 * layer}.weight"] = rng.uniform(-1, 1, (columns, rows)).astype(np.float32) / rows**0.5
        state[f"{2 * layer}.bias"] = rng.uniform(-1, 1, columns).astype(np.float32) / rows**0.5
    return state


def f(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """nn.Linear is x W^T + b, with every second module a ReLU."""
    for index in range(0, 2 * len(WIDTHS) - 2, 2):
        x = jnp.maximum(x, 0) if index > 0 else x
        x = x @ params[f"{index}.weight"].T + params[f"{index}.bias"]
    return x


def network() -> tuple[Callable[..., jax.Array], dict[str, jax.Array], jax.Array]:
    """(f, params, x), as `ntk-analysis diagnose` takes them."""
    x = preprocess(load_digits().subset(32, seed=0).images, image_centering="dataset").astype(np.float32)
    return f, {name: jnp.asarray(array) for name, array in state_dict().items()}, jnp.asarray(x)


if __name__ == "__main__":
    kernel = empirical_ntk(*network())
    print(kernel.summary())
    print(f"condition number {spectrum.condition_number(kernel):.4g}")
