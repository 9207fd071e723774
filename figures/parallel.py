"""Figures side by side, each in a process of its own."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from figures.config import Config
from figures.render import render
from ntk_analysis.empirical.runs import untracked


def side_by_side(
    names: Sequence[str], jobs: int, config: Config, folder: Path, from_data: Path | None = None
) -> Iterator[tuple[str, dict[str, object]]]:
    """`render` of each of the names, `jobs` at a time: name and facts as they are done.

    Raises:
        RuntimeError: a process was killed.
        Whatever `render` raises, once the figures under way are done.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes share the memory of a GPU
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_quiet) as pool:
        # untracked: bars of several processes would overwrite each other
        running = {pool.submit(render, name, config, folder, untracked, from_data): name for name in names}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that computes figures was killed, perhaps for want of memory: give --jobs 1"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _quiet() -> None:
    """Ctrl-C ends a worker without a word: what is to be said, the first process says."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
