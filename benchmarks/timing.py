"""Calls that take turns in one process, and results with the machine they were measured on."""

import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS = "ntk_analysis", "neural-tangents"
Call = Callable[[], object]


def timed(call: Call) -> tuple[float, float]:
    """Seconds on the clock, and of all processors together."""
    clock, processors = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - processors


def in_turns(calls: dict[str, Call], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each call's first run, which compiles, and of `rounds` more, in which the calls take turns."""
    first = {name: timed(call)[0] for name, call in calls.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(timed(call))
    return {
        name: {
            "first_s": round(first[name], 3),
            "median_s": round(float(np.median(times, axis=0)[0]), 4),
            "minimum_s": round(float(np.min(times, axis=0)[0]), 4),
            "median_cpu_s": round(float(np.median(times, axis=0)[1]), 4),
        }
        for name, times in taken.items()
    }


def faster(times: dict[str, dict[str, float]], than: str = THEIRS) -> dict[str, float]:
    """Ratio of their time to ours, by statistic."""
    return {key: round(times[than][key] / times[OURS][key], 2) for key in times[OURS]}


def finished(function: Callable[..., object], *arguments: object) -> Call:
    """A call that waits for the result."""
    return lambda: jax.block_until_ready(function(*arguments))


def machine() -> dict[str, object]:
    """The machine and the versions on which this was measured."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.exists() else "")
    packages = ("ntk-analysis", "jax", "jaxlib", "numpy", "neural-tangents")
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def header(work: str, rounds: int) -> dict[str, object]:
    """The first facts of every result; to be taken before the measurements."""
    return {"work": work, "machine": machine(), "load_before": round(os.getloadavg()[0], 1), "rounds": rounds}


def write(name: str, found: dict[str, object]) -> None:
    """Writes a comparison to results/NAME.json and to the terminal."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text)
    sys.stdout.write(text)
