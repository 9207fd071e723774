"""Our empirical kernels beside neural-tangents': time and memory on one network, 256 digits, 5 x 512 ReLU, 10 outputs.

    uv run python benchmarks/empirical.py

writes benchmarks/results/empirical.json. Both libraries get the same function and parameters in float32 and compute in
turns in one process; neural-tangents computes by structured derivatives, its fastest implementation here (its others
are timed once with --all, which takes minutes). Ours are timed as they are called, with plan and copies to the host.
"""

import argparse
import ctypes
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from timing import OURS, THEIRS, Call, finished, header, timed, write

from ntk_analysis import data, reference
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.layers import Activation, Dense, Serial

FREEING = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc keeps no array for later that was freed
LAYOUTS: tuple[Layout, ...] = ("full", "trace")
NETWORK = Serial(Dense(512), Activation("relu"), *[Dense(512, 2.0), Activation("relu")] * 4, Dense(10, 2.0))


def kernels(implementation: str = "structured") -> dict[tuple[str, str], Call]:
    """The call that returns the finished kernel, by layout and library."""
    x = data.preprocess(data.load_digits().subset(256, seed=0).images, image_centering="dataset").astype(np.float32)
    params = NETWORK.init(jax.random.key(0), x.shape)[1]
    on_device = jnp.asarray(x)

    def ours(layout: Layout) -> object:
        return empirical_ntk(NETWORK, params, x, layout=layout).values

    calls: dict[tuple[str, str], Call] = {}
    for layout in LAYOUTS:
        theirs = reference.empirical_ntk_fn(NETWORK.apply, layout=layout, implementation=implementation)
        calls[layout, OURS] = partial(ours, layout)
        calls[layout, THEIRS] = finished(theirs, params, on_device)
    return calls


def times(rounds: int) -> dict[str, dict[str, object]]:
    """The times of each layout in both libraries, which take turns, and their ratios, ours over theirs."""
    calls = kernels()
    for call in calls.values():
        call()
    taken = {name: np.array([]).reshape(0, 2) for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name] = np.vstack([taken[name], timed(call)])
    return {layout: _compared(taken[layout, OURS], taken[layout, THEIRS]) for layout in LAYOUTS}


def _compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, of in (("median", np.median), ("minimum", np.min)):
        for column, clock in enumerate(("wall", "cpu")):
            pair = float(of(ours[:, column])), float(of(theirs[:, column]))
            facts[f"{name}_{clock}_s"] = {OURS: round(pair[0], 4), THEIRS: round(pair[1], 4)}
            facts[f"{name}_{clock}_ratio"] = round(pair[0] / pair[1], 3)
    return facts


def peak_bytes(layout: str, library: str) -> int:
    """The most that one call adds to what this process holds, in its second call: Linux only.

    It is the memory of the process and not of its programs, as XLA's `memory_analysis` has it, because that knows
    neither what stands between two programs nor copies on the host, of which we make some and neural-tangents none. The
    second call is measured because in the first one the compiler takes more memory than the kernel.
    """
    call = kernels()[layout, library]
    call()
    time.sleep(1)  # JAX frees arrays in threads of its own
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    kept = call()
    peak = _status("VmHWM")
    del kept
    return peak - before


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, f"no {field} in /proc/self/status"
    return 1024 * int(found[1])


def memory() -> dict[str, dict[str, object]]:
    """Peak bytes by layout and library, each measured in a process of its own, and their ratio."""
    found: dict[str, dict[str, object]] = {}
    for layout in LAYOUTS:
        command = [sys.executable, __file__, "--peak", layout]
        ours, theirs = (int(subprocess.check_output([*command, library], env=FREEING)) for library in (OURS, THEIRS))
        found[layout] = {"peak_bytes": {OURS: ours, THEIRS: theirs}, "ratio": round(ours / theirs, 3)}
    return found


def once() -> dict[str, dict[str, float]]:
    """Seconds of one call of neural-tangents' other implementations, compiled before."""
    found: dict[str, dict[str, float]] = {}
    for implementation in ("products", "contraction"):
        calls = kernels(implementation)
        found[implementation] = {}
        for layout in LAYOUTS:
            calls[layout, THEIRS]()
            found[implementation][layout] = round(timed(calls[layout, THEIRS])[0], 2)
    return found


def main() -> None:
    """Measures all and writes it down; or, for `memory`, one peak in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--all", action="store_true", help="time neural-tangents' other implementations once, too")
    parser.add_argument("--peak", nargs=2, metavar=("LAYOUT", "LIBRARY"), help="print the peak bytes of one kernel")
    options = parser.parse_args()
    if options.peak:
        print(peak_bytes(*options.peak))
        return
    found = header("empirical NTK of 256 digits, 5 x 512 ReLU, 10 outputs, float32", options.rounds)
    found |= {"time": times(options.rounds), "memory": memory()}
    if options.all:
        found["neural_tangents_others_s"] = once()
    write("empirical", found)


if __name__ == "__main__":
    main()
