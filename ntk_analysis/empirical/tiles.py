"""A function becomes a plan, and a plan becomes tiles: what stores, clusters and devices iterate over."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.cost import described
from ntk_analysis.common.finite import require_finite
from ntk_analysis.common.memory import memory_budget
from ntk_analysis.common.precision import AnyArray, is_traced, numpy_in_float64, wants_float64
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.coupling import WHOLE, coupling
from ntk_analysis.empirical.faults import Place, fault
from ntk_analysis.empirical.functions import (
    Inputs,
    Network,
    Side,
    check_inputs,
    check_params,
    count_outputs,
    defined,
    flattened,
    name_of,
    precise,
    shortened,
)
from ntk_analysis.empirical.halves import symmetric_tile
from ntk_analysis.empirical.last_norm import last_norm_method
from ntk_analysis.empirical.layerwise import layerwise_method
from ntk_analysis.empirical.layouts import LAYOUTS, Layout, arranged, symmetric
from ntk_analysis.empirical.methods import Method, Programs, jacobian_method, outputs_method, products_method
from ntk_analysis.empirical.plans import Task, TilePlan, plan_tiles
from ntk_analysis.empirical.trees import InputTree, as_rows
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers import BatchNorm, LastBatchNorm, Layer
from ntk_analysis.layers.base import Params
from ntk_analysis.stores.grid import padded_rows

METHODS = ("jacobian", "products", "layerwise", "last_norm")
OF_LAYERS = {"layerwise": layerwise_method, "last_norm": last_norm_method}
KERNELS = ("ntk", "nngp")
# time of a FLOP, relative to the others: gradients of single inputs, above all of convolutions, make small matrix
# products; measured on a CPU: CNN 2.3, batch-norm MLP 3
SLOWNESS = {"jacobian": 2.0}
AS_STATED = "as stated"
NETWORKS = 32  # number of networks whose compiled tiles are kept for the next call


@numpy_in_float64
def plan(
    f: Network,
    params: Params,
    x1: Inputs | InputTree,
    x2: Inputs | InputTree | None = None,
    *,
    layout: Layout = "full",
    which: str = "ntk",
    method: str = "auto",
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    measure: bool = False,
    parallel: int = 1,
) -> TilePlan:
    """Tiles, bytes and FLOPs of an empirical kernel, without computing it.

    Args:
        f: function or network, as for `empirical_ntk`, like all arguments not explained here.
        params: parameters; `jax.ShapeDtypeStruct`s suffice if `coupled` is stated and nothing is measured.
        x1: inputs, or a `jax.ShapeDtypeStruct` with their shape and dtype, for inputs that are not at hand.
        x2: second inputs or their `jax.ShapeDtypeStruct`, or None.
        layout: layout of the kernel, "full", "diagonal" or "trace".
        which: kernel, "ntk" or "nngp".
        method: name of the method; "auto" takes the one of least time by its FLOPs.
        coupled: True, False or "detect", which knows the answer for layers, and tries other f out (on random inputs, if
            x1 is not at hand); the summary says what was found.
        memory: memory that one tile may take: bytes, "4GiB", or None for half of what is free.
        measure: whether to run one tile (on random inputs, if x1 is not at hand) and estimate the time.
        parallel: number of devices or workers, each of which gets several tiles; the budget is that of each.

    Raises:
        TypeError, ValueError: an argument is refused, as by `empirical_ntk`.
        MemoryError: not even one pair of inputs fits into the budget.
    """
    f, *given = as_rows(f, params, x1, x2)
    x1, x2 = checked_call(f, params, *given, layout=layout, which=which, method=method, coupled=coupled)
    shape1, shape2 = _abstract(x1), None if x2 is None else _abstract(x2)
    outputs, dtype = _outputs(f, *_hashable(params), shape1, computes_in_float64())
    budget = memory_budget(memory)
    why = AS_STATED if coupled else ""
    if coupled == "detect":
        tried1 = x1 if isinstance(x1, np.ndarray) else _concrete(x1, WHOLE)
        tried2 = x2 if x2 is None or isinstance(x2, np.ndarray) else _concrete(x2, WHOLE)
        why = coupling(f, params, tried1, tried2, which=which, budget=budget)
    task = Task(outputs, layout, which, bool(why), why, dtype, budget)
    best = _cheapest(f, params, shape1, shape2, _candidates(f, which, method), task, parallel=parallel)
    if measure:
        best = replace(best, seconds=_measured(f, params, _concrete(x1), None if x2 is None else _concrete(x2), best))
    return best


def checked_call(
    f: Network,
    params: Params,
    x1: Inputs,
    x2: Inputs | None,
    *,
    layout: Layout = "full",
    which: str = "ntk",
    method: str = "auto",
    coupled: bool | str = "detect",
) -> tuple[Any, Any]:
    """The inputs on the host, or their descriptions; raises the errors of `plan` about arguments, without calling f."""
    refuse_whole_models(f, params)
    check_choices(f, layout=layout, which=which, method=method, coupled=coupled)
    if is_traced(f, params, x1, x2):
        raise TypeError(
            "plans and stores of empirical kernels need values, got JAX tracers: call them outside jit, grad and vmap"
        )
    x1 = x1 if isinstance(x1, jax.ShapeDtypeStruct) else concrete(x1, "x1")
    x2 = x2 if x2 is None or isinstance(x2, jax.ShapeDtypeStruct) else concrete(x2, "x2")
    check_inputs(x1, x2)
    check_params(params)
    if isinstance(x1, np.ndarray) and _divides_by_variance(f) and np.all(x1 == x1[:1]):
        raise ValueError(
            "all inputs of the batch are equal, so a batch normalisation at eps = 0 divides by a variance of 0: give "
            "distinct inputs, or eps > 0"
        )
    return x1, x2


def _divides_by_variance(f: Any) -> bool:
    """Whether a layer of this network is a batch normalisation at eps = 0."""
    return isinstance(f, Layer) and (
        (isinstance(f, BatchNorm | LastBatchNorm) and f.eps == 0) or any(map(_divides_by_variance, f.parts))
    )


class Tiles:
    """The tiles of a plan, each a pure function of (i, j): the same bits in any order and any process.

    What is prepared of the last row of tiles is kept, so that going row by row prepares it once. A tile that is not
    finite raises ValueError.
    """

    def __init__(
        self,
        f: Network,
        params: Params,
        x1: ArrayLike,
        x2: ArrayLike | None,
        *,
        plan: TilePlan,
        float64: bool | None = None,
    ) -> None:
        self.plan = plan
        self._float64 = computes_in_float64(params, x1, x2) if float64 is None else float64
        self._f, self._programs = f, tile_programs(f, plan.method, plan.layout)
        self._x1 = concrete(x1, "x1")
        self._x2 = self._x1 if x2 is None else concrete(x2, "x2")
        self._row: tuple[int, Any] = (-1, None)
        with jax.enable_x64(self._float64):
            self._params = jax.tree.map(jnp.asarray, params)

    def __call__(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j) without its padding; the diagonal tiles of a symmetric kernel are exactly symmetric."""
        same = self.plan.symmetric and i == j
        with jax.enable_x64(self._float64):
            if same and self.plan.count == 1:
                return self.finished(0, 0, self._programs.square(self._params, self._side(self._x1, 0, self.plan.rows)))
            left = self.left(i)
            return self.finished(i, j, self.contract(left, left if same else self.right(j)))

    def finished(self, i: int, j: int, padded: AnyArray) -> np.ndarray:
        """The computed tile (i, j) without its padding; ValueError if it is not finite."""
        rows, columns = self.plan.slices(i, j)
        tile = np.asarray(padded)[: rows.stop - rows.start, : columns.stop - columns.start]
        what = f"the {self.plan.which.upper()} of {shortened(name_of(self._f))}"
        require_finite(tile, what, rows=rows.start, columns=columns.start, why=self._fault)
        return symmetric(tile) if self.plan.symmetric and i == j else tile

    def _fault(self, row: int, column: int) -> str:
        def place(name: str, number: int, x: np.ndarray) -> Place:
            if self.plan.coupled:
                return Place(name, number, x, number)
            return Place(name, number, x[number : number + 1], 0)

        pair = place("x1", row, self._x1), place("x1" if self.plan.symmetric else "x2", column, self._x2)
        with jax.enable_x64(self._float64):
            return fault(self._f, self._params, pair, which=self.plan.which, dtype=self.plan.dtype)

    def left(self, i: int) -> Tree:
        """What is prepared of the rows of tiles (i, .), on the device."""
        if self._row[0] != i:
            self._row = (-1, None)  # frees the old row before the new one is prepared
            self._row = (i, self._programs.prepare(self._params, self._side(self._x1, i, self.plan.rows)))
        return self._row[1]

    def right(self, j: int) -> Tree:
        """What is prepared of the columns of tiles (., j), on the device."""
        return self._programs.prepare(self._params, self._side(self._x2, j, self.plan.columns))

    def contract(self, left: Tree, right: Tree) -> jax.Array:
        """The tile of these prepared rows and columns, with its padding, on the device."""
        return self._programs.contract(self._params, left, right)

    def _side(self, x: np.ndarray, index: int, size: int) -> Side:
        rows = padded_rows(index, size, len(x))
        return Side(jnp.asarray(x), jnp.asarray(rows, jnp.int32)) if self.plan.coupled else Side(jnp.asarray(x[rows]))


