"""Cosine distances between raw inputs, vectors or images, that keep their digits for near-duplicates."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from ntk_analysis.activations.angles import into_range, safe_divide, zero_where

NEAR = 0.01  # cosine distances below this are measured from the difference of the unit vectors


def unit_vectors(x: Float[jax.Array, "*batch d"]) -> Float[jax.Array, "*batch d"]:
    """Unit vectors x / |x| along the last axis; zeros stay zeros."""
    # scaled by the largest entry first, so that squares of 1e-30 or 1e30 survive in float32
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    scaled = safe_divide(x, largest, 0.0)
    square = jnp.sum(scaled**2, axis=-1, keepdims=True)
    return scaled * safe_divide(jnp.ones_like(square), jnp.sqrt(jnp.where(square > 0, square, 1)), 0.0)


def vector_distance(
    unit1: Float[jax.Array, "n1 d"], unit2: Float[jax.Array, "n2 d"], *, same: bool
) -> Float[jax.Array, "n1 n2"]:
    """Cosine distance 1 - u.u'; where that cancels, |u - u'|^2 / 2, row by row, only in rows that have such a pair."""
    return pair_distance(unit1, unit2, jnp.eye(len(unit1), len(unit2), dtype=bool) & same)


def pair_distance(
    unit1: Float[jax.Array, "n1 d"], unit2: Float[jax.Array, "n2 d"], identical: Bool[jax.Array, "n1 n2"]
) -> Float[jax.Array, "n1 n2"]:
    """Cosine distance as in `vector_distance`, and 0 for pairs of an input with itself, which are `identical`."""
    product = jnp.where(identical, 0, 1 - jnp.matmul(unit1, unit2.T, precision="highest"))
    near = (product < NEAR) & ~identical

    def row(unit: jax.Array, plain: jax.Array, close: jax.Array) -> jax.Array:
        def from_difference() -> jax.Array:
            return jnp.where(close, jnp.sum((unit[None, :] - unit2) ** 2, axis=1) / 2, plain)

        return jax.lax.cond(jnp.any(close), from_difference, lambda: plain)

    def corrected() -> jax.Array:
        return jax.lax.map(lambda args: row(*args), (unit1, product, near))

    return into_range(jax.lax.cond(jnp.any(near), corrected, lambda: product))


def channel_distance(
    x1: Float[jax.Array, "*#pairs c"], x2: Float[jax.Array, "*#pairs c"]
) -> Float[jax.Array, "*pairs"]:
    """Cosine distance |u - u'|^2 / 2 between channel vectors that broadcast against each other; for few channels.

    Equal vectors are asked for: fused with the difference, their units are not the same number on both sides.
    """
    distance = jnp.sum((unit_vectors(x1) - unit_vectors(x2)) ** 2, axis=-1) / 2
    return into_range(zero_where(jnp.all(x1 == x2, axis=-1), distance))


def rounding_error(distance: jax.Array) -> jax.Array:
    """Largest relative rounding error of a cosine distance d from this file: eps/sqrt(d) if near, eps/d if far."""
    eps = 4 * float(np.finfo(distance.dtype).eps)
    apart = distance > 0
    d = jnp.where(apart, distance, 1)
    return jnp.max(jnp.where(apart, eps / jnp.where(d < NEAR, jnp.sqrt(d), d), 0))
