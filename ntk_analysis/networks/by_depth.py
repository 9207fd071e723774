"""Kernels behind every layer of a network in one pass: what each depth adds, at the price of the deepest."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntk_analysis.common.precision import AnyArray, is_traced, numpy_in_float64
from ntk_analysis.common.pytrees import compiled_by_structure
from ntk_analysis.infinite.compute import (
    check_network,
    checked_inputs,
    input_kernel,
    nodes_of,
    one_batch,
    with_measured_error,
)
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Layer


def kernels_by_depth(
    network: Layer,
    x1: Float[AnyArray, "n1 *features"],
    x2: Float[AnyArray, "n2 *features"] | None = None,
    *,
    statistics: Literal["x1"] | None = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
) -> Iterator[tuple[Layer, Kernel]]:
    """Every layer of an infinitely wide network with the kernel behind it, from the inputs on.

    The order is that of `Layer.walk`, each pass of a `Repeat` by itself; a `Residual` counts as one layer. Behind a
    dense layer of a hidden one's width stands the kernel of the network that reads out there: of a
    `networks.fully_connected`, those behind its `Dense` layers from the second on are the kernels of its shallower
    ones. Equal layers share one compiled program, and only one kernel is held at a time.

    Args:
        network: a layer or a composition of layers.
        x1: (n1, d) vectors or (n1, height, width, channels) images, as for `infinite_kernel`.
        x2: (n2, ...) inputs of the same features and dtype, or None.
        statistics: "x1" for batch normalisation by the statistics of x1, as for `infinite_kernel`.
        batch_norm: "exact", or "large_batch" for few nodes and each kernel's measured error, as for `infinite_kernel`.

    Yields:
        (layer, kernel), kernels of NumPy arrays where the inputs are NumPy's.

    Raises:
        ValueError: wrong shapes, no inputs, NaN or infinite inputs; or another word for `batch_norm`.
        NotImplementedError: a layer has no infinite-width kernel here, and the message says why; or
            batch_norm="large_batch" inside a transformation.
    """
    check_network(network)
    kernel = _start(network, x1, x2, statistics)
    nodes = nodes_of(network, batch_norm, traced=is_traced(x1, x2))
    if nodes is None:
        for layer in network.in_order():
            kernel = _behind(layer, kernel)
            yield layer, kernel
        return
    kernel, fewer = replace(kernel, nodes=nodes), replace(kernel, nodes=nodes - 1)
    for layer in network.in_order():
        kernel, fewer = _behind(layer, kernel), _behind(layer, fewer)
        yield layer, _measured(kernel, fewer)


@numpy_in_float64
def _start(network: Layer, x1: AnyArray, x2: AnyArray | None, statistics: str | None) -> Kernel:
    first, second, training = one_batch(*checked_inputs(x1, x2), statistics)
    return replace(_input_kernel(network.pairs_positions, first, second), training=training)


@functools.partial(jax.jit, static_argnums=0)
def _input_kernel(paired: bool, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    return input_kernel(x1, x2, paired=paired)


@numpy_in_float64
def _behind(layer: Layer, kernel: Kernel) -> Kernel:
    return _after(jax.tree.map(jnp.asarray, kernel), layer=layer)


@numpy_in_float64
def _measured(kernel: Kernel, fewer: Kernel) -> Kernel:
    return with_measured_error(*jax.tree.map(jnp.asarray, (kernel, fewer)))


@functools.partial(compiled_by_structure, static=("layer",))
def _after(kernel: Kernel, *, layer: Layer) -> Kernel:
    return layer.kernel(kernel)
