"""VGG (Simonyan & Zisserman 2015), as torchvision's: convolutions with biases, five stages."""

from collections.abc import Sequence

import jax
from flax import nnx

from ntk_analysis.training.models.layers import Layers, check, global_mean
from ntk_analysis.training.models.selection import max_pool, relu

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Numbers of convolutions of the stages, by depth."""
CHANNELS = (1, 2, 4, 8, 8)
"""Channels of the stages, as multiples of the channels of the first."""
UNITS = 64
"""Units of each dense layer of the classifier, as a multiple of the channels of the first stage."""
CLASSIFIERS = ("linear", "published")
"""Names of what follows the convolutions at CIFAR size: one linear layer, or the authors' three."""


class VGG(nnx.Module):
    """Stages of 3 x 3 convolutions, each with norm and ReLU, that end in max pooling.

    At CIFAR size the classifier takes the mean over what is left of the image (1 x 1 of 32 x 32): it is one linear
    read-out, or the authors', which has two dense layers of 4096 units with dropout before it, never normalised. At
    ImageNet size it always has them, on the whole of what is left.

    Args:
        layers: makes the layers.
        classes: number of logits.
        convs: number of convolutions of each stage.
        stem: "cifar" or "imagenet".
        width: channels of the first stage; a classifier's dense layers have 64 times as many units.
        classifier: "linear" or "published".

    Raises:
        ValueError: the classifier is unknown.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        convs: Sequence[int] = CONVS[16],
        stem: str = "cifar",
        width: int = 64,
        classifier: str = "linear",
    ) -> None:
        check("classifier", classifier, CLASSIFIERS)
        self.stages: nnx.List[Stage] = nnx.List()
        inputs = 3
        for count, units in zip(convs, [width * times for times in CHANNELS], strict=True):
            self.stages.append(Stage(layers, inputs, units, count))
            inputs = units
        self.flattens = stem == "imagenet"
        self.hidden: nnx.List[nnx.Linear] = nnx.List()
        if self.flattens or classifier == "published":
            features, inputs = inputs * (7 * 7 if self.flattens else 1), UNITS * width
            self.hidden.extend([layers.dense(features, inputs), layers.dense(inputs, inputs)])
        self.dropout = layers.dropout(bool(self.hidden))
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
        if self.flattens and x.shape[1:3] != (7, 7):
            raise ValueError(f"got images of {size}: VGG with the ImageNet stem takes 224 x 224; or use stem='cifar'")
        x = x.reshape(len(x), -1) if self.flattens else global_mean(x)
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
