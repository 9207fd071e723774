"""Where a network's tangent kernel comes from: each layer's share of its trace, and each kind of array's."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.empirical.by_group import By, group_names
from ntk_analysis.empirical.functions import Flat
from ntk_analysis.layers.base import Params

DRAWS = 16  # number of random vectors


class Shares(NamedTuple):
    """Shares of the trace, by group of parameters.

    Attributes:
        names: names of the groups, in the order of the parameters.
        shares: estimated share of each; they sum to 1.
        errors: standard error of each share.
    """

    names: tuple[str, ...]
    shares: tuple[float, ...]
    errors: tuple[float, ...]


class Squares(NamedTuple):
    """Squared lengths of J^T v by array, for random signs v, whose means are the arrays' parts of the trace.

    Attributes:
        params: parameters, whose paths name the arrays.
        values: squared lengths (DRAWS, arrays).
    """

    params: Params
    values: np.ndarray

    def shares(self, by: By) -> Shares:
        """The share of each group: a ratio of means, with its standard error to first order."""
        names = group_names(self.params, by)
        groups = list(dict.fromkeys(names))
        parts = np.stack([self.values[:, [name == group for name in names]].sum(axis=1) for group in groups], axis=1)
        whole = parts.sum(axis=1)
        shares = parts.sum(axis=0) / whole.sum()
        residuals = parts - shares[None] * whole[:, None]
        errors = residuals.std(axis=0, ddof=1) / np.sqrt(len(parts)) / whole.mean()
        return Shares(tuple(groups), tuple(map(float, shares)), tuple(map(float, errors)))


def gradient_squares(f: Flat, params: Params, x: jax.Array, seed: int) -> Squares:
    """The squares for DRAWS vectors, each one reverse-mode derivative on all inputs."""
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return Squares(params, np.asarray(_lengths(f, params, x, keys), np.float64) ** 2)


@partial(jax.jit, static_argnums=0)
def _lengths(f: Flat, params: Params, x: jax.Array, keys: jax.Array) -> jax.Array:
    y, pull = jax.vjp(lambda params: f(params, x), params)

    def one(key: jax.Array) -> jax.Array:
        gradients = jax.tree.leaves(pull(jax.random.rademacher(key, y.shape, y.dtype))[0])
        return jnp.stack([_length(leaf).astype(y.dtype) for leaf in gradients])

    return jax.lax.map(one, keys)


def _length(leaf: jax.Array) -> jax.Array:
    """Euclidean length, also where squares leave the range of the dtype."""
    largest = jnp.max(jnp.abs(leaf))
    unit = leaf / jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return largest * jnp.sqrt(jnp.sum(unit**2))
