"""VGG (Simonyan & Zisserman 2015), as torchvision's: convolutions with biases, five stages."""

from collections.abc import Sequence

import jax
from flax import nnx

from ntk_analysis.training.models.layers import Layers, global_mean
from ntk_analysis.training.models.selection import max_pool, relu

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Numbers of convolutions of the stages, by depth."""
CHANNELS = (1, 2, 4, 8, 8)
"""Channels of the stages, as multiples of the channels of the first."""


class VGG(nnx.Module):
    """Stages of 3 x 3 convolutions, each with norm and ReLU, that end in max pooling.

    At CIFAR size one linear read-out follows the mean over what is left of the image (1 x 1 of 32 x 32). At ImageNet
    size two dense layers of 4096 units with dropout, never normalised, come before the read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        convs: number of convolutions of each stage.
        stem: "cifar" or "imagenet".
        width: channels of the first stage.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        convs: Sequence[int] = CONVS[16],
        stem: str = "cifar",
        width: int = 64,
    ) -> None:
        self.stages: nnx.List[Stage] = nnx.List()
        inputs = 3
        for count, units in zip(convs, [width * times for times in CHANNELS], strict=True):
            self.stages.append(Stage(layers, inputs, units, count))
            inputs = units
        self.hidden: nnx.List[nnx.Linear] = nnx.List()
        if stem == "imagenet":
            self.hidden.extend([layers.dense(7 * 7 * inputs, 4096), layers.dense(4096, 4096)])
            inputs = 4096
        self.dropout = layers.dropout(stem)
        self.head = layers.head(inputs, classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3).

        Raises:
            ValueError: images at ImageNet size are not 224 x 224.
        """
        size = x.shape[1:3]
        for stage in self.stages:
            x = stage(x)
        if not self.hidden:
            return self.last(self.head(global_mean(x)))
        if x.shape[1:3] != (7, 7):
            raise ValueError(f"got images of {size}: VGG with the ImageNet stem takes 224 x 224; or use stem='cifar'")
        x = x.reshape(len(x), -1)
        for dense in self.hidden:
            x = self.dropout(relu(dense(x)))
        return self.last(self.head(x))


class Stage(nnx.Module):
    """Convolutions at one size of image, and 2 x 2 max pooling."""

    def __init__(self, layers: Layers, inputs: int, units: int, count: int) -> None:
        widths = [inputs] + [units] * (count - 1)
        self.convs = nnx.List([layers.conv(width, units, 3, bias=True) for width in widths])
        self.norms = nnx.List([layers.norm(units) for _ in widths])

    def __call__(self, x: jax.Array) -> jax.Array:
        *inner, last = zip(self.convs, self.norms, strict=True)
        for conv, norm in inner:
            x = relu(norm(conv(x)))
        conv, norm = last
        return relu(max_pool(norm(conv(x)), 2))
