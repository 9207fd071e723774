"""Faults of commands: killed or interrupted at random times, damaged files, two at once, a full disk.

    uv run python tests/faults.py [NAME ...]

does all of them to every command of `COMMANDS`, or to these, and prints the numbers of trials. After each fault the
command is given again, and must end with the result of a run that nothing happened to; whatever goes wrong is told in
lines of their own, and never as a traceback. tests/test_faults.py has them as tests; a new command is a new entry here,
and what it imports stands in `IMPORTED`.
"""

import atexit
import io
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from ntk_analysis import cli, data

OUT = "out"
PATIENCE = 300  # seconds that no command needs
SIGNALS = (signal.SIGKILL, signal.SIGINT)
TIMES = 20  # trials of each signal
FLIPS = 2  # trials for each file
PLANS = ("ntk (", "nngp (")  # what `empirical` begins with
SHARES = (0.1, 0.4, 0.8)  # of the space that a whole run needs


@dataclass(frozen=True)
class Command:
    """A command that goes on where it was stopped, when it is given again.

    Attributes:
        words: its arguments, in a folder with images.npz; it writes to `OUT` there.
        result: function of the path of `OUT` that reads what must be the same after each fault, such as arrays.
        begun: path in `OUT` of a file that the command has written when its work begins.
        alone: whether a second process is refused while a first one writes; else both must end well.
    """

    words: str
    result: Callable[[Path], Any]
    begun: str
    alone: bool = True


# ---- the commands


