"""Figures side by side, each in a process of its own."""

import gc
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from .config import Config


def side_by_side(
    names: Sequence[str], jobs: int, config: Config, folder: Path, from_data: Path | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Calls `render` for each of the names, `jobs` at a time, and yields name and facts of each that is done.

    Whatever ends it early, Ctrl-C too, ends the processes at once, and the files that they had begun go.

    Raises:
        RuntimeError: a process was killed.
        Whatever `render` raises.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share the memory of a GPU
    before = set(multiprocessing.active_children())
    folder.mkdir(parents=True, exist_ok=True)
    # processes write in here: what a killed one leaves is removed with the rest
    with (
        tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin) as pool,
    ):
        try:
            with _deaf_to_ctrl_c():
                running = {pool.submit(_drawn, name, config, Path(scratch) / name, from_data): name for name in names}
            for done in as_completed(running):
                facts = done.result()
                for file in (Path(scratch) / running[done]).iterdir():
                    os.replace(file, folder / file.name)
                yield running[done], facts
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise RuntimeError(
                    "a process that computes figures was killed, perhaps for want of memory: give --jobs 1"
                ) from error
            raise


def _drawn(name: str, config: Config, folder: Path, from_data: Path | None) -> dict[str, object]:
    """Calls `render` without progress bars: the bars of several processes would overwrite each other."""
    # imported here: the first process, which only waits, does without JAX
    from ntk_analysis.common.progress import untracked

    from .render import render

    return render(name, config, folder, untracked, from_data)


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Makes processes that are started meanwhile deaf to Ctrl-C: the first process hears it, and ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin() -> None:
    """Prepares a process for its figures, and ends it when the process that reads its results is gone."""
    gc.set_threshold(100_000)  # tracing makes many objects and few cycles: a tenth of its time was looking for them
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
