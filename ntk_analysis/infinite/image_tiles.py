"""Kernels of images at equal positions, taken through all layers tile by tile: a tile stays in the processor's cache.

Layers treat every pair of images by itself. Through arrays of all pairs, (n1, n2, h, w), a network is bound by memory.
Here a square of pairs goes from the images to the outputs before the next one starts, and of a batch with itself only
the tiles on and above the diagonal do. Behind a flattening read-out no array of all pairs and positions is ever held.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntk_analysis.infinite.kernel import Kernel, Units

PLACES = 2**18  # pairs of positions in a tile: a quarter or four times as many take up to a fifth longer in float32
OF_FIRST, OF_SECOND, OF_PAIRS = ("variance1", "mean1"), ("variance2", "mean2"), ("distance", "ntk_scaled")


def kernel_in_tiles(
    compute: Callable[[jax.Array, jax.Array, jax.Array], Kernel],
    x1: Float[jax.Array, "n1 height width channels"],
    x2: Float[jax.Array, "n2 height width channels"] | None = None,
) -> Kernel:
    """Kernel compute(x1, x2, identical), tile by tile: the same NNGP and NTK up to rounding.

    It works under jit, grad and vmap. A gradient takes each tile through the layers once more, so that no layer's
    arrays are kept. `log_scale` may differ from that of `compute`, and `ntk_scaled` with it; their product is the same.

    Args:
        compute: function of images (m1, h, w, c) and (m2, h, w, c), and an array (m1, m2) that is 1 where the two are
            one and the same image, else 0. It returns the kernel behind a network that needs equal positions only and
            treats each pair by itself.
        x1: images (n1, h, w, c).
        x2: images (n2, h, w, c), or None for x1 with itself.

    Raises:
        NotImplementedError: the network normalises over the batch, or has a layer without an infinite-width kernel.
    """
    second = x1 if x2 is None else x2
    rows, columns = _tiles(x1), _tiles(second)
    number, corners = _numbered(len(rows), len(columns), symmetric=x2 is None)

    def compute_at(corner: jax.Array) -> Kernel:
        images = rows[corner[0]], columns[corner[1]]
        first, second = (
            jnp.minimum(number * len(tile) + jnp.arange(len(tile)), len(x1) - 1)  # the last image fills the last tile
            for number, tile in zip(corner, images, strict=True)
        )
        return compute(*images, (first[:, None] == second[None]).astype(x1.dtype) * float(x2 is None))

    propagated = jax.checkpoint(compute_at, prevent_cse=False)

    def arrays(corner: jax.Array) -> tuple[dict[str, jax.Array], Units]:
        tile = propagated(corner)
        names = (*OF_FIRST, *OF_SECOND, *OF_PAIRS, "log_scale", "relative_error")
        return {name: getattr(tile, name) for name in names}, Units(tile.law)

    tiles, units = jax.lax.map(arrays, jnp.asarray(corners))
    scale = jnp.max(tiles["log_scale"])
    factor = jnp.exp(tiles["log_scale"] - scale)
    tiles["ntk_scaled"] = tiles["ntk_scaled"] * factor.reshape(-1, *(1,) * (tiles["ntk_scaled"].ndim - 1))
    joined = {name: _along(tiles[name], number[:, -1])[: len(x1)] for name in OF_FIRST}
    joined |= {name: _along(tiles[name], number[0])[: len(second)] for name in OF_SECOND}
    joined |= {name: _joined(tiles[name], number, x2 is None)[: len(x1), : len(second)] for name in OF_PAIRS}
    error = jnp.max(tiles["relative_error"])
    return Kernel(
        **joined,  # type: ignore[arg-type]
        log_scale=scale,
        relative_error=error,
        law=units.law,
        joint=x2 is None,
    )


def _tiles(x: jax.Array) -> jax.Array:
    """The images as tiles (tiles, images in each, height, width, channels); the last image fills the last tile."""
    side = max(math.isqrt(PLACES // math.prod(x.shape[1:3])), 1)
    count = -(-len(x) // side)
    size = -(-len(x) // count)
    padded = jnp.pad(x, ((0, count * size - len(x)), (0, 0), (0, 0), (0, 0)), mode="edge")
    return padded.reshape(count, size, *x.shape[1:])


def _numbered(rows: int, columns: int, *, symmetric: bool) -> tuple[Int[np.ndarray, "r c"], Int[np.ndarray, "m 2"]]:
    """Number of the tile at each place, and each tile's row and column; below the diagonal stands the tile above it."""
    corners = np.argwhere(np.triu(np.ones((rows, columns))) if symmetric else np.ones((rows, columns)))
    number = np.zeros((rows, columns), int)
    number[tuple(corners.T)] = np.arange(len(corners))
    return (np.maximum(number, number.T) if symmetric else number), corners


def _along(values: jax.Array, number: np.ndarray) -> jax.Array:
    """Values of each image, from the tiles with these numbers."""
    return values[number].reshape(-1, *values.shape[2:])


def _joined(values: jax.Array, number: np.ndarray, symmetric: bool) -> jax.Array:
    """Values of all pairs, from tiles (m, m1, m2, ...); of images with themselves below the diagonal those above it."""
    (rows, columns), (_, size1, size2, *pairs) = number.shape, values.shape
    joined = jnp.swapaxes(values[number], 1, 2).reshape(rows * size1, columns * size2, *pairs)
    if not symmetric:
        return joined
    # within a tile on the diagonal, too: programs may round the two sides of a pair differently
    row, column = jnp.arange(rows * size1), jnp.arange(columns * size2)
    below = (row[:, None] > column[None]).reshape(len(row), len(column), *(1,) * len(pairs))
    return jnp.where(below, jnp.swapaxes(joined, 0, 1), joined)
