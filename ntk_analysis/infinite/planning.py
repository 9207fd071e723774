"""What an infinite-width kernel takes before it is computed: how it is computed, operations, memory and time."""

import math
import time
from dataclasses import dataclass
from typing import Literal

import jax
from jaxtyping import Float

from ntk_analysis.batch_norm.rules import LARGE_BATCH
from ntk_analysis.common.cost import program_cost
from ntk_analysis.common.memory import available_bytes, gib
from ntk_analysis.common.precision import AnyArray, numpy_in_float64
from ntk_analysis.infinite.compute import Task, account, propagate, task_of
from ntk_analysis.infinite.kernel import HasKernel

SMALLEST = 6  # inputs, or positions of images: fewer may have no kernel behind a batch normalisation
FEW = 2.0**31  # operations of the part that is measured: a tenth of a second on two cores


@dataclass(frozen=True)
class KernelPlan:
    """What a kernel takes.

    Attributes:
        shape: numbers of first and second inputs.
        way: how it is computed: by their angles, pair by pair, as one joint batch, at which pairs of positions.
        flops: number of operations, counted in the program.
        memory_bytes: the most bytes that arrays take at one time.
        available_bytes: the bytes that are free here.
        seconds: estimated time, from the first inputs alone at the rate that was measured there, with the compilation
            measured there; None if nothing was measured.
    """

    shape: tuple[int, int]
    way: str
    flops: float
    memory_bytes: int
    available_bytes: int
    seconds: float | None

    @property
    def fits(self) -> bool:
        """Whether the memory is free: else `infinite_kernel` refuses the kernel."""
        return self.memory_bytes <= self.available_bytes

    def summary(self) -> str:
        """The plan as one line of text."""
        free = f"{gib(self.available_bytes)} {'available' if self.fits else 'available, too few'}"
        taken = "" if self.seconds is None else f", about {self.seconds:.2g} s"
        size = " x ".join(map(str, self.shape))
        return f"{size} inputs {self.way}: {self.flops:.3g} operations, {gib(self.memory_bytes)} of {free}{taken}"


@numpy_in_float64
def plan(
    network: HasKernel,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = None,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
    exact: bool = False,
    measure: bool = True,
) -> KernelPlan:
    """What `infinite_kernel` with these arguments takes: nothing is computed but, for the time, a small part of it.

    The time is that of the first inputs, twice, times the ratio of the operations; with few inputs the rate is lower,
    so it rather is too long.

    Args:
        network: a layer or a composition of layers.
        x1: (n1, ...) inputs, as for `infinite_kernel`.
        x2: (n2, ...) inputs, or None.
        statistics: "x1" or None, as for `infinite_kernel`.
        batch_norm: "exact" or "large_batch", as for `infinite_kernel`; the second is computed twice, and so counted.
        exact: whether to take every pair through all layers, as for `infinite_kernel`.
        measure: whether to compute the part that tells the time.

    Raises:
        ValueError: arguments are refused, as by `infinite_kernel`.
        NotImplementedError: the network has a layer without an infinite-width kernel here.
    """
    task = task_of(network, x1, x2, statistics=statistics, batch_norm=batch_norm, exact=exact)
    taken, flops = account(task), operations(task)
    first = task.x1 if task.training is None else task.x1[: task.training]
    shape = (len(task.x1), len(task.x1 if task.x2 is None else task.x2))
    seconds = estimated_seconds(task, flops, len(first)) if measure else None
    return KernelPlan(shape, taken.way, flops, taken.memory_bytes, available_bytes(), seconds)


def operations(task: Task) -> float:
    """The number of operations of a kernel, counted in its program."""
    *settings, numbers, x1, x2 = task
    flops = program_cost(lambda *arrays: jax.tree.leaves(propagate(*settings, *arrays)), numbers, x1, x2)[0].flops
    fewer = None if task.nodes is None or task.nodes < LARGE_BATCH.count else task._replace(nodes=task.nodes - 1)
    return flops if fewer is None else flops + operations(fewer)


def estimated_seconds(task: Task, flops: float, inputs: int) -> float:
    """The estimated time of a kernel of this many operations, from a part of its first inputs, which is computed."""
    part, counted, positions = task, flops, math.prod(task.x1.shape[1:-1])
    while counted > FEW and inputs > 1 and inputs * positions > 2 * SMALLEST:
        inputs = (inputs + 1) // 2
        part = task._replace(x1=task.x1[:inputs], x2=None if task.x2 is None else task.x2[:inputs], training=None)
        counted = operations(part)
    first, second = _timed(part), _timed(part)
    return (first - second) + second * flops / counted


def _timed(task: Task) -> float:
    start = time.perf_counter()
    propagate(*task).ntk_scaled.block_until_ready()
    return time.perf_counter() - start
