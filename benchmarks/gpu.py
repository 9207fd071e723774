"""What only a GPU can tell: tests, throughput, memory, kernels and sweeps on one card, by name.

    uv run python benchmarks/gpu.py tests throughput memory kernels sweeps
    uv run python benchmarks/gpu.py throughput --dtype bfloat16
    uv run python benchmarks/gpu.py kernels --small      # tiny sizes, on any device: shows that it works

appends what it finds to benchmarks/results/gpu.json, with the card's name, JAX's version and the date. It needs no
network. Each measurement is a process of its own, one at a time, so that the allocator's peak is its own and no two
share the card; it refuses to start while another process holds it, as far as that can be seen. A part takes at most 8
minutes: what does not fit is told by name, and measured by a call that names it with --only. PyTorch is measured beside
JAX where it is installed (`uv run --with torch python benchmarks/gpu.py throughput`).
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ntk_analysis.common.files import write_whole
from ntk_analysis.common.lock import locked

PARTS = {name: f"gpu_{name}" for name in ("tests", "throughput", "memory", "kernels", "sweeps")}
"""Modules by part: `units(small, dtype)` are its measurements by name, `measure(**unit)` makes one."""
DTYPES = ("float32", "bfloat16")
LIMIT = 480.0  # seconds of a part
RESULT = Path(__file__).parent / "results" / "gpu.json"
Found = dict[str, Any]


def main() -> int:
    """Measures the parts that are asked for; the exit status is 2 where the card is taken or --only names nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of training: TF32 products, or bfloat16")
    parser.add_argument("--only", metavar="TEXT", default="", help="only measurements with this text in their names")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file that results are appended to")
    options = parser.parse_args()
    try:
        with alone_on_the_card():
            described = inside("card", {}, LIMIT)
            for part in options.parts:
                found = measured(part, options.small, options.dtype, options.only)
                append(options.out, {"part": part, "small": options.small, "dtype": options.dtype} | described | found)
    except (BlockingIOError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


@contextmanager
def alone_on_the_card() -> Iterator[None]:
    """A context in which no other call of this script runs.

    Raises:
        BlockingIOError: another call runs, or a process computes on a card.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(tempfile.gettempdir()) / "ntk-analysis-gpu"))
        except BlockingIOError:
            raise BlockingIOError("another benchmarks/gpu.py measures on this machine: wait until it ends") from None
        others = computing()
        if others:
            raise BlockingIOError(f"got a card with {', '.join(others)} on it, expected none: wait until they end")
        yield


def computing() -> list[str]:
    """Processes that compute on NVIDIA's cards, as nvidia-smi tells; none where it is not installed."""
    if shutil.which("nvidia-smi") is None:
        return []
    call = ["nvidia-smi", "--query-compute-apps=pid,process_name", "--format=csv,noheader"]
    told = subprocess.run(call, capture_output=True, text=True, check=False).stdout
    return [f"process {line}" for line in told.splitlines() if line[:1].isdigit()]


def measured(part: str, small: bool, dtype: str, only: str) -> Found:
    """Results of a part's measurements by name; of one that failed, or had no time left, the line that says so.

    Raises:
        ValueError: no measurement has the text `only` in its name.
    """
    units = {
        name: unit for name, unit in importlib.import_module(PARTS[part]).units(small, dtype).items() if only in name
    }
    if not units:
        raise ValueError(f"got --only {only!r}: {part} has no measurement of this name")
    start, results = time.monotonic(), {}
    for name, unit in units.items():
        left = LIMIT - (time.monotonic() - start)
        results[name] = (
            inside(part, unit, left) if left > 0 else {"not measured": f"the {LIMIT:g} s of {part} are over"}
        )
        print(f"{part}, {name}: {json.dumps(results[name])}", flush=True)
    return {"seconds": round(time.monotonic() - start, 1), "results": results}


def inside(part: str, unit: Found, seconds: float) -> Found:
    """Result of one measurement in a process of its own."""
    call = [sys.executable, __file__, "--inside", part, json.dumps(unit)]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "NTK_ANALYSIS_CACHE": "off"}
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"not measured": f"it took more than the {seconds:.0f} s that were left"}
    if done.returncode:
        return {"not measured": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def card() -> Found:
    """The device, and what measures."""
    import jax

    return {
        "card": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append(path: Path, found: Found) -> None:
    """Adds an entry to the list in a JSON file."""
    entries = json.loads(path.read_text()) if path.exists() else []
    text = json.dumps([*entries, found], indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda scratch: scratch.write_text(text))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        part, unit = sys.argv[2], json.loads(sys.argv[3])
        print(json.dumps(card() if part == "card" else importlib.import_module(PARTS[part]).measure(**unit)))
    else:
        sys.exit(main())
