"""Where the tiles of a kernel are computed and where they go: what devices, clusters and stores agree on."""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ntk_analysis.empirical.plans import TilePlan

Tile: TypeAlias = tuple[int, int]
Track: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
"""track(steps, description): the same steps, with or without a progress bar; the steps have a length."""


class Job(NamedTuple):
    """A kernel to compute.

    Attributes:
        f: the function or network.
        params: its parameters.
        x1: inputs of the rows.
        x2: inputs of the columns, None if they are those of the rows.
        plan: how it is cut.
        float64: whether JAX computes in float64, which depends on who called.
    """

    f: Any
    params: Any
    x1: Any
    x2: Any
    plan: TilePlan
    float64: bool


class Sink(abc.ABC):
    """Where tiles go."""

    @abc.abstractmethod
    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Keeps tile (i, j), and its mirror image where the kernel is symmetric."""


class Runner(abc.ABC):
    """Who computes tiles."""

    @property
    @abc.abstractmethod
    def parallel(self) -> int:
        """Tiles under way at one time: a plan for this runner has several times as many."""

    @property
    @abc.abstractmethod
    def share(self) -> int:
        """Tiles that stand in the memory of one device, or of this machine, at one time."""

    @abc.abstractmethod
    def run(self, job: Job, todo: Sequence[Tile], sink: Sink, track: Track) -> None:
        """Computes these tiles and has them kept, each as soon as it is done."""


@dataclass(frozen=True)
class Held(Sink):
    """A kernel in the host's memory."""

    values: np.ndarray
    plan: TilePlan

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        self.plan.place(self.values, i, j, tile)


@dataclass(frozen=True)
class Steps:
    """Things that come one by one, and how many of them will come: what a progress bar needs."""

    steps: Iterable[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self.steps)


def untracked(steps: Iterable[Any], description: str) -> Iterable[Any]:
    """No progress bar."""
    del description
    return steps


def description(plan: TilePlan) -> str:
    """What a progress bar says."""
    return f"empirical {plan.which} {plan.n1} x {plan.n2}"
