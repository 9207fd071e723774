"""Ready networks by name, with the normalisation as an argument."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import jax

from ntk_analysis import activations
from ntk_analysis.layers import Activation, BatchNorm, Dense, LastBatchNorm, Layer, LayerNorm, Repeat, Serial

Normalization: TypeAlias = Literal["none", "weight_mean", "batch", "layer", "layer_post"]
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
ALIASES = {"straight": "none", "weight_centering": "weight_mean", "batch_norm": "batch", "layer_norm": "layer"}


def normalization_named(name: str) -> str:
    """The canonical name of a normalisation; accepts aliases and hyphens.

    Raises:
        ValueError: unknown; the message lists the names.
    """
    key = str(name).strip().lower().replace("-", "_")
    key = ALIASES.get(key, key)
    if key not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {name!r}: choose one of {', '.join(NORMALIZATIONS)}")
    return key


def fully_connected(
    depth: int,
    width: int,
    normalization: str = "none",
    activation: str | Callable[[jax.Array], jax.Array] | activations.Activation = "relu",
    outputs: int = 1,
    w_var: float | None = None,
    b_var: float = 0.0,
    last_batch_norm: bool = False,
    center_readout: bool = True,
) -> Serial:
    """Fully connected network in NTK parametrisation, with or without normalisation.

    The first layer has gain 1 and is never centred (no activation stands before it); every later layer, the read-out
    included, has gain `w_var` and, under "weight_mean", centred weights. All layers share `b_var`.

    Args:
        depth: number of hidden layers (activations), at least 1.
        width: units of every hidden layer; the infinite-width kernel does not look at it.
        normalization: "none"; "weight_mean" (MimicNorm's weight centering); "batch" and "layer" (before each
            activation); "layer_post" (after each activation).
        activation: name or elementwise JAX function.
        outputs: units of the read-out.
        w_var: weight variance after the first layer; None is the activation's stable gain, centering included. It
            keeps q = 1 and is the edge of chaos for homogeneous activations only (see meanfield.critical_line).
        b_var: bias variance, in the first layer too.
        last_batch_norm: a BatchNorm without parameters on the outputs (finite networks only).
        center_readout: whether "weight_mean" centres the read-out too.

    Raises:
        ValueError: depth or width below 1, unknown names, a negative variance, no stable gain for b_var >= 1.
    """
    if depth < 1:
        raise ValueError(f"got depth {depth}: a network has at least 1 hidden layer")
    normalization = normalization_named(normalization)
    centered = normalization == "weight_mean"
    if w_var is None:
        w_var = activations.get(activation).stable_gain(b_var, centered=centered)

    def hidden(dense: Dense) -> Serial:
        before = {"batch": (BatchNorm(),), "layer": (LayerNorm(),)}.get(normalization, ())
        after = (LayerNorm(),) if normalization == "layer_post" else ()
        return Serial(dense, *before, Activation(activation), *after)

    layers: list[Layer] = [*hidden(Dense(width, 1.0, b_var)).layers]
    if depth > 1:
        layers.append(Repeat(hidden(Dense(width, w_var, b_var, center=centered)), depth - 1))
    layers.append(Dense(outputs, w_var, b_var, center=centered and center_readout))
    if last_batch_norm:
        layers.append(LastBatchNorm())
    return Serial(*layers)
