"""Ready networks by name, with the normalisation as an argument."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import jax

from ntk_analysis import activations
from ntk_analysis.layers import (
    Activation,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LastBatchNorm,
    Layer,
    LayerNorm,
    Repeat,
    ResidualChain,
    Serial,
)
from ntk_analysis.layers.base import Params
from ntk_analysis.normalizations import infinite_name, row_of

Normalization: TypeAlias = Literal["none", "weight_mean", "weight_standardization", "batch", "layer", "layer_post"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
READOUTS = {"flatten": Flatten, "pool": GlobalAvgPool}
SCALES: dict[str, Callable[[int, int], float]] = {
    "1/sqrt(l)": lambda block, blocks: block**-0.5,
    "1/sqrt(L)": lambda block, blocks: blocks**-0.5,
}

AnyActivation: TypeAlias = str | Callable[[jax.Array], jax.Array] | activations.Activation


@dataclass(frozen=True)
class _Style:
    """What all layers of a network share: where it normalises, its activation and its variances."""

    normalization: str
    last: bool
    activation: AnyActivation
    w_var: float
    b_var: float
    eps: float

    @property
    def weights(self) -> dict[str, Any]:
        """Arguments of every layer of weights behind the first."""
        center, standardize = (self.normalization == name for name in ("weight_mean", "weight_standardization"))
        return {"w_var": self.w_var, "b_var": self.b_var, "center": center, "standardize": standardize}

    @property
    def activated(self) -> tuple[Layer, ...]:
        """The activation, with a normalisation before or after it."""
        before = {"batch": (BatchNorm(self.eps),), "layer": (LayerNorm(self.eps),)}.get(self.normalization, ())
        after = (LayerNorm(self.eps),) if self.normalization == "layer_post" else ()
        return (*before, Activation(self.activation), *after)

    def readout(self, outputs: int, *, center: bool, last_batch_norm: bool) -> tuple[Layer, ...]:
        """The last layer of weights, and a batch normalisation of the outputs."""
        weights = self.weights if center else {"w_var": self.w_var, "b_var": self.b_var}
        return (Dense(outputs, **weights), *(LastBatchNorm(self.eps),) * (last_batch_norm or self.last))


def _style(normalization: str, activation: AnyActivation, w_var: float | None, b_var: float, eps: float) -> _Style:
    row = row_of(normalization)
    normalization = infinite_name(normalization)
    if w_var is None:
        centered = normalization in ("weight_mean", "weight_standardization")
        # what a layer normalisation behind the activation hands on has a second moment of 1, whatever the activation
        units = "identity" if normalization == "layer_post" else activation
        w_var = activations.get(units).stable_gain(b_var, centered=centered)
    return _Style(normalization, row.last, activation, w_var, b_var, eps)


def _repeated(block: Serial, times: int) -> tuple[Layer, ...]:
    return (Repeat(block, times),) if times else ()


def fully_connected(
    depth: int,
    width: int,
    normalization: str = "none",
    activation: AnyActivation = "relu",
    outputs: int = 1,
    w_var: float | None = None,
    b_var: float = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: float = 0.0,
) -> Serial:
    """Fully connected network in NTK parametrisation, with or without normalisation.

    The first layer has gain 1 and is never centred (no activation stands before it); every later layer, the read-out
    included, has gain `w_var` and, under "weight_mean", centred weights. All layers share `b_var`.

    Args:
        depth: number of hidden layers (activations), at least 1.
        width: units of every hidden layer; the infinite-width kernel does not look at it.
        normalization: "none"; "weight_mean" (MimicNorm's weight centering); "weight_standardization" (centred and
            scaled to unit norm per unit); "batch" and "layer" (before each activation); "layer_post" (after each
            activation); "last_bn" and "mimic" are "none" and "weight_mean" with `last_batch_norm`. Aliases are in
            `normalizations.TABLE`.
        activation: name or elementwise JAX function.
        outputs: units of the read-out.
        w_var: weight variance after the first layer; None keeps a pre-activation variance of q = 1: the activation's
            stable gain, centering included, and 1 - b_var for "layer_post", whose units have a second moment of 1 (all
            at eps = 0). Without normalisation it is the edge of chaos for homogeneous activations only (see
            meanfield.critical_line).
        b_var: bias variance, in the first layer too.
        last_batch_norm: a BatchNorm without parameters on the outputs (finite networks only).
        center_readout: whether "weight_mean" and "weight_standardization" hold for the read-out too.
        eps: added to the variances of batch and layer normalisations.

    Raises:
        ValueError: depth or width below 1, unknown names, a negative variance or eps, no stable gain for b_var >= 1.
    """
    _check_count("depth", depth, "a network has at least 1 hidden layer")
    style = _style(normalization, activation, w_var, b_var, eps)
    return Serial(
        Dense(width, 1.0, b_var),
        *style.activated,
        *_repeated(Serial(Dense(width, **style.weights), *style.activated), depth - 1),
        *style.readout(outputs, center=center_readout, last_batch_norm=last_batch_norm),
    )


def convolutional(
    depth: int,
    channels: int,
    normalization: str = "none",
    activation: AnyActivation = "relu",
    outputs: int = 1,
    w_var: float | None = None,
    b_var: float = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: float = 0.0,
    *,
    kernel_size: int | tuple[int, int] = 3,
    padding: str = "same",
    readout: str = "flatten",
) -> Serial:
    """Convolutional network of `depth` convolutions of stride 1 and a dense read-out, for (batch, h, w, c) images.

    Args:
        depth: number of convolutions, each with its activation, at least 1.
        channels: of every convolution; the infinite-width kernel does not look at it.
        normalization: as in `fully_connected`; "layer" normalises each position over its channels, "batch" has a
            finite side only.
        activation: as in `fully_connected`, as are all arguments up to `center_readout`.
        outputs: units of the read-out.
        w_var: weight variance after the first layer.
        b_var: bias variance.
        last_batch_norm: a BatchNorm without parameters on the outputs (finite networks only).
        center_readout: whether a centred network's read-out is centred.
        eps: of batch and layer normalisations.
        kernel_size: one number or (height, width).
        padding: "same", "circular" or "valid".
        readout: "flatten" (its kernel needs equal positions only) or "pool" (global average: all pairs of positions).

    Raises:
        ValueError: as `fully_connected`; an unknown padding or read-out.
    """
    _check_count("depth", depth, "a network has at least 1 convolution")
    style = _style(normalization, activation, w_var, b_var, eps)
    first = Conv(channels, kernel_size, padding=padding, b_var=b_var)
    block = Serial(Conv(channels, kernel_size, padding=padding, **style.weights), *style.activated)
    # without padding each convolution shrinks the image, which a scan cannot
    later = (block,) * (depth - 1) if padding == "valid" else _repeated(block, depth - 1)
    return Serial(
        first,
        *style.activated,
        *later,
        _readout_named(readout),
        *style.readout(outputs, center=center_readout, last_batch_norm=last_batch_norm),
    )


def residual(
    blocks: int,
    width: int,
    normalization: str = "none",
    activation: AnyActivation = "relu",
    outputs: int = 1,
    w_var: float | None = None,
    b_var: float = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: float = 0.0,
    *,
    scale: str | float = "1/sqrt(l)",
    kernel_size: int | tuple[int, int] | None = None,
    padding: str = "same",
    readout: str = "flatten",
) -> Serial:
    """Pre-activation residual network: a layer, `blocks` times x + scale_l * weights(activation(x)), a read-out.

    Args:
        blocks: number of residual branches, at least 1.
        width: units, or channels of convolutions.
        normalization: as in `fully_connected`; "batch" and "layer" stand before the activation of each branch.
        activation: as in `fully_connected`, as are all arguments up to `center_readout`.
        outputs: units of the read-out.
        w_var: weight variance of branches and read-out.
        b_var: bias variance.
        last_batch_norm: a BatchNorm without parameters on the outputs (finite networks only).
        center_readout: whether a centred network's read-out is centred.
        eps: of batch and layer normalisations.
        scale: of branch l: "1/sqrt(l)" (MimicNorm), "1/sqrt(L)" with L = blocks (the variance grows to less than e
            times its first value, at any depth), or one number for all. A constant: the trainable scalar of SkipInit
            (De & Smith 2020) moves with training, and its own part in the NTK, |branch|^2 weighted by the read-out,
            stays random at infinite width.
        kernel_size: None for dense layers; one number or (height, width) for convolutions of images.
        padding: of convolutions, "same" or "circular".
        readout: of convolutions, "flatten" or "pool".

    Raises:
        ValueError: as `convolutional`; an unknown scale.
    """
    _check_count("blocks", blocks, "a residual network has at least 1")
    style = _style(normalization, activation, w_var, b_var, eps)

    def weights(**options: Any) -> Layer:
        if kernel_size is None:
            return Dense(width, **options)
        return Conv(width, kernel_size, padding=padding, **options)

    return Serial(
        weights(b_var=b_var),
        ResidualChain(Serial(*style.activated, weights(**style.weights)), _scales(scale, blocks)),
        *style.activated,
        *(() if kernel_size is None else (_readout_named(readout),)),
        *style.readout(outputs, center=center_readout, last_batch_norm=last_batch_norm),
    )


def from_linen(
    module: Any,
    variables: Any,
    x: Any,
    mode: str = "eval",
    *,
    rngs: Any = None,
    **arguments: Any,
) -> tuple[Callable[..., Any], Params, Any]:
    """A Flax Linen module as (f, params, x), what `empirical_ntk`, `diagnose` and the commands take.

    `params` is the collection "params" alone. All others (running statistics, caches) are constants of f, and what the
    module writes into them is forgotten: f(params, x) is a function. The mode is set wherever the module's call has an
    argument, or a module among its attributes a flag, called train, training, is_training, update_stats, deterministic
    or use_running_average.

    Args:
        module: of flax.linen.
        variables: all collections, as `module.init` returns them.
        x: (n, ...) inputs.
        mode: "eval": running statistics, no dropout; "train": statistics of the batch, units dropped.
        rngs: random keys by stream, or one for all, as of dropout; key(0) for None. They are the same in every call,
            and a mask depends on a unit's place in the batch: dropout couples the batch.
        arguments: of the module's call, behind x.

    Raises:
        TypeError: the module is not Linen's.
        ValueError: variables without "params", or that lack what the module reads; an unknown mode, or one that the
            module does not follow.
    """
    from ntk_analysis.flax_networks import linen  # Flax takes a second to import, which other networks do not need

    return linen.from_linen(module, variables, x, mode, rngs, arguments)


def from_nnx(module: Any, x: Any, mode: str = "eval", **arguments: Any) -> tuple[Callable[..., Any], Params, Any]:
    """A Flax NNX model as (f, params, x), what `empirical_ntk`, `diagnose` and the commands take.

    `params` is the state of its `nnx.Param`s alone. All other variables (running statistics, caches, random keys) are
    constants of f, as they are now; what the model writes into them is forgotten, and the given model does not change.
    The mode is set as by `model.train()` and `model.eval()`, and as for `from_linen`.

    Args:
        module: of flax.nnx.
        x: (n, ...) inputs.
        mode: "eval": running statistics, no dropout; "train": statistics of the batch, units dropped, with the model's
            own keys, the same in every call.
        arguments: of the model's call, behind x.

    Raises:
        TypeError: the module is not NNX's.
        ValueError: an unknown mode, or one that the model does not follow.
    """
    from ntk_analysis.flax_networks import nnx

    return nnx.from_nnx(module, x, mode, arguments)


def _scales(scale: str | float, blocks: int) -> tuple[float, ...]:
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}: give a number or one of {', '.join(SCALES)}")
        return tuple(SCALES[scale](block, blocks) for block in range(1, blocks + 1))
    return (float(scale),) * blocks


def _readout_named(name: str) -> Layer:
    if name not in READOUTS:
        raise ValueError(f"unknown readout {name!r}: choose one of {', '.join(READOUTS)}")
    return READOUTS[name]()


def _check_count(name: str, value: int, least: str) -> None:
    if value < 1:
        raise ValueError(f"got {name} {value}: {least}")
