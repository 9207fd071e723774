"""Infinite-width kernels beside neural-tangents': time of NNGP and NTK of 2,000 inputs, 50 hidden layers, float32.

    uv run python benchmarks/general_path.py

writes benchmarks/results/general_path.json. Both libraries compile the whole kernel function once and compute in turns
in one process; input kernels are part of both. neural-tangents needs up to a minute a call.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from empirical import OURS, THEIRS, machine, timed

from ntk_analysis import reference
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Layer
from ntk_analysis.networks import fully_connected
from ntk_analysis.reference.comparison import permissive

RESULTS = Path(__file__).parent / "results" / "general_path.json"
INPUTS, DEPTH = 2000, 50
NETWORKS: dict[str, Layer] = {
    "erf, bias": fully_connected(DEPTH, 1, activation="erf", b_var=0.1),
    "relu, bias": fully_connected(DEPTH, 1, b_var=0.1),
    "gelu": fully_connected(DEPTH, 1, activation="gelu"),
}


def calls(network: Layer) -> dict[str, Callable[[], object]]:
    """By library, a call that returns the finished NNGP and NTK."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((INPUTS, 784)), jnp.float32)

    @jax.jit
    def ours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = infinite_kernel(network, x)
        return kernel.nngp, kernel.ntk

    kernel_fn = reference.translate(network)[2]

    @jax.jit
    def theirs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    return {
        OURS: lambda: jax.block_until_ready(ours(x)),
        THEIRS: lambda: jax.block_until_ready(theirs(x)),
    }


def compared(network: Layer, rounds: int) -> dict[str, object]:
    """Smallest wall and processor times of both libraries, how many times faster ours is, and how far they differ."""
    both = calls(network)
    kernels = {library: call() for library, call in both.items()}
    taken: dict[str, list[tuple[float, float]]] = {library: [] for library in both}
    for _ in range(rounds):
        for library, call in both.items():
            taken[library].append(timed(call))
    facts: dict[str, object] = {}
    for column, clock in enumerate(("wall", "cpu")):
        least = {library: min(times[column] for times in taken[library]) for library in both}
        facts[f"minimum_{clock}_s"] = {library: round(seconds, 4) for library, seconds in least.items()}
        facts[f"faster_{clock}"] = round(least[THEIRS] / least[OURS], 1)
    for name, mine, yours in zip(("nngp", "ntk"), kernels[OURS], kernels[THEIRS], strict=True):
        facts[f"{name}_difference"] = float(jnp.max(jnp.abs(mine - yours)) / jnp.max(jnp.abs(yours)))
    return facts


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    found = {
        "work": f"NNGP and NTK of {INPUTS} inputs of 784 features, {DEPTH} hidden layers, float32",
        "machine": machine(),
        "load_before": round(os.getloadavg()[0], 1),
        "rounds": options.rounds,
        "time": {name: compared(NETWORKS[name], options.rounds) for name in options.networks},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS.read_text(), end="")


if __name__ == "__main__":
    main()
