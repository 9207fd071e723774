"""How an infinite kernel is cut into tiles for a store, and what they take."""

import time
from dataclasses import replace
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.cost import described, program_cost
from ntk_analysis.common.memory import gib, memory_budget
from ntk_analysis.common.precision import AnyArray, is_traced, numpy_in_float64
from ntk_analysis.infinite.compute import Task, account, propagate, series_of, task_of
from ntk_analysis.infinite.kernel import HasKernel, Law, Units
from ntk_analysis.infinite.planning import estimated_seconds, operations
from ntk_analysis.infinite.store_plan import StorePlan
from ntk_analysis.infinite.tiled import InfiniteJob, tile_kernel
from ntk_analysis.stores.grid import Tile

LARGEST = 2**22  # pairs of a tile at most: chunks of 16 or 32 MiB
MOST = 1e12  # operations of a tile at most, which a kill costs: some ten seconds on two cores
MANY = 2**12  # tiles: more of them become blocks of larger ones, as each is some files
TILES_EACH = 4  # tiles for each of several devices or workers, so that few are idle at the end
FEW = 8  # inputs that are enough to see what the units behind a network are


@numpy_in_float64
def plan_store(
    network: HasKernel,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = None,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
    exact: bool = False,
    memory: str | int | None = None,
    measure: bool = True,
    parallel: int = 1,
) -> StorePlan:
    """Tiles, bytes, operations and time of `infinite_kernel` with a store: one tile is computed, for the time.

    Arguments that are not explained here are those of `infinite_kernel`, and so are errors.

    Args:
        network: network of layers.
        x1: inputs (n1, ...).
        x2: inputs (n2, ...), or None.
        statistics: "x1" or None.
        batch_norm: "exact" or "large_batch".
        exact: whether every pair is taken through all layers.
        memory: memory that one tile may take: bytes, "4GiB", or None for half of what is free.
        measure: whether to compute a tile and estimate the time.
        parallel: number of devices or workers, each of which gets several tiles; the budget is that of each.

    Raises:
        MemoryError: not even one pair of inputs fits into the budget.
        NotImplementedError: the kernel ends at positions of images, which a store does not keep.
    """
    task = task_of(network, x1, x2, statistics=statistics, batch_norm=batch_norm, exact=exact)
    job = job_of(task, memory=memory, parallel=parallel)
    return with_seconds(job).plan if measure else job.plan


def job_of(task: Task, *, memory: str | int | None, parallel: int = 1, begun: StorePlan | None = None) -> InfiniteJob:
    """The job of computing a kernel by tiles, in the current precision.

    Args:
        task: the kernel.
        memory: memory that one tile may take, as for `plan_store`.
        parallel: number of devices or workers.
        begun: plan of the store that is to be continued, whose tiles are taken if it may be of this kernel.

    Raises:
        TypeError: the call is inside a JAX transformation.
        MemoryError, NotImplementedError: as for `plan_store`.
    """
    if is_traced(task.x1, task.x2) or task.numbers:
        raise TypeError("kernels in a store are computed outside JAX transformations: call it outside jit, grad, vmap")
    function = series_of(task.network, task.x1, task.x2, exact=task.exact, norm=task.norm)
    law = _law(task) if function is None else function.law
    arrays: Any = {"x1": np.asarray(task.x1), "x2": None if task.x2 is None else np.asarray(task.x2)}
    task = task._replace(**arrays)
    job = InfiniteJob(task, function, _whole(task, law, memory_budget(memory)), _in_float64())
    if begun is not None and (begun.shape, begun.coupled) == (job.plan.shape, job.plan.coupled):
        return _cut(job, *begun.block, begun)
    size, plan = max(job.plan.shape), job.plan
    while not plan.coupled and size > 1 and _too_large(plan, parallel):
        size = (size + 1) // 2
        job = _cut(job, size, size)
        plan = job.plan
    if plan.memory_bytes > plan.budget_bytes:
        cure = "it is not cut: use fewer inputs" if plan.coupled else "give more memory, or smaller images"
        raise MemoryError(
            f"a tile of {plan.rows} x {plan.columns} inputs needs {gib(plan.memory_bytes)}, the budget is "
            f"{gib(plan.budget_bytes)}: {cure}"
        )
    flops = _flops(job, _typical(plan))
    while not plan.coupled and size > 1 and flops > MOST:
        size, flops = (size + 1) // 2, flops / 4
    job = _cut(job, size, size)
    return _counted(job if plan.coupled else _together(job))


def with_seconds(job: InfiniteJob) -> InfiniteJob:
    """The job with the estimated time in its plan: a block is computed twice, and the second run counts for each."""
    plan = job.plan
    if plan.count == 1:
        inputs = len(job.task.x1) if job.task.training is None else job.task.training
        return replace(job, plan=replace(plan, seconds=estimated_seconds(job.task, plan.flops, inputs)))
    block, taken = plan.blocks(*_typical(plan))[0], []
    for _ in range(2):
        start = time.perf_counter()
        with jax.enable_x64(job.float64):
            job.computed(*block)
        taken.append(time.perf_counter() - start)
    return replace(job, plan=replace(plan, seconds=max(taken[0] - taken[1], 0) + _blocks(plan)[0] * taken[1]))


