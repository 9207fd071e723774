"""ShuffleNetV2 (Ma et al. 2018), with torchvision's sizes, or as the MimicNorm authors built it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.training.models.layers import ARCHITECTURES, Layers, check, global_mean
from ntk_analysis.training.models.selection import max_pool, relu
from ntk_analysis.training.normalization import Identity, Shift, SkipScale

CHANNELS = {
    "x0_5": (48, 96, 192, 1024),
    "x1_0": (116, 232, 464, 1024),
    "x1_5": (176, 352, 704, 1024),
    "x2_0": (244, 488, 976, 2048),
}
"""Numbers of channels of the three stages and of the last convolution, by width."""
STEM = 24
CORRECTION = 1.2  # the authors' factor for each centered convolution before a scalar


class ShuffleNet(nnx.Module):
    """A stem, three stages of shuffled units, a 1 x 1 convolution, the mean over the image, and a linear read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        channels: numbers of channels of the stages and of the last convolution.
        counts: numbers of units of the stages.
        stem: "cifar", a 3 x 3 convolution, or "imagenet", the same with strides 2 and max pooling.
        architecture: "torchvision", or "published": convolutions have biases, no ReLU stands behind the stem, the first
            convolution of a reduction keeps the number of channels, and MimicNorm's parts come with scalars: 1.2 for
            each centered convolution before a ReLU, and a multiplier and a shift of each unit's branch.

    Raises:
        ValueError: the architecture is unknown, or the published one is asked for at ImageNet size.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        channels: Sequence[int] = CHANNELS["x1_0"],
        counts: Sequence[int] = (4, 8, 4),
        stem: str = "cifar",
        architecture: str = "torchvision",
    ) -> None:
        check("architecture", architecture, ARCHITECTURES)
        published = architecture == "published"
        if published and stem != "cifar":
            raise ValueError("the published ShuffleNet takes images of 32 x 32: choose stem='cifar'")
        self.pools = stem == "imagenet"
        self.rectifies = not published
        self.stem = Normed(layers, 3, STEM, 3, strides=2 if self.pools else 1, published=published)
        self.units: nnx.List[Reduction | Unit] = nnx.List()
        inputs = STEM
        for count, units in zip(counts, channels[:-1], strict=True):
            self.units.append(Reduction(layers, inputs, units, published=published))
            self.units.extend([Unit(layers, units, published=published) for _ in range(count - 1)])
            inputs = units
        self.final = Normed(layers, inputs, channels[-1], 1, published=published, corrected=1)
        self.head = layers.head(channels[-1], classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3)."""
        x = self.stem(x)
        if self.rectifies:
            x = relu(x)
        if self.pools:
            x = max_pool(x, 3, padding=1)
        for unit in self.units:
            x = unit(x)
        return self.last(self.head(global_mean(relu(self.final(x)))))


class Normed(nnx.Module):
    """A convolution and a norm; in the authors' ShuffleNet with a bias, and a scalar for `corrected` convolutions."""

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        units: int,
        size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        rectified: bool = True,
        published: bool = False,
        corrected: int = 0,
        in_unit: bool = False,
    ) -> None:
        self.conv = layers.conv(
            inputs, units, size, strides, groups=groups, bias=published, rectified=rectified, in_unit=in_unit
        )
        self.norm = layers.norm(units)
        scaled = published and corrected and layers.parts.scale == "damped"
        self.scale = SkipScale(CORRECTION**corrected) if scaled else Identity()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.scale(self.norm(self.conv(x)))


class Separable(nnx.Module):
    """A 3 x 3 depthwise convolution with norm and no ReLU, then a 1 x 1 convolution with norm and ReLU."""

    def __init__(
        self, layers: Layers, inputs: int, units: int, *, strides: int = 1, published: bool, corrected: int
    ) -> None:
        options = {"published": published, "in_unit": True}
        self.depthwise = Normed(layers, inputs, inputs, 3, strides=strides, groups=inputs, **options)
        self.pointwise = Normed(layers, inputs, units, 1, rectified=False, corrected=corrected, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return relu(self.pointwise(self.depthwise(x)))


class Branch(nnx.Module):
    """A 1 x 1 convolution with norm and ReLU, then a separable one; the authors add a multiplier and a shift."""

    def __init__(
        self, layers: Layers, inputs: int, inner: int, units: int, *, strides: int = 1, published: bool
    ) -> None:
        self.reduce = Normed(layers, inputs, inner, 1, published=published, in_unit=True)
        self.separable = Separable(layers, inner, units, strides=strides, published=published, corrected=2)
        scaled = published and layers.parts.scale == "damped"
        self.scale: SkipScale | Identity = SkipScale(1.0) if scaled else Identity()
        self.shift: Shift | Identity = Shift() if scaled else Identity()

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.shift(self.scale(self.separable(relu(self.reduce(x)))))


class Unit(nnx.Module):
    """A unit in which half of the channels pass unchanged and the other half goes through a branch."""

    def __init__(self, layers: Layers, units: int, *, published: bool = False) -> None:
        half = units // 2
        self.branch = Branch(layers, half, half, half, published=published)

    def __call__(self, x: jax.Array) -> jax.Array:
        kept, changed = jnp.split(x, 2, -1)
        return _shuffled(kept, self.branch(changed))


class Reduction(nnx.Module):
    """A unit of two branches with strides 2, each on all channels."""

    def __init__(self, layers: Layers, inputs: int, units: int, *, published: bool = False) -> None:
        half = units // 2
        self.side = Separable(layers, inputs, half, strides=2, published=published, corrected=1)
        self.branch = Branch(layers, inputs, inputs if published else half, half, strides=2, published=published)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _shuffled(self.side(x), self.branch(x))


def _shuffled(a: jax.Array, b: jax.Array) -> jax.Array:
    """The channels of a and b, alternating."""
    return jnp.stack([a, b], -1).reshape(*a.shape[:-1], -1)
