"""Correlations and channels of finite networks, measured at their hidden layers."""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, Real

from ntk_analysis.common.arrays import real_array
from ntk_analysis.common.precision import AnyArray, wants_float64
from ntk_analysis.correlation.pairs import checked_pairs, cosine, pearson
from ntk_analysis.correlation.recording import LayersOf, Seen, hidden_layers
from ntk_analysis.correlation.statistics import ChannelDistributions, CorrelationByLayer, UndefinedCorrelationWarning
from ntk_analysis.layers import Layer

OBSERVABLES: tuple[str, ...] = ("activation", "pre_activation", "before_normalization", "cosine")
Seed: TypeAlias = int | np.integer | jax.Array


def layer_correlations(
    network: Layer | LayersOf,
    x: Real[AnyArray, "n *features"],
    pairs: Integer[AnyArray, "pairs 2"],
    *,
    seed: Seed,
    draws: int = 1,
    observable: str | None = None,
) -> CorrelationByLayer:
    """Correlation of pairs of inputs over the channels of every hidden layer, for `draws` independent networks.

    A hidden layer is an `Activation`. The observables give different numbers in the same network:
            activation: Pearson correlation over the channels of the activation's output (before a LayerNorm after it).
            pre_activation: Pearson correlation of the activation's input, after the normalisation if one stands there.
            before_normalization: Pearson correlation of that normalisation's input; pre_activation if there is none.
            cosine: u.v / (|u| |v|) of the activation's output, not centered; near 1/pi for decorrelated ReLUs.

    `network` may be your own function `layers(key, x)`, which draws its parameters from the JAX key and returns or
    yields its layers as arrays (batch, channels), of NumPy or JAX. It is called once a draw, not jitted, with x as
    given. Its observable is "given" (Pearson correlation of what it returns) or "cosine". Layers that it yields are
    reduced one by one.

    All of x goes through the network in one batch (batch normalisation needs it); each layer is reduced to its P
    coefficients before the next one is computed. Compile time does not grow with the depth of a `Repeat`.

    Args:
        network: a layer or composition of layers, or a function `layers(key, x)`.
        x: finite inputs (n, features); if they are float64, the network is drawn and computed in float64.
        pairs: row numbers (P, 2) of x, the two of a pair different. See `random_pairs`.
        seed: integer, or JAX key; it is split into one key for each network.
        draws: number of networks, at least 1.
        observable: one of OBSERVABLES; None is "activation", or "given" for a function.

    Warns:
        UndefinedCorrelationWarning: a layer is constant over its channels (or zero, for the cosine) for some input; its
            coefficients are NaN, and statistics leave them out.

    Raises:
        ValueError: x or pairs are unusable (an input of zeros has no cosine), draws < 1, the observable is unknown, the
            network has no activation, or a hidden layer has fewer than 2 channels, where Pearson is undefined.
        OverflowError: a layer has NaN or infinite values: the gain is too large for the depth.
    """
    place = _checked_observable(network, observable)
    x = _checked_inputs(x)
    index = checked_pairs(pairs, len(x))
    if draws < 1:
        raise ValueError(f"got draws={draws}, expected at least 1 network")
    statistic = cosine if place == "cosine" else pearson
    initial = _initial(x, index)
    values: list[list[np.ndarray]] = []
    with _precision_of(x):
        for draw, key in enumerate(jax.random.split(_key(seed), draws)):
            hidden = list(hidden_layers(network, statistic, place, key=key, x=x, chosen=index))
            _check_layers(hidden, draw, channels=1 if place == "cosine" else 2)
            if values and len(hidden) != len(values[0]):
                raise ValueError(f"draw {draw} has {len(hidden)} layers, draw 0 had {len(values[0])}: return as many")
            values.append([np.asarray(seen.value, np.float64) for seen in hidden])
    array = np.asarray(values)
    _warn_of_undefined(array)
    return CorrelationByLayer(array, initial, index, place)


