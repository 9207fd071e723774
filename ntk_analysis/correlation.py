"""How the activations of finite networks correlate and spread with depth.

Correlations here are over the channels of ONE network, not over networks: Supp. Fig. 1 and 2 and Fig. 2 and 3 of
the paper. Pairs of the same network share its weights, so the independent unit is the draw of a network, and every
standard error is over draws. Wide networks, common definitions and their different numbers: theory.md section 2.

Precision: float64 (NumPy) inputs are computed in float64, flag or no flag; others in JAX's default dtype. Rows are
centred, then scaled by their largest entry, and only then squared, so that in float32 a correlation is off by some
1e-7, far less than its spread 1/sqrt(width), and gains of 1e-30 or 1e30 change nothing.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Integer, Real

from ntk_analysis import activations
from ntk_analysis.gaussian import safe_divide
from ntk_analysis.kernel import Kernel
from ntk_analysis.layers import Activation, BatchNorm, Layer, LayerNorm, Repeat, Residual, Serial
from ntk_analysis.layers.base import Params, Shape, SingleLayer
from ntk_analysis.precision import AnyArray, wants_float64

OBSERVABLES: tuple[str, ...] = ("activation", "pre_activation", "before_normalization", "cosine")
PAIRS_AT_ONCE = 1024  # pairs whose channels are gathered together; bounds memory when there are millions of pairs

LayersOf: TypeAlias = Callable[[jax.Array, Any], Iterable[Any]]
Seed: TypeAlias = int | np.integer | jax.Array


class UndefinedCorrelationWarning(UserWarning):
    """Some layer is the same in all channels (Pearson) or zero (cosine) for some input: its correlations are NaN."""


@dataclass(frozen=True, eq=False)
class CorrelationByLayer:
    """Correlation coefficients of P pairs of inputs at every hidden layer of several networks.

    Statistics pool pairs and draws. They leave out NaN, which marks an undefined correlation (a dead layer) and was
    announced by an UndefinedCorrelationWarning; a layer that has nothing else is NaN.

    Attributes:
        values: (draws, depth, P) coefficients in [-1, 1]; layer l stands at index l - 1.
        initial: (P,) cosines x.x' / (|x| |x'|) of the inputs.
        pairs: (P, 2) rows of x.
        observable: one of OBSERVABLES; "given" or "cosine" for a function's own layers.
    """

    values: Float64[np.ndarray, "draws depth pairs"]
    initial: Float64[np.ndarray, " pairs"]
    pairs: Integer[np.ndarray, "pairs 2"]
    observable: str

    def mean(self) -> Float64[np.ndarray, " depth"]:
        """Mean over pairs and draws."""
        return _pooled_mean(self.values)

    def standard_deviation(self) -> Float64[np.ndarray, " depth"]:
        """Standard deviation over pairs and draws (divided by their number): the measured band."""
        return _pooled_deviation(self.values)

    def mean_error(self) -> Float64[np.ndarray, " depth"]:
        """Standard error of `mean` over draws, on the condition of these inputs and pairs.

        Raises:
            ValueError: one draw only.
        """
        return self._over_draws(_pooled_mean)

    def standard_deviation_error(self) -> Float64[np.ndarray, " depth"]:
        """Standard error of `standard_deviation` over draws, by the jackknife (leaving out one network at a time).

        Raises:
            ValueError: one draw only.
        """
        return self._over_draws(_pooled_deviation)

    def quantiles(
        self, probabilities: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    ) -> Float64[np.ndarray, "quantiles depth"]:
        """Quantiles over pairs and draws."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            return np.nanquantile(self.values, np.asarray(probabilities, np.float64), axis=(0, 2))

    def _over_draws(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        draws = len(self.values)
        if draws < 2:
            raise ValueError("one draw has no standard error: networks are the independent unit, use draws >= 2")
        others = np.stack([statistic(np.delete(self.values, draw, axis=0)) for draw in range(draws)])
        return np.sqrt((draws - 1) * others.var(axis=0))


@dataclass(frozen=True, eq=False)
class ChannelDistributions:
    """What single channels are over a batch, at some hidden layers of one network.

    Attributes:
        values: (layers, channels, batch).
        layers: numbers of the hidden layers, 1 to depth.
        observable: what is shown.
    """

    values: Float64[np.ndarray, "layers channels batch"]
    layers: tuple[int, ...]
    observable: str

    def quantiles(
        self, probabilities: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ) -> Float64[np.ndarray, "quantiles layers channels"]:
        """Quantiles of each channel over the batch: the box plots of Fig. 2 and 3."""
        return np.quantile(self.values, np.asarray(probabilities, np.float64), axis=-1)


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

    A hidden layer is an `Activation`. Observables (theory.md section 2 has their different numbers):
        activation: Pearson correlation over the channels of the activation's output (before a LayerNorm after it).
        pre_activation: the same of the activation's input, after the normalisation if one stands there.
        before_normalization: the same of what enters that normalisation; pre_activation where there is none.
        cosine: u.v / (|u| |v|) of the activation's output, not centred; near 1/pi for decorrelated ReLUs.

    `network` may be a function of yours, `layers(key, x)`, that draws its own parameters from the JAX key and returns
    or yields its layers as arrays (batch, channels), of NumPy or JAX. It is called once a draw, not jitted, with x as
    given; its observable is "given" (Pearson of what it returns) or "cosine". Layers it yields are reduced one by one.

    All of x goes through the network in one batch (batch normalisation needs it); each layer is reduced to its P
    coefficients before the next one is computed. Compile time does not grow with the depth of a `Repeat`.

    Args:
        network: a layer or composition of layers, or a function.
        x: (n, features) inputs, finite; in float64 the network is drawn and computed in float64.
        pairs: (P, 2) rows of x, the two of a pair different. See `random_pairs`.
        seed: integer, or a JAX key; one key a network is split from it.
        draws: number of networks, at least 1.
        observable: one of OBSERVABLES; None is "activation", for a function "given".

    Warns:
        UndefinedCorrelationWarning: a layer is constant over its channels (or zero, for the cosine) for some input;
            those coefficients are NaN, and statistics leave them out.

    Raises:
        ValueError: unusable x or pairs (an input of zeros has no cosine), draws < 1, an unknown observable, no
            activation in the network, a hidden layer with fewer than 2 channels, where Pearson is undefined.
        OverflowError: a layer has NaN or infinite values: the gain is too large for the depth.
    """
    place = _checked_observable(network, observable)
    _check_inputs(x)
    index = _checked_pairs(pairs, len(x))
    if draws < 1:
        raise ValueError(f"got draws={draws}, expected at least 1 network")
    statistic = _cosine if place == "cosine" else _pearson
    initial = _initial(x, index)
    values: list[list[np.ndarray]] = []
    with _precision_of(x):
        for draw, key in enumerate(jax.random.split(_key(seed), draws)):
            hidden = list(_hidden_layers(network, statistic, place, key, x, index))
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
    width show the same ones.

    Args:
        network: a layer or composition of layers, or a function as in `layer_correlations`.
        x: (n, features) inputs, finite, one batch.
        layers: numbers of hidden layers, from 1.
        channels: how many channels.
        seed: integer, or a JAX key; draws network and channels.
        observable: "activation", "pre_activation" or "before_normalization"; None is "pre_activation", for a function
            "given".

    Raises:
        ValueError: unusable x, an unknown observable, a layer that does not exist, more channels than a layer has.
        OverflowError: a layer has NaN or infinite values.
    """
    place = _checked_observable(network, observable, default="pre_activation")
    if place == "cosine":
        raise ValueError(f"channels have no 'cosine': choose one of {', '.join(OBSERVABLES[:3])}")
    _check_inputs(x)
    if channels < 1 or not layers:
        raise ValueError(f"got {channels} channels at layers {tuple(layers)}, expected at least 1 of each")
    with _precision_of(x):
        network_key, channel_key = jax.random.split(_key(seed))
        hidden = list(_hidden_layers(network, _Channels(channels), place, network_key, x, channel_key))
    wrong = [number for number in layers if not 1 <= number <= len(hidden)]
    if wrong:
        raise ValueError(f"no hidden layer {wrong[0]}: layers are numbered 1 to {len(hidden)}")
    _check_layers(hidden, 0, channels=channels, numbers=layers)
    values = np.stack([np.asarray(hidden[number - 1].value, np.float64) for number in layers])
    return ChannelDistributions(values, tuple(int(number) for number in layers), place)


def predicted_spread(width: int, *, observable: str = "activation", activation: Any = "relu") -> float:
    """Standard deviation, in a deep weight-centred network, of the correlation of two decorrelated inputs.

    First order in 1/width, for weight centering with its stable gain and no biases, and not for batch normalisation,
    whose band is wider and grows with depth: measure that one. With lam = T_bar'(0), a layer of n channels takes r to
    lam r + noise of variance 1/n, so that at stationarity (theory.md section 2)
        activation:     1 / sqrt(n (1 - lam^2))           = 0.085 for ReLU at n = 300
        pre_activation: sqrt((1 + 1/(1 - lam^2)) / n)     = 0.103, one more layer's noise on top.
    The band's centre is 0 up to order 1/n (T_bar is convex: about 0.006 for ReLU at n = 300).

    Args:
        width: channels n of every hidden layer.
        observable: "activation" or "pre_activation", Pearson over channels.
        activation: name or elementwise JAX function; its pre-activations have variance 1.

    Raises:
        ValueError: width < 2, another observable, or |lam| >= 1 (linear network), where correlations do not settle.
    """
    if width < 2:
        raise ValueError(f"got width {width}: a correlation over channels needs at least 2")
    if observable not in ("activation", "pre_activation"):
        raise ValueError(f"no prediction for observable {observable!r}: choose activation or pre_activation")
    phi = activations.get(activation)
    slope = phi.stable_gain(centered=True) * float(phi.derivative_dual(1.0, 1.0, 0.0))
    if not abs(slope) < 1 - 1e-9:
        raise ValueError(f"{phi} has T_bar'(0) = {slope:.6g}: correlations settle at 0 only for a slope below 1")
    stationary = 1 / (1 - slope**2)
    return math.sqrt((stationary if observable == "activation" else 1 + stationary) / width)


def random_pairs(count_inputs: int, pairs: int, seed: int | np.integer) -> Integer[np.ndarray, "pairs 2"]:
    """Distinct pairs i < j of inputs, drawn uniformly without replacement.

    Raises:
        ValueError: fewer than 1 pair asked for, or more than there are.
    """
    existing = count_inputs * (count_inputs - 1) // 2
    if not 1 <= pairs <= existing:
        raise ValueError(f"got pairs={pairs}: {count_inputs} inputs have 1 to {existing} distinct pairs")
    number = np.random.default_rng(seed).choice(existing, pairs, replace=False)
    # pairs in the order (0,1), (0,2), (1,2), (0,3), ...: pair (i, j) has number j (j - 1) / 2 + i
    j = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    j -= j * (j - 1) // 2 > number  # the root may have rounded across an integer
    j += j * (j + 1) // 2 <= number
    return np.stack([number - j * (j - 1) // 2, j], axis=1)


class _Seen(NamedTuple):
    """What is kept of a layer's output."""

    value: Any
    finite: Any
    channels: Any


Statistic: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def _pearson(y: jax.Array, pairs: jax.Array) -> jax.Array:
    constant = jnp.max(y, axis=1, keepdims=True) == jnp.min(y, axis=1, keepdims=True)
    # the mean of equal numbers may be off by a rounding, and noise correlates with noise
    return _cosine(jnp.where(constant, 0, y - jnp.mean(y, axis=1, keepdims=True)), pairs)


def _cosine(y: jax.Array, pairs: jax.Array) -> jax.Array:
    scaled = safe_divide(y, jnp.max(jnp.abs(y), axis=1, keepdims=True), math.nan)  # NaN: a row of zeros, undefined
    unit = scaled / jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    products = jax.lax.map(lambda pair: jnp.sum(unit[pair[0]] * unit[pair[1]]), pairs, batch_size=PAIRS_AT_ONCE)
    return jnp.clip(products, -1, 1)


@dataclass(frozen=True)
class _Channels:
    """As many randomly chosen channels over the batch, or all there are."""

    count: int

    def __call__(self, y: jax.Array, key: jax.Array) -> jax.Array:
        chosen = jax.random.choice(key, y.shape[1], (min(self.count, y.shape[1]),), replace=False)
        return y[:, chosen].T


@partial(jax.jit, static_argnums=0)
def _see(statistic: Statistic, y: jax.Array, chosen: jax.Array) -> _Seen:
    return _Seen(statistic(y, chosen), jnp.all(jnp.isfinite(y)), jnp.asarray(y.shape[1]))


@dataclass(frozen=True)
class _Reducing(Layer):
    """A layer that records `see` of its outputs, within the scan of a `Repeat` around it, and computes as before."""

    layer: Layer
    see: Callable[[jax.Array], Any]

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        return self.layer.init(key, input_shape)

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        y, outputs = self.layer.forward(params, x, record=record)
        if isinstance(self.layer, Residual):  # its branch has reduced its own
            return y, ((outputs[0], self.see(y)) if record else None)
        return y, jax.tree.map(self.see, outputs)

    def kernel(self, kernel: Kernel) -> Kernel:
        return self.layer.kernel(kernel)

    def walk(self, outputs: Any) -> Iterator[tuple[Layer, Any]]:
        if isinstance(self.layer, Residual):
            yield from self.layer.branch.walk(outputs[0])
            yield self.layer, outputs[1]
        elif isinstance(self.layer, SingleLayer):
            yield self.layer, outputs
        else:
            yield from self.layer.walk(outputs)


def _reducing(layer: Layer, see: Callable[[jax.Array], Any]) -> Layer:
    if isinstance(layer, Serial):
        return Serial(*(_reducing(part, see) for part in layer.layers))
    if isinstance(layer, Repeat):
        return Repeat(_reducing(layer.block, see), layer.times)
    if isinstance(layer, Residual):
        return _Reducing(Residual(_reducing(layer.branch, see), layer.scale), see)
    return _Reducing(layer, see)


@partial(jax.jit, static_argnums=(0, 1))
def _run(network: Layer, statistic: Statistic, params: Params, x: jax.Array, chosen: jax.Array) -> tuple[_Seen, Any]:
    def see(y: jax.Array) -> _Seen:
        return _see(statistic, y, chosen)

    return see(x), _reducing(network, see).activations(params, x)


def _hidden_layers(
    network: Layer | LayersOf, statistic: Statistic, place: str, key: jax.Array, x: Any, chosen: Any
) -> Iterator[_Seen]:
    """One network's hidden layers from first to last, each reduced by statistic(layer, chosen)."""
    if not isinstance(network, Layer):
        yield from _given_layers(network, statistic, key, x, chosen)
        return
    array = jnp.asarray(x)
    array = array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.zeros(()).dtype)
    params = network.init(key, array.shape)[1]  # not jitted: its draws are compiled once a shape, for all networks
    seen, record = jax.tree.map(np.asarray, _run(network, statistic, params, array, jnp.asarray(chosen)))
    last = unnormalized = seen
    for layer, seen in _reducing(network, lambda y: y).walk(record):
        if isinstance(layer, Activation):
            yield {"pre_activation": last, "before_normalization": unnormalized}.get(place, seen)
        last = seen
        unnormalized = unnormalized if isinstance(layer, BatchNorm | LayerNorm) else seen


def _given_layers(function: LayersOf, statistic: Statistic, key: jax.Array, x: Any, chosen: Any) -> Iterator[_Seen]:
    for number, layer in enumerate(function(key, x), start=1):
        y = np.asarray(layer, np.float64)
        if y.ndim != 2 or len(y) != len(x):
            raise ValueError(f"layer {number} has shape {y.shape}, expected (batch, channels) = ({len(x)}, channels)")
        with jax.enable_x64(True):
            yield _see(statistic, jnp.asarray(y), jnp.asarray(chosen))


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


def _check_inputs(x: Any) -> None:
    array = np.asarray(x)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(f"x must have shape (inputs, features), none of them 0, got {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise ValueError(f"x has NaN or infinite values in {bad.size} of {len(array)} inputs, first in row {bad[0]}")


def _checked_pairs(pairs: Any, inputs: int) -> np.ndarray:
    index = np.asarray(pairs)
    if index.ndim != 2 or index.shape[1] != 2 or len(index) == 0 or index.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers of shape (P, 2), P >= 1, got {index.dtype} {index.shape}")
    bad = np.flatnonzero(((index < 0) | (index >= inputs)).any(axis=1))
    if bad.size:
        raise ValueError(f"pair {bad[0]} is {index[bad[0]].tolist()}, expected rows of x, 0 to {inputs - 1}")
    same = np.flatnonzero(index[:, 0] == index[:, 1])
    if same.size:
        raise ValueError(f"pair {same[0]} is input {index[same[0], 0]} with itself: its correlation is 1 by definition")
    return index.astype(np.int32)


def _initial(x: Any, pairs: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        rows = jnp.asarray(np.asarray(x, np.float64).reshape(len(x), -1))
        cosines = np.asarray(_see(_cosine, rows, jnp.asarray(pairs)).value)
    if np.isnan(cosines).any():
        bad = pairs[np.flatnonzero(np.isnan(cosines))[0]].tolist()
        raise ValueError(f"one of the inputs {bad} is zero: it has no correlation with another")
    return cosines


def _check_layers(hidden: list[_Seen], draw: int, *, channels: int, numbers: Sequence[int] | None = None) -> None:
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


def _pooled_mean(values: np.ndarray) -> np.ndarray:
    return np.ma.masked_invalid(values).mean(axis=(0, 2)).filled(np.nan)


def _pooled_deviation(values: np.ndarray) -> np.ndarray:
    return np.ma.masked_invalid(values).std(axis=(0, 2)).filled(np.nan)
