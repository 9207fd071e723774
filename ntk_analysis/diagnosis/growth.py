"""Growth of perturbations from inputs to outputs, of a network and of networks of the same weights shuffled."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.empirical.functions import Flat
from ntk_analysis.layers.base import Params

SHUFFLES = 8  # number of networks with the same weights in another order
QUANTILE = 2.365  # Student's t, SHUFFLES - 1 degrees of freedom, 95 %
PROBES = 4  # number of random vectors that estimate |J|_F^2
ENDS = math.log(2)  # change of ln G by what happens once: first layer, read-out, a variance that settles


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
    """

    log_gain: float
    error: float
    shuffled: float
    scale: float
    inputs_alike: float
    outputs_alike: float
    outputs_alike_error: float

    @property
    def typical(self) -> bool:
        """Whether shuffled weights would give the network's gain by chance, too, at 95 % and up to `ENDS`."""
        return abs(self.log_gain - self.shuffled) <= QUANTILE * self.error * math.sqrt(1 + 1 / SHUFFLES) + ENDS

    @property
    def estimate(self) -> tuple[float, float]:
        """ln G and its standard error: from all draws if the network is typical, else from the network alone."""
        if not self.typical:
            return self.log_gain, self.error
        draws = SHUFFLES + 1
        return (self.log_gain + SHUFFLES * self.shuffled) / draws, self.error / math.sqrt(draws)


def measured_growth(f: Flat, params: Params, x: jax.Array, seed: int) -> Growth:
    """Gains and likenesses of the network and of shuffled ones; probes are drawn anew for each network.

    Args:
        f: function f(params, x) -> (n, C).
        params: tree of float arrays.
        x: inputs (n, ...), n >= 2, not all zero.
        seed: seed of shuffles and probes.

    Raises:
        ValueError: derivatives are NaN.
    """
    inputs = np.asarray(x, np.float64)
    pulled = jax.jit(lambda params, x, key: _pulled(f, params, x, key))
    generator = np.random.default_rng(seed)
    gains, alike, scale = [], [], math.nan
    for number, key in enumerate(jax.random.split(jax.random.key(seed), SHUFFLES + 1)):
        drawn = jax.tree.map(lambda leaf: jnp.asarray(_shuffled(leaf, generator)), params) if number else params
        # float64 on the host: squares of float32 numbers overflow and vanish in float32
        y, slopes = (np.asarray(value, np.float64) for value in pulled(drawn, x, key))
        if number == 0:
            with np.errstate(over="ignore"):
                scale = float(np.mean(y**2) / np.mean(inputs**2))
            if np.isnan(slopes).any():
                raise ValueError("derivatives of f by its inputs are NaN: no phase can be measured")
        gains.append(_log_gain(y, slopes, inputs))
        alike.append(_likeness(y))
    shuffled, error = _mean_and_deviation(gains[1:], default=gains[0])
    _, likes_error = _mean_and_deviation(alike[1:], default=alike[0])
    return Growth(gains[0], error, shuffled, scale, _likeness(inputs), alike[0], likes_error)


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
