"""How a network's hidden layers are seen: each reduced to a statistic before the next one is computed."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.precision import float_array
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Activation, BatchNorm, Layer, LayerNorm, Repeat, Residual, ResidualChain, Serial
from ntk_analysis.layers.base import Params, Shape, SingleLayer

LayersOf: TypeAlias = Callable[[jax.Array, Any], Iterable[Any]]
Statistic: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


class Seen(NamedTuple):
    """The recorded statistic of a layer's output, whether the output is finite, and its number of channels."""

    value: Any
    finite: Any
    channels: Any


def hidden_layers(
    network: Layer | LayersOf, statistic: Statistic, place: str, key: jax.Array, x: Any, chosen: Any
) -> Iterator[Seen]:
    """Yields one network's hidden layers from first to last, each reduced by statistic(layer, chosen)."""
    if not isinstance(network, Layer):
        yield from _given_layers(network, statistic, key, x, chosen)
        return
    array = float_array(x)
    params = network.init(key, array.shape)[1]  # not jitted: its draws are compiled once a shape, for all networks
    seen, record = jax.tree.map(np.asarray, _run(network, statistic, params, array, jnp.asarray(chosen)))
    last = unnormalized = seen
    for layer, seen in _reducing(network, lambda y: y).walk(record):
        if isinstance(layer, Activation):
            yield {"pre_activation": last, "before_normalization": unnormalized}.get(place, seen)
        last = seen
        unnormalized = unnormalized if isinstance(layer, BatchNorm | LayerNorm) else seen


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

    return see(x), _reducing(network, see).activations(params, x)


def _reducing(layer: Layer, see: Callable[[jax.Array], Any]) -> Layer:
    if isinstance(layer, Serial):
        return Serial(*(_reducing(part, see) for part in layer.layers))
    if isinstance(layer, Repeat):
        return Repeat(_reducing(layer.block, see), layer.times)
    if isinstance(layer, Residual):
        shortcut = None if layer.shortcut is None else _reducing(layer.shortcut, see)
        return _Reducing(Residual(_reducing(layer.branch, see), layer.scale, shortcut), see)
    if isinstance(layer, ResidualChain):
        return _Reducing(ResidualChain(_reducing(layer.branch, see), layer.scales), see)
    return _Reducing(layer, see)


@dataclass(frozen=True)
class _Reducing(Layer):
    """A layer that computes as before and records `see` of its outputs, within the scan of a `Repeat` around it."""

    layer: Layer
    see: Callable[[jax.Array], Any]

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        return self.layer.init(key, input_shape)

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        y, outputs = self.layer.forward(params, x, record=record)
        if not record:
            return y, None
        if isinstance(self.layer, Residual | ResidualChain):  # the layers inside have reduced their own outputs
            *inside, sums = outputs
            see = jax.vmap(self.see) if isinstance(self.layer, ResidualChain) else self.see
            return y, (*inside, see(sums))
        return y, jax.tree.map(self.see, outputs)

    def kernel(self, kernel: Kernel) -> Kernel:
        return self.layer.kernel(kernel)

    def walk(self, outputs: Any) -> Iterator[tuple[Layer, Any]]:
        if isinstance(self.layer, SingleLayer):
            yield self.layer, outputs
        else:
            yield from self.layer.walk(outputs)
