"""SqueezeNet 1.0 and 1.1 (Iandola et al. 2016), with torchvision's sizes, or as the MimicNorm authors built it.

Those trained on CIFAR usually have the fire modules of 1.0, without a stride in the first convolution. In torchvision's
the read-out is a linear layer on the mean over the image. That is the same as their 1 x 1 convolution before the mean,
but for the ReLU between the two, which would leave no negative logits and is left out.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.training.models.layers import ARCHITECTURES, Layers, check, global_mean
from ntk_analysis.training.models.selection import max_pool, relu

SQUEEZED = (16, 16, 32, 32, 48, 48, 64, 64)  # squeezed channels of the modules; each gives 8 times as many
POOLS = {"1.0": (3, 7), "1.1": (2, 4)}  # fire modules before a pooling, besides the pooling behind the stem
BYPASSED = (2, 4, 6)  # fire modules whose input is added to their output by the authors: their 3rd, 5th and 7th layers


class SqueezeNet(nnx.Module):
    """A convolution, eight fire modules between three poolings, the mean over the image, and a linear read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        version: version of the network, "1.0" or "1.1".
        stem: "cifar", a padded 3 x 3 convolution without strides, or "imagenet".
        architecture: "torchvision", or "published": three fire modules are bypassed, pooling is 2 x 2, and the read-out
            is a 1 x 1 convolution before the mean.

    Raises:
        ValueError: the version or the architecture is unknown, or the published one is asked for of version 1.1 or at
            ImageNet size.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        version: str = "1.1",
        stem: str = "cifar",
        architecture: str = "torchvision",
    ) -> None:
        check("version of SqueezeNet", version, POOLS)
        check("architecture", architecture, ARCHITECTURES)
        self.published = architecture == "published"
        if self.published and (version, stem) != ("1.0", "cifar"):
            raise ValueError("the published SqueezeNet has version 1.0 and takes 32 x 32: choose squeezenet1_0, cifar")
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
        self.dropout = layers.dropout(stem == "imagenet")
        self.head = layers.conv_head(inputs, classes) if self.published else layers.head(inputs, classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3)."""
        x = self._pooled(relu(self.norm(self.stem(x))))
        for number, fire in enumerate(self.fires, 1):
            x = fire(x) + x if self.published and number in BYPASSED else fire(x)
            if number in self.pools:
                x = self._pooled(x)
        logits = global_mean(self.head(x)) if self.published else self.head(self.dropout(global_mean(x)))
        return self.last(logits)

    def _pooled(self, x: jax.Array) -> jax.Array:
        return max_pool(x, 2) if self.published else max_pool(x, 3, ceil=True)


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
