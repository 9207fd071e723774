"""The fan-in of the arrays of an Equinox module, whose units come first. It needs the extra `equinox`."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax

from ntk_analysis.training.fan_in import NOT_SUMMED, FanIn, Path, keys

SUMMED = eqx.nn.Linear | eqx.nn.Conv | eqx.nn.ConvTranspose | eqx.nn.GRUCell | eqx.nn.LSTMCell
APART = eqx.nn.Embedding | eqx.nn.LayerNorm | eqx.nn.GroupNorm | eqx.nn.RMSNorm | eqx.nn.BatchNorm


def fan_ins(module: Any) -> Iterator[tuple[Path, FanIn | None]]:
    """Path and fan-in of each array of the layers that are Equinox's own."""
    layers = jax.tree_util.tree_leaves_with_path(module, is_leaf=lambda node: isinstance(node, SUMMED | APART))
    for path, layer in layers:
        if isinstance(layer, SUMMED | APART):
            for inner, leaf in jax.tree_util.tree_leaves_with_path(layer):
                name = keys(inner)
                if hasattr(leaf, "ndim"):
                    yield (*keys(path), *name), _fan_in(layer, name[-1], leaf.ndim)


def _fan_in(layer: Any, name: str, axes: int) -> FanIn | None:
    if axes < 2 or "weight" not in name or isinstance(layer, APART):
        return NOT_SUMMED
    if isinstance(layer, eqx.nn.ConvTranspose):
        return FanIn(tuple(range(1, axes)), True) if layer.groups == 1 else None
    return FanIn(tuple(range(1, axes)), isinstance(layer, eqx.nn.Conv))
