"""Growth of perturbations from inputs to outputs, of a network and of networks of the same weights shuffled."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.functions import Flat
from ntk_analysis.layers.base import Params

SHUFFLES = 8  # number of networks with the same weights in another order, unless another one is asked for
PROBES = 4  # number of random vectors that estimate |J|_F^2
ENDS = math.log(2)  # change of ln G by what happens once: first layer, read-out, a variance that settles
USUAL = 2.0  # inputs of a mean square from 1/USUAL to USUAL change ln G by no more than ENDS


class Growth(NamedTuple):
    """The response of outputs to changes of the inputs.

    Attributes:
        log_gain: ln G of the network; inf where its derivatives overflow, -inf where they are zero, NaN where its
            outputs are NaN.
        error: standard deviation of ln G between shuffled networks.
        shuffled: mean ln G of those shuffled networks that have one; if none has, ln G of the network.
        scale: mean square of the outputs / mean square of the inputs.
        inputs_alike: likeness of the inputs: mean x.x' over pairs / mean |x|^2.
        outputs_alike: likeness of the outputs, in the same way; NaN where they are zero.
        outputs_alike_error: standard deviation of `outputs_alike` over shuffled networks.
        shuffles: number of shuffled networks.
        ends: bound on the change of ln G by what happens once; above `ENDS` where the size of the inputs matters.
    """

    log_gain: float
    error: float
    shuffled: float
    scale: float
    inputs_alike: float
    outputs_alike: float
    outputs_alike_error: float
    shuffles: int = SHUFFLES
    ends: float = ENDS

    @property
    def quantile(self) -> float:
        """Student's t for errors that the shuffled networks tell: 95 % of draws are within so many of them."""
        return float(stdtrit(self.shuffles - 1, 0.975))

    @property
    def typical(self) -> bool:
        """Whether shuffled weights would give the network's gain by chance, too, at 95 % and up to `ends`."""
        return (
            abs(self.log_gain - self.shuffled)
            <= self.quantile * self.error * math.sqrt(1 + 1 / self.shuffles) + self.ends
        )

    @property
    def estimate(self) -> tuple[float, float]:
        """ln G and its standard error: from all draws if the network is typical, else from the network alone."""
        if not self.typical:
            return self.log_gain, self.error
        draws = self.shuffles + 1
        return (self.log_gain + self.shuffles * self.shuffled) / draws, self.error / math.sqrt(draws)


def measured_growth(
    f: Flat, params: Params, x: jax.Array, seed: int, *, shuffles: int = SHUFFLES, track: Track = untracked
) -> Growth:
    """Gains and likenesses of the network and of shuffled ones; probes are drawn anew for each network.

    Args:
        f: function f(params, x) -> (n, C).
        params: tree of float arrays.
        x: inputs (n, ...), n >= 2, not all zero.
        seed: seed of shuffles and probes.
        shuffles: number of shuffled networks, >= 2.
        track: draws a progress bar of the networks.

    Raises:
        ValueError: derivatives are NaN.
    """
    inputs = np.asarray(x, np.float64)
    pulled = jax.jit(lambda params, x, key: _pulled(f, params, x, key))
    generator = np.random.default_rng(seed)
    gains, alike, scale, ends = [], [], math.nan, ENDS
    keys = jax.random.split(jax.random.key(seed), shuffles + 1)
    for number in track(range(shuffles + 1), "the network, and its weights shuffled"):
        key = keys[number]
        drawn = jax.tree.map(lambda leaf: jnp.asarray(_shuffled(leaf, generator)), params) if number else params
        # float64 on the host: squares of float32 numbers overflow and vanish in float32
        y, slopes = (np.asarray(value, np.float64) for value in pulled(drawn, x, key))
        if number == 0:
            with np.errstate(over="ignore"):
                scale = float(np.mean(y**2) / np.mean(inputs**2))
            if np.isnan(slopes).any():
                raise ValueError("derivatives of f by its inputs are NaN: no phase can be measured")
            size = math.sqrt(float(np.mean(inputs**2)))
            if not 1 / USUAL <= size**2 <= USUAL:
                of_unit, slopes_of_unit = (np.asarray(value, np.float64) for value in pulled(params, x / size, key))
                rescaled = _log_gain(of_unit, slopes_of_unit, inputs / size)
                ends += _distance(_log_gain(y, slopes, inputs), rescaled)
        gains.append(_log_gain(y, slopes, inputs))
        alike.append(_likeness(y))
    shuffled, error = _mean_and_deviation(gains[1:], default=gains[0])
    _, likes_error = _mean_and_deviation(alike[1:], default=alike[0])
    return Growth(gains[0], error, shuffled, scale, _likeness(inputs), alike[0], likes_error, shuffles, ends)


def _pulled(f: Flat, params: Params, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Outputs, and J^T u for PROBES vectors u of random signs, for which E |J^T u|^2 = |J|_F^2."""
    y, pull = jax.vjp(lambda x: f(params, x), x)
    keys = jax.random.split(key, PROBES)
    return y, jax.lax.map(lambda key: pull(jax.random.rademacher(key, y.shape, y.dtype))[0], keys)


def _log_gain(y: np.ndarray, slopes: np.ndarray, inputs: np.ndarray) -> float:
    with np.errstate(all="ignore"):  # inf, -inf and NaN have a meaning, see `Growth`
        if not y.any():
            return math.nan
        return float(np.log(np.sum(slopes**2) / PROBES) - np.log(np.sum(y**2)) + np.log(np.mean(inputs**2)))


def _distance(one: float, other: float) -> float:
    """|one - other|, and 0 where either is no finite number."""
    return abs(one - other) if math.isfinite(one) and math.isfinite(other) else 0.0


def _mean_and_deviation(values: list[float], default: float) -> tuple[float, float]:
    """Mean and standard deviation of the finite values; `default` and 0 if there are too few."""
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else default, float(finite.std(ddof=1)) if len(finite) > 1 else 0.0


def _shuffled(leaf: Any, generator: np.random.Generator) -> np.ndarray:
    array = np.asarray(leaf)
    return generator.permutation(array.ravel()).reshape(array.shape)


def _likeness(values: np.ndarray) -> float:
    """Mean x.x' over pairs of different rows, divided by mean |x|^2: 1 where all rows are the same."""
    rows = values.reshape(len(values), -1)
    with np.errstate(all="ignore"):
        squares = np.sum(rows**2)
        return float((np.sum(rows.sum(axis=0) ** 2) - squares) / ((len(rows) - 1) * squares))
