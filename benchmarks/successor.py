"""Programs by neural-tangents' names, run with this library and with neural-tangents itself: first calls and others.

    uv run python benchmarks/successor.py dense myrtle resnet

writes benchmarks/results/successor.json, each row of one run with both sides in turns, in float32, compiled as a whole.
The Myrtle kernel of neural-tangents pairs all positions of all images in memory, so it gets few and small ones.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, RESULTS, THEIRS, faster, finished, header, in_turns, write

from ntk_analysis import infinite_kernel, reference
from ntk_analysis.compat import neural_tangents
from ntk_analysis.compat.neural_tangents.standard import with_rates
from ntk_analysis.reference.comparison import permissive

Pair = tuple[jax.Array, jax.Array]


def dense(stax: Any) -> Any:
    """Three layers of 512 units with erf."""
    layer = stax.Dense(512, 1.5, 0.05), stax.Erf()
    return stax.serial(*layer, *layer, *layer, stax.Dense(10, 1.5, 0.05))


def myrtle(stax: Any) -> Any:
    """Myrtle-5: four convolutions, two poolings and a global mean."""
    conv = stax.serial(stax.Conv(64, (3, 3), padding="SAME", W_std=2**0.5), stax.Relu())
    pool = stax.AvgPool((2, 2), (2, 2))
    return stax.serial(conv, conv, pool, conv, pool, conv, stax.GlobalAvgPool(), stax.Dense(10))


def resnet(stax: Any) -> Any:
    """A residual network of 50 dense layers: 24 blocks of two, and its ends."""
    branch = stax.serial(stax.Relu(), stax.Dense(512, 2**0.5, 0.1), stax.Relu(), stax.Dense(512, 2**0.5, 0.1))
    block = stax.serial(stax.FanOut(2), stax.parallel(branch, stax.Identity()), stax.FanInSum(), stax.LayerNorm())
    return stax.serial(stax.Dense(512, 1.0, 0.1), *[block] * 24, stax.Dense(10))


NETWORKS: dict[str, tuple[Callable[[Any], Any], tuple[int, ...]]] = {
    "dense": (dense, (1000, 784)),
    "myrtle": (myrtle, (6, 16, 16, 3)),
    "resnet": (resnet, (500, 784)),
}


def ours(make: Callable[[Any], Any], shape: tuple[int, ...]) -> Callable[[jax.Array], Pair]:
    """NNGP and NTK by this library."""
    network = with_rates(make(neural_tangents.stax).layer, shape)

    def kernels(x: jax.Array) -> Pair:
        kernel = infinite_kernel(network, x)
        return kernel.nngp, kernel.ntk

    return jax.jit(kernels)


def theirs(make: Callable[[Any], Any]) -> Callable[[jax.Array], Pair]:
    """NNGP and NTK by neural-tangents."""
    kernel_fn = make(reference.load().stax)[2]

    def kernels(x: jax.Array) -> Pair:
        with permissive():
            kernel = kernel_fn(x, None, ("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    return jax.jit(kernels)


def compared(name: str, rounds: int) -> dict[str, object]:
    """Times of a network's kernels by both libraries, and how far the kernels are apart."""
    make, shape = NETWORKS[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    calls = {OURS: ours(make, shape), THEIRS: theirs(make)}
    taken = in_turns({side: finished(call, x) for side, call in calls.items()}, rounds)
    found, wanted = (calls[side](x) for side in (OURS, THEIRS))
    apart = [float(jnp.abs(one - other).max() / jnp.abs(other).max()) for one, other in zip(found, wanted, strict=True)]
    return {
        "inputs": list(shape),
        **taken,
        "faster": faster(taken),
        "apart": dict(zip(("nngp", "ntk"), apart, strict=True)),
    }


def main() -> None:
    """Measures the networks that are named, and writes them beside those that were measured before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    place = RESULTS / "successor.json"
    found = json.loads(place.read_text()) if place.exists() else {}
    for name in options.networks:
        found[name] = header(f"{name}: NNGP and NTK, float32, jitted", options.rounds) | compared(name, options.rounds)
        write("successor", found)


if __name__ == "__main__":
    main()