def channel_distributions(
    network: Layer | LayersOf,
    x: Real[AnyArray, "n *features"],
    layers: Sequence[int],
    channels: int = 30,
    *,
    seed: Seed,
    observable: str | None = None,
) -> ChannelDistributions:
    """Values of randomly chosen channels over the batch, at some hidden layers of one network (Fig. 2 and 3).

    The paper's networks of 51 layers have 50 hidden ones. Channels are chosen without replacement; layers of the same
    width show the same channels.

    Args:
        network: a layer or composition of layers, or a function as in `layer_correlations`.
        x: finite inputs (n, features), taken as one batch.
        layers: numbers of the hidden layers to show, counted from 1.
        channels: number of channels to choose.
        seed: integer, or JAX key, from which network and channels are drawn.
        observable: "activation", "pre_activation" or "before_normalization"; None is "pre_activation", or "given" for a
            function.

    Raises:
        ValueError: x is unusable, the observable is unknown, a layer does not exist or has fewer channels than asked
            for.
        OverflowError: a layer has NaN or infinite values.
    """
    place = _checked_observable(network, observable, default="pre_activation")
    if place == "cosine":
        raise ValueError(f"channels have no 'cosine': choose one of {', '.join(OBSERVABLES[:3])}")
    x = _checked_inputs(x)
    if channels < 1 or not layers:
        raise ValueError(f"got {channels} channels at layers {tuple(layers)}, expected at least 1 of each")
    with _precision_of(x):
        network_key, channel_key = jax.random.split(_key(seed))
        hidden = list(hidden_layers(network, _Channels(channels), place, key=network_key, x=x, chosen=channel_key))
    wrong = [number for number in layers if not 1 <= number <= len(hidden)]
    if wrong:
        raise ValueError(f"no hidden layer {wrong[0]}: layers are numbered 1 to {len(hidden)}")
    _check_layers(hidden, 0, channels=channels, numbers=layers)
    values = np.stack([np.asarray(hidden[number - 1].value, np.float64) for number in layers])
    return ChannelDistributions(values, tuple(int(number) for number in layers), place)


@dataclass(frozen=True)
class _Channels:
    """Picks `count` random channels over the batch, or all channels if there are fewer."""

    count: int

    def __call__(self, y: jax.Array, key: jax.Array) -> jax.Array:
        chosen = jax.random.choice(key, y.shape[1], (min(self.count, y.shape[1]),), replace=False)
        return y[:, chosen].T


def _checked_observable(network: Any, observable: str | None, default: str = "activation") -> str:
    own = isinstance(network, Layer)
    if not own and not callable(network):
        raise TypeError(f"got {network!r}, expected a Layer or a function layers(key, x) that returns its layers")
    names = OBSERVABLES if own else ("given", "cosine")
    observable = (default if own else "given") if observable is None else observable
    if observable not in names:
        what = "a network" if own else "a function's layers"
        raise ValueError(f"unknown observable {observable!r} of {what}: choose one of {', '.join(names)}")
    return observable


def _checked_inputs(x: Any) -> AnyArray:
    """x itself, if it is an array of NumPy or JAX."""
    given = real_array(x, "x")
    array = np.asarray(given)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"x must have shape (inputs, features), none of them 0, got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise ValueError(f"x has NaN or infinite values in {bad.size} of {len(array)} inputs, first in row {bad[0]}")
    return given


def _initial(x: Any, pairs: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        rows = jnp.asarray(np.asarray(x, np.float64).reshape(len(x), -1))
        cosines = np.asarray(jax.jit(cosine)(rows, jnp.asarray(pairs)))
    if np.isnan(cosines).any():
        bad = pairs[np.flatnonzero(np.isnan(cosines))[0]].tolist()
        raise ValueError(f"one of the inputs {bad} is zero: it has no correlation with another")
    return cosines


def _check_layers(hidden: list[Seen], draw: int, *, channels: int, numbers: Sequence[int] | None = None) -> None:
    if not hidden:
        raise ValueError("no hidden layer: the network has no Activation, or the function returned no layers")
    for number in numbers or range(1, len(hidden) + 1):
        seen = hidden[number - 1]
        if int(seen.channels) < channels:
            raise ValueError(f"hidden layer {number} has {int(seen.channels)} channels, expected at least {channels}")
        if not bool(seen.finite):
            raise OverflowError(
                f"hidden layer {number} has NaN or infinite values (draw {draw}): the gain is too large for this depth"
            )


def _warn_of_undefined(values: np.ndarray) -> None:
    undefined = np.isnan(values)
    if undefined.any():
        draw, layer, _ = np.argwhere(undefined)[0]
        warnings.warn(
            f"{undefined.sum()} of {values.size} correlations are undefined (NaN), first at hidden layer {layer + 1} "
            f"of draw {draw}: an input has equal values (or zeros) in all channels there; use wider layers",
            UndefinedCorrelationWarning,
            stacklevel=3,
        )


def _precision_of(x: Any) -> contextlib.AbstractContextManager[Any]:
    return jax.enable_x64(True) if wants_float64(x) else contextlib.nullcontext()


def _key(seed: Seed) -> jax.Array:
    return seed if isinstance(seed, jax.Array) else jax.random.key(int(seed))
