"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016), with torchvision's sizes.

Those trained on CIFAR usually have the fire modules of 1.0, without a stride in the first convolution. Here the
read-out is a linear layer on the mean over the image. That is the same as their 1 x 1 convolution before the mean, but
for the ReLU between the two, which would leave no negative logits and is left out.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.training.models.layers import Layers, check, global_mean
from ntk_analysis.training.models.selection import max_pool, relu

SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)  # squeezed channels of the modules; each gives 8 times as many
POOLS = {"1.0": (3, 7), "1.1": (2, 4)}  # fire modules before a pooling, besides the pooling behind the stem


class SqueezeNet(nnx.Module):
    """A convolution, eight fire modules between three poolings, the mean over the image, and a linear read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        version: version of the network, "1.0" or "1.1".
        stem: "cifar", a padded 3 x 3 convolution without strides, or "imagenet".
    """

    def __init__(self, layers: Layers, classes: int, *, version: str = "1.1", stem: str = "cifar") -> None:
        check("version of SqueezeNet", version, POOLS)
        self.pools = POOLS[version]
        inputs, size = (96, 7) if version == "1.0" else (64, 3)
        if stem == "imagenet":
            self.stem = layers.conv(3, inputs, size, 2, bias=True, padding=0)
        else:
            self.stem = layers.conv(3, inputs, 3, bias=True)
        self.norm = layers.norm(inputs)
        self.fires: nnx.List[Fire] = nnx.List()
        for squeezed in SQUEEZED:
            self.fires.append(Fire(layers, inputs, squeezed))
            inputs = 8 * squeezed
        self.dropout = layers.dropout(stem)
        self.head = layers.head(inputs, classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3)."""
        x = max_pool(relu(self.norm(self.stem(x))), 3, ceil=True)
        for number, fire in enumerate(self.fires, 1):
            x = fire(x)
            if number in self.pools:
                x = max_pool(x, 3, ceil=True)
        return self.last(self.head(self.dropout(global_mean(x))))


class Fire(nnx.Module):
    """A 1 x 1 convolution to few channels, then a 1 x 1 and a 3 x 3 one side by side, 4 times as many channels each."""

    def __init__(self, layers: Layers, inputs: int, squeezed: int) -> None:
        self.squeeze = layers.conv(inputs, squeezed, 1, bias=True)
        self.small = layers.conv(squeezed, 4 * squeezed, 1, bias=True)
        self.large = layers.conv(squeezed, 4 * squeezed, 3, bias=True)
        self.norms = nnx.List([layers.norm(units) for units in (squeezed, 4 * squeezed, 4 * squeezed)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = relu(self.norms[0](self.squeeze(x)))
        sides = self.norms[1](self.small(x)), self.norms[2](self.large(x))
        return relu(jnp.concatenate(sides, -1))
