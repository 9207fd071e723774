"""A recipe: everything that a training run depends on besides its images."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ntk_analysis.common.normalizations import RUNNING_VARIANCES, trained_name
from ntk_analysis.training.centering import MIN_FAN_IN, Mask, center_weights
from ntk_analysis.training.initialization import CENTERED_GAIN, VGG_GAIN, Centering, centering_mask
from ntk_analysis.training.models import MODELS, RESIDUAL, SCALABLE, build
from ntk_analysis.training.models.layers import check
from ntk_analysis.training.normalization import NORMALIZATIONS, SKIP_SCALES

OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("cross_entropy", "squared")
NARROW = (nnx.Conv, nnx.Linear, nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm)  # what bfloat16 computes with
LARGEST_SEED = 2**31 - 1
Number: TypeAlias = float | int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The way a network is trained. Recipes are hashable; `to_json` and `from_json` are each other's inverse.

    Attributes:
        model: a key of `models.MODELS`.
        depth: hidden layers of an MLP, and of nothing else; None is the MLP's own 5.
        width: their units, None is 512; of a VGG or ResNet the channels of its first stage, None is 64.
        normalization: a name of `normalizations.TABLE` that models have; aliases become the key of `NORMALIZATIONS`.
        min_fan_in: smallest fan-in that is centered or standardised; the authors' 51, 2 for the paper's text.
        gain: factor of centered weights behind a ReLU.
        skip_scale: law of MimicNorm's scalars, "paper" or "authors".
        running_variance: variances that batch norms remember for evaluation: "unbiased", as in PyTorch, the paper's
            framework, or "biased", as in Flax.
        loss: "cross_entropy", or "squared", which is 1/2 |f - onehot|^2; both are averaged over the batch.
        optimizer: name of the optimizer, "sgd", "adam" or "adamw".
        learning_rate: the largest learning rate, after warm-up and before decay.
        momentum: momentum of SGD, or beta_1 of Adam.
        nesterov: whether to use Nesterov's momentum.
        weight_decay: weight decay of all parameters, as in PyTorch. For "sgd" and "adam", weight_decay * w is added to
            the gradient; for "adamw", learning rate times weight_decay * w is subtracted.
        batch: number of images in a step; images left over at the end of a shuffled epoch are dropped.
        epochs: number of epochs. It changes no earlier step, and so is not part of the digest.
        warmup_epochs: number of epochs in which the learning rate rises linearly from 0; step k of n uses k/n of it.
        decay_at: epochs, counted from 0, from which on the learning rate is multiplied by decay_factor once more.
        decay_factor: factor of each decay.
        augment: whether images are cropped at random, after padding by 4, and flipped at random.
        bfloat16: whether products and activations are in bfloat16; parameters, statistics of batch norms and loss stay
            float32.
        seed: seed of initial weights, shuffles and augmentation.

    Raises:
        ValueError: a value is out of range, a name is unknown, or options do not fit each other.
    """

    model: str = "mlp"
    depth: int | None = None
    width: int | None = None
    normalization: str = "none"
    min_fan_in: int = MIN_FAN_IN
    gain: Number = CENTERED_GAIN
    skip_scale: str = "paper"
    running_variance: str = "unbiased"
    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    learning_rate: Number = 0.1
    momentum: Number = 0.9
    nesterov: bool = False
    weight_decay: Number = 0.0
    batch: int = 128
    epochs: int = 10
    warmup_epochs: int = 0
    decay_at: tuple[int, ...] = ()
    decay_factor: Number = 0.1
    augment: bool = False
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gain", "learning_rate", "momentum", "weight_decay", "decay_factor"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))  # 1 and 1.0 are the same recipe
        object.__setattr__(self, "normalization", trained_name(self.normalization))  # one recipe, whatever the alias
        _check_names(self)
        _check_ranges(self)

    @classmethod
    def cifar100(cls, model: str = "resnet18", **changes: Any) -> "Recipe":
        """The paper's recipe for CIFAR-100 (2010.09278), MimicNorm included, with any field changed."""
        recipe: dict[str, Any] = {
            "normalization": "mimic_norm",
            "gain": VGG_GAIN if model.startswith("vgg") else CENTERED_GAIN,
            "weight_decay": 5e-4,
            "batch": 256,
            "epochs": 150,
            "warmup_epochs": 2,
            "decay_at": (80, 110, 135),
            "augment": True,
        }
        return cls(model=model, **recipe | changes)

    def to_json(self) -> str:
        """All fields, sorted by name."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe that `to_json` wrote.

        Raises:
            ValueError: the text is of another kind, or has a field that recipes do not have or a value that they
                refuse.
        """
        found = json.loads(text)
        known = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or not set(found) <= known:
            wrong = ", ".join(sorted(set(found) - known)) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"not a recipe: got {wrong}, expected an object with fields of {', '.join(sorted(known))}")
        for field in fields(cls):
            value = found.get(field.name, field.default)
            if isinstance(field.default, str | bool) and type(value) is not type(field.default):
                raise ValueError(f"got {field.name}={value!r}: expected a {type(field.default).__name__}")
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in found.items()
        }
        return cls(**given)

    @property
    def digest(self) -> str:
        """SHA-256 of all fields that change the curve; `epochs` only says where it ends, and is left out."""
        facts = {name: value for name, value in asdict(self).items() if name != "epochs"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def centering(self) -> Centering:
        """The choice of layers that are centered, if the normalisation centers any."""
        return Centering(min_fan_in=self.min_fan_in)

    @property
    def centered(self) -> bool:
        """True if training keeps weights centered."""
        return NORMALIZATIONS[self.normalization].centered

    def build(self, rngs: nnx.Rngs, *, classes: int, inputs: int) -> nnx.Module:
        """The network in training mode; `inputs` is the number of features of an image, which only an MLP needs."""
        options: dict[str, Any] = {"inputs": inputs} if self.model == "mlp" else {}
        options |= {name: value for name in ("depth", "width") if (value := getattr(self, name)) is not None}
        model = build(
            self.model,
            classes=classes,
            rngs=rngs,
            normalization=self.normalization,
            centering=self.centering,
            gain=self.gain,
            skip_scale=self.skip_scale,
            running_variance=self.running_variance,
            **options,
        )
        for _, module in nnx.iter_modules(model):
            if self.bfloat16 and isinstance(module, NARROW):
                module.dtype = jnp.bfloat16  # dtype of its computations; its parameters stay float32
        return model

    def transformation(self, model: nnx.Module) -> optax.GradientTransformationExtraArgs:
        """The optax chain for this model's parameters; it centers the weights that are to be centered after every step.

        Its `update` takes the learning rate, a traced scalar: `update(gradient, state, params, learning_rate=...)`.
        """
        mask = centering_mask(model, self.centering) if self.centered else None
        return chain(self, mask)

    def rate(self, step: jax.Array, steps_per_epoch: int) -> jax.Array:
        """The learning rate of step 0, 1, ..., as a fraction of `learning_rate`, float32."""
        factor = jnp.ones((), jnp.float32)
        if self.warmup_epochs:
            warmup = jnp.float32(self.warmup_epochs * steps_per_epoch)
            factor = jnp.minimum(factor, (step + 1).astype(jnp.float32) / warmup)
        for epoch in self.decay_at:
            factor = jnp.where(step >= epoch * steps_per_epoch, factor * jnp.float32(self.decay_factor), factor)
        return factor


def chain(recipe: Recipe, mask: Mask | None) -> optax.GradientTransformationExtraArgs:
    """The steps of the recipe's optimizer, followed by the centering of what `mask` selects; None centers nothing."""
    decay = optax.add_decayed_weights(recipe.weight_decay)
    adam = optax.scale_by_adam(b1=recipe.momentum, nesterov=recipe.nesterov)
    match recipe.optimizer:
        case "sgd":
            steps = [decay, optax.trace(recipe.momentum, recipe.nesterov)]
        case "adam":
            steps = [decay, adam]
        case _:
            steps = [adam, decay]
    centered = [] if mask is None else [center_weights(mask)]
    return optax.chain(*steps, scale_by_given_rate(), *centered)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Multiplies by -learning_rate, an argument of each `update`: so a sweep can map over it, and no state holds it."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **extra: Any) -> tuple[Any, Any]:
        del params, extra
        return jax.tree.map(lambda change: -learning_rate * change, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"got {name}={value!r}: expected a finite number")
    return float(value)


def _check_names(recipe: Recipe) -> None:
    check("model", recipe.model, MODELS)
    check("skip_scale", recipe.skip_scale, SKIP_SCALES)
    check("running_variance", recipe.running_variance, RUNNING_VARIANCES)
    check("loss", recipe.loss, LOSSES)
    check("optimizer", recipe.optimizer, OPTIMIZERS)
    if NORMALIZATIONS[recipe.normalization].residual and recipe.model not in RESIDUAL:
        raise ValueError(f"{recipe.normalization} is for residual networks: choose one of {', '.join(RESIDUAL)}")
    if recipe.model != "mlp" and recipe.depth is not None:
        raise ValueError(f"{recipe.model} has its own depth: leave depth out, or choose mlp")
    if recipe.width is not None and recipe.model not in SCALABLE:
        raise ValueError(f"{recipe.model} has its own width: leave width out, or choose one of {', '.join(SCALABLE)}")


def _check_ranges(recipe: Recipe) -> None:
    smallest = {"depth": 1, "width": 1, "min_fan_in": 2, "batch": 2, "epochs": 1, "warmup_epochs": 0, "seed": 0}
    for name, least in smallest.items():
        value = getattr(recipe, name)
        if value is None and name in ("depth", "width"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"got {name}={value!r}: expected an integer of at least {least}")
    if recipe.seed > LARGEST_SEED:
        raise ValueError(f"got seed={recipe.seed}: expected at most {LARGEST_SEED}")
    for name in ("learning_rate", "gain", "decay_factor"):
        if getattr(recipe, name) <= 0:
            raise ValueError(f"got {name}={getattr(recipe, name)}: expected a positive number")
    if recipe.weight_decay < 0:
        raise ValueError(f"got weight_decay={recipe.weight_decay}: expected 0 or more")
    if not 0 <= recipe.momentum < 1:
        raise ValueError(f"got momentum={recipe.momentum}: expected a number in [0, 1)")
    if recipe.nesterov and not recipe.momentum:
        raise ValueError("nesterov needs momentum: give one above 0, or leave nesterov out")
    epochs = recipe.decay_at
    whole = isinstance(epochs, tuple) and all(isinstance(epoch, int) and epoch > 0 for epoch in epochs)
    if not whole or list(epochs) != sorted(set(epochs)):
        raise ValueError(f"got decay_at={epochs}: expected a tuple of rising epochs, each 1 or more")