def computes_in_float64(*arrays: Any) -> bool:
    """Whether kernels of these arrays are computed in float64: JAX's flag is on, or an array is NumPy float64."""
    return bool(jax.dtypes.canonicalize_dtype(np.float64) == np.float64) or wants_float64(*arrays)


@lru_cache(maxsize=NETWORKS)
def tile_programs(f: Network, name: str, layout: Layout) -> Programs:
    """The compiled programs of a method for this function."""
    method = method_of(f, name, layout)

    def contract(params: Params, left: Tree, right: Tree) -> jax.Array:
        return arranged(method.contract(params, left, right), layout)

    square = partial(symmetric_tile, method, layout)
    return Programs(name, jax.jit(method.prepare), jax.jit(contract), jax.jit(square))


def method_of(f: Network, name: str, layout: Layout) -> Method:
    """The method of this name, not compiled; matrix products are exact to the dtype, also inside f."""
    if name in OF_LAYERS:
        assert isinstance(f, Layer), "plan refuses it for other functions"
        method = OF_LAYERS[name](f, layout)
    else:
        make = {"jacobian": jacobian_method, "products": products_method, "outputs": outputs_method}[name]
        method = make(defined(flattened(f)), layout)
    return method._replace(prepare=precise(method.prepare), contract=precise(method.contract))


