"""Ready networks by name, with the normalisation as an argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np

from ntk_analysis import activations
from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.normalizations import infinite_name, row_of
from ntk_analysis.common.pytrees import Number, Tree
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
from ntk_analysis.layers.combinators import MOST
from ntk_analysis.layers.windows import Padding

if TYPE_CHECKING:
    import equinox
    import torch
    from flax import linen as nn
    from flax import nnx

NORMALIZATIONS = ("none", "weight_mean", "weight_standardization", "batch", "layer", "layer_post")
"""Names of the normalisations of hidden layers; `common.normalizations.TABLE` has all names that networks take."""
READOUTS = {"flatten": Flatten, "pool": GlobalAvgPool}
SCALES: dict[str, Callable[[int, int], float]] = {
    "1/sqrt(l)": lambda block, blocks: block**-0.5,
    "1/sqrt(L)": lambda block, blocks: blocks**-0.5,
}

AnyActivation: TypeAlias = str | Callable[[jax.Array], jax.Array] | activations.Activation


@dataclass(frozen=True)
class _Style:
    """The settings that all layers of a network share: its normalisation, its activation and its variances."""

    normalization: str
    last: bool
    activation: AnyActivation
    w_var: Number
    b_var: Number
    eps: Number

    @property
    def weights(self) -> dict[str, Any]:
        """Arguments of every layer of weights after the first."""
        center, standardize = (self.normalization == name for name in ("weight_mean", "weight_standardization"))
        return {"w_var": self.w_var, "b_var": self.b_var, "center": center, "standardize": standardize}

    @property
    def activated(self) -> tuple[Layer, ...]:
        """The activation, with a normalisation before or after it."""
        before = {"batch": (BatchNorm(self.eps),), "layer": (LayerNorm(self.eps),)}.get(self.normalization, ())
        after = (LayerNorm(self.eps),) if self.normalization == "layer_post" else ()
        return (*before, Activation(self.activation), *after)

    def readout(self, outputs: int, *, center: bool, last_batch_norm: bool) -> tuple[Layer, ...]:
        """The last layer of weights, and a batch normalisation of the outputs if there is one."""
        weights = self.weights if center else {"w_var": self.w_var, "b_var": self.b_var}
        return (Dense(outputs, **weights), *(LastBatchNorm(self.eps),) * (last_batch_norm or self.last))


def _style(normalization: str, activation: AnyActivation, w_var: Number | None, b_var: Number, eps: Number) -> _Style:
    row = row_of(normalization)
    normalization = infinite_name(normalization)
    if w_var is None:
        centered = normalization in ("weight_mean", "weight_standardization")
        # the output of a layer normalisation behind the activation has a second moment of 1, whatever the activation
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
    *,
    outputs: int = 1,
    w_var: Number | None = None,
    b_var: Number = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: Number = 0.0,
) -> Serial:
    """Fully connected network in NTK parametrisation, with or without normalisation.

    The first layer has gain 1 and is never centered (no activation comes before it). Every later layer, the read-out
    included, has gain `w_var` and, under "weight_mean", centered weights. All layers share `b_var`.

    Args:
        depth: number of hidden layers (activations), at least 1.
        width: number of units of every hidden layer; the infinite-width kernel does not depend on it.
        normalization: "none"; "weight_mean" (MimicNorm's weight centering); "weight_standardization" (centered and
            scaled to unit norm per unit); "batch" and "layer" (before each activation); "layer_post" (after each
            activation); "last_bn" and "mimic" are "none" and "weight_mean" with `last_batch_norm`. Aliases are in
            `normalizations.TABLE`.
        activation: name or elementwise JAX function.
        outputs: number of units of the read-out.
        w_var: weight variance after the first layer. None keeps a pre-activation variance of q = 1: it is the
            activation's stable gain, centering included, and 1 - b_var for "layer_post", whose units have a second
            moment of 1 (all at eps = 0). Without normalisation it is the edge of chaos for homogeneous activations only
            (see meanfield.critical_line).
        b_var: bias variance, of the first layer, too.
        last_batch_norm: whether a BatchNorm without parameters follows the outputs (finite networks only).
        center_readout: whether "weight_mean" and "weight_standardization" apply to the read-out, too.
        eps: number added to the variances of batch and layer normalisations.

    Raises:
        ValueError: depth or width is below 1, a name is unknown, a variance or eps is negative, or there is no stable
            gain because b_var >= 1.
    """
    depth = whole_number(depth, "depth", MOST)
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
    *,
    outputs: int = 1,
    w_var: Number | None = None,
    b_var: Number = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: Number = 0.0,
    kernel_size: int | tuple[int, int] = 3,
    padding: Padding = "same",
    readout: str = "flatten",
) -> Serial:
    """Convolutional network of `depth` convolutions of stride 1 and a dense read-out, for (batch, h, w, c) images.

    Args:
        depth: number of convolutions, each with its activation, at least 1.
        channels: number of channels of every convolution; the infinite-width kernel does not depend on it.
        normalization: name of the normalisation, as for `fully_connected`; "layer" normalises each position over its
            channels, "batch" each channel over all positions of all images, whose kernel keeps all pairs of positions.
        activation: name or elementwise JAX function.
        outputs: number of units of the read-out.
        w_var: weight variance after the first layer, as for `fully_connected`.
        b_var: bias variance.
        last_batch_norm: whether a BatchNorm without parameters follows the outputs (finite networks only).
        center_readout: whether a centered network's read-out is centered.
        eps: number added to the variances of batch and layer normalisations.
        kernel_size: size of the kernel, one number or (height, width).
        padding: padding of the convolutions, "same", "circular" or "valid".
        readout: "flatten" (its kernel needs equal positions only) or "pool" (global average, which needs all pairs of
            positions).

    Raises:
        ValueError: an argument is refused, as by `fully_connected`; or the padding or read-out is unknown.
    """
    depth = whole_number(depth, "depth", MOST)
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
    *,
    outputs: int = 1,
    w_var: Number | None = None,
    b_var: Number = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
    eps: Number = 0.0,
    scale: str | Number = "1/sqrt(l)",
    kernel_size: int | tuple[int, int] | None = None,
    padding: Padding = "same",
    readout: str = "flatten",
) -> Serial:
    """Pre-activation residual network: a layer, `blocks` times x + scale_l * weights(activation(x)), a read-out.

    Args:
        blocks: number of residual branches, at least 1.
        width: number of units, or of channels of convolutions.
        normalization: name of the normalisation, as for `fully_connected`; "batch" and "layer" come before the
            activation of each branch.
        activation: name or elementwise JAX function.
        outputs: number of units of the read-out.
        w_var: weight variance of branches and read-out, as for `fully_connected`.
        b_var: bias variance.
        last_batch_norm: whether a BatchNorm without parameters follows the outputs (finite networks only).
        center_readout: whether a centered network's read-out is centered.
        eps: number added to the variances of batch and layer normalisations.
        scale: factor of branch l: "1/sqrt(l)" (MimicNorm), "1/sqrt(L)" with L = blocks (the variance grows to less than
            e times its first value, at any depth), or one number for all. It is a constant: the trainable scalar of
            SkipInit (De & Smith 2020) moves with training, and its own part in the NTK, |branch|^2 weighted by the
            read-out, stays random at infinite width.
        kernel_size: None for dense layers; one number or (height, width) for convolutions of images.
        padding: padding of convolutions, "same" or "circular".
        readout: read-out of convolutions, "flatten" or "pool".

    Raises:
        ValueError: an argument is refused, as by `convolutional`; or the scale is unknown.
    """
    blocks = whole_number(blocks, "blocks", MOST)
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
    module: "nn.Module",
    variables: Tree,
    x: Tree,
    mode: str = "eval",
    *,
    rngs: jax.Array | Mapping[str, jax.Array] | None = None,
    **arguments: Any,
) -> tuple[Callable[..., Any], Params, Any]:
    """A Flax Linen module as (f, params, x), which `empirical_ntk`, `diagnose` and the commands take.

    `params` is the collection "params" alone. All other collections (running statistics, caches) are constants of f,
    and what the module writes into them is lost: f(params, x) is a function. The mode is set through arguments of the
    module's call and flags among the attributes of modules, if they are called train, training, is_training,
    update_stats, deterministic or use_running_average.

    Args:
        module: module of flax.linen.
        variables: all collections, as `module.init` returns them.
        x: inputs (n, ...).
        mode: "eval", with running statistics and no dropout; or "train", with statistics of the batch and units
            dropped.
        rngs: random keys by stream, or one for all, as dropout needs; None is key(0). They are the same in every call,
            and a mask depends on a unit's place in the batch: dropout couples the batch.
        arguments: further arguments of the module's call, after x.

    Raises:
        TypeError: the module is not Linen's.
        ValueError: variables have no "params", or lack what the module reads; or the mode is unknown, or the module
            does not follow it.
    """
    from ntk_analysis.flax_networks import linen  # Flax takes a second to import, which other networks do not need

    return linen.from_linen(module, variables, x, mode=mode, rngs=rngs, given=arguments)


def from_nnx(
    module: "nnx.Module", x: Tree, mode: str = "eval", **arguments: Any
) -> tuple[Callable[..., Any], Params, Any]:
    """A Flax NNX model as (f, params, x), which `empirical_ntk`, `diagnose` and the commands take.

    `params` is the state of the model's `nnx.Param`s alone. All other variables (running statistics, caches, random
    keys) are constants of f, as they are now; what the model writes into them is lost, and the given model does not
    change. The mode is set as by `model.train()` and `model.eval()`, and as for `from_linen`.

    Args:
        module: model of flax.nnx.
        x: inputs (n, ...).
        mode: "eval", with running statistics and no dropout; or "train", with statistics of the batch and units dropped
            by the model's own keys, the same in every call.
        arguments: further arguments of the model's call, after x.

    Raises:
        TypeError: the module is not NNX's.
        ValueError: the mode is unknown, or the model does not follow it.
    """
    from ntk_analysis.flax_networks import nnx

    return nnx.from_nnx(module, x, mode, arguments)


def from_torch(
    module: "torch.nn.Module", x: "torch.Tensor | np.ndarray", mode: str = "eval"
) -> tuple[Callable[..., Any], Params, np.ndarray]:
    """A PyTorch module as (f, params, x), which `empirical_ntk`, `diagnose` and the commands take.

    torchax computes the module in JAX; its outputs on x are compared with PyTorch's before f is returned. `params` is a
    dictionary of the parameters that require a gradient, in NumPy arrays of their dtype: a module in float64 has
    kernels in float64. Buffers (running statistics) and frozen parameters are constants of f, as they are now. What the
    module writes into its buffers is lost, and the given module does not change.

    Args:
        module: module whose forward pass takes one tensor and returns one.
        x: inputs (n, ...) as the module takes them: images are (n, channels, height, width).
        mode: "eval", as after `module.eval()`; or "train", as after `module.train()`: batch norms take the statistics
            of the batch. Layers that draw random numbers (dropout) are refused there.

    Raises:
        ImportError: the extra `torch` is not installed.
        TypeError: the module is not PyTorch's, or does not return one tensor.
        ValueError: the mode is unknown; the module draws random numbers, has no parameters that require a gradient, or
            cannot be called with x; torchax does not have one of its operations, or gives other outputs than PyTorch.
    """
    from ntk_analysis import torch_networks

    return torch_networks.from_torch(module, x, mode)


def from_equinox(
    module: "equinox.Module",
    x: Tree,
    mode: str = "eval",
    *,
    state: "equinox.nn.State | None" = None,
    key: jax.Array | None = None,
) -> tuple[Callable[..., Any], Params, Any]:
    """An Equinox module as (f, params, x), which `empirical_ntk`, `diagnose` and the commands take.

    Equinox's modules take one input; f maps the module over the batch, along the axis that its batch norms name.
    `params` is the module with nothing but its arrays of floats. Its other leaves and the state (running statistics)
    are constants of f, as they are now, and what the module writes into its state is lost.

    Args:
        module: module, called as module(x), or as module(x, state) with a state.
        x: inputs (n, ...), the batch first.
        mode: "eval" or "train", the value of every attribute `inference`, as `equinox.nn.inference_mode` sets it.
        state: state of the module, as `equinox.nn.make_with_state` returns it.
        key: random key of shape (), as dropout needs in training mode; the module is called with key=, one for each
            place in the batch, the same in every call: dropout couples the batch.

    Raises:
        ImportError: the extra `equinox` is not installed.
        TypeError: the module is not Equinox's.
        ValueError: the mode is unknown; the module has no arrays of floats, needs a state or a key, or cannot be called
            with x; or its batch norms name several axes.
    """
    from ntk_analysis import equinox_networks

    return equinox_networks.from_equinox(module, x, mode, state=state, key=key)


def _scales(scale: str | Number, blocks: int) -> tuple[Number, ...]:
    if isinstance(scale, str):
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}: give a number or one of {', '.join(SCALES)}")
        return tuple(SCALES[scale](block, blocks) for block in range(1, blocks + 1))
    return (scale,) * blocks


def _readout_named(name: str) -> Layer:
    if name not in READOUTS:
        raise ValueError(f"unknown readout {name!r}: choose one of {', '.join(READOUTS)}")
    return READOUTS[name]()
