"""What `ntk-analysis empirical` does: networks and inputs, plans, and kernels into stores. Imports what computes."""

import importlib
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.cli.options import ClusterOptions
from ntk_analysis.cli.progress import Interrupted, progress
from ntk_analysis.common.memory import available_bytes, gib
from ntk_analysis.common.progress import Track
from ntk_analysis.diagnosis import load_network
from ntk_analysis.empirical import Cluster, Devices, EmpiricalKernel, TilePlan, empirical_nngp, empirical_ntk
from ntk_analysis.empirical import plan as planned
from ntk_analysis.empirical.opening import any_store
from ntk_analysis.infinite import StoredKernel, infinite_kernel, plan_store
from ntk_analysis.infinite.kernel import HasKernel
from ntk_analysis.layers import Layer
from ntk_analysis.stores.runs import Runner, budget

if TYPE_CHECKING:
    from ntk_analysis.cli.options import PlanOptions

T = TypeVar("T")
OF_USERS = (AssertionError, AttributeError, LookupError)  # errors that only a user's function raises, never the library


class Subject(NamedTuple):
    """A network f with its parameters and inputs: what the kernel is computed for."""

    f: Any
    params: Any
    x: Any


def given_network(target: str, count: int | None, seed: int, float64: bool) -> Subject:
    """The user's network, on `count` of its inputs, in its own precision or in float64.

    Raises:
        ValueError: the network has fewer inputs than `count`, or f raises an error.
    """
    f, params, x = load_network(target)
    if count is not None:
        if not 1 <= count <= len(x):
            raise ValueError(f"{target}: {count} inputs asked for; ask for 1 to {len(x)}")
        chosen = np.random.default_rng(seed).choice(len(x), size=count, replace=False)
        x = _described((count, *x.shape[1:]), x.dtype) if _is_described(x) else x[chosen]
    if float64:
        params, x = _in(np.float64, (params, x))
    try:
        jax.eval_shape(f.apply if isinstance(f, Layer) else f, params, x)
    except OF_USERS as error:
        raise ValueError(f"{target}: f(params, x) raised {type(error).__name__}: {error}") from error
    return Subject(f, params, x)


def drawn_network(network: Layer, x: np.ndarray, seed: int, float64: bool) -> Subject:
    """A network with weights drawn in float32, and its inputs; with float64 the same weights are converted."""
    with jax.enable_x64(False):
        params = network.init(jax.random.key(seed), x.shape)[1]
    dtype = np.float64 if float64 else np.float32
    return Subject(network, *_in(dtype, (params, x)))


def runner(cluster: ClusterOptions, target: str | None) -> Runner:
    """The runner: this machine's devices, processes started here, or a cluster, which gets the user's module."""
    if not cluster.given():
        return Devices()
    found = Cluster(cluster.scheduler, cluster.workers)
    if target is not None:
        _send_along(target)
    return found


def plan_here(subject: Subject, on: Runner, options: dict[str, Any]) -> str:
    """Text on the kernel's tiles and time on this machine, or on the cluster."""
    options = options | {"memory": budget(options["memory"], on), "parallel": on.parallel}
    cut = planned(*subject, **options)
    if not any(_is_described(leaf) for leaf in jax.tree.leaves(subject.params)) and _fits(cut):
        cut = planned(*subject, **options, measure=True)
    return f"{cut.summary()}\n{gib(cut.storage_bytes)} on disk"


def plan_elsewhere(subject: Subject, options: dict[str, Any], elsewhere: "PlanOptions") -> str:
    """Text on the kernel's tiles and time on other devices, for the given number of inputs like those at hand.

    Coupling is detected on the inputs at hand. The rate, if none is given, is measured here on a tile of the same size,
    or on a tile of the inputs at hand where that does not fit.
    """
    f, params, x = subject
    at_hand = planned(f, params, x, **options | {"memory": None})
    options = options | {"coupled": at_hand.coupled}
    like = _described((elsewhere.for_inputs or len(x), *x.shape[1:]), x.dtype)
    devices, flops_per_second = elsewhere.on_devices or 1, elsewhere.flops_per_second
    cut = replace(planned(f, params, like, **options, parallel=devices), coupling=at_hand.coupling)
    if flops_per_second is None:
        rows = np.arange(cut.rows if _fits(cut) else len(x)) % len(x)
        sample = x if _is_described(x) else x[rows]
        here = planned(f, params, sample, **options | {"memory": None}, measure=True)
        flops_per_second = here.flops / (here.seconds or math.inf)
    found = cut.on(devices, flops_per_second=flops_per_second, writes_per_second=elsewhere.writes_per_second)
    return f"{cut.summary()}\n{found.summary()}"


