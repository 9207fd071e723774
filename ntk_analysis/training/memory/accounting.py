"""The memory of training a network, by kind of layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ntk_analysis.common.normalizations import trained_name
from ntk_analysis.training.memory.residuals import CONSTANTS, COPIES, kept_bytes
from ntk_analysis.training.models import build, published_options
from ntk_analysis.training.models.layers import STEMS, check
from ntk_analysis.training.normalization import LastBatchNorm, SkipScale
from ntk_analysis.training.scopes import scope

LOSS = "loss"
LAYERS: dict[type[nnx.Module], str] = {
    nnx.Conv: "convolution",
    nnx.Linear: "dense",
    nnx.BatchNorm: "batch norm",
    nnx.LayerNorm: "layer norm",
    nnx.GroupNorm: "group norm",
    LastBatchNorm: "last batch norm",
    SkipScale: "skip scale",
    nnx.Dropout: "dropout",
}
"""Kind of kept arrays, by the module that reads them; ReLU and pooling are known by their operations instead."""
SIZES = dict(zip(STEMS, (32, 224), strict=True))  # height and width of images
COPIES_OF_WEIGHTS = 3  # the weights, their gradient, and the momentum of SGD


@dataclass(frozen=True)
class Account:
    """The memory that training a network by SGD with momentum holds, in bytes, float32.

    Attributes:
        model: name of the network.
        normalization: name of the normalisation.
        stem: "cifar", for images of 32 x 32, or "imagenet", for 224 x 224.
        batch: number of images in a step.
        classes: number of logits.
        parameters: bytes of the network's parameters, one copy.
        inputs: bytes of images and labels.
        by_kind: bytes kept for the backward pass, by the kind of layer that reads them, the largest first; see
            `kept_bytes`.
        temporaries: bytes of temporaries of the compiled gradient on this machine's device; None if it was not
            compiled, or if the device does not report them.
        published: whether the network is that of the MimicNorm authors' code; else it is torchvision's, or at CIFAR
            size the same with another stem and, of VGG, one linear layer behind the convolutions.
        peak: bytes that the device's allocator held at most in a step, `measuring.measured_peak`; None if not measured.
    """

    model: str
    normalization: str
    stem: str
    batch: int
    classes: int
    parameters: int
    inputs: int
    by_kind: Mapping[str, int]
    temporaries: int | None = None
    published: bool = False
    peak: int | None = None

    @property
    def kept(self) -> int:
        """Bytes that the backward pass keeps besides parameters and inputs: a bound before compilation."""
        return sum(self.by_kind.values())

    @property
    def distinct(self) -> int:
        """Bytes of `kept` without constants and copies: what a compiler that drops nothing else still has to keep."""
        return self.kept - self.by_kind.get(CONSTANTS, 0) - self.by_kind.get(COPIES, 0)

    @property
    def optimizer(self) -> int:
        """Bytes of the momentum of SGD: one copy of the parameters."""
        return self.parameters

    @property
    def training(self) -> int:
        """Bytes of parameters, their gradients, momentum, inputs and what is kept."""
        return COPIES_OF_WEIGHTS * self.parameters + self.inputs + self.kept

    def record(self) -> dict[str, Any]:
        """All fields and sums, for JSON."""
        sums = {name: getattr(self, name) for name in ("kept", "distinct", "optimizer", "training")}
        return (
            {field.name: getattr(self, field.name) for field in fields(self)} | sums | {"by_kind": dict(self.by_kind)}
        )


def account(
    name: str,
    normalization: str = "none",
    *,
    batch: int = 256,
    stem: str = "cifar",
    classes: int = 100,
    published: bool = False,
    compiled: bool = False,
    **options: Any,
) -> Account:
    """The account of a network of `models`, by shapes: nothing is stored or run, whatever the batch.

    Args:
        name: name of the network, a key of `MODELS`.
        normalization: a name or alias of `normalizations.TABLE` that models have.
        batch: number of images in a step, at least 2.
        stem: "cifar" or "imagenet".
        classes: number of logits.
        published: whether to take the network of the authors' code for CIFAR, as `Recipe.cifar100` does.
        compiled: whether to compile the gradient for this machine's device, in order to report its temporaries.
        options: further options of `build`.

    Raises:
        ValueError: `build` refuses an option, the batch is below 2, classes is below 1, or a network is to be published
            that is not, or at ImageNet size.
    """
    if batch < 2 or classes < 1:
        raise ValueError(f"got a batch of {batch} and {classes} classes: expected at least 2 images and 1 class")
    check("stem", stem, STEMS)
    if published and (stem != "cifar" or not published_options(name)):
        raise ValueError(
            f"the authors' {name} is not known at {stem} size: leave published out, or take images of cifar"
        )
    if published:
        options = published_options(name) | options
    normalization = trained_name(normalization)
    model = nnx.eval_shape(
        lambda: build(name, classes=classes, normalization=normalization, stem=stem, rngs=nnx.Rngs(0), **options)
    )
    shape = (batch, SIZES[stem], SIZES[stem], 3)
    _, parameters, _, *inputs = parts = _loss(model, shape)
    return Account(
        name,
        normalization,
        stem,
        batch,
        classes,
        _bytes(parameters),
        _bytes(inputs),
        _by_kind(*parts),
        _temporaries(*parts) if compiled else None,
        published,
    )


def kept_by(model: nnx.Module, shape: Sequence[int]) -> Mapping[str, int]:
    """Bytes that the backward pass of a model's cross-entropy keeps, by kind of layer, the largest first.

    Args:
        model: model that takes images to logits (batch, classes), with arrays or their shapes.
        shape: shape of the images, which are float32.
    """
    return _by_kind(*_loss(model, shape))


class Scoped(nnx.Module):
    """A layer whose operations are traced in the scope of its kind."""

    def __init__(self, layer: nnx.Module, kind: str) -> None:
        self.layer = layer
        self.kind = kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with scope(self.kind):
            return self.layer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Flax's own
            raise AttributeError(name)
        return getattr(self.layer, name)


def _scoped(path: Any, node: Any) -> Any:
    del path
    kind = next((kind for layer, kind in LAYERS.items() if isinstance(node, layer)), None)
    return node if kind is None else Scoped(node, kind)


def _loss(model: nnx.Module, shape: Sequence[int]) -> tuple[Any, ...]:
    """The function loss(parameters, rest, images, labels), which also gives the model's new state; and its shapes."""
    graph, parameters, *others = nnx.split(nnx.recursive_map(_scoped, nnx.clone(model)), nnx.Param, ...)
    (rest,) = others

    def loss(parameters: Any, rest: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, parameters, rest, copy=True)  # a trace may change its own copy only
        logits = model(images)
        with scope(LOSS):
            value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value, nnx.state(model, nnx.Not(nnx.Param))

    images = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    labels = jax.ShapeDtypeStruct(images.shape[:1], jnp.int32)
    return loss, parameters, rest, images, labels


def _by_kind(loss: Any, *arguments: Any) -> Mapping[str, int]:
    found = kept_bytes(loss, *arguments, kinds=(*LAYERS.values(), LOSS))
    return MappingProxyType(dict(found.most_common()))


def _temporaries(loss: Any, *arguments: Any) -> int | None:
    """Bytes of XLA's temporaries of the gradient; XLA's peak says nothing on a CPU."""
    analysis = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments).compile().memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
