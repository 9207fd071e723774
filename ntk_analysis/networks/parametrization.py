"""One network in several parametrisations: they differ in how far a gradient moves each layer, not in what is drawn."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

import jax

from ntk_analysis.layers import Dense, Layer, Serial
from ntk_analysis.layers.base import Params, Shape
from ntk_analysis.layers.convolution import Convolution

Parametrization: TypeAlias = Literal["ntk", "standard", "mean_field"]
Linear: TypeAlias = Dense | Convolution
Change: TypeAlias = Callable[[Linear, int], Linear]


def parametrized(network: Layer, input_shape: Shape, parametrization: Parametrization) -> Layer:
    """Returns a network in another parametrisation, as its widths make it, for finite and infinite kernels.

    With n the fan-in of a layer:
    - "ntk": parameters of variance 1, and gains in the forward pass. All rates are 1.
    - "standard": the parameters are the weights and biases themselves, W ~ N(0, w_var / n) and b ~ N(0, b_var), as in
      most libraries: w_rate = n / w_var and b_rate = 1 / b_var, so that the NTK grows with the width (Sohl-Dickstein
      et al. 2020, 2001.07301).
    - "mean_field": the outputs are smaller by the root of the read-out's fan-in, and all rates larger by that fan-in,
      so that features move as much as the outputs do (Yang & Hu 2021, 2011.14522, who call it maximal update). Its NTK
      at initialisation is that of "ntk", and its NNGP kernel is smaller by the fan-in.

    Args:
        network: its rates are not read; in "mean_field" its last layer of weights is the read-out.
        input_shape: shape of the inputs, batch included, such as (-1, 784).
        parametrization: one of these names.

    Raises:
        ValueError: an unknown name; weights of variance 0 in "standard", whose rate would be infinite; a network that
            does not end in `Dense` or `Conv` in "mean_field".
    """
    if parametrization == "ntk":
        return changed(network, input_shape, lambda layer, _: replace(layer, w_rate=1.0, b_rate=1.0))
    if parametrization == "standard":
        return changed(network, input_shape, standard)
    if parametrization == "mean_field":
        return _mean_field(network, input_shape)
    raise ValueError(f'unknown parametrization {parametrization!r}: choose from "ntk", "standard" and "mean_field"')


def standard(layer: Linear, fan_in: int) -> Linear:
    """Returns a layer of this fan-in in the standard parametrisation; raises ValueError where its weights are 0."""
    if layer.w_var == 0:
        raise ValueError(f"{layer} has weights of variance 0, which have no rate in the standard parametrization")
    return replace(layer, w_rate=fan_in / layer.w_var, b_rate=1 / layer.b_var if layer.b_var else 1.0)


def _mean_field(network: Layer, input_shape: Shape) -> Layer:
    fan_ins: list[int] = []

    def count(layer: Linear, fan_in: int) -> Linear:
        fan_ins.append(fan_in)
        return layer

    changed(network, input_shape, count)
    readout = network.layers[-1] if isinstance(network, Serial) else network
    if not isinstance(readout, Dense | Convolution):
        raise ValueError(f"{network} does not end in Dense or Conv: which layer is the read-out is not known")
    last, left = fan_ins[-1], iter(range(len(fan_ins) - 1, -1, -1))

    def change(layer: Linear, fan_in: int) -> Linear:
        del fan_in
        square = 1 / last if next(left) == 0 else 1.0
        return replace(layer, w_var=layer.w_var * square, b_var=layer.b_var * square, w_rate=last, b_rate=last)

    return changed(network, input_shape, change)


def changed(network: Layer, input_shape: Shape, change: Change) -> Layer:
    """Returns the network with change(layer, its fan-in) in the place of every layer of weights, in their order."""

    def walked(layer: Layer, params: Params, stacks: int) -> Layer:
        if isinstance(layer, Dense | Convolution):
            start = stacks + (layer.own_axes if isinstance(layer, Convolution) else 0)
            return change(layer, math.prod(params["w"].shape[start:-1]))
        if not layer.parts:
            return layer
        return layer.rebuilt(
            [
                walked(part, _at(params, key), stacks + layer.stacked)
                for part, key in zip(layer.parts, layer.part_keys, strict=True)
            ]
        )

    def drawn(key: jax.Array) -> Params:
        return network.init(key, input_shape)[1]

    return walked(network, jax.eval_shape(drawn, jax.random.key(0)), 0)


def _at(params: Params, key: tuple[int, ...]) -> Params:
    for place in key:
        params = params[place]
    return params
