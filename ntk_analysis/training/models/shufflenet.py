"""ShuffleNetV2 (Ma et al. 2018), with torchvision's sizes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.training.models.layers import Layers, global_mean
from ntk_analysis.training.models.selection import max_pool, relu

CHANNELS = {
    "x0_5": (48, 96, 192, 1024),
    "x1_0": (116, 232, 464, 1024),
    "x1_5": (176, 352, 704, 1024),
    "x2_0": (244, 488, 976, 2048),
}
"""Numbers of channels of the three stages and of the last convolution, by width."""
STEM = 24


class ShuffleNet(nnx.Module):
    """A stem, three stages of shuffled units, a 1 x 1 convolution, the mean over the image, and a linear read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        channels: numbers of channels of the stages and of the last convolution.
        counts: numbers of units of the stages.
        stem: "cifar", a 3 x 3 convolution, or "imagenet", the same with strides 2 and max pooling.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        channels: Sequence[int] = CHANNELS["x1_0"],
        counts: Sequence[int] = (4, 8, 4),
        stem: str = "cifar",
    ) -> None:
        self.pools = stem == "imagenet"
        self.stem = Rectified(layers, 3, STEM, 3, strides=2 if self.pools else 1)
        self.units: nnx.List[Reduction | Unit] = nnx.List()
        inputs = STEM
        for count, units in zip(counts, channels[:-1], strict=True):
            self.units.append(Reduction(layers, inputs, units))
            self.units.extend([Unit(layers, units) for _ in range(count - 1)])
            inputs = units
        self.final = Rectified(layers, inputs, channels[-1], 1)
        self.head = layers.head(channels[-1], classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3)."""
        x = self.stem(x)
        if self.pools:
            x = max_pool(x, 3, padding=1)
        for unit in self.units:
            x = unit(x)
        return self.last(self.head(global_mean(self.final(x))))


class Rectified(nnx.Module):
    """A convolution, a norm and a ReLU."""

    def __init__(
        self, layers: Layers, inputs: int, units: int, size: int, *, strides: int = 1, rectified: bool = True
    ) -> None:
        self.conv = layers.conv(inputs, units, size, strides, rectified=rectified)
        self.norm = layers.norm(units)

    def __call__(self, x: jax.Array) -> jax.Array:
        return relu(self.norm(self.conv(x)))


class Separable(nnx.Module):
    """A 3 x 3 depthwise convolution with norm and no ReLU, then a rectified 1 x 1 convolution."""

    def __init__(self, layers: Layers, inputs: int, units: int, strides: int = 1) -> None:
        self.depthwise = layers.conv(inputs, inputs, 3, strides, groups=inputs)
        self.norm = layers.norm(inputs)
        self.pointwise = Rectified(layers, inputs, units, 1, rectified=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pointwise(self.norm(self.depthwise(x)))


class Unit(nnx.Module):
    """A unit in which half of the channels pass unchanged and the other half goes through a branch."""

    def __init__(self, layers: Layers, units: int) -> None:
        half = units // 2
        self.reduce = Rectified(layers, half, half, 1)
        self.branch = Separable(layers, half, half)

    def __call__(self, x: jax.Array) -> jax.Array:
        kept, changed = jnp.split(x, 2, -1)
        return _shuffled(kept, self.branch(self.reduce(changed)))


class Reduction(nnx.Module):
    """A unit of two branches with strides 2, each on all channels."""

    def __init__(self, layers: Layers, inputs: int, units: int) -> None:
        half = units // 2
        self.side = Separable(layers, inputs, half, 2)
        self.reduce = Rectified(layers, inputs, half, 1)
        self.branch = Separable(layers, half, half, 2)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _shuffled(self.side(x), self.branch(self.reduce(x)))


def _shuffled(a: jax.Array, b: jax.Array) -> jax.Array:
    """The channels of a and b, alternating."""
    return jnp.stack([a, b], -1).reshape(*a.shape[:-1], -1)
