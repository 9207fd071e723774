"""The paper's networks with its normalisations, by name: Flax NNX modules, (batch, height, width, 3) to logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

from flax import nnx

from ntk_analysis.training.initialization import (
    CENTERED_GAIN,
    DEFAULT_CENTERING,
    HE_GAIN,
    INITIALIZATIONS,
    Centering,
    published_laws,
)
from ntk_analysis.training.models import resnet, shufflenet, vgg
from ntk_analysis.training.models.layers import ARCHITECTURES as ARCHITECTURES
from ntk_analysis.training.models.layers import STEMS, Layers, check
from ntk_analysis.training.models.mlp import MLP as MLP
from ntk_analysis.training.models.resnet import ResNet as ResNet
from ntk_analysis.training.models.shufflenet import ShuffleNet as ShuffleNet
from ntk_analysis.training.models.squeezenet import SqueezeNet as SqueezeNet
from ntk_analysis.training.models.vgg import CLASSIFIERS as CLASSIFIERS
from ntk_analysis.training.models.vgg import VGG as VGG
from ntk_analysis.training.normalization import SKIP_SCALES

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
OF_CLASSIFIERS = tuple(f"vgg{depth}" for depth in vgg.CONVS)
"""Names of the networks that take a `classifier`."""
OF_ARCHITECTURES = tuple(name for name in IMAGES if name not in OF_CLASSIFIERS)
"""Names of the networks that take an `architecture`."""


def published_options(name: str) -> dict[str, str]:
    """The options of `build` and `Recipe` that make a network of the MimicNorm authors' code; {} for an MLP."""
    if name not in IMAGES:
        return {}
    options = {"initialization": "published"}
    if name in RESIDUAL:
        options["skip_scale"] = "authors"
    return options | {"classifier" if name in OF_CLASSIFIERS else "architecture": "published"}


def default_gain(name: str, *, initialization: str = "he", skip_scale: str = "paper") -> float:
    """The gain of a network to which none is given.

    It is 2/(1 - 1/pi) of centered weights, but 2 in ResNets whose scalars, the authors', carry the correction; with
    published initial laws it is that of `PUBLISHED`.

    Raises:
        ValueError: the laws are to be published, and there are none for this network.
    """
    if initialization == "published":
        return published_laws(name).gain
    return HE_GAIN if name in RESIDUAL and skip_scale == "authors" else CENTERED_GAIN


def build(
    name: str,
    *,
    classes: int,
    rngs: nnx.Rngs,
    normalization: str = "none",
    stem: str = "cifar",
    centering: Centering = DEFAULT_CENTERING,
    initialization: str = "he",
    gain: float | None = None,
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
        initialization: initial laws, "he", or "published", those of the authors' code (`initialization.PUBLISHED`).
        gain: gain of centered weights behind a ReLU; with published laws of all convolutions where no hidden layer is
            normalised. None: `default_gain`.
        skip_scale: law of MimicNorm's scalars in residual branches: "paper", 1/sqrt(l), or "authors", as in their code.
        momentum: momentum of running statistics.
        eps: number added to variances.
        running_variance: variances that batch norms remember for evaluation: "unbiased", as in PyTorch, the paper's
            framework, or "biased", as in Flax.
        options: options of the network itself: depth, width and inputs of an MLP, width of a VGG or ResNet, the
            classifier of a VGG ("linear" or "published"), the architecture of the others ("torchvision" or
            "published"), ...

    Raises:
        ValueError: the name or an option is unknown; or the normalization, stem, initialization or architecture is not
            for this network.
    """
    check("model", name, MODELS)
    check("stem", stem, STEMS)
    check("initialization", initialization, INITIALIZATIONS)
    check("skip_scale", skip_scale, SKIP_SCALES)
    layers = Layers(
        normalization,
        rngs,
        centering=centering,
        gain=default_gain(name, initialization=initialization, skip_scale=skip_scale) if gain is None else gain,
        laws=published_laws(name) if initialization == "published" else None,
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
