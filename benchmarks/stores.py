"""Infinite kernels of 20,000 vectors to disk, and their spectrum, alignment and regression from there: time and memory.

    uv run python benchmarks/stores.py disk analyses

writes benchmarks/results/stores_disk.json and stores_analyses.json, each of one run. What is compared is the time of
writing as many bytes, with fsync after each chunk as a store has it, in turns: disks change from minute to minute.
Each analysis runs in a process of its own, whose peak memory the system tells.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import header, timed, write

from ntk_analysis import alignment, infinite_kernel, networks, open_kernel, regression, spectrum
from ntk_analysis.infinite import plan_store

FEATURES, CLASSES = 784, 10
PARTS = ["disk", "analyses"]


def inputs(count: int) -> np.ndarray:
    """Gaussian inputs (count, 784) whose k-th feature has deviation 1 / k, about as principal components of images."""
    x = np.random.default_rng(0).standard_normal((count, FEATURES)) / np.arange(1, FEATURES + 1)
    return x.astype(np.float32)


def targets(count: int) -> np.ndarray:
    """Functions (count, 10) that a network can learn, with noise."""
    x, random = inputs(count), np.random.default_rng(1)
    return np.tanh(x @ random.standard_normal((FEATURES, CLASSES)) / 10) + 0.1 * random.standard_normal(
        (count, CLASSES)
    )


def written(folder: Path, size: int, chunks: int) -> None:
    """Writes this many bytes in files of equal size, each on the disk before the next is begun, and removes them."""
    block = np.random.default_rng(0).bytes(size // chunks)
    for number in range(chunks):
        with (folder / str(number)).open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
    for number in range(chunks):
        (folder / str(number)).unlink()


def to_disk(store: Path, count: int, rounds: int) -> dict[str, object]:
    """Seconds of computing the kernel into a store and of writing its bytes alone, in turns; the ratio of the least."""
    network, x = networks.fully_connected(50, 1), inputs(count)
    plan = plan_store(network, x)
    chunks = 2 * plan.grid[0] ** 2
    taken: dict[str, list[tuple[float, float]]] = {"writing": [], "kernel": []}
    load = []
    for _ in range(rounds):
        load.append(round(os.getloadavg()[0], 1))
        os.sync()
        taken["writing"].append(timed(lambda: written(store.parent, plan.storage_bytes, chunks)))
        shutil.rmtree(store, ignore_errors=True)
        os.sync()
        taken["kernel"].append(timed(lambda: infinite_kernel(network, x, store=store)))
    least = {name: np.min(each, axis=0) for name, each in taken.items()}
    return {
        "plan": plan.summary(),
        "GB": round(plan.storage_bytes / 1e9, 2),
        **{f"{name}_s": [round(clock, 1) for clock, _ in each] for name, each in taken.items()},
        **{f"{name}_cpu_s": [round(cpu, 1) for _, cpu in each] for name, each in taken.items()},
        "load": load,
        "least_over_least": round(float(least["kernel"][0] / least["writing"][0]), 2),
        "ratios": [round(k[0] / w[0], 2) for k, w in zip(taken["kernel"], taken["writing"], strict=True)],
    }


def read(store: Path, count: int) -> dict[str, object]:
    """Reading of all of it, with its checksums."""
    return {"shape": list(open_kernel(store).shape), "inputs": count}


def largest(store: Path, count: int) -> dict[str, object]:
    """The ten largest eigenvalues, by Lanczos' method."""
    found = spectrum.largest_eigenvalues(store, 10)
    return {"eigenvalues_scaled": found.eigenvalues_scaled.tolist(), "error": found.error, "inputs": count}


def aligned(store: Path, count: int) -> dict[str, object]:
    """Centered alignment with the targets."""
    return {"alignment": alignment.target_alignment(store, targets(count))}


def aligned_without_bias(store: Path, count: int) -> dict[str, object]:
    """The unbiased estimate of the centered alignment with the targets."""
    return {"alignment": alignment.target_alignment(store, targets(count), unbiased=True)}


def regressed(store: Path, count: int) -> dict[str, object]:
    """The coefficients of a regression with 10 targets, by conjugate gradients."""
    found = regression.solve(store, targets(count), regularization=1e-3)
    return {"iterations": found.iterations, "residual": float(found.residual.max())}


WORK = {
    "read and checked": read,
    "10 largest eigenvalues": largest,
    "regression": regressed,
    "alignment": aligned,
    "unbiased alignment": aligned_without_bias,
}


def in_a_process(name: str, store: Path, count: int) -> dict[str, object]:
    """The result of one analysis, with its seconds and the peak memory of its process."""
    command = [sys.executable, __file__, "--only", name, "--store", str(store), "--count", str(count)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    result: dict[str, object] = json.loads(told)
    return result


def only(name: str, store: Path, count: int) -> None:
    """Runs one analysis in this process and prints its result."""
    start = time.perf_counter()
    found = WORK[name](store, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found | {"seconds": round(time.perf_counter() - start, 1), "peak_GiB": round(peak, 2)}))


def measured(part: str, count: int, rounds: int) -> dict[str, object]:
    """One part of the benchmark, with the machine it was measured on."""
    found = header(f"kernels of {count} vectors of {FEATURES} features in a store, float32", rounds)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "kernel"
        if part == "disk":
            found |= to_disk(store, count, rounds)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            return found | {"peak_GiB": round(peak, 2)}
        infinite_kernel(networks.fully_connected(50, 1), inputs(count), store=store)
        return found | {name: in_a_process(name, store, count) for name in WORK}


def main() -> None:
    """Measures the parts that are named and writes each down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=4, help="of computing to disk and writing, in turns")
    parser.add_argument("--only", choices=list(WORK), help="one analysis, in this process")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    if options.only:
        only(options.only, options.store, options.count)
        return
    for part in options.parts:
        write(f"stores_{part}", measured(part, options.count, options.rounds))


if __name__ == "__main__":
    main()
