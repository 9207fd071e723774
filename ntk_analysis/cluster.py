"""Work as tasks of a Dask cluster, on workers started here or elsewhere. Needs the extra `cluster` (`distributed`)."""

import importlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

PATIENCE = "60s"  # for a scheduler to answer, and for its first worker
LOOPBACK = "127.0.0.1"
ONE_AT_A_TIME = threading.Lock()  # JAX uses all cores for one task, and memory is planned for one


@dataclass(frozen=True)
class Workers:
    """Processes that compute, here or on other machines.

    Attributes:
        scheduler: address such as "tcp://10.0.0.1:8786", or a Dask cluster object; None starts workers here.
        workers: processes to start on this machine, reachable from this machine only, stopped at the end.

    Raises:
        ValueError: both of them, none of them, or no positive number.
        ImportError: the extra is not installed.
    """

    scheduler: Any = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if (self.scheduler is None) == (self.workers is None) or (self.workers is not None and self.workers < 1):
            raise ValueError(
                f"got scheduler={self.scheduler!r} and workers={self.workers!r}: give the address of a scheduler, or "
                "a number of workers to start on this machine"
            )
        _distributed()  # so that nothing is begun in vain

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A Dask client of them; those started here end with it.

        Raises:
            ConnectionError: no scheduler answers there, or it has no workers.
        """
        distributed = _distributed()
        with ExitStack() as stack:
            cluster = self.scheduler
            if self.workers is not None:
                # the plan minds the memory: a limit of Dask's would kill workers for what JAX holds in reserve
                options = {"threads_per_worker": 1, "host": LOOPBACK, "memory_limit": 0}
                options |= {"dashboard_address": f"{LOOPBACK}:0", "scheduler_kwargs": {"dashboard": False}}
                options |= {"silence_logs": "CRITICAL"}  # errors are raised here, and tasks given up on Ctrl-C are none
                with _out_of_reach_of_ctrl_c():
                    cluster = stack.enter_context(distributed.LocalCluster(n_workers=self.workers, **options))
            try:
                client = stack.enter_context(distributed.Client(cluster, set_as_default=False, timeout=PATIENCE))
                client.wait_for_workers(1, timeout=PATIENCE)
            except (OSError, TimeoutError, ValueError) as error:
                raise ConnectionError(f"no workers at scheduler {self.scheduler}: {one_line(error)}") from error
            yield client


def results(
    client: Any, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]], what: str, remedy: str
) -> Iterator[Any]:
    """What task(*call) returns for each call, as they come; each once, whichever workers die on the way.

    Args:
        client: of `Workers.client`.
        task: a function that workers can import.
        calls: its arguments; earlier ones are begun earlier.
        what: a call is, for the error: "tile".
        remedy: what to do about one that needs too much memory.

    Raises:
        RuntimeError: a call killed several workers.
        ConnectionError: the scheduler ended. Whatever the task raises is raised here, too.
    """
    if not calls:
        return
    distributed = _distributed()
    futures = client.map(task, *zip(*calls, strict=True), pure=False)
    finished = distributed.as_completed(futures, loop=client.loop)
    futures.clear()  # each is forgotten when it is done: a worker that dies later takes nothing with it
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


def one_line(error: BaseException) -> str:
    """Its message without line breaks."""
    return " ".join(str(error).split())


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
