"""Pairs of inputs, and their correlation coefficients over a layer's channels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer
from numpy.typing import ArrayLike

from ntk_analysis.activations.angles import safe_divide
from ntk_analysis.common.arrays import concrete

PAIRS_AT_ONCE = 1024  # pairs whose channels are gathered together; bounds memory when there are millions of pairs


def random_pairs(count_inputs: int, pairs: int, seed: int | np.integer) -> Integer[np.ndarray, "pairs 2"]:
    """Distinct pairs i < j of inputs, drawn uniformly without replacement.

    Raises:
        ValueError: fewer than 1 pair is asked for, or more pairs than there are.
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


def checked_pairs(pairs: ArrayLike, inputs: int) -> np.ndarray:
    """The pairs as an int32 array (P, 2), each of two different rows; else raises a ValueError."""
    index = concrete(pairs, "pairs")
    if index.ndim != 2 or index.shape[1] != 2 or len(index) == 0 or index.dtype.kind not in "iu":
        raise ValueError(f"pairs must be integers of shape (P, 2), P >= 1, got {index.dtype} {index.shape}")
    bad = np.flatnonzero(((index < 0) | (index >= inputs)).any(axis=1))
    if bad.size:
        raise ValueError(f"pair {bad[0]} is {index[bad[0]].tolist()}, expected rows of x, 0 to {inputs - 1}")
    same = np.flatnonzero(index[:, 0] == index[:, 1])
    if same.size:
        raise ValueError(f"pair {same[0]} is input {index[same[0], 0]} with itself: its correlation is 1 by definition")
    return index.astype(np.int32)


def pearson(y: jax.Array, pairs: jax.Array) -> jax.Array:
    """Pearson correlation over channels of each pair of rows; NaN where a row is constant."""
    constant = jnp.max(y, axis=1, keepdims=True) == jnp.min(y, axis=1, keepdims=True)
    # the mean of equal numbers may be off by a rounding, and the noise of two rows would then correlate
    return cosine(jnp.where(constant, 0, y - jnp.mean(y, axis=1, keepdims=True)), pairs)


def cosine(y: jax.Array, pairs: jax.Array) -> jax.Array:
    """Cosine u.v / (|u| |v|) of each pair of rows; NaN where a row is zero."""
    scaled = safe_divide(y, jnp.max(jnp.abs(y), axis=1, keepdims=True), math.nan)  # NaN for a row of zeros: undefined
    unit = scaled / jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    products = jax.lax.map(lambda pair: jnp.sum(unit[pair[0]] * unit[pair[1]]), pairs, batch_size=PAIRS_AT_ONCE)
    return jnp.clip(products, -1, 1)
