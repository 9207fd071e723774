"""NNGP and NTK of networks without a theory, or beside it: averages over draws, as many as are wanted."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import concrete, whole_number
from ntk_analysis.common.memory import available_bytes
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.functions import check_inputs
from ntk_analysis.empirical.tiles import computes_in_float64, plan
from ntk_analysis.layers import Layer
from ntk_analysis.monte_carlo.ensemble import Drawn, Ensemble, Sums, draw_program
from ntk_analysis.monte_carlo.estimate import FEWEST_DRAWS, KernelEstimate
from ntk_analysis.monte_carlo.job import ARRAYS, DrawsPlan, Held, MonteCarloJob, added
from ntk_analysis.monte_carlo.widths import extrapolated
from ntk_analysis.stores.devices import Devices
from ntk_analysis.stores.grid import Values
from ntk_analysis.stores.manifest import kind_of, read_manifest
from ntk_analysis.stores.runs import Runner, budget
from ntk_analysis.stores.store import computed, require_room

FIRST = 16  # draws that are kept together first; then as many as there are already
MOST_DRAWS = 2**31 - 1


def monte_carlo_kernel(
    network: Drawn | Callable[[int], Drawn],
    x1: AnyArray,
    x2: AnyArray | None = None,
    *,
    draws: int,
    widths: Sequence[int] = (),
    seed: int = 0,
    coupled: bool | str = "detect",
    method: str = "auto",
    memory: str | int | None = None,
    store: str | Path | None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> KernelEstimate:
    """NNGP and NTK of a network at initialisation, averaged over draws, with the standard error of every entry.

    It needs no theory: any layers, or any functions (init, apply), on inputs of any kind. Both kernels are means over
    the network's outputs. A network of one width has the kernels of that width; with `widths` they are extrapolated to
    infinite width, along a line in 1/width, the leading correction (Dyer & Gur-Ari 2019, 1909.11304).

    Args:
        network: network of layers, or a pair (init, apply) of pure functions init(key, input_shape) -> (output_shape,
            params) and apply(params, x) -> (n, ...), as in stax; with `widths`, a function from a width to one of them.
        x1: inputs (n1, ...); NumPy float64 is computed in float64, all else in float32.
        x2: second inputs (n2, ...); None for x1 with itself.
        draws: number of networks, at each width, at least 4. The error falls as 1/sqrt(draws).
        widths: two widths or more, ascending.
        seed: seed of all draws; draw number k is the same however many there are.
        coupled: whether an output depends on the other inputs of its batch, as in `empirical_ntk`.
        method: name of the method that computes the NTK of a draw, as in `empirical_ntk`.
        memory: memory that one tile may take: bytes, "4GiB", or None for half of what is free.
        store: folder on disk for the sums. The same call goes on where a killed one stopped and ends with the same
            bits; a call with more draws adds them to those that are there. None keeps the sums in memory.
        on: runner that computes the tiles: None for all devices of this machine, `Devices(...)`, or `Cluster(...)`,
            which needs a store.
        track: function that draws a progress bar, as in `empirical_ntk`.

    Raises:
        TypeError: the network is none that can be drawn, or its outputs are not floats.
        ValueError: draws, widths or inputs are not as above, a kernel is NaN or infinite, or the store is of another
            network.
        MemoryError, OSError, BlockingIOError: as in `empirical_ntk`.
    """
    options: dict[str, Any] = {"coupled": coupled, "method": method, "memory": memory}
    path = None if store is None else Path(store)

    def average(network: Any, seed: int, path: Path | None) -> KernelEstimate:
        return next(_growing(network, x1, x2, (draws,), seed, options, path, on or Devices(), track))

    if not widths:
        return average(network, seed, path)
    networks = _of_widths(network, widths)
    folders = (path and path / f"width-{width}" for width in networks)
    places = enumerate(zip(networks.values(), folders, strict=True))
    estimates = [average(drawn, seed + place, folder) for place, (drawn, folder) in places]
    return extrapolated(tuple(networks), estimates)


def monte_carlo_kernels(
    network: Drawn,
    x1: AnyArray,
    x2: AnyArray | None = None,
    *,
    draws: Sequence[int],
    seed: int = 0,
    coupled: bool | str = "detect",
    method: str = "auto",
    memory: str | int | None = None,
    store: str | Path | None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> Iterator[KernelEstimate]:
    """Yields the estimates of more and more draws, each from those of the one before and new ones.

    Args:
        network: network as in `monte_carlo_kernel`, like all arguments not explained here.
        x1: first inputs (n1, ...).
        x2: second inputs (n2, ...) or None.
        draws: ascending numbers of networks, as in (10, 100, 1000); whoever stops early draws no more.
        seed: seed of all draws.
        coupled: whether the network couples the batch.
        method: name of the method.
        memory: memory of one tile.
        store: folder on disk.
        on: runner.
        track: progress.

    Raises:
        TypeError, ValueError, MemoryError, OSError: as in `monte_carlo_kernel`.
    """
    options: dict[str, Any] = {"coupled": coupled, "method": method, "memory": memory}
    path = None if store is None else Path(store)
    return _growing(network, x1, x2, tuple(draws), seed, options, path, on or Devices(), track)


def _growing(
    network: Any,
    x1: Any,
    x2: Any,
    goals: tuple[int, ...],
    seed: int,
    options: dict[str, Any],
    store: Path | None,
    on: Runner,
    track: Track,
) -> Iterator[KernelEstimate]:
    """The estimates at these numbers of draws; all is checked before the first one."""
    for goal in goals:
        if whole_number(goal, "draws", MOST_DRAWS) < FEWEST_DRAWS:
            raise ValueError(f"got draws={goal}: a standard error needs at least {FEWEST_DRAWS}")
    if not goals or any(second <= first for first, second in pairwise(goals)):
        raise ValueError(f"got draws={goals}: give numbers of networks, ascending, as in (10, 100, 1000)")
    begun = _job(network, x1, x2, seed, options, on)
    return _estimates(begun, goals, store, on, track)


def _job(network: Any, x1: Any, x2: Any, seed: int, options: dict[str, Any], on: Runner) -> MonteCarloJob:
    """The job of no draws yet, with its plan."""
    ensemble, float64 = Ensemble(network), computes_in_float64(x1, x2)
    first, second = concrete(x1, "x1"), None if x2 is None else concrete(x2, "x2")
    check_inputs(first, second)
    with jax.enable_x64(float64):
        params = draw_program(ensemble, first.shape)(jax.random.key(seed), jnp.int32(0))
        memory = budget(options["memory"], on)
        cut = plan(
            ensemble.f, params, first, second, layout="trace", parallel=on.parallel, **options | {"memory": memory}
        )
    names = ("n1", "n2", "symmetric", "dtype", "method", "coupled", "rows", "columns", "memory_bytes")
    drawn = DrawsPlan(**{name: getattr(cut, name) for name in names}, seed=seed, first=0, last=0)
    return MonteCarloJob(ensemble, first, second, drawn, cut.outputs, float64)


def _estimates(
    job: MonteCarloJob, goals: Sequence[int], store: Path | None, on: Runner, track: Track
) -> Iterator[KernelEstimate]:
    count, total = 0, Sums(np.zeros(()), np.zeros(()))
    for goal in goals:
        while count < goal:
            last = min(goal, max(FIRST, 2 * count))
            folder = None
            if store is not None:
                folder = kept_from(store, count) or store / f"{count}-{last}"
                last = int(folder.name.partition("-")[2])
            values = _summed(replace(job, plan=replace(job.plan, first=count, last=last)), folder, on, track)
            more = Sums(*(np.stack([values[name] for name in names]) for names in (ARRAYS[:2], ARRAYS[2:])))
            total, count = added(count, total, last - count, more), last
        yield _estimate(count, total, job.plan)


def kept_from(store: Path, first: int) -> Path | None:
    """The folder in the store with the draws from this one on; None if there is none.

    Raises:
        FileExistsError: there is something at the path that is no such store.
    """
    if store.exists() and not store.is_dir():
        raise FileExistsError(f"store {store} is a file, expected a store or a path that does not exist yet")
    names = sorted(entry.name for entry in store.iterdir()) if store.is_dir() else []
    found = [name for name in names if re.fullmatch(rf"{first}-\d+", name)]
    if names and not found and not first:
        raise FileExistsError(f"{store} is not a store of draws: give a path that does not exist yet")
    return store / found[0] if found else None


def _summed(job: MonteCarloJob, folder: Path | None, on: Runner, track: Track) -> Values:
    """The sums over the draws of the job's plan."""
    if folder is None:
        held = Held.room(job.plan)
        on.run(job, list(job.plan.tiles), held, track)
        return held.values
    begun = read_manifest(folder)
    if begun is not None and kind_of(begun) == DrawsPlan.kind:
        kept = DrawsPlan.of(begun)  # its tiles fit; how much is free changes from call to call
        same = {name: getattr(kept, name) for name in ("rows", "columns", "memory_bytes", "method")}
        job = replace(job, plan=replace(job.plan, **same))
        require_room(folder, job.plan, available_bytes() // on.share)
    store = computed(job, folder, on, track)
    return {name: np.asarray(store.arrays[name]) for name in ARRAYS}


def _estimate(count: int, total: Sums, plan: DrawsPlan) -> KernelEstimate:
    errors = np.sqrt(total.spread / (count - 1) / count)
    (nngp, ntk), (nngp_error, ntk_error) = total.mean, errors
    return KernelEstimate(nngp, ntk, nngp_error, ntk_error, count, plan.seed, plan.symmetric)


def _of_widths(network: Any, widths: Sequence[int]) -> dict[int, Any]:
    """The network of each width."""
    found = [whole_number(width, "widths") for width in widths]
    if len(found) < 2 or any(second <= first for first, second in pairwise(found)):
        raise ValueError(f"got widths={tuple(widths)}: give at least two, ascending, as in (32, 64, 128)")
    if isinstance(network, Layer) or not callable(network):
        raise TypeError(
            f"got a network and widths={tuple(widths)}: give a function from a width to a network, as in "
            "lambda width: ntk.networks.fully_connected(3, width)"
        )
    return {width: network(width) for width in found}
