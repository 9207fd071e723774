"""Times of infinite-width kernels.

    uv run pytest -n 0 benchmarks --benchmark-only --benchmark-json=results.json

writes every timing with the machine's description. Runs in float32 with JAX's default settings, on whatever device
JAX finds; each timed call waits for its result.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected


def images(count, features=784):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, features)), jnp.float32)


def time_kernels(benchmark, network, x):
    @jax.jit
    def kernels(x):
        kernel = infinite_kernel(network, x)
        return kernel.nngp, kernel.ntk_scaled

    jax.block_until_ready(kernels(x))
    benchmark.pedantic(lambda: jax.block_until_ready(kernels(x)), rounds=5)


@pytest.mark.parametrize("normalization", ["none", "weight_mean"])
@pytest.mark.parametrize("depth", [10, 50])
def test_relu_kernel_of_2000_images(benchmark, normalization, depth):
    time_kernels(benchmark, fully_connected(depth, 1, normalization), images(2000))


@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh"])
def test_general_path_with_bias(benchmark, activation):
    time_kernels(benchmark, fully_connected(10, 1, activation=activation, b_var=0.1), images(500))


@pytest.mark.parametrize("depth", [10, 1000])
def test_tracing_does_not_grow_with_depth(benchmark, depth):
    network, x = fully_connected(depth, 1), images(10)

    def trace():
        jax.clear_caches()
        return jax.make_jaxpr(lambda x: infinite_kernel(network, x).ntk_scaled)(x)

    benchmark.pedantic(trace, rounds=5)
