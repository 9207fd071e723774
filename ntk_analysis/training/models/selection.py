"""ReLU and max pooling that keep little for the backward pass: an array that is kept anyway, or one byte an output.

JAX's own ReLU keeps a mask beside the output that the next layer keeps, and the gradient of its max pooling sorts three
arrays of 32-bit indices of the input's size. Here the ReLU reads its own output and the pooling the place of each
maximum. Values and derivatives are the same, in forward and reverse mode. `jax.checkpoint` around each linear map says
that its mask is computed where it is read, and not kept.
"""

from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from ntk_analysis.training.scopes import POOLING, RELU, scope

STRIDE = 2
computed_where_read = partial(jax.checkpoint, prevent_cse=False)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), with derivative 0 at 0; the backward pass keeps the output only."""
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    y = relu(*primals)
    with scope(RELU):
        return y, _where_positive(y, *tangents)


@computed_where_read
def _where_positive(y: jax.Array, tangent: jax.Array) -> jax.Array:
    return jnp.where(y > 0, tangent, 0)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, size: int, padding: int = 0, ceil: bool = False) -> jax.Array:
    """Maxima over squares of images, strides 2; the backward pass keeps the place of each maximum, one byte.

    The first of equal maxima, row by row, has the derivative, as in `jax.lax.reduce_window`.

    Args:
        x: images (batch, height, width, channels).
        size: height and width of a square.
        padding: number of rows and columns of -inf around the images.
        ceil: whether an incomplete last square counts.
    """
    return _largest(x, size, padding, ceil)[0]


@max_pool.defjvp
def _max_pool_jvp(size: int, padding: int, ceil: bool, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,) = primals
    y, place = _largest(x, size, padding, ceil)
    with scope(POOLING):
        return y, _at(size, padding, ceil, place, *tangents)


def _largest(x: jax.Array, size: int, padding: int, ceil: bool) -> tuple[jax.Array, jax.Array]:
    """The maximum of each square, and its place in the square, row by row."""
    first, *others = _squares(x, -jnp.inf, size, padding, ceil)
    y, place = first, jnp.zeros(first.shape, jnp.uint8)
    for number, entry in enumerate(others, 1):
        larger = ~(y >= entry) & ~jnp.isnan(y)  # a NaN is the largest, wherever it stands
        y, place = jnp.where(larger, entry, y), jnp.where(larger, jnp.uint8(number), place)
    return y, place


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1, 2))
def _at(size: int, padding: int, ceil: bool, place: jax.Array, tangent: jax.Array) -> jax.Array:
    """The entries of the squares at these places."""
    found = jnp.zeros(place.shape, tangent.dtype)
    for number, entry in enumerate(_squares(tangent, 0.0, size, padding, ceil)):
        found = jnp.where(place == number, entry, found)
    return found


def _squares(x: jax.Array, border: float, size: int, padding: int, ceil: bool) -> list[jax.Array]:
    """Entry (0, 0), (0, 1), ... of every square: size^2 arrays (batch, pooled height, pooled width, channels)."""
    ends = [padding + (ceil and (length + 2 * padding - size) % STRIDE) for length in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *((padding, end) for end in ends), (0, 0)), constant_values=border)
    spans = [(length - size) // STRIDE * STRIDE + 1 for length in x.shape[1:3]]
    return [
        x[:, row : row + spans[0] : STRIDE, column : column + spans[1] : STRIDE]
        for row, column in product(range(size), repeat=2)
    ]
