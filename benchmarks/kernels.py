"""Infinite-width kernels of homogeneous networks, a function of the angle: beside neural-tangents', by depth, by size.

    uv run python benchmarks/kernels.py

writes benchmarks/results/kernels.json. All calls of a comparison take turns in one process, in float32, compiled as a
whole; neural-tangents at depth 50 needs minutes to compile and up to half a minute a call, so it gets few rounds.
"""

import argparse
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, THEIRS, faster, finished, header, in_turns, write

from ntk_analysis import reference
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.angle_fit import angular_function, recursion_of
from ntk_analysis.layers import Layer
from ntk_analysis.networks import fully_connected
from ntk_analysis.reference.comparison import permissive

NORMALIZATIONS = {"straight": "none", "weight-centered": "weight_mean"}
Pair = tuple[jax.Array, jax.Array]


def inputs(count: int) -> jax.Array:
    """Independent Gaussian inputs (count, 784)."""
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, 784)), jnp.float32)


def ours(network: Layer) -> Callable[[jax.Array], Pair]:
    """NNGP, as distances, and NTK."""

    def kernels(x: jax.Array) -> Pair:
        kernel = infinite_kernel(network, x)
        return kernel.distance, kernel.ntk_scaled

    return jax.jit(kernels)


def theirs(network: Layer) -> Callable[[jax.Array], Pair]:
    """NNGP and NTK by neural-tangents."""
    kernel_fn = reference.translate(network)[2]

    def kernels(x: jax.Array) -> Pair:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    return jax.jit(kernels)


@jax.jit
def product(x: jax.Array) -> Pair:
    """The least that any kernel of two results costs: one matrix product and two writes."""
    gram = jnp.matmul(x, x.T, precision="highest")
    return 2 * gram, gram + 1


def compared(calls: dict[str, Callable[[jax.Array], Pair]], count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each call's first run, which fits and compiles, and of the others."""
    angular_function.cache_clear()  # what another comparison has fitted and compiled
    recursion_of.cache_clear()
    jax.clear_caches()
    x = inputs(count)
    return in_turns({name: finished(call, x) for name, call in calls.items()}, rounds)


def beside_theirs(depth: int, count: int, rounds: int) -> dict[str, object]:
    """Straight ReLU network of this depth: both libraries' times, and how many times faster ours is."""
    network = fully_connected(depth, 1)
    taken = compared({OURS: ours(network), THEIRS: theirs(network)}, count, rounds)
    return {**taken, "faster": faster(taken)}


def by_depth(count: int, rounds: int) -> dict[str, object]:
    """Our times at depths 10, 50 and 1,000, straight and weight-centered, beside the product's."""
    calls: dict[str, Callable[[jax.Array], Pair]] = {"product and two writes": product}
    for name, normalization in NORMALIZATIONS.items():
        for depth in (10, 50, 1000):
            calls[f"{name}, depth {depth}"] = ours(fully_connected(depth, 1, normalization))
    return dict(compared(calls, count, rounds))


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="of our own calls")
    parser.add_argument("--their-rounds", type=int, default=2, help="beside neural-tangents")
    parser.add_argument("--depths", type=int, nargs="*", default=[10, 50], help="beside neural-tangents")
    options = parser.parse_args()
    found = header("NNGP and NTK of ReLU networks, 784 features, float32, jitted", options.rounds)
    found |= {
        "their_rounds": options.their_rounds,
        "2000 inputs by depth": by_depth(2000, options.rounds),
        "10000 inputs by depth": by_depth(10_000, options.rounds),
        "2000 inputs beside neural-tangents": {
            f"depth {depth}": beside_theirs(depth, 2000, options.their_rounds) for depth in options.depths
        },
    }
    write("kernels", found)


if __name__ == "__main__":
    main()
