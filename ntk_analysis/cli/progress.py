"""Progress bars on stderr, and what is said when Ctrl-C ends them."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """Ctrl-C with a message: what is kept and how to go on."""


@contextmanager
def progress(*, transient: bool = False) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `common.progress.Track` whose bars show steps done and time left, on stderr if it is a terminal.

    track(steps, description, done=0) gives the steps, with a bar from `done` to `done` + len(steps).

    The time left is an estimate for the steps still to do, from the rate of the steps that this run has done.

    Args:
        transient: whether the bars vanish when they are done.
    """
    bars = _bars(transient=transient)

    def track(steps: Iterable[Any], description: str, done: int = 0) -> Iterator[Any]:
        total = done + len(steps) if isinstance(steps, Sized) else None
        task = bars.add_task(description, total=total, completed=done, time="left")
        for step in steps:
            yield step
            bars.advance(task)
        bars.update(task, time="")

    with bars:
        yield track


@contextmanager
def stages(count: int) -> Iterator[Callable[[str], None]]:
    """A function begin(name) for computations of a few named stages: one bar that names the stage and its place.

    The bar stands on stderr if it is a terminal, shows for how long the computation has run, and is erased behind it.
    """
    bars, begun = _bars(transient=True, elapsed=True), 0
    task = bars.add_task("", total=count, time="")

    def begin(name: str) -> None:
        nonlocal begun
        bars.update(task, description=name, completed=begun, refresh=True)
        begun += 1

    with bars:
        yield begin


def _bars(*, transient: bool, elapsed: bool = False) -> Any:
    """Bars on stderr, or nothing where it is no terminal, with the time left or the time that has gone by."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    time = TimeElapsedColumn() if elapsed else TimeRemainingColumn(elapsed_when_finished=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        time,
        TextColumn("{task.fields[time]}"),
    )
    # rich's own rate forgets steps older than 30 s, so it has no rate where a step takes longer
    return Progress(
        *columns,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),  # then text printed meanwhile stands above the bars
        transient=transient,
        speed_estimate_period=math.inf,
    )
