"""The parts that all networks are built from, each normalised and initialised as the network wants it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ntk_analysis.common.normalizations import RUNNING_VARIANCES, trained_name
from ntk_analysis.training.initialization import (
    CENTERED_GAIN,
    DEFAULT_CENTERING,
    HE_GAIN,
    Centering,
    Initializer,
    Laws,
    centered_init,
    he_normal,
    torch_default,
)
from ntk_analysis.training.normalization import (
    NORMALIZATIONS,
    SKIP_SCALES,
    Identity,
    LastBatchNorm,
    Normalization,
    ShiftedConv,
    ShiftedLinear,
    SkipScale,
    Standardized,
    hidden_norm,
)

STEMS = ("cifar", "imagenet")
ARCHITECTURES = ("torchvision", "published")
"""Names of architectures at CIFAR size: torchvision's with another stem, or those of the MimicNorm authors' code."""


@dataclass(frozen=True, eq=False)
class Layers:
    """Makes the layers of one network.

    Attributes:
        normalization: a name of `normalizations.TABLE` that models have; aliases become the key of `NORMALIZATIONS`.
        rngs: Flax's generators.
        centering: which layers `weight_mean` and `mimic_norm` center, and `weight_standardization` standardises.
        gain: factor of centered weights behind a ReLU; with `laws`, of the convolutions that they name.
        laws: the authors' initial laws; None is He's.
        skip_scale: a name of `SKIP_SCALES`, the law of MimicNorm's scalars.
        momentum: momentum of the running statistics.
        eps: added to variances.
        running_variance: a name of `RUNNING_VARIANCES`, what batch norms remember for evaluation.
    """

    normalization: str
    rngs: nnx.Rngs
    centering: Centering = DEFAULT_CENTERING
    gain: float = CENTERED_GAIN
    laws: Laws | None = None
    skip_scale: str = "paper"
    momentum: float = 0.9
    eps: float = 1e-5
    running_variance: str = "unbiased"

    def __post_init__(self) -> None:
        object.__setattr__(self, "normalization", trained_name(self.normalization))
        check("skip_scale", self.skip_scale, SKIP_SCALES)
        check("running_variance", self.running_variance, RUNNING_VARIANCES)

    @property
    def parts(self) -> Normalization:
        """The parts of the network's normalisation."""
        return NORMALIZATIONS[self.normalization]

    def conv(
        self,
        inputs: int,
        units: int,
        size: int,
        strides: int = 1,
        *,
        groups: int = 1,
        bias: bool = False,
        padding: int | None = None,
        rectified: bool = True,
        in_unit: bool = False,
    ) -> nnx.Conv:
        """A square convolution, padded by size // 2 unless `padding` is given; those of SkipInit always have a bias.

        `rectified=False` says that no ReLU stands before it: its gain is then 1. `in_unit=True` says that it is part of
        a ShuffleNet's unit, which the authors' code never starts by PyTorch's default.
        """
        shape = (size, size, inputs // groups, units)
        selected = self.centering.selects(shape, groups)
        options = self._published(shape, groups, selected, in_unit) or {"kernel_init": self._init(selected, rectified)}
        if self.parts.standardized and selected:
            options["conv_general_dilated"] = Standardized(jax.lax.conv_general_dilated, self._gain(True, rectified))
        layer = ShiftedConv if self.parts.hidden == "shift" else nnx.Conv
        return layer(
            inputs,
            units,
            (size, size),
            strides,
            padding=size // 2 if padding is None else padding,
            feature_group_count=groups,
            use_bias=bias or self.parts.scale == "zero",
            rngs=self.rngs,
            **options,
        )

    def dense(self, inputs: int, units: int, *, first: bool = False) -> nnx.Linear:
        """A hidden dense layer with biases; the first one has gain 1 and is not centered."""
        selected = not first and self.centering.selects((inputs, units))
        options: dict[str, Any] = {}
        if self.parts.standardized and selected:
            options["dot_general"] = Standardized(jax.lax.dot_general, self._gain(True, True))
        return nnx.Linear(inputs, units, kernel_init=self._init(selected, not first), rngs=self.rngs, **options)

    def head(self, inputs: int, classes: int) -> nnx.Linear:
        """The read-out, never centered: of gain 1, or by the authors' laws."""
        layer = ShiftedLinear if self.parts.hidden == "shift" else nnx.Linear
        options: dict[str, Any] = {"kernel_init": he_normal(1.0 if self.laws is None else HE_GAIN)}
        if self.laws is not None and self.laws.torch_default and self._normed:
            options = {"kernel_init": torch_default(), "bias_init": torch_default(inputs)}
        return layer(inputs, classes, rngs=self.rngs, **options)

    def conv_head(self, inputs: int, classes: int) -> nnx.Conv:
        """The read-out as a 1 x 1 convolution, centered where `centering` says so of read-outs."""
        shape = (1, 1, inputs, classes)
        selected = self.centering.read_out and self.centering.selects(shape)
        options = self._published(shape, 1, selected, False) or {"kernel_init": self._init(selected, False)}
        return nnx.Conv(inputs, classes, (1, 1), rngs=self.rngs, **options)

    def last(self, classes: int) -> LastBatchNorm | Identity:
        """The module behind the read-out."""
        return LastBatchNorm(classes, **self._batch_norm) if self.parts.last else Identity()

    def norm(self, units: int) -> nnx.Module:
        """The module behind a hidden layer."""
        return hidden_norm(self.parts.hidden, units, rngs=self.rngs, **self._batch_norm)

    def branch_scale(self, block: int, convs: int) -> SkipScale | Identity:
        """The scalar of residual branch number 1, 2, ..., which has `convs` convolutions."""
        match self.parts.scale:
            case "none":
                return Identity()
            case "damped":
                return SkipScale(SKIP_SCALES[self.skip_scale](block, convs))
            case "zero":
                return SkipScale(0.0)
            case _:
                return SkipScale(1.0)

    def dropout(self, active: bool) -> nnx.Dropout | Identity:
        """Dropout of half of the features while training, if it is active."""
        return nnx.Dropout(0.5, rngs=self.rngs) if active else Identity()

    @property
    def _batch_norm(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "eps": self.eps, "running_variance": self.running_variance}

    @property
    def _normed(self) -> bool:
        """True if a norm stands behind hidden layers; Fixup's scalar shift is none."""
        return self.parts.hidden not in ("none", "shift")

    def _published(self, shape: Sequence[int], groups: int, selected: bool, in_unit: bool) -> dict[str, Any]:
        """The authors' initial laws of a convolution, as options of nnx.Conv; none where He's are wanted."""
        if self.laws is None or self.parts.hidden == "shift":
            return {}
        if self._normed and self.laws.torch_default and not in_unit:
            return {"kernel_init": torch_default(), "bias_init": torch_default(math.prod(shape[:-1]))}
        if self._normed:
            return {"kernel_init": he_normal(HE_GAIN / groups)}  # their fan-in is that of all groups together
        law = centered_init if self.parts.centered and selected else he_normal
        return {"kernel_init": law(self.gain * min(1.0, shape[-2] / self.laws.least_channels))}

    def _init(self, selected: bool, rectified: bool) -> Initializer:
        centered = self.parts.centered and selected
        return (centered_init if centered else he_normal)(self._gain(centered, rectified))

    def _gain(self, centered: bool, rectified: bool) -> float:
        if not rectified:
            return 1.0
        return self.gain if centered else HE_GAIN


def check(what: str, got: str, choices: Iterable[str]) -> None:
    """Raises a ValueError that names the choices, if `got` is not one of them."""
    if got not in choices:
        raise ValueError(f"unknown {what} {got!r}: choose one of {', '.join(choices)}")


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over each image: from (batch, height, width, channels) to (batch, channels)."""
    return jnp.mean(x, (1, 2))
