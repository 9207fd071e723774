"""How alike inputs are at every activation of a network of our layers, beside the mean-field prediction."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from ntk_analysis.correlation import random_pairs
from ntk_analysis.correlation.pairs import cosine
from ntk_analysis.layers import Activation, Layer
from ntk_analysis.layers.base import Params, as_params_dtype
from ntk_analysis.meanfield import BatchNormField, MeanField

PAIRS = 1000  # number of pairs of inputs whose correlation is followed by layer
_cosine = jax.jit(cosine)


class LayerCorrelations(NamedTuple):
    """Mean correlation of pairs of inputs at each activation of one of our networks.

    Attributes:
        measured: mean cosine of pre-activations over channels, (depth,); NaN where a layer is zero for all inputs.
        predicted: mean of the mean-field map, iterated from the inputs' correlations, (depth,); None without such a
            map.
    """

    measured: Float64[np.ndarray, " depth"]
    predicted: Float64[np.ndarray, " depth"] | None


def layer_correlations(
    network: Layer, params: Params, x: np.ndarray, *, field: MeanField | BatchNormField | None, seed: int
) -> LayerCorrelations:
    """Mean cosine of pairs at the input of every activation, and its mean-field prediction."""
    pairs = jnp.asarray(random_pairs(len(x), min(PAIRS, len(x) * (len(x) - 1) // 2), seed), jnp.int32)

    def of_pairs(y: Any) -> np.ndarray:
        return np.asarray(_cosine(jnp.asarray(y).reshape(len(x), -1), pairs), np.float64)

    measured: list[float] = []
    array = as_params_dtype(params, x)
    last: Any = array
    for layer, output in network.walk(network.activations(params, array)):
        if isinstance(layer, Activation):
            measured.append(_mean(of_pairs(last)))
        last = output
    predicted = None
    if isinstance(field, MeanField) and field.q_star is not None and measured:
        start = (of_pairs(array) * _mean_square(x) + field.b_var) / (_mean_square(x) + field.b_var)
        predicted = np.nanmean(field.trajectory(np.clip(start, -1, 1), len(measured) - 1), axis=1)
    return LayerCorrelations(np.asarray(measured, np.float64), predicted)


def _mean(cosines: np.ndarray) -> float:
    """Mean over the pairs of which neither input is zero (their cosine is NaN); NaN if no pair is left."""
    known = cosines[np.isfinite(cosines)]
    return float(known.mean()) if known.size else math.nan


def _mean_square(x: np.ndarray) -> float:
    return float(np.mean(np.asarray(x, np.float64) ** 2))
