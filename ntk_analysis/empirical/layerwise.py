"""The layer-wise method: the kernel from what flows through each layer of weights, without a gradient by the weights.

The gradient of output c on input a by the weights of a layer is sum_p x(a, p) delta(a, c, p)^T over positions p (one,
for dense layers), with the layer's inputs x and the back-propagated signals delta. So its part of the kernel is
    sum_pq  <x(a, p), x(b, q)>  <delta(a, c, p), delta(b, d, q)>:
the Gram of the inputs times the Gram of the signals, whose cost does not contain the number of parameters. With many
positions it is cheaper to form the gradient after all, layer by layer. What the layers do to their weights:
    gain g: x becomes g x.
    center: x becomes P x, P = I - 11^T/m the projection on vectors of m entries with sum 0.
    standardize: w' = P w / s with s = |P w| / sqrt(m) turns and does not stretch: dw' = (P dw - w' <w', dw>/m) / s. So
        x becomes P x and delta becomes delta / s, and the part along w' comes off: - <k, k'> with
        k = sum_p delta z / (s sqrt(m)), z = g <w', x> the output before the bias.
    bias: adds b_var <sum_p delta, sum_p delta'>.
Other layers with parameters, a batch normalisation's gamma and beta or a convolution in groups: their gradients, as in
the Jacobian contraction.

Where the batch is coupled, output c on input a has signals on all inputs of the batch: they are its positions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import safe_divide
from ntk_analysis.empirical.functions import Side
from ntk_analysis.empirical.layouts import Layout, inner, weighted
from ntk_analysis.empirical.methods import Method
from ntk_analysis.empirical.probes import Flow, Place, flows, over_stacks, probed
from ntk_analysis.layers import Conv, Dense, Layer
from ntk_analysis.layers.base import Params, SingleLayer


class Factors(NamedTuple):
    """Gradients of C outputs on n inputs by one layer's parameters, as factors.

    Attributes:
        inputs: inputs (n, p, m), or (p, m) if all rows share the positions of a coupled batch; None without factors.
        signals: signals (n, C, p, u), or None.
        added: list of vectors (n, C, k), whose inner products are added to the kernel.
        removed: list of vectors (n, C, k), whose inner products are subtracted from the kernel.
    """

    inputs: jax.Array | None
    signals: jax.Array | None
    added: list[jax.Array]
    removed: list[jax.Array]

    def part(self, start: jax.Array, size: int, stacks: int) -> "Factors":
        """The factors on `size` of the inputs from `start` on, for a layer inside `stacks` scans (no coupled batch)."""
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size, stacks), self)


def layerwise_method(network: Layer, layout: Layout) -> Method:
    """The kernel as Grams of activations times Grams of back-propagated signals, summed over layers.

    Memory: activations and C signals of both sides. FLOPs of a pair of inputs at a dense layer of m x u weights:
    2 m + 2 C^2 u (full) or 2 m + 2 C u.
    """
    places: list[Place] = []
    template = probed(network, places)

    def prepare(params: Params, side: Side) -> list[Factors | None]:
        coupled = side.rows is not None

        def of_layer(place: Place, flow: Flow) -> Factors:
            factor = partial(factors, place.layer, coupled=coupled, layout=layout)
            return over_stacks(factor, place.stacks)(*flow)

        found = zip(places, flows(template, places, params, side), strict=True)
        return [None if flow is None else of_layer(place, flow) for place, flow in found]

    def contract(params: Params, left: list[Factors | None], right: list[Factors | None]) -> jax.Array:
        del params
        parts = [
            summed(first, second, place.stacks, layout)
            for place, first, second in zip(places, left, right, strict=True)
            if first is not None and second is not None
        ]
        return sum(parts[1:], parts[0])

    def part(prepared: list[Factors | None], start: jax.Array, size: int) -> list[Factors | None]:
        return [
            None if found is None else found.part(start, size, place.stacks)
            for place, found in zip(places, prepared, strict=True)
        ]

    return Method("layerwise", prepare, contract, part)


def factors(
    layer: SingleLayer, params: Params, x: jax.Array, signals: jax.Array, *, coupled: bool, layout: Layout
) -> Factors:
    """The factors of one layer's gradients, from its inputs (n, ...) and the signals at its output."""
    if not isinstance(layer, Dense | Conv) or (isinstance(layer, Conv) and layer.groups > 1):
        return Factors(None, None, _gradients(layer, params, x, signals, coupled=coupled), [])
    n, outputs = signals.shape[:2]
    inputs = _seen(layer, x)
    m, u = inputs.shape[-1], signals.shape[-1]
    inputs = inputs.reshape(-1, m) if coupled else inputs.reshape(n, -1, m)
    signals = signals.reshape(n, outputs, -1, u)
    weights, added, removed = layer.weights, [], []
    if weights.b_var > 0:
        added.append((weights.b_var * weights.b_rate) ** 0.5 * jnp.sum(signals, 2))
    if weights.standardize:
        y = layer.compute(params, x)
        z = y - weights.bias(params).reshape((1,) * (y.ndim - 1) + (u,)) if weights.b_var > 0 else y
        signals = safe_divide(signals, weights.deviation(params).reshape(1, 1, 1, u), 0.0)
        z = z.reshape(-1, u) if coupled else z.reshape(n, -1, u)
        along = _einsum("pu,ncpu->ncu" if coupled else "npu,ncpu->ncu", z, signals)
        removed.append(along * (weights.w_rate / m) ** 0.5)
    if weights.centered:
        inputs = inputs - jnp.mean(inputs, -1, keepdims=True)
    fan_in = m - 1 if weights.center and not weights.standardize else m
    inputs = inputs * (weights.w_var * weights.w_rate / fan_in) ** 0.5
    p, pairs = inputs.shape[-2], outputs**2 if layout == "full" else outputs
    if coupled or p**2 * (m + pairs * u) <= pairs * m * u:  # counts multiplications for a pair of inputs
        return Factors(inputs, signals, added, removed)
    gradient = _einsum("npm,ncpu->ncmu", inputs, signals)
    return Factors(None, None, [*added, gradient.reshape(n, outputs, -1)], removed)


