"""Kernels of a convolutional network beside neural-tangents': 128 images of 32 x 32 x 3, 5 layers, flatten, float32.

    uv run python benchmarks/convolution.py

writes benchmarks/results/convolution.json. Both libraries compile the whole kernel function once, NNGP and NTK from the
images on, and compute in turns in one process. The images are noise: the time does not depend on them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from empirical import OURS, THEIRS, machine, timed

from ntk_analysis import reference
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import convolutional
from ntk_analysis.reference.comparison import permissive

RESULTS = Path(__file__).parent / "results" / "convolution.json"
IMAGES, LAYERS = 128, 5


def calls() -> dict[str, Callable[[], tuple[jax.Array, jax.Array]]]:
    """By library, a call that returns the finished NNGP and NTK."""
    network = convolutional(LAYERS, 1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((IMAGES, 32, 32, 3)), jnp.float32)
    kernel_fn = reference.translate(network)[2]

    @jax.jit
    def ours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = infinite_kernel(network, x)
        return kernel.nngp, kernel.ntk

    @jax.jit
    def theirs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    return {OURS: lambda: jax.block_until_ready(ours(x)), THEIRS: lambda: jax.block_until_ready(theirs(x))}


def compared(rounds: int) -> dict[str, object]:
    """Wall and processor times of both libraries, how many times faster ours is, and how far they differ."""
    both = calls()
    kernels = {library: call() for library, call in both.items()}
    taken: dict[str, list[tuple[float, float]]] = {library: [] for library in both}
    for _ in range(rounds):
        for library, call in both.items():
            taken[library].append(timed(call))
    facts: dict[str, object] = {}
    for name, of in (("median", np.median), ("minimum", np.min)):
        for column, clock in enumerate(("wall", "cpu")):
            seconds = {library: float(of([times[column] for times in taken[library]])) for library in both}
            facts[f"{name}_{clock}_s"] = {library: round(value, 4) for library, value in seconds.items()}
            facts[f"{name}_{clock}_faster"] = round(seconds[THEIRS] / seconds[OURS], 2)
    for name, mine, yours in zip(("nngp", "ntk"), kernels[OURS], kernels[THEIRS], strict=True):
        facts[f"{name}_difference"] = float(jnp.max(jnp.abs(mine - yours)) / jnp.max(jnp.abs(yours)))
    return facts


def main() -> None:
    """Measures all and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    found = {
        "work": f"NNGP and NTK of {IMAGES} images of 32 x 32 x 3, {LAYERS} layers, flatten read-out, float32",
        "machine": machine(),
        "load_before": round(os.getloadavg()[0], 1),
        "rounds": rounds,
        "time": compared(rounds),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(RESULTS.read_text())


if __name__ == "__main__":
    main()
