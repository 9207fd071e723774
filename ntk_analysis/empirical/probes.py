"""Inputs of every layer with parameters, and the signals back-propagated to its output, for any network of ours.

The network is rebuilt with each single layer wrapped in a `Probed`, which adds a zero, the probe, to the layer's output
and records its input. The combinators run as they are, scans included; derivatives by the probes are the signals.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ntk_analysis.empirical.functions import Side, nan_with_derivatives
from ntk_analysis.empirical.methods import unit_cotangents
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params, Record, Shape, SingleLayer, as_params_dtype


class Place(NamedTuple):
    """A single layer and the number of scans around it, each of which gives its arrays one more first axis."""

    layer: SingleLayer
    stacks: int


class Flow(NamedTuple):
    """Inputs and signals of one layer with parameters.

    Attributes:
        params: parameters of the layer, (*stacks, ...).
        inputs: inputs of the layer, (*stacks, n, ...).
        signals: derivatives (*stacks, n, C, ...) of output c on input a by the layer's output on input a; if the batch
            is coupled (*stacks, rows, C, n, ...), by the layer's output on the whole batch.
    """

    params: Params
    inputs: jax.Array
    signals: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seen:
    """The recorded input of the single layer with this number."""

    number: int = field(metadata={"static": True})
    inputs: jax.Array


@dataclass(frozen=True)
class Probed(SingleLayer):
    """A single layer that takes (params, probe), adds the probe to its output and records its input."""

    layer: SingleLayer
    number: int

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        raise NotImplementedError("a probed layer takes the parameters of the layer that it holds")

    def kernel(self, kernel: Kernel) -> Kernel:
        raise NotImplementedError("a probed layer has no infinite-width side")

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        own, probe = params
        y = self.layer.compute(own, x)
        return y if probe is None else y + probe

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        return self.compute(params, x), (None if record is None else Seen(self.number, x))


def probed(network: Layer, places: list[Place], stacks: int = 0) -> Layer:
    """The network made of probed layers; appends the single layers to `places`, in the order of their parameters."""
    if isinstance(network, SingleLayer):
        places.append(Place(network, stacks))
        return Probed(network, len(places) - 1)
    if network.parts:
        return network.rebuilt([probed(part, places, stacks + network.stacked) for part in network.parts])
    raise NotImplementedError(f"method 'layerwise' does not know how {type(network).__name__} is made of layers")


def flows(template: Layer, places: list[Place], params: Params, side: Side) -> list[Flow | None]:
    """Inputs and signals of each of the `places` of a probed network; None for layers without parameters."""
    x = as_params_dtype(params, side.x)
    # a single layer keeps its parameters in a dict, or has none: ()
    own, tree = jax.tree.flatten(params, is_leaf=lambda node: isinstance(node, dict) or _empty(node))
    if len(own) != len(places):
        raise NotImplementedError(
            f"method 'layerwise' needs one dict of parameters for each layer that has any, got {len(own)} parts for "
            f"{len(places)} layers: use method='jacobian'"
        )

    def run(probes: list[jax.Array | None]) -> tuple[jax.Array, dict[int, jax.Array]]:
        merged = jax.tree.unflatten(tree, list(zip(own, probes, strict=True)))
        y, records = template.forward(merged, x, record=lambda y: y)
        seen = [node for node in jax.tree.leaves(records, is_leaf=_is_seen) if _is_seen(node)]
        return nan_with_derivatives(y.reshape(y.shape[0], -1)), {node.number: node.inputs for node in seen}

    shapes = jax.eval_shape(run, [None] * len(own))[1]
    probes = [
        None if _empty(params) else _zeros(over_stacks(place.layer.compute, place.stacks), params, shapes[number])
        for number, (place, params) in enumerate(zip(places, own, strict=True))
    ]
    y, pull, inputs = jax.vjp(run, probes, has_aux=True)
    if side.rows is None:
        cotangents = jnp.broadcast_to(jnp.eye(y.shape[1], dtype=y.dtype)[:, None], (y.shape[1], *y.shape))
        signals = jax.vmap(pull)(cotangents)[0]
    else:
        signals = jax.vmap(jax.vmap(pull))(unit_cotangents(y, side.rows))[0]

    def flow(number: int, signal: jax.Array) -> Flow:
        stacks = places[number].stacks
        if side.rows is None:
            signal = jnp.moveaxis(signal, 0, stacks + 1)
        else:
            signal = jnp.moveaxis(signal, (0, 1), (stacks, stacks + 1))
        return Flow(own[number], inputs[number], signal)

    return [None if signal is None else flow(number, signal) for number, signal in enumerate(signals)]


def over_stacks(function: Callable[..., Any], stacks: int) -> Callable[..., Any]:
    """The function mapped over `stacks` first axes of its arguments."""
    for _ in range(stacks):
        function = jax.vmap(function)
    return function


def _zeros(function: Callable[..., Any], *arguments: Any) -> jax.Array:
    shape = jax.eval_shape(function, *arguments)
    return jnp.zeros(shape.shape, shape.dtype)


def _empty(node: Any) -> bool:
    return isinstance(node, tuple) and not node


def _is_seen(node: Any) -> bool:
    return isinstance(node, Seen)
