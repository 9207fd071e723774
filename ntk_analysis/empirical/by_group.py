"""Tangent kernels by group of parameters: what each layer, or each kind of array, adds to the whole.

The kernel is a sum over parameters, so the kernels of groups that share no array add up to it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from ntk_analysis.common.memory import gib, host_bytes
from ntk_analysis.common.precision import AnyArray, numpy_in_float64
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.functions import Network
from ntk_analysis.empirical.kernels import EmpiricalKernel
from ntk_analysis.empirical.layouts import Layout, arranged, inner
from ntk_analysis.empirical.tiles import Tiles, plan
from ntk_analysis.layers.base import Params

By: TypeAlias = str | int | Callable[[str], str]
"""How arrays are grouped, by their path such as "block/2/conv/kernel": see `group_names`."""
WAYS: dict[str, Callable[[list[str]], list[str]]] = {
    "layer": lambda names: names[:-1] or names,
    "kind": lambda names: names[-1:],
    "array": lambda names: names,
}


def group_names(params: Params, by: By = "layer") -> list[str]:
    """The name of the group of each array of params, in the order of its leaves.

    Args:
        params: tree of arrays; the names on the way to an array make its path, with slashes between them.
        by: "layer", the path without its last name, where repeats of a block that share an array are one layer; "kind",
            its last name, such as "kernel", "bias" or "scale"; "array", the whole path; a number, as many first names;
            or a function from the path to the group's name.

    Raises:
        ValueError: `by` is another text, or a number below 1.
    """
    if isinstance(by, str) and by not in WAYS:
        raise ValueError(
            f"got by={by!r}: choose one of {', '.join(WAYS)}, a number of names, or a function of the path"
        )
    if isinstance(by, int) and by < 1:
        raise ValueError(f"got by={by}, expected at least 1: so many first names of a path")
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        names = [jax.tree_util.keystr((key,), simple=True) for key in path if not _inside_variable(key)] or ["params"]
        if isinstance(by, str):
            found.append("/".join(WAYS[by](names)))
        elif isinstance(by, int):
            found.append("/".join(names[:by]))
        else:
            found.append(by("/".join(names)))
    return found


@numpy_in_float64
def empirical_ntk_by(
    f: Network,
    params: Params,
    x1: AnyArray,
    x2: AnyArray | None = None,
    *,
    by: By = "layer",
    layout: Layout = "full",
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    track: Track = untracked,
) -> dict[str, EmpiricalKernel]:
    """The tangent kernel of each group of parameters, by the group's name; they add up to that of `empirical_ntk`.

    The Jacobian is taken once and contracted group by group, which costs no more than the whole kernel by "jacobian".

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: tree of float arrays.
        x1: inputs (N1, ...).
        x2: second inputs (N2, ...); None for x1 with itself.
        by: how arrays are grouped, by the names in the tree: "layer", "kind", "array", a number of names or a function
            of the path, see `group_names`.
        layout: layout of each kernel, "full", "diagonal" or "trace".
        coupled: whether an output depends on the other inputs of its batch, as for `empirical_ntk`.
        memory: memory that one tile may take, as for `empirical_ntk`.
        track: function that draws a progress bar of the tiles.

    Raises:
        TypeError, ValueError: an argument is refused, as by `empirical_ntk`, or `by` is unknown.
        MemoryError: one pair of inputs needs more than the budget, or the kernels more than the host has.
    """
    names = group_names(params, by)
    cut = plan(f, params, x1, x2, layout=layout, method="jacobian", coupled=coupled, memory=memory)
    groups = list(dict.fromkeys(names))
    if (needed := len(groups) * cut.storage_bytes) > (free := host_bytes()):
        raise MemoryError(
            f"{len(groups)} kernels {cut.shape} need {gib(needed)} on the host, {gib(free)} are free: take "
            "layout='trace', fewer groups, or fewer inputs"
        )
    tiles = Tiles(f, params, x1, x2, plan=cut)
    contract = jax.jit(lambda left, right: [_of_group(left, right, names, group, layout) for group in groups])
    kernels = [np.empty(cut.shape, cut.dtype) for _ in groups]
    for i, j in track(list(cut.tiles), f"kernels of {len(groups)} groups"):
        left = tiles.left(i)
        right = left if cut.symmetric and i == j else tiles.right(j)
        for kernel, tile in zip(kernels, contract(left, right), strict=True):
            cut.place(kernel, i, j, tiles.finished(i, j, tile))
    return {group: EmpiricalKernel(kernel, cut) for group, kernel in zip(groups, kernels, strict=True)}


def _inside_variable(key: Any) -> bool:
    """Whether the key leads from a variable of Flax NNX to the array in it."""
    return isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value"


def _of_group(left: Any, right: Any, names: Sequence[str], group: str, layout: Layout) -> jax.Array:
    """The tile of one group, from the Jacobians of rows and columns."""
    pairs = zip(names, jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    parts = [inner(_rows(first), _rows(second), layout) for name, first, second in pairs if name == group]
    total: jax.Array = sum(parts[1:], start=parts[0])
    return arranged(total, layout)


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(*leaf.shape[:2], -1)
