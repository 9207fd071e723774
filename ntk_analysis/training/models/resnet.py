"""ResNet (He et al. 2016), as torchvision's: strides in the 3 x 3 convolution, projections where shapes change."""

from collections.abc import Sequence

import jax
from flax import nnx

from ntk_analysis.training.models.layers import ARCHITECTURES, Layers, check, global_mean
from ntk_analysis.training.models.selection import max_pool, relu
from ntk_analysis.training.normalization import Identity, start_fixup

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Numbers of residual blocks of the stages by depth; blocks of 50 and 101 are bottlenecks."""
EXPANSION = 4  # factor of a bottleneck's output channels


class ResNet(nnx.Module):
    """A stem, stages of residual blocks, the mean over the image, and a linear read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        blocks: number of blocks of each stage; every stage but the first halves the image and doubles the channels.
        bottleneck: whether blocks have three convolutions instead of two.
        stem: "cifar", a 3 x 3 convolution, or "imagenet", a 7 x 7 one with strides 2 and max pooling.
        width: number of channels of the first stage; each further one has twice as many.
        architecture: "torchvision", or "published": without hidden norms the convolutions have biases, but for the
            projections of bottlenecks.

    Raises:
        ValueError: the architecture is unknown.
    """

    def __init__(
        self,
        layers: Layers,
        classes: int,
        *,
        blocks: Sequence[int] = BLOCKS[18],
        bottleneck: bool = False,
        stem: str = "cifar",
        width: int = 64,
        architecture: str = "torchvision",
    ) -> None:
        check("architecture", architecture, ARCHITECTURES)
        bias = architecture == "published" and layers.parts.hidden == "none"
        self.pools = stem == "imagenet"
        self.stem = layers.conv(3, width, 7, 2, bias=bias) if self.pools else layers.conv(3, width, 3, bias=bias)
        self.norm = layers.norm(width)
        self.blocks: nnx.List[Block] = nnx.List()
        inputs = width
        for stage, count in enumerate(blocks):
            for place in range(count):
                strides = 2 if stage and not place else 1
                block = Block(
                    layers,
                    inputs,
                    width * 2**stage,
                    strides,
                    number=len(self.blocks) + 1,
                    bottleneck=bottleneck,
                    bias=bias,
                )
                self.blocks.append(block)
                inputs = block.units
        self.head = layers.head(inputs, classes)
        self.last = layers.last(classes)
        if layers.normalization == "fixup":
            start_fixup([list(block.convs) for block in self.blocks], self.head)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of images (batch, height, width, 3)."""
        x = relu(self.norm(self.stem(x)))
        if self.pools:
            x = max_pool(x, 3, padding=1)
        for block in self.blocks:
            x = block(x)
        return self.last(self.head(global_mean(x)))


class Block(nnx.Module):
    """relu(shortcut + branch), the branch two 3 x 3 convolutions or a bottleneck of 1 x 1, 3 x 3, 1 x 1.

    Attributes:
        number: place of the block in the network, 1, 2, ...
        units: number of its channels.
        scale: the scalar at the end of the branch, if any.
    """

    def __init__(
        self,
        layers: Layers,
        inputs: int,
        channels: int,
        strides: int,
        *,
        number: int,
        bottleneck: bool,
        bias: bool = False,
    ) -> None:
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        widths = [inputs, *[channels] * (len(sizes) - 1), channels * EXPANSION if bottleneck else channels]
        steps = (1, strides, 1) if bottleneck else (strides, 1)
        self.number = number
        self.units = widths[-1]
        shapes = zip(widths[:-1], widths[1:], sizes, steps, strict=True)
        self.convs = nnx.List([layers.conv(*shape, bias=bias) for shape in shapes])
        self.norms = nnx.List([layers.norm(units) for units in widths[1:]])
        self.scale = layers.branch_scale(number, len(sizes))
        same = strides == 1 and inputs == self.units
        projected = bias and not bottleneck
        self.projection = Identity() if same else layers.conv(inputs, self.units, 1, strides, bias=projected)
        self.projection_norm = Identity() if same else layers.norm(self.units)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            y = relu(norm(conv(y)))
        # a scalar and a norm occur together in Fixup only, whose shift comes after its scalar
        y = self.norms[-1](self.scale(self.convs[-1](y)))
        return relu(self.projection_norm(self.projection(x)) + y)