def compute(subject: Subject, path: Path, on: Runner, options: dict[str, Any]) -> str:
    """Computes the kernel, or its missing tiles, into its store; returns one line that says what was done.

    Raises:
        Interrupted: Ctrl-C was pressed, and there is a store.
    """
    if any(_is_described(leaf) for leaf in jax.tree.leaves((subject.params, subject.x))):
        raise TypeError("the network has descriptions of arrays (ShapeDtypeStruct): those can be planned only, --plan")
    which = options.pop("which")
    if which == "nngp":
        options.pop("method")
    function = {"ntk": empirical_ntk, "nngp": empirical_nngp}[which]

    def call(track: Track) -> EmpiricalKernel:
        try:
            return function(*subject, **options, store=path, on=on, track=track)
        except OF_USERS as error:  # workers raise them, too: a function may find fewer files or modules there
            raise ValueError(f"computing a tile raised {type(error).__name__}: {error}") from error

    found, how = into_store(path, call)
    plan = found.plan
    return f"{which} {plan.shape} {plan.dtype} ({plan.layout}) by {plan.method}, {how}: {_where(path)}"


def compute_infinite(network: HasKernel, x: np.ndarray, path: Path, *, on: Runner, memory: str | None) -> StoredKernel:
    """The kernel of an infinite network in its store; prints one line that says what was done. Errors as `compute`."""

    def call(track: Track) -> StoredKernel:
        return infinite_kernel(network, x, memory=memory, store=path, on=on, track=track)

    found, how = into_store(path, call)
    plan = found.plan
    print(f"nngp and ntk {plan.shape} {plan.dtype} {plan.way}, {how}: {_where(path)}")
    return found


def plan_infinite(network: HasKernel, x: np.ndarray, on: Runner, memory: str | None) -> str:
    """Text on tiles, bytes, operations and time of an infinite network's kernel in a store."""
    plan = plan_store(network, x, memory=budget(memory, on), parallel=on.parallel)
    return f"{plan.summary()}\n{gib(plan.storage_bytes)} on disk"


def into_store(path: Path, call: Callable[[Track], T]) -> tuple[T, str]:
    """The result of a call with a progress bar that computes into a store, and how long it took, in words.

    Raises:
        Interrupted: Ctrl-C was pressed, and there is a store.
    """
    begun = False
    start = time.perf_counter()
    with progress() as track:

        def announced(steps: Any, description: str) -> Iterable[Any]:
            nonlocal begun
            begun = True
            done = _announce(path, len(steps))
            return track(steps, description, done)

        try:
            found = call(announced)
        except KeyboardInterrupt:
            if any_store(path) is None:
                raise
            raise Interrupted(f"{state(path)}; repeat the command to go on") from None
    return found, f"{time.perf_counter() - start:.3g} s" if begun else "finished before"


def _where(path: Path) -> str:
    return f"in {path}; read it with ntk_analysis.open_kernel({str(path)!r})"


def state(path: Path) -> str:
    """Text on how many tiles of a store are finished."""
    kept = any_store(path)
    if kept is None:
        return f"nothing is in {path} yet"
    return f"{kept.plan.count - len(kept.todo)} of {kept.plan.count} tiles are in {path}"


def _announce(path: Path, todo: int) -> int:
    """Prints the plan of a store that is now being computed; returns how many of its tiles are finished."""
    kept = any_store(path)
    assert kept is not None, "it was opened before"
    done = kept.plan.count - todo
    before = f", {done} of them finished before" if done else ""
    print(f"{kept.plan.summary()}{before}; {gib(kept.plan.storage_bytes)} in {path}", file=sys.stderr)
    return done


def _send_along(target: str) -> None:
    """Arranges that the user's module and its neighbours are sent to workers, which may not find the files."""
    name = target.rpartition(":")[0]
    file = Path(name if name.endswith(".py") else str(sys.modules[name].__file__)).resolve()
    if "site-packages" in file.parts:
        return
    register = importlib.import_module("cloudpickle").register_pickle_by_value
    for module in list(sys.modules.values()):
        if (path := vars(module).get("__file__")) and Path(path).resolve().parent == file.parent:
            register(module)


def _fits(cut: TilePlan) -> bool:
    return cut.memory_bytes <= available_bytes()


def _in(dtype: Any, tree: Any) -> Any:
    """The tree with its floats as NumPy arrays of this dtype; descriptions stay descriptions, all else is unchanged."""

    def converted(leaf: Any) -> Any:
        if not jnp.issubdtype(getattr(leaf, "dtype", np.dtype(int)), jnp.floating):
            return leaf
        return _described(leaf.shape, np.dtype(dtype)) if _is_described(leaf) else np.asarray(leaf, dtype)

    return jax.tree.map(converted, tree)


def _is_described(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _described(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