@lru_cache(maxsize=NETWORKS)
def _outputs(
    f: Network, tree: Any, leaves: tuple[Any, ...], x: jax.ShapeDtypeStruct, float64: bool
) -> tuple[int, np.dtype]:
    """The number C and the dtype of the outputs, kept, because tracing f takes longer than a small kernel."""
    del float64  # tracing depends on JAX's flag
    return count_outputs(f, jax.tree.unflatten(tree, leaves), x)


def _hashable(params: Params) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """The structure of the parameters and the descriptions of their arrays."""
    leaves, tree = jax.tree.flatten(params)
    return tree, tuple(described(leaf.shape, leaf.dtype) for leaf in leaves)


def _candidates(f: Network, which: str, method: str) -> tuple[str, ...]:
    if which == "nngp":
        return ("outputs",)
    if method != "auto":
        return (method,)
    return METHODS if isinstance(f, Layer) else METHODS[:2]


def _cheapest(
    f: Network, params: Params, x1: Any, x2: Any, names: tuple[str, ...], task: Task, *, parallel: int
) -> TilePlan:
    """The plan of least time by its FLOPs; methods that cannot serve this function or budget are left out."""
    found: list[TilePlan] = []
    refusals: list[Exception] = []
    for name in names:
        try:
            found.append(plan_tiles(tile_programs(f, name, task.layout), params, x1, x2, task=task, parallel=parallel))
        except (MemoryError, NotImplementedError) as refusal:
            refusals.append(refusal)
    if not found:
        raise next((refusal for refusal in refusals[::-1] if isinstance(refusal, MemoryError)), refusals[-1])
    return min(found, key=lambda plan: plan.flops * SLOWNESS.get(plan.method, 1.0))


def _measured(f: Network, params: Params, x1: Any, x2: Any, plan: TilePlan) -> float:
    """Estimated seconds of the whole kernel, from the second run of one tile."""
    tiles = Tiles(f, params, x1, x2, plan=plan)

    def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
        jax.block_until_ready(function(*arguments))
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        return time.perf_counter() - start, result

    if plan.symmetric and plan.count == 1:
        return timed(lambda: tiles(0, 0))[0]
    preparation, side = timed(tiles.right, 0)
    product, _ = timed(lambda left: np.asarray(tiles.contract(left, side)), tiles.left(0))
    down, count = plan.grid[0], plan.count
    return (down + (count - down if plan.symmetric else count)) * preparation + count * product


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return described(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _concrete(x: Any, count: int | None = None) -> np.ndarray:
    """The inputs, or random ones of their shape, at most `count`."""
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x
    shape = (min(x.shape[0], count or x.shape[0]), *x.shape[1:])
    return np.random.default_rng(0).standard_normal(shape).astype(x.dtype)


def check_choices(f: Any, *, layout: Layout, which: str, method: str, coupled: Any) -> None:
    """Raises ValueError or TypeError for a choice that does not exist, or no function."""
    for name, value, choices in (
        ("layout", layout, LAYOUTS),
        ("which", which, KERNELS),
        ("method", method, ("auto", *METHODS)),
    ):
        if value not in choices:
            raise ValueError(f"got {name}={value!r}: choose one of {', '.join(choices)}")
    if coupled not in (True, False, "detect"):
        raise ValueError(f"got coupled={coupled!r}: choose True, False or 'detect'")
    if not callable(f) and not isinstance(f, Layer):
        raise TypeError(f"f must be a function of (params, x) or a network of layers, got {type(f).__name__}")
    if method in OF_LAYERS and not isinstance(f, Layer):
        raise ValueError(
            f"method {method!r} needs a network of layers as f: use 'jacobian' or 'products' for functions"
        )
