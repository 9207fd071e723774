"""Many draws of a small random network: means with their standard errors, from one compiled program."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

AT_ONCE = 1000  # draws computed together
FIVE_SIGMA = float(special.ndtr(-5))
OPTIMISED = {"xla_backend_optimization_level": 1}
"""For `jax.jit(compiler_options=...)` of a program that draws millions of numbers: optimised also where XLA's flags say
that nothing is, as in the tests, whose other programs take longer to compile than to run."""


class Average(NamedTuple):
    """Mean over independent draws.

    Attributes:
        mean: float64, the shape of one draw.
        error: standard error of the mean.
        deviation: standard deviation of one draw.
    """

    mean: np.ndarray
    error: np.ndarray
    deviation: np.ndarray


def samples(statistic: Callable[[jax.Array], jax.Array], draws: int, key: jax.Array) -> np.ndarray:
    """Returns statistic(key) of `draws` keys, a multiple of 1000, as float64 (draws, ...)."""

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def all_of(keys: jax.Array) -> jax.Array:
        return jax.lax.map(statistic, keys, batch_size=AT_ONCE)

    return np.asarray(all_of(jax.random.split(key, draws)), np.float64)


def average(values: np.ndarray) -> Average:
    """Returns the mean of independent draws along the first axis."""
    deviation = values.std(axis=0, ddof=1)
    return Average(values.mean(axis=0), deviation / np.sqrt(len(values)), deviation)


def inputs_of(gram: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Returns (n, n) float32 inputs x whose products x_i.x_j / n, a first layer's covariance, are this matrix."""
    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    return np.asarray(np.sqrt(len(values)) * vectors * np.sqrt(np.maximum(values, 0)), np.float32)


def pairs_of(correlations: Sequence[float]) -> np.ndarray:
    """Returns (1 + n, 2) float32 inputs of variance 1: one, and n that have these correlations with it."""
    rho = np.asarray(correlations, np.float64)
    others = np.stack([rho, np.sqrt(1 - rho**2)], axis=1)
    return np.asarray(np.sqrt(2) * np.concatenate([[[1.0, 0.0]], others]), np.float32)


def five_sigma(draws: int) -> float:
    """Returns how many standard errors of a mean over `draws` (Student's t) are as rare as 5 of a Gaussian."""
    return float(-special.stdtrit(draws - 1, FIVE_SIGMA))
