"""Models passed whole: objects where a function is expected, and trees that hold more than parameters."""

import sys
from collections import defaultdict
from typing import Any

import jax

from ntk_analysis.layers.base import Params

ADVICE = "networks.from_linen(module, variables, x) and networks.from_nnx(module, x) give (f, params, x)"
STATISTICS = "batch_stats"  # Linen's collection of running averages


def refuse_whole_models(f: object, params: Params) -> None:
    """Raises an error that says how to take a model apart, if f or params is a whole model.

    A kernel of whole variables would count running statistics, caches and keys as parameters.

    Raises:
        TypeError: f is a module of Flax or PyTorch, or its __call__.
        ValueError: params has collections or `nnx.Variable`s besides the parameters.
    """
    owner = getattr(f, "__self__", None) if getattr(f, "__name__", "") == "__call__" else f
    if _is(owner, "torch.nn", "Module"):
        raise TypeError(
            f"f is the PyTorch module {type(owner).__name__}, expected a function f(params, x): "
            "networks.from_torch(module, x) gives (f, params, x)"
        )
    if _is(owner, "flax.linen", "Module") or _is(owner, "flax.nnx", "Module"):
        raise TypeError(f"f is the Flax module {type(owner).__name__}, expected a function f(params, x): {ADVICE}")
    if others := sorted(_beside_parameters(params)):
        raise ValueError(f"params holds {', '.join(others)} beside parameters, expected parameters only: {ADVICE}")


def _beside_parameters(params: Params) -> set[str]:
    """The names of collections and kinds of variables, anywhere in the tree, that are not parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: _is(leaf, "flax.nnx", "Variable"))
    found, keys = set(), defaultdict(set)
    for path, leaf in leaves:
        if _is(leaf, "flax.nnx", "Variable"):
            found |= set() if _is(leaf, "flax.nnx", "Param") else {f"nnx.{type(leaf).__name__}"}
            continue
        names = [jax.tree_util.keystr((key,), simple=True) for key in path]
        for depth, name in enumerate(names):
            keys[tuple(names[:depth])].add(name)
    for siblings in keys.values():
        found |= siblings - {"params"} if "params" in siblings else siblings & {STATISTICS}
    return found


def _is(value: Any, module: str, name: str) -> bool:
    """Whether the value is of this class; the class of a library that was not imported has no instances."""
    library = sys.modules.get(module)
    return library is not None and isinstance(value, getattr(library, name))
