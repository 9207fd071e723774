"""Where the tiles of a kernel are computed and where they go: what devices, clusters and stores agree on."""

import abc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ntk_analysis.common.progress import Track
from ntk_analysis.empirical.plans import TilePlan

Tile: TypeAlias = tuple[int, int]


class Job(NamedTuple):
    """A kernel to be computed.

    Attributes:
        f: function or network.
        params: parameters of f.
        x1: inputs of the rows.
        x2: inputs of the columns; None if they are those of the rows.
        plan: plan of the tiles.
        float64: whether JAX computes in float64, which depends on the caller.
    """

    f: Any
    params: Any
    x1: Any
    x2: Any
    plan: TilePlan
    float64: bool


class Sink(abc.ABC):
    """A place where computed tiles are kept."""

    @abc.abstractmethod
    def write(self, i: int, j: int, tile: np.ndarray) -> None:
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
class Held(Sink):
    """A kernel in the host's memory, as a place for its tiles."""

    values: np.ndarray
    plan: TilePlan

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        self.plan.place(self.values, i, j, tile)


@dataclass(frozen=True)
class Steps:
    """Steps that come one by one, and their number, which a progress bar needs."""

    steps: Iterable[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.steps)


def description(plan: TilePlan) -> str:
    """The text of a progress bar."""
    return f"empirical {plan.which} {plan.n1} x {plan.n2}"