def trained(out: Path) -> Any:
    """Metrics without times, and the weights of the last checkpoint, read by orbax alone."""
    import orbax.checkpoint as ocp

    epochs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = max(out.joinpath("checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        state = reader.restore(last.absolute() / "state")
    return [{**epoch, "seconds": 0} for epoch in epochs], {name: np.asarray(leaf) for name, leaf in state.items()}


def swept(out: Path) -> Any:
    """The runs without times, and which pictures there are."""
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    found = {json.dumps(run["recipe"]): [{**epoch, "seconds": 0} for epoch in run["epochs"]] for run in runs}
    assert len(found) == len(runs), "a run is there twice"
    return found, sorted(path.name for path in out.iterdir() if path.suffix in (".png", ".svg"))


def stored(out: Path) -> Any:
    """The kernel, read by Zarr alone; there is no file of a worker or of a half-written chunk."""
    import zarr

    assert not [path for path in out.rglob("*") if path.name.startswith("job-") or path.suffix == ".partial"]
    kernel = np.asarray(zarr.open_array(store=out / "kernel", mode="r")[...])
    assert np.isfinite(kernel).all()
    return kernel


COMMANDS = {
    "train": Command(
        "train --data images.npz --depth 2 --width 16 --min-fan-in 2 --normalization mimic_norm --batch 32 --epochs 30 "
        f"--out {OUT} --resume",
        trained,
        "checkpoints/1/SHA256SUMS",
    ),
    "sweep": Command(
        "sweep --data images.npz --depth 1 --width 16 --normalization none --batch 32 --epochs 20 --lr 0.01:1:5 "
        f"--seeds 5 --out {OUT}",
        swept,
        "runs.jsonl",
    ),
    "empirical": Command(
        "empirical --images images.npz --count 40 --depth 2 --width 64 --classes 3 --activation tanh --method jacobian "
        f"--memory 6MB --store {OUT}",
        stored,
        "done/0-0",
    ),
}

IMPORTED = [
    "ntk_analysis.cli.app",
    "ntk_analysis.empirical",
    "ntk_analysis.figures.fig6",
    "ntk_analysis.figures.learning_rates",
    "ntk_analysis.training.checkpoint",
    "ntk_analysis.training.loop",
    "ntk_analysis.training.sweep",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "pytest",
    "zarr",
]
"""Modules of the commands, and of what may start them, which a `Fork` finds imported."""


# ---- a command in a folder


def prepared(folder: Path) -> Path:
    """A new folder with images.npz."""
    folder.mkdir(parents=True)
    images = data.load_digits().subset(200, 0)
    np.savez(folder / "images.npz", images=images.images, labels=images.labels)
    return folder


def python(command: Command) -> list[str]:
    return [sys.executable, "-m", "ntk_analysis.cli", *command.words.split()]


def environment(folder: Path) -> dict[str, str]:
    """With a cache of programs for all trials in this folder: most of a process's time is compilation."""
    return os.environ | {"NTK_ANALYSIS_CACHE": str(folder / "cache")}


def started(command: Command, folder: Path) -> "subprocess.Popen[str]":
    """The command as a process, to which Ctrl-C means what it means in a terminal; compiled programs are kept."""
    default = "import signal, sys, os; signal.signal(signal.SIGINT, signal.default_int_handler); "
    default += "os.execv(sys.argv[1], sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", default, *python(command)],
        cwd=folder,
        env=environment(folder.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Fork:
    """The command as `started` starts it, but forked from a process that has imported its modules: half of its time."""

    def __init__(self, command: Command, folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self.lines = folder.parent / f"{folder.name}.stderr"
        self.process = context.Process(target=run_forked, args=(command.words, folder, self.lines))
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> None:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a fork", timeout)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return "", self.lines.read_text()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)


def run_forked(words: str, folder: Path, lines: Path) -> None:
    """Runs a command in this process, which multiprocessing has forked and ends without what Python does at an end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.update(environment(folder.parent))
    sys.argv = ["ntk-analysis", *words.split()]
    for number, path in ((1, os.devnull), (2, lines)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    try:
        cli.start()
    finally:
        atexit._run_exitfuncs()


Process = subprocess.Popen[str] | Fork
Starter = Callable[[Command, Path], Process]


def ended(process: Process, *allowed: int) -> tuple[int, str]:
    """Status and errors of a process: one of these statuses, and only lines that our commands write."""
    _, err = process.communicate(timeout=PATIENCE)
    check_lines(err)
    assert process.returncode in allowed, f"status {process.returncode}, expected {allowed}: {err}"
    return process.returncode, err


def check_lines(err: str) -> None:
    """No traceback and nothing else but a plan and whole messages, each of one line; at most one of them an error."""
    kinds = [line.partition(": ")[0] for line in err.splitlines() if not line.startswith(PLANS)]
    assert set(kinds) <= {"warning", "error", "interrupted"}, err
    assert sum(kind != "warning" for kind in kinds) <= 1, err


def called(command: Command, folder: Path) -> tuple[int, str]:
    """Status and errors of the command in this process, which takes a tenth of the time."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with (
            patch.object(sys, "argv", ["ntk-analysis", *command.words.split()]),
            warnings.catch_warnings(),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            warnings.simplefilter("default")
            cli.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        os.chdir(before)
    check_lines(err.getvalue())
    return status, err.getvalue()


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_equal(found, expected)


def whole(command: Command, folder: Path, start: Starter = started) -> tuple[Any, float, float]:
    """Result of an undisturbed process, the time until its work began and until it ended, in seconds."""
    place, first = prepared(folder), time.monotonic()
    process = start(command, place)
    wait_for(folder / OUT / command.begun, process)
    begun = time.monotonic() - first
    ended(process, 0)
    return command.result(folder / OUT), begun, time.monotonic() - first


def wait_for(path: Path, process: Process) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


# ---- the faults; each yields its name once a trial


def signals(command: Command, folder: Path, times: int = TIMES, start: Starter = started) -> Iterator[str]:
    """Each signal that many times, in random order at random times; each process goes on from the one before.

    A time lies between the middle of the imports and the end. A process that ends before its signal is no trial: it
    must have the right result, and the next one begins anew. The last one is not stopped.
    """
    whole(command, folder / "first", start)  # which compiles
    expected, begun, end = whole(command, folder / "whole", start)
    place, draw = prepared(folder / "stopped"), random.Random(0)
    left = list(SIGNALS) * times
    draw.shuffle(left)
    for _ in range(10 * len(left)):
        process = start(command, place)
        try:
            process.wait(draw.uniform(begun / 2, end))
        except subprocess.TimeoutExpired:
            process.send_signal(left[-1])
        status, _ = ended(process, 128 + left[-1] if left[-1] == signal.SIGINT else -left[-1], 0)
        if status == 0:
            assert_same(command.result(place / OUT), expected)
            shutil.rmtree(place / OUT)
            continue
        yield left.pop().name
        if not left:
            break
    ended(start(command, place), 0)
    assert_same(command.result(place / OUT), expected)


def flips(command: Command, folder: Path, trials: int = FLIPS) -> Iterator[str]:
    """One bit of one file, for every file that the command wrote: the result is right, or refused in one line."""
    place, draw = prepared(folder / "whole"), random.Random(0)
    assert called(command, place)[0] == 0
    expected = command.result(place / OUT)
    files = [path.relative_to(place) for path in sorted((place / OUT).rglob("*")) if path.is_file()]
    for file in files:
        size = (place / file).stat().st_size
        for _ in range(trials if size else 0):
            copy = shutil.copytree(place, folder / "copy")
            content = bytearray((copy / file).read_bytes())
            content[draw.randrange(size)] ^= 1 << draw.randrange(8)
            (copy / file).write_bytes(content)
            status, err = called(command, copy)
            if status == 0:
                assert_same(command.result(copy / OUT), expected)
            else:
                assert status == 2, f"{file}: {err}"
                assert OUT in err, f"{file}: {err}"
            shutil.rmtree(copy)
            yield "flipped bit"


def two_at_once(command: Command, folder: Path, trials: int = 1) -> Iterator[str]:
    """A second process is refused in one line, or ends well; the first one has the right result."""
    expected, _, _ = whole(command, folder / "whole")
    for number in range(trials):
        place = prepared(folder / f"both{number}")
        first = started(command, place)
        wait_for(place / OUT / command.begun, first)
        second = started(command, place)
        status, err = ended(second, 2 if command.alone else 0, 0)
        if status:
            assert f"another process writes to {OUT}" in err
        ended(first, 0)
        assert_same(command.result(place / OUT), expected)
        yield "two at once"


def full_disk(command: Command, folder: Path, shares: tuple[float, ...] = SHARES) -> Iterator[str]:
    """A file system of a share of the space that is needed; then it grows, and the command is given again.

    Yields nothing where this system lets no user mount a file system of its own.
    """
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        return
    place = prepared(folder / "whole")
    ended(started(command, place), 0)
    expected = command.result(place / OUT)
    needed = sum(-(-path.stat().st_size // 4096) * 4 for path in (place / OUT).rglob("*") if path.is_file())
    for share in shares:
        disk = folder / f"disk{share}"
        disk.mkdir()
        again = shlex.join(python(command))
        script = f"""
            mount -t tmpfs -o size={max(16, int(share * needed))}k tmpfs {disk} || exit 99
            mount -o remount,size=1g {disk}; cp {place}/images.npz {disk}
            mount -o remount,size={int(share * needed) + 64}k {disk}
            cd {disk}; {again} >/dev/null; status=$?
            mount -o remount,size=1g {disk}; {again} >/dev/null || exit 98
            cp -r {OUT} {folder}/kept{share}; exit $status
        """
        process = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script], env=environment(folder), stderr=subprocess.PIPE, text=True
        )
        status, err = ended(process, 0, 2)
        assert (status == 0) or "no space left" in err.lower(), err
        assert_same(command.result(folder / f"kept{share}"), expected)
        yield "full disk"


FAULTS: tuple[Callable[[Command, Path], Iterator[str]], ...] = (signals, flips, two_at_once, full_disk)


def main(names: list[str]) -> None:
    """Prints the number of trials of each fault of each command; ends with an error at the first that goes wrong."""
    total = 0
    for name in names or COMMANDS:
        for trials in FAULTS:
            with tempfile.TemporaryDirectory() as folder:
                counts = Counter(trials(COMMANDS[name], Path(folder)))
            total += counts.total()
            for fault, count in sorted(counts.items()):
                print(f"{name:<12} {fault:<12} {count:>4} trials", flush=True)
    print(f"{total} trials, all right")


if __name__ == "__main__":
    main(sys.argv[1:])
