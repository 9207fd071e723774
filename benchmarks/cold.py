"""A first kernel, beside neural-tangents': each in a process of its own, without a cache of compiled programs.

    uv run python benchmarks/cold.py

writes benchmarks/results/cold.json: seconds from the call to the finished NNGP and NTK of 2,000 x 784 inputs through 50
layers of ReLU, float32, with tracing, fit and compilation, and without the import. The sides take turns. Processor
seconds are the process's own: they are less than the clock's where programs are compiled or run by several threads.
"""

import argparse
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, THEIRS, faster, finished, header, timed, write

from ntk_analysis import reference
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected
from ntk_analysis.reference.comparison import permissive

SIDES = (OURS, THEIRS)


def first_call(side: str, depth: int, count: int) -> tuple[float, float]:
    """Seconds of this process's first kernel, on the clock and of all processors together."""
    network = fully_connected(depth, 1)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((count, 784)), jnp.float32)
    x.block_until_ready()
    if side == OURS:
        return timed(lambda: jax.block_until_ready(infinite_kernel(network, x).ntk_scaled))
    kernel_fn = reference.translate(network)[2]

    @jax.jit
    def kernels(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        with permissive():
            kernel = kernel_fn(x, None, get=("nngp", "ntk"))
        return kernel.nngp, kernel.ntk

    return timed(finished(kernels, x))


def in_turns(depth: int, count: int, rounds: int) -> dict[str, dict[str, float]]:
    """Least and median seconds by side, each round a process of its own."""
    taken: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            call = [sys.executable, __file__, "--side", side, "--depth", str(depth), "--count", str(count)]
            taken[side].append(json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout))
    return {
        side: {
            "minimum_s": round(float(np.min(times, axis=0)[0]), 3),
            "median_s": round(float(np.median(times, axis=0)[0]), 3),
            "median_cpu_s": round(float(np.median(times, axis=0)[1]), 3),
        }
        for side, times in taken.items()
    }


def main() -> None:
    """Measures both sides and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", choices=SIDES, help="only print the seconds of this side's first call, here")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(first_call(options.side, options.depth, options.count)))
        return
    found = header("first NNGP and NTK of a process, ReLU, 784 features, float32", options.rounds)
    taken = in_turns(options.depth, options.count, options.rounds)
    write("cold", found | {"depth": options.depth, "inputs": options.count, **taken, "faster": faster(taken)})


if __name__ == "__main__":
    main()
