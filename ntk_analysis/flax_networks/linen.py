"""A Flax Linen module as f(params, x)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import jax
from flax import linen as nn
from flax.errors import FlaxError

from ntk_analysis.common.pytrees import Tree
from ntk_analysis.flax_networks.modes import Seen, arguments, check_obeyed, flags
from ntk_analysis.layers.base import Params

MODED: dict[type[nn.Module], str] = {nn.BatchNorm: "use_running_average", nn.Dropout: "deterministic"}
"""Layers with a mode, and their flag for evaluation: an attribute, or the second argument of their call."""


@dataclass(frozen=True, eq=False)
class LinenFunction:
    """f(params, x) of a Linen module; what the module writes into its other collections is lost.

    Attributes:
        module: module as it is applied.
        state: collections besides "params".
        arguments: further arguments of the module's call, after x.
        rngs: random keys of the module, the same in every call, so that f is a function.
        mode: mode of the module, "eval" or "train".
    """

    module: nn.Module
    state: Mapping[str, Any] = field(repr=False)
    arguments: Mapping[str, Any]
    rngs: Mapping[str, jax.Array] = field(repr=False)
    mode: str

    def __call__(self, params: Params, x: Tree) -> Tree:
        """The module's output."""
        return self.apply(params, x)[0]

    def apply(self, params: Params, x: Tree) -> tuple[Any, Mapping[str, Any]]:
        """The module's output, and the collections that it may write into."""
        # with batch statistics running ones are not missed; in evaluation mode missing ones would be invented
        mutable: Any = nn.DenyList(("params",)) if self.mode == "train" else tuple(self.state)
        variables = {"params": params, **self.state}
        return self.module.apply(variables, x, rngs=dict(self.rngs), mutable=mutable, **self.arguments)


def from_linen(
    module: object,
    variables: Tree,
    x: Tree,
    *,
    mode: str,
    rngs: jax.Array | Mapping[str, jax.Array] | None,
    given: dict[str, Any],
) -> tuple[LinenFunction, Params, Any]:
    """See `networks.from_linen`."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"got {type(module).__name__}, expected a module of flax.linen: from_nnx takes those of nnx")
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = ", ".join(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(f'got variables of {got}, expected what module.init returned, {{"params": ..., ...}}')
    params = variables["params"]
    state = {name: collection for name, collection in variables.items() if name != "params"}
    if not isinstance(rngs, Mapping):
        rngs = {"params": jax.random.key(0) if rngs is None else rngs}  # Flax takes this stream for missing ones
    said = arguments(module.__call__, mode, given)
    f = LinenFunction(_in_mode(module, flags(mode), {}), state, said, rngs, mode)
    seen = _try(f, params, x)
    check_obeyed(mode, seen)
    return f, params, x


def _in_mode(value: Any, wanted: dict[str, bool], done: dict[int, Any]) -> Any:
    """The description of a module with every flag among its attributes set; shared modules stay shared."""
    if id(value) in done:
        return done[id(value)]
    changed = value
    if isinstance(value, nn.Module):
        changes: dict[str, Any] = {}
        for name in (one.name for one in fields(value) if one.name not in ("parent", "name")):
            before = getattr(value, name, None)
            after = wanted[name] if name in wanted and isinstance(before, bool) else _in_mode(before, wanted, done)
            if after is not before:
                changes[name] = after
        changed = value.clone(**changes) if changes else value
    elif type(value) in (list, tuple):
        items = [_in_mode(item, wanted, done) for item in value]
        if any(after is not before for after, before in zip(items, value, strict=True)):
            changed = type(value)(items)
    elif type(value) is dict:
        named = {key: _in_mode(item, wanted, done) for key, item in value.items()}
        if any(named[key] is not value[key] for key in value):
            changed = named
    done[id(value)] = changed
    return changed


def _try(f: LinenFunction, params: Params, x: Any) -> list[Seen]:
    """The layers with a mode through which one call goes.

    Raises:
        ValueError: the module cannot be applied to these variables and inputs.
    """
    seen: dict[str, Seen] = {}

    def watch(call: Any, args: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        flag = next((flag for kind, flag in MODED.items() if isinstance(module, kind)), None)
        if flag is not None and context.method_name == "__call__" and getattr(module, "rate", 1) != 0:
            said = options.get(flag, args[1] if len(args) > 1 else None)
            evaluates = getattr(module, flag) if said is None else said
            name = f"{type(module).__name__} {'/'.join(module.path)}".strip()
            seen[name] = Seen(name, not evaluates)
        return call(*args, **options)

    try:
        with nn.intercept_methods(watch):
            written = jax.eval_shape(f.apply, params, x)[1]
    except FlaxError as error:
        reason = str(error).splitlines()[0].partition(" (https:")[0]
        raise ValueError(f"{type(f.module).__name__} cannot be applied to these variables and x: {reason}") from error
    if f.mode == "eval":
        _check_complete(f.state, written)
    return list(seen.values())


def _check_complete(state: Mapping[str, Any], written: Mapping[str, Any]) -> None:
    def names(tree: Any) -> set[str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves}

    if missing := sorted(names(written) - names(state)):
        raise ValueError(f"variables lack {', '.join(missing)}, which the module reads: pass what module.init returned")
