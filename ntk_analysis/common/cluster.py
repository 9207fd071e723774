"""Work as tasks of a Dask cluster, on workers started here or elsewhere. Needs the extra `cluster` (`distributed`)."""

import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from ntk_analysis.common.messages import one_line

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = "60s"  # time in which a scheduler, and its first worker, must answer
LOOPBACK = "127.0.0.1"
ONE_AT_A_TIME = threading.Lock()  # JAX uses all cores for one task, and memory is planned for one task


@dataclass(frozen=True)
class Workers:
    """Processes that compute, here or on other machines.

    Attributes:
        scheduler: address such as "tcp://10.0.0.1:8786", or a Dask cluster object; None starts workers here.
        workers: number of processes to start on this machine, reachable from this machine only and stopped at the end.

    Raises:
        ValueError: both are given, none is given, or the number is not positive.
        ImportError: the extra with Dask is not installed.
    """

    scheduler: Any = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if (self.scheduler is None) == (self.workers is None) or (self.workers is not None and self.workers < 1):
            raise ValueError(
                f"got scheduler={self.scheduler!r} and workers={self.workers!r}: give the address of a scheduler, or "
                "a number of workers to start on this machine"
            )
        _distributed()  # raises its error now, before other work is begun

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A context with a Dask client of the workers; workers started here end with it.

        Raises:
            ConnectionError: no scheduler answers at the address, or it has no workers.
        """
        distributed = _distributed()
        with ExitStack() as stack:
            cluster = self.scheduler
            if self.workers is not None:
                # the plan takes care of the memory: a limit set by Dask would kill workers for memory that JAX holds in
                # reserve
                options = {"threads_per_worker": 1, "host": LOOPBACK, "memory_limit": 0}
                options |= {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": False}}
                options |= {
                    "silence_logs": "CRITICAL"
                }  # errors are raised here; tasks given up on Ctrl-C are no errors
                with _out_of_reach_of_ctrl_c():
                    cluster = stack.enter_context(distributed.LocalCluster(n_workers=self.workers, **options))
            try:
                client = stack.enter_context(distributed.Client(cluster, set_as_default=False, timeout=PATIENCE))
                client.wait_for_workers(1, timeout=PATIENCE)
            except (OSError, TimeoutError, ValueError) as error:
                raise ConnectionError(f"no workers at scheduler {self.scheduler}: {one_line(error)}") from error
            yield client


def results(
    client: "Client", task: Callable[..., Any], calls: Sequence[tuple[Any, ...]], what: str, *, remedy: str
) -> Iterator[Any]:
    """Yields task(*call) for each call, in the order in which they finish; each once, even if workers die on the way.

    Args:
        client: client from `Workers.client`.
        task: function that workers can import.
        calls: tuples of arguments, one for each call; earlier calls are begun earlier.
        what: word for a call in the error message, such as "tile".
        remedy: advice in the error message for a call that needs too much memory.

    Raises:
        RuntimeError: a call killed several workers.
        ConnectionError: the scheduler ended. Errors that the task raises are raised here, too.
    """
    if not calls:
        return
    distributed = _distributed()
    futures = client.map(task, *zip(*calls, strict=True), pure=False)
    finished = distributed.as_completed(futures, loop=client.loop)
    futures.clear()  # each is forgotten when it is finished: a worker that dies later takes nothing with it
    try:
        for future in finished:
            yield future.result()
    except distributed.KilledWorker as error:
        raise RuntimeError(
            f"a {what} killed several workers, the last {error.last_worker.address}: most likely it needs more "
            f"memory than they have, {remedy}"
        ) from error
    except distributed.CancelledError as error:
        raise ConnectionError(f"the scheduler is gone: repeat with one that runs ({one_line(error)})") from error


@contextmanager
def _out_of_reach_of_ctrl_c() -> Iterator[None]:
    """A context: processes begun in it leave Ctrl-C to this one, which stops them; a terminal sends Ctrl-C to all.

    They inherit the set of blocked signals, and so do the threads that later start a process in place of one that died.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would unblock the signal when it is first begun
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
