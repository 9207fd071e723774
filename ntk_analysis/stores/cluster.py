"""Tiles on many machines: each is a task of Dask, and every worker writes its own to the one store.

Needs the extra `cluster` (`dask.distributed`) and a file system on which all workers see the store. The function and
its inputs reach the workers through that file system, not through the scheduler: so they may be large, and the death of
a worker loses nothing but the tile that it was at.
"""

import importlib
import pickle
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ntk_analysis.common.cluster import ONE_AT_A_TIME, Workers, results
from ntk_analysis.common.files import write_whole
from ntk_analysis.common.messages import one_line
from ntk_analysis.common.progress import Track
from ntk_analysis.stores.grid import Tile, Values
from ntk_analysis.stores.runs import Job, Runner, Sink, Steps
from ntk_analysis.stores.store import JOB, KernelStore


@dataclass(frozen=True)
class Cluster(Workers, Runner):
    """Computes tiles on the workers of a Dask cluster, which is given as to `Workers`."""

    @property
    def parallel(self) -> int:
        """Number of workers: each computes one tile at a time."""
        return self.workers or len(self._addresses())

    @property
    def share(self) -> int:
        """Number of workers that share one machine's memory; that of other machines is taken to be this one's."""
        hosts = Counter(address.rsplit(":", 1)[0] for address in ([] if self.workers else self._addresses()))
        return self.workers or max(hosts.values())

    def _addresses(self) -> list[str]:
        with self.client() as client:
            return list(client.nthreads())

    def run(self, job: Job, todo: Sequence[Tile], sink: Sink, track: Track) -> None:
        """Computes these tiles on the workers, which write them to the store.

        Raises:
            TypeError: the function cannot be sent to other processes.
            RuntimeError: a worker cannot see the store or import the function, or a tile killed several workers.
        """
        if not isinstance(sink, KernelStore):
            raise ValueError("a cluster writes to a store: give store=PATH, on a file system that all workers see")
        if not todo:
            return
        remedy = "give less with memory=; finished tiles are kept"
        with _shared(job, sink) as shared, self.client() as client:
            finished = results(client, compute_tile, [(str(shared), *tile) for tile in todo], "tile", remedy=remedy)
            for _ in track(Steps(finished, len(todo)), job.description):
                pass


def compute_tile(shared: str, i: int, j: int) -> None:
    """Runs on a worker: computes tile (i, j), unless a worker that died since has finished it."""
    with ONE_AT_A_TIME:
        tiles, store = _rebuilt(shared)
        if store.is_done(i, j):
            return
        tile = tiles(i, j)
    store.write(i, j, tile)


@lru_cache(maxsize=1)
def _rebuilt(shared: str) -> tuple[Callable[[int, int], Values], KernelStore]:
    try:
        job, store = pickle.loads(Path(shared).read_bytes())
    except FileNotFoundError as error:
        raise RuntimeError(f"a worker does not see {shared}: the store must be on a file system of all") from error
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"a worker cannot import the function ({one_line(error)}): install its module where the workers run"
        ) from error
    return job.tiles(), store


@contextmanager
def _shared(job: Job, store: KernelStore) -> Iterator[Path]:
    """A file in the store with all that a worker needs; it exists as long as workers need it."""
    try:
        # Dask requires cloudpickle, which takes functions of scripts and closures along; pickle does not
        data = importlib.import_module("cloudpickle").dumps((job.on_host(), store), protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"f cannot be sent to workers ({one_line(error)}): give a function of a module, or a network of layers"
        ) from error
    path = store.path.absolute() / f"{JOB}{uuid.uuid4().hex}.pickle"
    write_whole(path, lambda new: new.write_bytes(data))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