def _in_float64() -> bool:
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64)


def _law(task: Task) -> Law:
    """The law of the units behind the network; NotImplementedError if they have positions."""

    def end(x1: jax.Array, x2: jax.Array | None) -> tuple[jax.Array, Units]:
        kernel = propagate(task.network, task.exact, None, False, None, task.nodes, (), x1, x2)
        return kernel.distance, Units(kernel.law)

    few = (x if x is None else described((min(FEW, len(x)), *x.shape[1:]), x.dtype) for x in (task.x1, task.x2))
    distance, units = jax.eval_shape(end, *few)
    if distance.ndim > 2:
        raise NotImplementedError(
            f"the kernel ends at {' x '.join(map(str, distance.shape[2:]))} positions of images, and a store keeps one "
            "number a pair: end the network in Flatten or GlobalAvgPool"
        )
    return units.law


def _whole(task: Task, law: Law, budget: int) -> StorePlan:
    """The plan of one tile, whose operations are not counted yet."""
    n1, n2 = len(task.x1), len(task.x1 if task.x2 is None else task.x2)
    taken = account(task)
    return StorePlan(
        n1=n1,
        n2=n2,
        symmetric=task.x2 is None,
        dtype=np.dtype(task.x1.dtype),
        way=taken.way,
        law=law,
        training=task.training,
        coupled=task.network.couples_batch is not False,
        rows=n1,
        columns=n2,
        flops=0.0,
        memory_bytes=taken.memory_bytes,
        budget_bytes=budget,
    )


def _cut(job: InfiniteJob, rows: int, columns: int, begun: StorePlan | None = None) -> InfiniteJob:
    """The job with tiles of these numbers of inputs, evenly filled, and the memory that they take.

    Where a store is begun, they are blocks of its tiles.
    """
    if begun is None:
        rows, columns = _even(job.plan.n1, rows), _even(job.plan.n2, columns)
    tiles: Any = {"rows": rows, "columns": columns}
    if begun is not None:
        tiles = {name: getattr(begun, name) for name in (*tiles, "block_rows", "block_columns")}
    features, dtype = job.task.x1.shape[1:], job.task.x1.dtype
    sides: Any = {name: described((size, *features), dtype) for name, size in (("x1", rows), ("x2", columns))}
    one = job.task if (rows, columns) == job.plan.shape else job.task._replace(**sides)
    return replace(job, plan=replace(job.plan, **tiles, memory_bytes=account(one).memory_bytes))


def _together(job: InfiniteJob) -> InfiniteJob:
    """The job with tiles of several blocks, which are what its tiles were, if these are too many to be files."""
    plan, (down, across), side = job.plan, job.plan.grid, 1
    while plan.count > MANY and job.plan.rows * job.plan.columns * (side + 1) ** 2 <= LARGEST:
        side += 1
        # as many tiles as there have to be, all of them as large as the largest
        rows, columns = (_even(count, side) * size for count, size in ((down, plan.block[0]), (across, plan.block[1])))
        plan = replace(plan, rows=rows, columns=columns, block_rows=plan.block[0], block_columns=plan.block[1])
    return replace(job, plan=plan)


def _even(n: int, size: int) -> int:
    """The least size of as few parts of n as parts of this size are."""
    count = -(-n // min(size, n))
    return -(-n // count)


def _too_large(plan: StorePlan, parallel: int) -> bool:
    few = parallel > 1 and plan.count < TILES_EACH * parallel
    return few or plan.memory_bytes > plan.budget_bytes or plan.rows * plan.columns > LARGEST


def _typical(plan: StorePlan) -> Tile:
    """A tile of the kind of which there are most."""
    return (0, 1) if plan.symmetric and plan.grid[0] > 1 else (0, 0)


def _blocks(plan: StorePlan) -> tuple[int, int]:
    """Number of blocks of the whole kernel, and how many of them stand on its diagonal."""
    down, across = (-(-n // size) for n, size in zip(plan.shape, plan.block, strict=True))
    return (down * (down + 1) // 2, down) if plan.symmetric else (down * across, 0)


def _counted(job: InfiniteJob) -> InfiniteJob:
    """The job with the operations of all its tiles in its plan."""
    plan = job.plan
    blocks, diagonal = _blocks(plan) if plan.count > 1 else (1, 0)
    flops = (blocks - diagonal) * _flops(job, _typical(plan)) + (diagonal * _flops(job, (0, 0)) if diagonal else 0)
    return replace(job, plan=replace(plan, flops=flops))


def _flops(job: InfiniteJob, tile: Tile) -> float:
    """The operations of the first block of a tile."""
    if job.plan.count == 1:
        return operations(job.task)

    def program(*arrays: Any) -> list[jax.Array]:
        return jax.tree.leaves(tile_kernel(job.task.network, job.function, *arrays))

    return program_cost(program, *job.inputs(*job.plan.blocks(*tile)[0]))[0].flops
