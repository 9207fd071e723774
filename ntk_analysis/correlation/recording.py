"""How a network's hidden layers are seen: each reduced to a statistic before the next one is computed."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.precision import float_array
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.layers import Activation, BatchNorm, GroupNorm, Layer, LayerNorm, RMSNorm
from ntk_analysis.layers.base import Params, as_params_dtype

LayersOf: TypeAlias = Callable[[jax.Array, Any], Iterable[Any]]
Statistic: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Seen(NamedTuple):
    """The recorded statistic of a layer's output, whether the output is finite, and its number of channels."""

    value: Any
    finite: Any
    channels: Any


def hidden_layers(
    network: Layer | LayersOf, statistic: Statistic, place: str, *, key: jax.Array, x: Tree, chosen: Tree
) -> Iterator[Seen]:
    """Yields one network's hidden layers from first to last, each reduced by statistic(layer, chosen)."""
    if not isinstance(network, Layer):
        yield from _given_layers(network, statistic, key, x, chosen)
        return
    array = float_array(x)
    params = network.init(key, array.shape)[1]  # not jitted: its draws are compiled once a shape, for all networks
    seen, record = jax.tree.map(np.asarray, _run(network, statistic, params, array, jnp.asarray(chosen)))
    last = unnormalized = seen
    for layer, seen in network.walk(record):
        if isinstance(layer, Activation):
            yield {"pre_activation": last, "before_normalization": unnormalized}.get(place, seen)
        last = seen
        unnormalized = unnormalized if isinstance(layer, BatchNorm | LayerNorm | RMSNorm | GroupNorm) else seen


def _given_layers(function: LayersOf, statistic: Statistic, key: jax.Array, x: Any, chosen: Any) -> Iterator[Seen]:
    for number, layer in enumerate(function(key, x), start=1):
        y = np.asarray(layer, np.float64)
        if y.ndim != 2 or len(y) != len(x):
            raise ValueError(f"layer {number} has shape {y.shape}, expected (batch, channels) = ({len(x)}, channels)")
        with jax.enable_x64(True):
            yield _see(statistic, jnp.asarray(y), jnp.asarray(chosen))


@partial(jax.jit, static_argnums=0)
def _see(statistic: Statistic, y: jax.Array, chosen: jax.Array) -> Seen:
    return Seen(statistic(y, chosen), jnp.all(jnp.isfinite(y)), jnp.asarray(y.shape[1]))


@partial(jax.jit, static_argnums=(0, 1))
def _run(network: Layer, statistic: Statistic, params: Params, x: jax.Array, chosen: jax.Array) -> tuple[Seen, Any]:
    def see(y: jax.Array) -> Seen:
        return _see(statistic, y, chosen)

    x = as_params_dtype(params, x)
    return see(x), network.forward(params, x, record=see)[1]
