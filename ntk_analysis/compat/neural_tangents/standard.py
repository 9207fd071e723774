"""Layers in the standard parametrisation, there an option of each layer; the fan-in is known with the inputs."""

import functools

from ntk_analysis import layers
from ntk_analysis.layers.base import Shape
from ntk_analysis.networks.parametrization import Linear, changed, standard


class StandardDense(layers.Dense):
    """A dense layer in the standard parametrisation."""


class StandardConv(layers.Conv):
    """A convolution in the standard parametrisation."""


class StandardConvTranspose(layers.ConvTranspose):
    """A transposed convolution in the standard parametrisation."""


class StandardConvLocal(layers.ConvLocal):
    """A locally connected layer in the standard parametrisation."""


STANDARD: dict[type[layers.Layer], type[layers.Layer]] = {
    layers.Dense: StandardDense,
    layers.Conv: StandardConv,
    layers.ConvTranspose: StandardConvTranspose,
    layers.ConvLocal: StandardConvLocal,
}


@functools.lru_cache(maxsize=256)
def with_rates(layer: layers.Layer, input_shape: Shape) -> layers.Layer:
    """The layer with the rates that its fan-ins make, for inputs of this shape."""

    def change(linear: Linear, fan_in: int) -> Linear:
        return standard(linear, fan_in) if type(linear) in STANDARD.values() else linear

    return changed(layer, input_shape, change)
