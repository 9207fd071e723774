"""The paper's networks with its normalisations, by name: Flax NNX modules, (batch, height, width, 3) to logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from ntk_analysis.training.initialization import CENTERED_GAIN, DEFAULT_CENTERING, Centering
from ntk_analysis.training.models import resnet, shufflenet, vgg
from ntk_analysis.training.models.layers import STEMS, Layers, check
from ntk_analysis.training.models.mlp import MLP as MLP
from ntk_analysis.training.models.resnet import ResNet as ResNet
from ntk_analysis.training.models.shufflenet import ShuffleNet as ShuffleNet
from ntk_analysis.training.models.squeezenet import SqueezeNet as SqueezeNet
from ntk_analysis.training.models.vgg import VGG as VGG

RESIDUAL: dict[str, Callable[..., nnx.Module]] = {
    f"resnet{depth}": partial(ResNet, blocks=blocks, bottleneck=depth >= 50) for depth, blocks in resnet.BLOCKS.items()
}
IMAGES: dict[str, Callable[..., nnx.Module]] = {
    **{f"vgg{depth}": partial(VGG, convs=convs) for depth, convs in vgg.CONVS.items()},
    **RESIDUAL,
    "squeezenet1_0": partial(SqueezeNet, version="1.0"),
    "squeezenet1_1": partial(SqueezeNet, version="1.1"),
    **{
        f"shufflenet_v2_{width}": partial(ShuffleNet, channels=channels)
        for width, channels in shufflenet.CHANNELS.items()
    },
}
SCALABLE = ("mlp", *(f"vgg{depth}" for depth in vgg.CONVS), *RESIDUAL)
"""Names of the networks that take another `width`."""
MODELS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, **IMAGES}
"""Constructors of the networks by name."""


def build(
    name: str,
    *,
    classes: int,
    rngs: nnx.Rngs,
    normalization: str = "none",
    stem: str = "cifar",
    centering: Centering = DEFAULT_CENTERING,
    gain: float = CENTERED_GAIN,
    skip_scale: str = "paper",
    momentum: float = 0.9,
    eps: float = 1e-5,
    running_variance: str = "unbiased",
    **options: Any,
) -> nnx.Module:
    """A network in training mode; `.eval()` and `.train()` switch the mode.

    `weight_mean` and `mimic_norm` start with centered weights. To keep them centered while training, put
    `center_weights(centering_mask(model, centering))` last in the chain of the optimizer.

    Args:
        name: name of the network, a key of `MODELS`.
        classes: number of logits.
        rngs: Flax's generators of random numbers.
        normalization: a name or alias of `normalizations.TABLE`: none, batch, layer, weight_standardization,
            weight_mean, last_bn or mimic; for ResNets skip_init and fixup as well.
        stem: "cifar", for images of about 32 x 32, or "imagenet", for images of 224 x 224.
        centering: choice of the layers that are centered or standardised.
        gain: gain of centered weights behind a ReLU; `VGG_GAIN` is the paper's for VGG.
        skip_scale: law of MimicNorm's scalars in residual branches: "paper", 1/sqrt(l), or "authors", as in their code.
        momentum: momentum of running statistics.
        eps: number added to variances.
        running_variance: variances that batch norms remember for evaluation: "unbiased", as in PyTorch, the paper's
            framework, or "biased", as in Flax.
        options: options of the network itself: depth, width and inputs of an MLP, width of a VGG or ResNet, ...

    Raises:
        ValueError: the name, normalization, stem, skip_scale or running_variance is unknown; or the normalization or
            stem is not for this network.
    """
    check("model", name, MODELS)
    check("stem", stem, STEMS)
    layers = Layers(
        normalization,
        rngs,
        centering=centering,
        gain=gain,
        skip_scale=skip_scale,
        momentum=momentum,
        eps=eps,
        running_variance=running_variance,
    )
    if layers.parts.residual and name not in RESIDUAL:
        raise ValueError(
            f"{normalization} is for residual networks: choose one of {', '.join(RESIDUAL)}, or another normalization "
            f"for {name}"
        )
    if name in IMAGES:
        return MODELS[name](layers, classes, stem=stem, **options)
    if stem != "cifar":
        raise ValueError(f"{name} has no stem: give inputs=, the number of features of an input")
    return MODELS[name](layers, classes, **options)
