"""NTK and NNGP of a finite network, of any pure function f(params, x)."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import jax
import numpy as np

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.memory import available_bytes, gib
from ntk_analysis.common.precision import AnyArray, is_traced, numpy_in_float64
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.functions import Network
from ntk_analysis.empirical.identity import as_it_is
from ntk_analysis.empirical.job import EmpiricalJob, Held
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.empirical.plans import KERNEL, Call, TilePlan
from ntk_analysis.empirical.tiles import checked_call, computes_in_float64, plan
from ntk_analysis.empirical.traced import traced_kernel
from ntk_analysis.empirical.trees import InputTree, as_rows
from ntk_analysis.layers.base import Params
from ntk_analysis.stores.devices import Devices
from ntk_analysis.stores.manifest import Manifest, kind_of, read_manifest
from ntk_analysis.stores.runs import Runner, budget
from ntk_analysis.stores.store import Stored, computed, require_room

if TYPE_CHECKING:
    Values: TypeAlias = np.ndarray
else:
    # on the host, but for a kernel inside a JAX transformation and what a compiled function returns
    Values: TypeAlias = np.ndarray | jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["plan"])
@dataclass(frozen=True, repr=False)
class EmpiricalKernel:
    """A kernel of a finite network, with the plan by which it was computed.

    Attributes:
        values: kernel of shape (N1, N2, C, C) for "full", (N1, N2, C) for "diagonal" or (N1, N2) for "trace", in the
            dtype of the network; the values of a store are read from disk when they are indexed, and those of a kernel
            inside JAX transformations are traced.
        plan: plan with tiles, method and cost.
    """

    values: Values | Stored
    plan: TilePlan

    @property
    def ntk(self) -> Values:
        """The tangent kernel, entry [a, b, c, d] = <d f_c(x_a), d f_d(x_b)>; or its diagonal or its trace over outputs.

        The kernel of a store is read into memory as a whole; `values` reads parts.
        """
        return self._values("ntk")

    @property
    def nngp(self) -> Values:
        """The products of outputs, entry [a, b, c, d] = f_c(x_a) f_d(x_b); or their diagonal or trace over outputs."""
        return self._values("nngp")

    def _values(self, which: str) -> Values:
        if self.plan.which != which:
            raise AttributeError(f"this is the {self.plan.which} of the network: use empirical_{which}")
        # a traced kernel stays what it is
        return self.values if isinstance(self.values, jax.core.Tracer) else np.asarray(self.values)

    @property
    def layout(self) -> Layout:
        """The layout: "full", "diagonal" or "trace" (the SUM over outputs)."""
        return self.plan.layout

    @property
    def method(self) -> str:
        """Name of the method by which the kernel was computed."""
        return self.plan.method

    @property
    def coupled(self) -> bool:
        """Whether outputs depend on the other inputs of their batch, as found or stated."""
        return self.plan.coupled

    @property
    def flops(self) -> float:
        """Number of floating-point operations, counted on the program."""
        return self.plan.flops

    @property
    def memory_bytes(self) -> int:
        """The most bytes that one tile took on the device, counted on the program; the kernel itself is on the host."""
        return self.plan.memory_bytes

    def summary(self) -> str:
        """The plan and the cost as one line of text."""
        return f"empirical {self.plan.summary()}"

    def __repr__(self) -> str:
        return f"<{self.summary()}>"


@numpy_in_float64
def empirical_ntk(
    f: Network,
    params: Params,
    x1: AnyArray | InputTree,
    x2: AnyArray | InputTree | None = None,
    *,
    layout: Layout = "full",
    method: str = "auto",
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    store: str | Path | None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> EmpiricalKernel:
    """Neural tangent kernel of a finite network, entry [a, b, c, d] = <d f_c(x_a), d f_d(x_b)> over all parameters.

    The kernel is computed tile by tile in the dtype of the network. It is a NumPy array on the host, exactly symmetric
    if x2 is None. NumPy float64 parameters and inputs are computed in float64, whatever JAX's flag.

    Inside jit, grad and vmap it is a part of the caller's program: one tile, by "jacobian" unless a method is named,
    without memory, store, runner or progress, in the ambient dtype, and nothing is counted or checked for NaN. There
    `coupled` must be stated, but for layers. A compiled function may return it, with JAX arrays as `values`.

    Methods agree to rounding; with P parameters, a pair of inputs costs
        "jacobian"   2 C^2 P FLOPs (2 C P for diagonal and trace); a tile of n inputs holds n C P numbers of each side;
        "products"   C forward-mode derivatives of the network, whatever the layout; holds C P numbers;
        "layerwise"  2 m + 2 C^2 u (2 m + 2 C u) at each dense layer of m x u weights, without P; networks of
                     `ntk_analysis.layers` only; see `layerwise`;
        "last_norm"  as "layerwise" for the network before a last batch norm, where nothing else couples the batch.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats; the axes after the first are
            flattened into C outputs.
        params: tree of float arrays; the kernel is taken over all of them.
        x1: inputs (N1, ...); or a dict of such arrays, which a function f takes apart, with a first axis (N1,) each.
        x2: second inputs (N2, ...) of the same features; None for x1 with itself.
        layout: layout of the kernel: "full" (N1, N2, C, C), "diagonal" (N1, N2, C), its entries c = d, or "trace" (N1,
            N2), the SUM of the diagonal over outputs.
        method: name of the method, "jacobian", "products", "layerwise" or "last_norm"; or "auto", the one of least time
            by its FLOPs.
        coupled: whether an output depends on the other inputs of its batch (batch normalisation in training mode), or
            on its place in the batch or the batch's size. Then x1 is one batch and x2 another, never cut, and the
            kernel is that of the batch's outputs. "detect" knows the answer for layers; for all else it tries outputs
            and derivatives out on inputs that differ. The summary says what was found.
        memory: memory that one tile may take: bytes, "4GiB", or None for half of what is free.
        store: folder on disk for the kernel; None keeps it in the host's memory. The same call continues a store that
            was interrupted, with the store's tiles, and ends with the same bits; see `store`.
        on: runner that computes the tiles: None for all devices of this machine, `Devices(...)` for some of them,
            `Cluster("tcp://...")` or `Cluster(workers=3)` for many machines or processes, which needs a store.
        track: function that draws a progress bar: it is called once with the tiles and a description, and yields the
            tiles.

    Raises:
        TypeError: f does not return one array of floats, parameters are not floats, or the call is inside a
            transformation with options that it cannot have there.
        ValueError: parameters, inputs or results are NaN or infinite, shapes do not fit, or an option is unknown.
        MemoryError: one pair of inputs needs more than the budget, or the kernel needs more memory than the host has.
        NotImplementedError: the method is "layerwise" for a network with compositions that the user wrote, or
            "last_norm" for a network that does not end in a batch norm.
        FileExistsError: there is something at `store` that is not a store; it is left as it is.
        OSError: the disk is full, or too small for the kernel.
        BlockingIOError: another process computes the kernel in this store.

    Warns:
        UserWarning: tiles of the store are damaged: they are computed again.
    """
    options: dict[str, Any] = {"layout": layout, "method": method, "coupled": coupled, "memory": memory}
    return _compute(f, params, x1, x2, options, store, on, track)


@numpy_in_float64
def empirical_nngp(
    f: Network,
    params: Params,
    x1: AnyArray | InputTree,
    x2: AnyArray | InputTree | None = None,
    *,
    layout: Layout = "full",
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    store: str | Path | None = None,
    on: Runner | None = None,
    track: Track = untracked,
) -> EmpiricalKernel:
    """Products of a finite network's outputs, entry [a, b, c, d] = f_c(x_a) f_d(x_b); "trace" sums c = d.

    The average over networks and outputs is the NNGP. Arguments and errors are those of `empirical_ntk`.
    """
    options: dict[str, Any] = {"layout": layout, "which": "nngp", "coupled": coupled, "memory": memory}
    return _compute(f, params, x1, x2, options, store, on, track)


def _compute(
    f: Network,
    params: Params,
    x1: Any,
    x2: Any,
    options: dict[str, Any],
    store: str | Path | None,
    on: Runner | None,
    track: Track,
) -> EmpiricalKernel:
    f, x1, x2 = as_rows(f, params, x1, x2)
    if is_traced(f, params, x1, x2):
        elsewhere: dict[str, Any] = {"store": store, "on": on, "track": None if track is untracked else track}
        values, cut = traced_kernel(f, params, x1, x2, **options, **elsewhere)
        return EmpiricalKernel(cast(Values, values), cut)
    on = on or Devices()
    path = None if store is None else Path(store)
    begun = None if path is None else read_manifest(path)
    if path is not None:
        stated = {name: options[name] for name in ("layout", "which", "method", "coupled") if name in options}
        f = as_it_is(f, params, checked_call(f, params, x1, x2, **stated)[0])
    free = options["memory"] is None
    cut = plan(f, params, x1, x2, parallel=on.parallel, **options | {"memory": budget(options["memory"], on)})
    if path is not None and begun is not None:
        # half of what is free changes from call to call: tiles that fit are good enough
        limit = available_bytes() // on.share if free else cut.budget_bytes
        cut = _continued(path, cut, begun, auto=options.get("method", "auto") == "auto", limit=limit)
    float64 = computes_in_float64(params, x1, x2)
    job = EmpiricalJob(Call(f, params, concrete(x1, "x1"), None if x2 is None else concrete(x2, "x2"), cut, float64))
    if path is not None:
        return EmpiricalKernel(computed(job, path, on, track).arrays[KERNEL], cut)
    held = Held(_room(cut), cut)
    on.run(job, list(cut.tiles), held, track)
    return EmpiricalKernel(held.values, cut)


def _continued(path: Path, cut: TilePlan, found: Manifest, *, auto: bool, limit: int) -> TilePlan:
    """The plan with the tiles of the store that it continues, and with its method if none was asked for."""
    begun = TilePlan.of(found) if kind_of(found) == cut.kind else None
    if begun is None or begun.shape != cut.shape or (begun.method != cut.method and not auto):
        return cut  # another kernel, as the manifest will say
    require_room(path, begun, limit)
    taken = ("rows", "columns", "method", "flops", "memory_bytes")
    return replace(cut, **{name: getattr(begun, name) for name in taken})


def _room(cut: TilePlan) -> np.ndarray:
    try:
        return np.empty(cut.shape, cut.dtype)
    except MemoryError as error:
        raise MemoryError(
            f"the kernel {cut.shape} itself needs {gib(cut.storage_bytes)} on the host: give store=PATH, take "
            "layout='trace', or fewer inputs at a time"
        ) from error
