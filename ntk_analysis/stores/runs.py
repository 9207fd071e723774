"""Where the tiles of a kernel are computed and where they go: what devices, clusters and stores agree on."""

import abc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from ntk_analysis.common.memory import available_bytes
from ntk_analysis.common.progress import Track
from ntk_analysis.stores.grid import Grid, Tile, Values

WRITERS = 2  # tiles that are written at one time: while one waits for the disk, the other is copied and summed


class Job(abc.ABC):
    """A kernel to be computed, by tiles that are each a pure function of (i, j).

    Attributes:
        facts: names of the fields of the plan that say which kernel it is; the others are its cost and its tiles.
        plan: plan of the tiles.
    """

    facts: ClassVar[tuple[str, ...]]
    plan: Grid

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """The text of a progress bar."""

    @property
    @abc.abstractmethod
    def arrays(self) -> dict[str, Any]:
        """The arrays, or trees of arrays, on which the kernel depends, by name."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Description of the function or network, which JSON can hold."""

    @abc.abstractmethod
    def difference(self, found: dict[str, Any], wanted: dict[str, Any], *, same_jax: bool) -> str:
        """How two descriptions of functions differ, in words; empty if they are of the same one, to rounding."""

    @property
    def made_by(self) -> dict[str, str]:
        """What the last digits of tiles depend on, beside versions and device."""
        return {}

    @abc.abstractmethod
    def tiles(self) -> Callable[[int, int], Values]:
        """A function that computes tile (i, j), without its padding; one that is not finite raises ValueError."""

    @abc.abstractmethod
    def several(self, todo: Sequence[Tile], devices: Sequence[jax.Device]) -> Iterator[tuple[Tile, Values]]:
        """Yields each of these tiles with its values, computed as many at a time as there are devices."""

    @abc.abstractmethod
    def on_host(self) -> "Job":
        """The same job with NumPy arrays, to be sent to other processes."""


class Sink(abc.ABC):
    """A place where computed tiles are kept."""

    @abc.abstractmethod
    def write(self, i: int, j: int, tile: Values) -> None:
        """Keeps tile (i, j), and its mirror image where the kernel is symmetric."""


class Runner(abc.ABC):
    """A way to compute tiles: by devices or by workers."""

    @property
    @abc.abstractmethod
    def parallel(self) -> int:
        """Number of tiles computed at one time; a plan for this runner has several times as many."""

    @property
    @abc.abstractmethod
    def share(self) -> int:
        """Number of tiles that are in the memory of one device, or of this machine, at one time."""

    @abc.abstractmethod
    def run(self, job: Job, todo: Sequence[Tile], sink: Sink, track: Track) -> None:
        """Computes these tiles and has each kept as soon as it is finished."""


@dataclass(frozen=True)
class Steps:
    """Steps that come one by one, and their number, which a progress bar needs."""

    steps: Iterable[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.steps)


def kept(computed: Iterable[tuple[Tile, Values]], sink: Sink) -> None:
    """Has tiles kept while the next ones are computed: disks and processors do not wait for each other.

    A tile waits for the disk once for each of its arrays, and for its mirror image.
    """
    with ThreadPoolExecutor(WRITERS) as writers:
        begun: deque[Future[None]] = deque()
        for tile, values in computed:
            if len(begun) == WRITERS:
                begun.popleft().result()
            begun.append(writers.submit(sink.write, *tile, values))
        for writing in begun:
            writing.result()


def budget(memory: str | int | None, on: Runner) -> str | int | None:
    """Memory of one tile: as given, or half of what is free, shared equally by all tiles there at one time."""
    return memory if memory is not None or on.share == 1 else max(1, available_bytes() // 2 // on.share)
