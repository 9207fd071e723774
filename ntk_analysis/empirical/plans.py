"""What a kernel will cost before it is computed: tiles that fit into memory, bytes, FLOPs, and the cheapest method."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.cost import described, program_cost, tree_bytes
from ntk_analysis.common.memory import gib, memory_budget
from ntk_analysis.empirical.estimate import Estimate
from ntk_analysis.empirical.functions import Side
from ntk_analysis.empirical.layouts import Layout, outputs_shape
from ntk_analysis.empirical.methods import Programs
from ntk_analysis.layers.base import Params
from ntk_analysis.stores.grid import Grid, Part
from ntk_analysis.stores.manifest import Manifest, fields_of

MARGIN = 1.5  # XLA's transposed copies are not in the count of a program; they took up to 1.26 times the count
KERNEL = "kernel"  # name of its array
TILES_EACH = 4  # tiles for each of several devices or workers, so that few are idle at the end
SIZES = 3  # number of tile sizes that fit, halved each time, of which the one of fewest FLOPs is taken


@dataclass(frozen=True)
class TilePlan(Grid):
    """The cut of a kernel (n1, n2, *outputs) into tiles, and their cost.

    Attributes:
        n1: number of inputs of the rows.
        n2: number of inputs of the columns.
        outputs: number C of the function's outputs.
        layout: layout of the kernel, "full", "diagonal" or "trace".
        which: kernel, "ntk" or "nngp".
        method: name of the method: "jacobian", "products", "layerwise", "last_norm", or "outputs" (the NNGP's only
            one).
        coupled: whether the function couples the batch, which is then taken as a whole.
        symmetric: whether the second inputs are the first ones.
        dtype: dtype of the kernel.
        rows: number of inputs in the rows of a tile; the last tile is padded.
        columns: number of inputs in the columns of a tile.
        flops: floating-point operations of all tiles, counted on the program (see `cost.Cost`).
        memory_bytes: the most bytes that one tile takes on the device at one time, counted likewise, times a margin.
        budget_bytes: bytes that one tile may take.
        seconds: estimated time from a measured tile; None if it was not asked for.
        coupling: text that says what couples the batch; empty if nothing does.
    """

    kind = "empirical"

    n1: int
    n2: int
    outputs: int
    layout: Layout
    which: str
    method: str
    coupled: bool
    symmetric: bool
    dtype: np.dtype
    rows: int
    columns: int
    flops: float
    memory_bytes: int
    budget_bytes: int
    seconds: float | None = None
    coupling: str = ""

    @classmethod
    def of(cls, found: Manifest) -> "TilePlan":
        """The plan that the manifest of a store describes."""
        return cls(**fields_of(found, tuple(field.name for field in fields(cls))))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return (self.n1, self.n2, *outputs_shape(self.layout, self.outputs))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the kernel: one, "kernel"."""
        return (Part(KERNEL, self.shape, (self.rows, self.columns, *self.shape[2:]), self.dtype),)

    def on(
        self,
        devices: int = 1,
        *,
        memory: str | int | None = None,
        flops_per_second: float | None = None,
        writes_per_second: float | None = None,
    ) -> Estimate:
        """Estimated time and storage on other devices, such as 64 GPUs: `plan(..., memory="80GiB").on(64, ...)`.

        Args:
            devices: number of devices.
            memory: memory of each device, checked against `memory_bytes`.
            flops_per_second: rate that each device sustains, well below a data sheet's; None takes the rate measured
                here.
            writes_per_second: bytes per second that the storage takes of all devices together; None sets no limit.

        Raises:
            ValueError: devices is below 1, a rate is not positive, or no rate is given and none was measured.
            MemoryError: a tile is too large for the devices.
        """
        if flops_per_second is None and self.seconds:
            flops_per_second = self.flops / self.seconds
        if devices < 1 or flops_per_second is None or not flops_per_second > 0:
            raise ValueError(
                f"got devices={devices} and flops_per_second={flops_per_second}: give one device or more, and a rate "
                "or a measured plan, plan(..., measure=True)"
            )
        if writes_per_second is not None and not writes_per_second > 0:
            raise ValueError(f"got writes_per_second={writes_per_second}, expected bytes per second, or None")
        if memory is not None and self.memory_bytes > memory_budget(memory):
            raise MemoryError(
                f"a tile of {self.rows} x {self.columns} inputs needs {gib(self.memory_bytes)}, devices of {memory} "
                f"have less: plan(..., memory={memory!r}) cuts smaller ones"
            )
        rounds = -(-self.count // devices)
        found = Estimate(devices, self.count, rounds, self.flops, flops_per_second, self.storage_bytes)
        return replace(found, writes_per_second=writes_per_second)

    def summary(self) -> str:
        """The plan as one line of text."""
        coupled = f", batch coupled ({self.coupling})" if self.coupled else ""
        time = "" if self.seconds is None else f", about {self.seconds:.3g} s"
        return (
            f"{self.which} {self.shape} {self.dtype} ({self.layout}) by {self.method}: {self.count} tiles of "
            f"{self.rows} x {self.columns}, {self.flops:.3g} FLOPs, {gib(self.memory_bytes)} of the "
            f"{gib(self.budget_bytes)} allowed{coupled}{time}"
        )


class Call(NamedTuple):
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


@dataclass(frozen=True)
class Task:
    """What all plans of one kernel share, whatever their method and tiles; fields as in `TilePlan`."""

    outputs: int
    layout: Layout
    which: str
    coupled: bool
    coupling: str
    dtype: np.dtype
    budget_bytes: int

    def whole(self, n1: int, n2: int, method: str, *, symmetric: bool) -> TilePlan:
        """The plan of one tile, whose cost is not known yet."""
        shared = {field.name: getattr(self, field.name) for field in fields(self)}
        return TilePlan(
            n1=n1, n2=n2, method=method, symmetric=symmetric, rows=n1, columns=n2, flops=0.0, memory_bytes=0, **shared
        )


def plan_tiles(
    method: Programs,
    params: Params,
    x1: jax.ShapeDtypeStruct,
    x2: jax.ShapeDtypeStruct | None,
    *,
    task: Task,
    parallel: int = 1,
) -> TilePlan:
    """The plan of least FLOPs within the budget, with enough tiles where several are computed at a time.

    Larger tiles prepare their columns less often, but symmetry saves only whole tiles.

    Raises:
        MemoryError: one tile of one input by one input needs more than the budget.
    """
    n1, n2 = x1.shape[0], (x1 if x2 is None else x2).shape[0]
    whole = task.whole(n1, n2, method.name, symmetric=x2 is None)
    found: list[TilePlan] = []
    for size in _sizes(max(n1, n2)):
        plan = replace(whole, rows=min(size, n1), columns=min(size, n2))
        if size > 1 and plan.count < TILES_EACH * parallel and parallel > 1:
            continue
        flops, memory = _costs(method, params, x1, x2, plan)
        if memory <= plan.budget_bytes:
            found.append(replace(plan, flops=flops, memory_bytes=memory))
        if len(found) == SIZES:
            break
    if not found:
        raise MemoryError(
            f"one tile of 1 x 1 inputs by method {method.name!r} needs {gib(memory)}, the budget is "
            f"{gib(plan.budget_bytes)}: give more memory, another method, or a batch of fewer inputs if it is coupled"
        )
    return min(found, key=lambda plan: plan.flops)


def _sizes(n: int) -> Iterator[int]:
    parts = 1
    while parts < 2 * n:
        yield -(-n // parts)
        parts *= 2


def _costs(method: Programs, params: Params, x1: Any, x2: Any, plan: TilePlan) -> tuple[float, int]:
    """FLOPs of the whole kernel, and bytes of one tile."""

    def side(x: Any, size: int) -> Side:
        if plan.coupled:
            return Side(x, described((size,), jnp.int32))
        return Side(described((size, *x.shape[1:]), x.dtype))

    if plan.symmetric and plan.count == 1:
        whole, _ = program_cost(method.square, params, side(x1, plan.rows))
        return whole.flops, int(MARGIN * whole.memory_bytes)
    left_cost, left = program_cost(method.prepare, params, side(x1, plan.rows))
    right_cost, right = program_cost(method.prepare, params, side(x1 if x2 is None else x2, plan.columns))
    product, _ = program_cost(method.contract, params, left, right)
    down, tiles = plan.grid[0], plan.count
    rights = tiles - down if plan.symmetric else tiles
    memory = max(left_cost.memory_bytes, right_cost.memory_bytes + tree_bytes(left), product.memory_bytes)
    return down * left_cost.flops + rights * right_cost.flops + tiles * product.flops, int(MARGIN * memory)
