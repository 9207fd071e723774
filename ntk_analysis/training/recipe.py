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
from ntk_analysis.training.initialization import INITIALIZATIONS, Centering, centering_mask
from ntk_analysis.training.models import (
    ARCHITECTURES,
    CLASSIFIERS,
    MODELS,
    OF_ARCHITECTURES,
    OF_CLASSIFIERS,
    RESIDUAL,
    SCALABLE,
    build,
    default_gain,
    published_options,
)
from ntk_analysis.training.models.layers import STEMS, check
from ntk_analysis.training.normalization import NORMALIZATIONS, SKIP_SCALES

OPTIMIZERS = ("sgd", "adam", "adamw")
LOSSES = ("cross_entropy", "squared")
NARROW = (nnx.Conv, nnx.Linear, nnx.BatchNorm, nnx.LayerNorm, nnx.GroupNorm)  # what bfloat16 computes with
LARGEST_SEED = 2**31 - 1
BEFORE = {"running_variance": "biased"}
"""Values that fields had before recipes had these fields, where they are not the default of now: Flax's variances."""
Number: TypeAlias = float | int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The way a network is trained. Recipes are hashable; `to_json` and `from_json` are each other's inverse.

    Attributes:
        model: a key of `models.MODELS`.
        depth: hidden layers of an MLP, and of nothing else; None is the MLP's own 5.
        width: their units, None is 512; of a VGG or ResNet the channels of its first stage, None is 64.
        stem: "cifar", for images of about 32 x 32, or "imagenet", for images of 224 x 224; an MLP has none.
        classifier: what follows a VGG's convolutions: "linear", one layer, or "published", the authors' three with
            dropout.
        architecture: "torchvision", or "published", that of the authors' code, for ResNets, SqueezeNet and ShuffleNet.
        initialization: initial laws, "he", or "published", those of the authors' code (`initialization.PUBLISHED`).
        normalization: a name of `normalizations.TABLE` that models have; aliases become the key of `NORMALIZATIONS`.
        min_fan_in: smallest fan-in that is centered or standardised; the authors' 51, 2 for the paper's text.
        dense: whether hidden dense layers are centered. None: those of an MLP are, those of a VGG are not, as in the
            authors' code.
        gain: factor of centered weights behind a ReLU; with published laws of all convolutions where no hidden layer is
            normalised. None is the network's own, `models.default_gain`; the recipe then has that number.
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
        batch: number of images in a step.
        drop_last: whether images left over at the end of a shuffled epoch are dropped, in place of a smaller last step.
        epochs: number of epochs. It changes no earlier step, and so is not part of the digest.
        warmup_epochs: number of epochs in which the learning rate rises linearly; step k = 1, ..., n uses k/n of it.
        warmup_start: the rate of the first step, added to (k - 1)/n of the learning rate while it rises, as in the
            authors' code; None: it rises from 0, by the rule above.
        decay_at: epochs, counted from 0, from which on the learning rate is multiplied by decay_factor once more.
        decay_factor: factor of each decay.
        augment: whether images are cropped at random, after padding by 4, and flipped at random.
        rotation: largest angle, in degrees, by which augmented images are turned at random, too.
        bfloat16: whether products and activations are in bfloat16; parameters, statistics of batch norms and loss stay
            float32.
        seed: seed of initial weights, shuffles, augmentation and dropout.

    Raises:
        ValueError: a value is out of range, a name is unknown, or options do not fit each other.
    """

    model: str = "mlp"
    depth: int | None = None
    width: int | None = None
    stem: str = "cifar"
    classifier: str = "linear"
    architecture: str = "torchvision"
    initialization: str = "he"
    normalization: str = "none"
    min_fan_in: int = MIN_FAN_IN
    dense: bool | None = None
    gain: Number | None = None
    skip_scale: str = "paper"
    running_variance: str = "unbiased"
    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    learning_rate: Number = 0.1
    momentum: Number = 0.9
    nesterov: bool = False
    weight_decay: Number = 0.0
    batch: int = 128
    drop_last: bool = True
    epochs: int = 10
    warmup_epochs: int = 0
    warmup_start: Number | None = None
    decay_at: tuple[int, ...] = ()
    decay_factor: Number = 0.1
    augment: bool = False
    rotation: Number = 0.0
    bfloat16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalization", trained_name(self.normalization))  # one recipe, whatever the alias
        _check_names(self)
        if self.dense is None:
            object.__setattr__(self, "dense", self.model == "mlp")
        if self.gain is None:
            gain = default_gain(self.model, initialization=self.initialization, skip_scale=self.skip_scale)
            object.__setattr__(self, "gain", gain)
        for name in NUMBERS:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _number(name, value))  # 1 and 1.0 are the same recipe
        _check_ranges(self)

    @classmethod
    def cifar100(cls, model: str = "resnet18", **changes: Any) -> "Recipe":
        """The paper's recipe for CIFAR-100 (2010.09278), MimicNorm included, with any field changed.

        Network, initial laws, augmentation and schedule are those of the authors' code, which the paper's tables come
        from. The steps of its schedule begin behind the warm-up: 80, 110 and 135 epochs are 82, 112 and 137. Without
        warm-up there is no first rate of it, and without augmentation no rotation.
        """
        recipe: dict[str, Any] = {
            "normalization": "mimic_norm",
            "weight_decay": 5e-4,
            "batch": 128 if model == "resnet50" else 256,
            "drop_last": False,
            "epochs": 150,
            "warmup_epochs": 2,
            "warmup_start": 1e-4,
            "decay_at": (82, 112, 137),
            "augment": True,
            "rotation": 15.0,
        }
        if changes.get("warmup_epochs") == 0:
            del recipe["warmup_start"]
        if changes.get("augment") is False:
            del recipe["rotation"]
        return cls(model=model, **published_options(model) | recipe | changes)

    def to_json(self) -> str:
        """All fields, sorted by name."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """The recipe that `to_json` wrote, now or before it had all fields: those missing have what was trained then.

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
        return cls(**BEFORE | given)

    @property
    def digest(self) -> str:
        """SHA-256 of all fields that change the curve; `epochs` only says where it ends, and is left out."""
        facts = {name: value for name, value in asdict(self).items() if name != "epochs"}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def centering(self) -> Centering:
        """The choice of layers that are centered, if the normalisation centers any."""
        read_out = self.architecture == "published" and self.model.startswith("squeezenet")  # it is a convolution
        return Centering(min_fan_in=self.min_fan_in, dense=bool(self.dense), read_out=read_out)

    @property
    def centered(self) -> bool:
        """True if training keeps weights centered."""
        return NORMALIZATIONS[self.normalization].centered

    def build(self, rngs: nnx.Rngs, *, classes: int, inputs: int) -> nnx.Module:
        """The network in training mode; `inputs` is the number of features of an image, which only an MLP needs."""
        options: dict[str, Any] = {"inputs": inputs} if self.model == "mlp" else {}
        options |= {name: value for name in ("depth", "width") if (value := getattr(self, name)) is not None}
        options |= {"classifier": self.classifier} if self.model in OF_CLASSIFIERS else {}
        options |= {"architecture": self.architecture} if self.model in OF_ARCHITECTURES else {}
        model = build(
            self.model,
            classes=classes,
            rngs=rngs,
            stem=self.stem,
            normalization=self.normalization,
            centering=self.centering,
            initialization=self.initialization,
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

    def rate(self, step: jax.Array, steps_per_epoch: int, learning_rate: jax.Array) -> jax.Array:
        """The rate of step 0, 1, ..., which warm-up and decays make of the learning rate; a float32 scalar."""
        factor = jnp.ones((), jnp.float32)
        warmup = self.warmup_epochs * steps_per_epoch
        if warmup:
            risen = step + (1 if self.warmup_start is None else 0)
            factor = jnp.minimum(factor, risen.astype(jnp.float32) / jnp.float32(warmup))
        for epoch in self.decay_at:
            factor = jnp.where(step >= epoch * steps_per_epoch, factor * jnp.float32(self.decay_factor), factor)
        rate = learning_rate * factor
        return rate if self.warmup_start is None else rate + jnp.where(step < warmup, jnp.float32(self.warmup_start), 0)


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


NUMBERS = ("gain", "learning_rate", "momentum", "weight_decay", "warmup_start", "decay_factor", "rotation")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"got {name}={value!r}: expected a finite number")
    return float(value)


