"""Any Flax NNX model with batch norm, turned into its MimicNorm form (2010.09278)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
from flax import nnx

from ntk_analysis.training.initialization import (
    CENTERED_GAIN,
    DEFAULT_CENTERING,
    HE_GAIN,
    Centering,
    Initializer,
    centered_init,
    centering_mask,
    he_normal,
    kernel_shape,
    linear_layers,
    read_out_path,
)
from ntk_analysis.training.models.layers import check
from ntk_analysis.training.models.resnet import Block
from ntk_analysis.training.normalization import SKIP_SCALES, Identity, LastBatchNorm, SkipScale

Model = TypeVar("Model", bound=nnx.Module)


@dataclass(frozen=True)
class Change:
    """A change of the model: its place, as a path with slashes, and what was changed there."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


@dataclass(frozen=True)
class Report:
    """The changes that `mimic` made.

    Attributes:
        changes: the changes, by their path in the given model; what neither `changes` nor `notes` names is as it was.
        notes: changes that could not be made, and tasks left to the caller.
        parameters: numbers of parameters before and after.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    parameters: tuple[int, int]

    def __str__(self) -> str:
        lines = [*map(str, self.changes), *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, f"parameters: {self.parameters[0]:,} before, {self.parameters[1]:,} after"])


class WithLastBatchNorm(nnx.Module, Generic[Model]):
    """A model with a `LastBatchNorm` behind it; it takes the arguments of the model."""

    def __init__(self, model: Model, last: LastBatchNorm) -> None:
        self.model = model
        self.last = last

    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        return self.last(self.model(*args, **kwargs))


def mimic(
    model: Model,
    *,
    rngs: nnx.Rngs,
    read_out: str | None = None,
    centering: Centering = DEFAULT_CENTERING,
    gain: float | None = None,
    skip_scale: str = "paper",
    momentum: float = 0.9,
    eps: float = 1e-5,
    running_variance: str = "unbiased",
) -> tuple[WithLastBatchNorm[Model], Report]:
    """The model without hidden batch norms, but with centered weights, residual scalars and a last batch norm.

    Every nnx.BatchNorm is replaced by the identity; its scale and bias are gone, and no other bias takes their place.
    Every nnx.Conv and nnx.Linear starts again with biases 0: with centered weights where `centering` says so, and by
    He's law elsewhere (gain 1 for the read-out). Scalars are added where the branches are known, which is in our own
    ResNets. The given model is not changed. Train the new one with `center_weights(centering_mask(new, centering,
    read_out=read_out))`.

    Args:
        model: a model that returns logits (batch, classes).
        rngs: Flax's generators of random numbers, for the new weights.
        read_out: path of the read-out or the end of it, as for `read_out_path`.
        centering: choice of the layers that are centered.
        gain: gain of centered weights; None: 2/(1 - 1/pi), but 2 in our ResNets with the authors' scalars.
        skip_scale: the law of residual scalars, "paper" or "authors".
        momentum: momentum of the last batch norm's running statistics.
        eps: number added to the last batch norm's variances.
        running_variance: variances that the last batch norm remembers for evaluation, "unbiased" or "biased".

    Raises:
        ValueError: there is no unique read-out, layers are stacked along another axis than the first, skip_scale or
            running_variance is unknown, or the model has a last batch norm already.
    """
    check("skip_scale", skip_scale, SKIP_SCALES)
    if any(isinstance(module, LastBatchNorm) for _, module in nnx.iter_modules(model)):
        raise ValueError("the model has a last batch norm already: expected one with hidden batch norms")
    if gain is None:
        scaled = skip_scale == "authors" and any(isinstance(module, Block) for _, module in nnx.iter_modules(model))
        gain = HE_GAIN if scaled else CENTERED_GAIN
    head = read_out_path(model, read_out)
    mask = centering_mask(model, centering, read_out=read_out)
    copy, replaced = _without_hidden_norms(nnx.clone(model), skip_scale)
    layers = linear_layers(copy)
    redrawn = [
        Change("/".join(path), _redraw(layer, mask((*path, "kernel"), layer.kernel[...]), gain, path == head, rngs))
        for path, layer in layers.items()
    ]
    classes = layers[head].kernel.shape[-1]
    last = LastBatchNorm(classes, momentum=momentum, eps=eps, running_variance=running_variance)
    changed = WithLastBatchNorm(copy, last)
    added = Change("/".join(head), f"last batch norm of {last.mean.shape[0]} classes behind the model")
    report = Report(
        (*replaced, *redrawn, added), tuple(_notes(copy, replaced)), (_parameters(model), _parameters(changed))
    )
    return changed, report


def _without_hidden_norms(model: Model, skip_scale: str) -> tuple[Model, list[Change]]:
    changes = []

    def replace(path: Sequence[Any], node: Any) -> Any:
        where = "/".join(map(str, path))
        if isinstance(node, nnx.BatchNorm):
            changes.append(Change(where, f"batch norm of {node.num_features} features removed"))
            return Identity()
        if isinstance(node, Block):
            value = SKIP_SCALES[skip_scale](node.number, len(node.convs))
            node.scale = SkipScale(value)
            changes.append(Change(f"{where}/scale", f"scalar {value:.4g} at the end of residual branch {node.number}"))
        return node

    return nnx.recursive_map(replace, model), changes


def _redraw(layer: nnx.Conv | nnx.Linear, centered: bool, gain: float, last: bool, rngs: nnx.Rngs) -> str:
    """Draws new weights for the layer in place; returns a text that says which law they have."""
    gain = gain if centered else 1.0 if last else HE_GAIN
    law = centered_init(gain) if centered else he_normal(gain)
    layer.kernel[...] = _drawn(law, layer, rngs.params())
    if layer.bias is not None:
        layer.bias[...] = 0 * layer.bias[...]
    fan_in = math.prod(kernel_shape(layer)[:-1])
    return f"{'centered' if centered else 'He normal'} weights of gain {gain:.4g}, fan-in {fan_in}"


def _drawn(law: Initializer, layer: nnx.Conv | nnx.Linear, key: jax.Array) -> jax.Array:
    """Drawn weights of one layer, or of each of the layers stacked along leading axes."""
    one, whole = kernel_shape(layer), layer.kernel.shape
    stack = whole[: len(whole) - len(one)]
    if (*stack, *one) != whole:
        raise ValueError(f"got stacked kernels {whole} of layers {one}: expected them stacked along their first axes")
    if not stack:
        return law(key, one, layer.kernel.dtype)
    keys = jax.random.split(key, math.prod(stack))
    return jax.vmap(lambda key: law(key, one, layer.kernel.dtype))(keys).reshape(whole)


def _notes(model: nnx.Module, replaced: list[Change]) -> list[str]:
    notes = []
    if not any("batch norm" in change.what for change in replaced):
        notes.append("no hidden nnx.BatchNorm was found")
    if not any(isinstance(module, Block) for _, module in nnx.iter_modules(model)):
        notes.append("residual branches of a foreign model cannot be known: if it has any, end each with a SkipScale")
    drawn = {(*path, "kernel") for path in linear_layers(model)}
    others = [
        "/".join(map(str, path))
        for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if param[...].ndim >= 2 and tuple(map(str, path)) not in drawn
    ]
    if others:
        notes.append(f"weights of other layers than nnx.Conv and nnx.Linear stay as they were: {', '.join(others)}")
    return notes


def _parameters(model: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
