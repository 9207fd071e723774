"""Growth of the time of each kind of kernel with inputs, depth, width, batch and outputs.

    uv run python benchmarks/growth.py

writes benchmarks/results/growth.json: for each work and each of its sizes the least seconds of several calls, compiled
before, and between neighbouring sizes the exponent of time against size; float32, batch norm float64.
"""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when NumPy and SciPy are imported; see batch_norm.py

import argparse
import math
from collections.abc import Callable, Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from timing import Call, finished, header, timed, write

from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Layer
from ntk_analysis.networks import convolutional, fully_connected


def infinite(network: Layer, *shape: int) -> Call:
    """NNGP and NTK at infinite width of noise of this shape."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)

    @jax.jit
    def kernels(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = infinite_kernel(network, x)
        return kernel.distance, kernel.ntk_scaled

    return finished(kernels, x)


def batch(network: Layer, count: int) -> Call:
    """The kernel of a batch in float64, outside of jit."""
    x = np.random.default_rng(0).standard_normal((count, 784))
    return lambda: infinite_kernel(network, x).ntk


def empirical(network: Layer, *shape: int, layout: Layout = "trace") -> Call:
    """NTK of a finite network."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    params = network.init(jax.random.key(0), shape)[1]
    return lambda: empirical_ntk(network, params, x, layout=layout).values


def mlp(width: int = 512, outputs: int = 10, depth: int = 5, normalization: str = "none") -> Layer:
    """A finite network."""
    return fully_connected(depth, width, normalization, outputs=outputs)


INPUTS, DEPTHS = (500, 1000, 2000, 4000), (10, 50, 200, 1000)
biased = partial(fully_connected, activation="erf", b_var=0.1)
WORK: dict[str, dict[str, tuple[Iterable[int], Callable[[int], Call]]]] = {
    "relu, a function of the angle": {
        "inputs": ((*INPUTS, 8000), lambda n: infinite(fully_connected(50, 1), n, 784)),
        "depth": (DEPTHS, lambda depth: infinite(fully_connected(depth, 1), 2000, 784)),
    },
    "erf with bias, tiles": {
        "inputs": (INPUTS, lambda n: infinite(biased(50, 1), n, 784)),
        "depth": ((10, 20, 50, 100), lambda depth: infinite(biased(depth, 1), 1000, 784)),
    },
    "CNN, flatten, 5 layers": {
        "inputs": ((16, 32, 64, 128), lambda n: infinite(convolutional(5, 1), n, 16, 16, 3)),
        "depth": ((2, 5, 10, 20), lambda depth: infinite(convolutional(depth, 1), 32, 16, 16, 3)),
    },
    "batch norm, 10 layers": {
        "batch": ((16, 32, 64, 128, 256), lambda n: batch(fully_connected(10, 1, "batch"), n)),
        "depth": ((5, 10, 20, 40), lambda depth: batch(fully_connected(depth, 1, "batch"), 64)),
    },
    "trace, MLP 5 x 512": {
        "inputs": ((64, 128, 256, 512), lambda n: empirical(mlp(), n, 64)),
        "width": ((128, 256, 512, 1024), lambda width: empirical(mlp(width), 128, 64)),
        "depth": ((2, 5, 10, 20), lambda depth: empirical(mlp(depth=depth), 128, 64)),
        "outputs": ((1, 5, 10, 20), lambda outputs: empirical(mlp(outputs=outputs), 128, 64)),
    },
    "trace, batch norm, 3 x 256": {
        "batch": ((16, 32, 64, 128), lambda n: empirical(mlp(256, depth=3, normalization="batch"), n, 64)),
    },
}
"""By work and size: the sizes, and the call at one of them."""


def grown(sizes: Iterable[int], call_at: Callable[[int], Call], rounds: int) -> dict[str, object]:
    """Least seconds by size, and exponents between neighbours."""
    seconds = {}
    for size in sizes:
        call = call_at(size)
        call()
        seconds[size] = min(timed(call)[0] for _ in range(rounds))
        jax.clear_caches()
    pairs = zip(list(seconds.items())[:-1], list(seconds.items())[1:], strict=True)
    exponents = [round(math.log(t2 / t1) / math.log(n2 / n1), 2) for (n1, t1), (n2, t2) in pairs]
    return {"seconds": {size: round(value, 5) for size, value in seconds.items()}, "exponents": exponents}


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found = header("time by size", options.rounds)
    for work, sizes in WORK.items():
        found[work] = {name: grown(*spec, options.rounds) for name, spec in sizes.items()}
    write("growth", found)


if __name__ == "__main__":
    main()