def _check_names(recipe: Recipe) -> None:
    check("model", recipe.model, MODELS)
    check("stem", recipe.stem, STEMS)
    check("classifier", recipe.classifier, CLASSIFIERS)
    check("architecture", recipe.architecture, ARCHITECTURES)
    check("initialization", recipe.initialization, INITIALIZATIONS)
    check("skip_scale", recipe.skip_scale, SKIP_SCALES)
    check("running_variance", recipe.running_variance, RUNNING_VARIANCES)
    check("loss", recipe.loss, LOSSES)
    check("optimizer", recipe.optimizer, OPTIMIZERS)
    if NORMALIZATIONS[recipe.normalization].residual and recipe.model not in RESIDUAL:
        raise ValueError(f"{recipe.normalization} is for residual networks: choose one of {', '.join(RESIDUAL)}")
    if recipe.model == "mlp" and recipe.stem != "cifar":
        raise ValueError("mlp has no stem: leave stem out, or choose a network of images")
    for name, models in (("classifier", OF_CLASSIFIERS), ("architecture", OF_ARCHITECTURES)):
        if getattr(recipe, name) == "published" and recipe.model not in models:
            raise ValueError(
                f"{recipe.model} has no {name} to choose: leave it out, or take one of {', '.join(models)}"
            )
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
    for name in ("learning_rate", "gain", "decay_factor", "warmup_start"):
        if (value := getattr(recipe, name)) is not None and value <= 0:
            raise ValueError(f"got {name}={value}: expected a positive number")
    if not isinstance(recipe.dense, bool):
        raise ValueError(f"got dense={recipe.dense!r}: expected True, False, or None for the network's own")
    if recipe.warmup_start is not None and not recipe.warmup_epochs:
        raise ValueError("warmup_start needs warmup_epochs: give 1 or more, or leave warmup_start out")
    if not 0 <= recipe.rotation <= 180:
        raise ValueError(f"got rotation={recipe.rotation}: expected degrees from 0 to 180")
    if recipe.rotation and not recipe.augment:
        raise ValueError("rotation needs augment: give augment=True, or leave rotation out")
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
