"""The tests of the suite that compute on a device: those of kernels and training, in float64, on this one."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AREAS = {
    "kernel": ("tests/test_kernel.py", ""),
    "angular": ("tests/test_angle_series.py", ""),
    "tiled": ("tests/test_vector_tiles.py", ""),
    "empirical": ("tests/test_empirical.py", ""),
    "batch_norm": ("tests/test_batch_norm_propagate.py", ""),
    "training": ("tests/test_training_loop.py", ""),
}
"""Files by area, and in small sizes the tests that stand for it."""
SMALL = {"angular": "statistics_over"}
BITS = "not bits"  # a card's sums may come in another order at each call


def units(small: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """The areas by name."""
    del dtype  # tests choose their own
    if small:
        return {area: {"path": AREAS[area][0], "chosen": chosen} for area, chosen in SMALL.items()}
    return {area: {"path": path, "chosen": BITS} for area, (path, _) in AREAS.items()}


def measure(path: str, chosen: str) -> dict[str, Any]:
    """Numbers of tests that passed and failed, and the names of the latter."""
    call = [sys.executable, "-m", "pytest", "-n", "0", "-v", "-rf", "--tb=no", path, "-k", chosen]
    environment = os.environ.copy()
    environment.setdefault("JAX_PLATFORMS", "")  # the suite's own default is the CPU
    told = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if told.returncode not in (0, 1):
        raise RuntimeError((told.stdout + told.stderr).strip().splitlines()[-1])
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error|skipped)", told.stdout)}
    return {"counts": counts, "failed": re.findall(r"^FAILED (\S+)", told.stdout, re.MULTILINE)}
