"""Tiles on many machines: each is a task of Dask, and every worker writes its own to the one store.

Needs the extra `cluster` (`dask.distributed`) and a file system on which all workers see the store. Parameters and
inputs reach the workers through that file system, not through the scheduler: so they may be large, and the death of a
worker loses nothing but the tile that it was at.
"""

import importlib
import pickle
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_analysis.empirical.runs import Job, Runner, Sink, Steps, Tile, Track, description
from ntk_analysis.empirical.store import JOB, KernelStore
from ntk_analysis.empirical.tiles import Tiles
from ntk_analysis.files import write_whole

PATIENCE = "60s"  # for a scheduler to answer, and for its first worker
LOOPBACK = "127.0.0.1"
ONE_AT_A_TIME = threading.Lock()  # JAX uses all cores for one tile, and memory is planned for one


@dataclass(frozen=True)
class Cluster(Runner):
    """Computes tiles on the workers of a Dask cluster.

    Attributes:
        scheduler: address such as "tcp://10.0.0.1:8786", or a Dask cluster object; None starts workers here.
        workers: processes to start on this machine, reachable from this machine only, stopped at the end.
    """

    scheduler: Any = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if (self.scheduler is None) == (self.workers is None) or (self.workers is not None and self.workers < 1):
            raise ValueError(
                f"got scheduler={self.scheduler!r} and workers={self.workers!r}: give the address of a scheduler, or "
                "a number of workers to start on this machine"
            )
        _distributed()  # so that a store is not begun in vain

    @property
    def parallel(self) -> int:
        """As many tiles as workers."""
        return self.workers or len(self._addresses())

    @property
    def share(self) -> int:
        """Workers of one machine share its memory; that of other machines is taken to be this one's."""
        hosts = Counter(address.rsplit(":", 1)[0] for address in ([] if self.workers else self._addresses()))
        return self.workers or max(hosts.values())

    def _addresses(self) -> list[str]:
        with self._client() as client:
            return list(client.nthreads())

    def run(self, job: Job, todo: Sequence[Tile], sink: Sink, track: Track) -> None:
        """Computes these tiles.

        Raises:
            TypeError: the function cannot be sent to other processes.
            RuntimeError: a worker cannot see the store or import the function; a tile killed several workers.
        """
        if not isinstance(sink, KernelStore):
            raise ValueError("a cluster writes to a store: give store=PATH, on a file system that all workers see")
        if not todo:
            return
        distributed = _distributed()
        with _shared(job, sink) as shared, self._client() as client:
            futures = client.map(compute_tile, [str(shared)] * len(todo), *zip(*todo, strict=True), pure=False)
            finished = distributed.as_completed(futures, loop=client.loop)
            futures.clear()  # each is forgotten when it is done: a worker that dies later takes nothing with it
            try:
                for future in track(Steps(finished, len(todo)), description(job.plan)):
                    future.result()
            except distributed.KilledWorker as error:
                raise RuntimeError(
                    f"a tile killed several workers, the last {error.last_worker.address}: most likely it needs more "
                    "memory than they have, give less with memory=; finished tiles are kept"
                ) from error

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = _distributed()
        with ExitStack() as stack:
            cluster = self.scheduler
            if self.workers is not None:
                # the plan minds the memory: a limit of Dask's would kill workers for what JAX holds in reserve
                options = {"threads_per_worker": 1, "host": LOOPBACK, "memory_limit": 0}
                options |= {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": False}}
                options |= {"silence_logs": "CRITICAL"}  # errors are raised here, and tiles given up on Ctrl-C are none
                with _out_of_reach_of_ctrl_c():
                    cluster = stack.enter_context(distributed.LocalCluster(n_workers=self.workers, **options))
            try:
                client = stack.enter_context(distributed.Client(cluster, set_as_default=False, timeout=PATIENCE))
                client.wait_for_workers(1, timeout=PATIENCE)
            except (OSError, TimeoutError, ValueError) as error:
                raise ConnectionError(f"no workers at scheduler {self.scheduler}: {_one_line(error)}") from error
            yield client


def compute_tile(shared: str, i: int, j: int) -> None:
    """Runs on a worker: tile (i, j), unless a worker that died since has finished it."""
    with ONE_AT_A_TIME:
        tiles, store = _rebuilt(shared)
        if store.is_done(i, j):
            return
        tile = tiles(i, j)
    store.write(i, j, tile)


@lru_cache(maxsize=1)
def _rebuilt(shared: str) -> tuple[Tiles, KernelStore]:
    try:
        job, store = pickle.loads(Path(shared).read_bytes())
    except FileNotFoundError as error:
        raise RuntimeError(f"a worker does not see {shared}: the store must be on a file system of all") from error
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"a worker cannot import the function ({_one_line(error)}): install its module where the workers run"
        ) from error
    return Tiles(*job), store


@contextmanager
def _shared(job: Job, store: KernelStore) -> Iterator[Path]:
    """A file in the store with all that a worker needs, as long as workers need it."""
    arrays = jax.tree.map(np.asarray, (job.params, job.x1, job.x2))
    sent = job._replace(params=arrays[0], x1=arrays[1], x2=arrays[2])
    try:
        # of Dask's requirements; takes functions of scripts and closures along, which pickle does not
        data = importlib.import_module("cloudpickle").dumps((sent, store), protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"f cannot be sent to workers ({_one_line(error)}): give a function of a module, or a network of layers"
        ) from error
    path = store.path.absolute() / f"{JOB}{uuid.uuid4().hex}.pickle"
    write_whole(path, lambda new: new.write_bytes(data))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _out_of_reach_of_ctrl_c() -> Iterator[None]:
    """Processes begun here leave Ctrl-C to this one, which stops them: a terminal sends it to all, and all would talk.

    They inherit which signals are blocked, as do the threads that begin them later, in the place of one that died.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # would unblock it when it is first begun
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise ImportError("clusters need dask.distributed: pip install 'ntk-analysis[cluster]'") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