def summed(left: Factors, right: Factors, stacks: int, layout: Layout) -> jax.Array:
    """The part of the kernel from layers inside `stacks` scans, with axes as in `inner`."""
    if not stacks:
        return product(left, right, layout)
    inside = partial(summed, stacks=stacks - 1, layout=layout)
    shape = jax.eval_shape(inside, *jax.tree.map(lambda leaf: leaf[0], (left, right)))

    def step(total: jax.Array, layer: tuple[Factors, Factors]) -> tuple[jax.Array, None]:
        return total + inside(*layer), None

    return jax.lax.scan(step, jnp.zeros(shape.shape, shape.dtype), (left, right))[0]


def product(left: Factors, right: Factors, layout: Layout) -> jax.Array:
    """The part of the kernel from one layer, with axes as in `inner`."""
    parts = [inner(*vectors, layout) for vectors in zip(left.added, right.added, strict=True)]
    parts += [-inner(*vectors, layout) for vectors in zip(left.removed, right.removed, strict=True)]
    if left.inputs is not None and right.inputs is not None:
        assert left.signals is not None, "factors come in pairs"
        assert right.signals is not None, "factors come in pairs"
        of_weights = _coupled if left.inputs.ndim == 2 else _grams
        parts.append(of_weights(left.inputs, left.signals, right.inputs, right.signals, layout))
    return sum(parts[1:], parts[0])


def _grams(x1: jax.Array, signals1: jax.Array, x2: jax.Array, signals2: jax.Array, layout: Layout) -> jax.Array:
    """Gram of inputs times Gram of signals, summed over pairs of positions."""
    (n1, p1, _), (n2, p2, _) = x1.shape, x2.shape
    rows, columns = (s.swapaxes(1, 2).reshape(-1, s.shape[1], s.shape[3]) for s in (signals1, signals2))
    of_inputs = jnp.matmul(x1.reshape(n1 * p1, -1), x2.reshape(n2 * p2, -1).T, precision="highest")
    products = weighted(of_inputs, inner(rows, columns, layout), layout)
    if p1 * p2 == 1:
        return products
    second = 2 if layout == "full" else 1  # axis of the columns
    shape = products.shape
    products = products.reshape(n1, p1, *shape[1:second], n2, p2, *shape[second + 1 :])
    return jnp.sum(products, (1, second + 2))


def _coupled(x1: jax.Array, signals1: jax.Array, x2: jax.Array, signals2: jax.Array, layout: Layout) -> jax.Array:
    """Gram of inputs times Gram of signals, if all rows share their positions: p1 of one batch and p2 of the other."""
    if len(x1) < x1.shape[1]:  # the Gram of inputs takes the signals of one batch to the other
        gram = jnp.matmul(x1, x2.T, precision="highest")
        # row by row: signals of all rows would be transposed for one product and back
        signals2 = jax.lax.map(lambda row: _einsum("pq,dqu->dpu", gram, row), signals2)
    else:  # the gradients are smaller
        signals1, signals2 = (_einsum("pm,ncpu->ncmu", x, s) for x, s in ((x1, signals1), (x2, signals2)))
    left, right = (signals.reshape(*signals.shape[:2], -1) for signals in (signals1, signals2))
    return inner(left, right, layout)


def _seen(layer: Dense | Conv, x: jax.Array) -> jax.Array:
    """The inputs that each output position sees, (n, ..., fan-in)."""
    if isinstance(layer, Dense):
        return x
    return jnp.concatenate(layer.window.parts(x, tuple(range(1, x.ndim - 1))), -1)


def _gradients(
    layer: SingleLayer, params: Params, x: jax.Array, signals: jax.Array, *, coupled: bool
) -> list[jax.Array]:
    """Gradients of the outputs by the parameters of any layer, (n, C, k)."""

    def pulled(inputs: jax.Array, signal: jax.Array) -> Params:
        _, pull = jax.vjp(lambda own: layer.compute(own, inputs), params)
        return pull(signal)[0]

    if coupled:
        gradients = jax.vmap(jax.vmap(lambda signal: pulled(x, signal)))(signals)
    else:
        one: Callable[..., Params] = jax.vmap(lambda inputs, signal: pulled(inputs[None], signal[None]), (None, 0))
        gradients = jax.vmap(one)(x, signals)
    return [leaf.reshape(*signals.shape[:2], -1) for leaf in jax.tree.leaves(gradients)]


def _einsum(subscripts: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, *operands, precision="highest")
