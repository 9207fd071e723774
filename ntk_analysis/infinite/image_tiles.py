"""Kernels of images taken through all layers tile by tile: no array of all pairs of images and positions is held.

Layers treat every pair of images by itself. Through arrays of all pairs, (n1, n2, h, w) at equal positions and (n1, n2,
h, w, h, w) where positions are paired, a network is bound by memory. Here a square of pairs goes from the images to the
outputs before the next one starts, and of a batch with itself only the tiles on and above the diagonal do.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntk_analysis.infinite.kernel import Kernel, Units, position_axes

PLACES = 2**18  # pairs of positions in a tile: a quarter or four times as many take up to a fifth longer in float32
# images on a side at least where positions are paired: a tile has the pairs within each image, too, half as many as the
# others at 4 x 4 images
FEWEST = 4
OF_FIRST, OF_SECOND = ("variance1", "mean1", "within1"), ("variance2", "mean2", "within2")
OF_PAIRS = ("distance", "ntk_scaled")


def side_of(places: int, *, paired: bool) -> int:
    """Largest number of images of so many positions on a side of a tile."""
    return max(math.isqrt(PLACES // places**2), FEWEST) if paired else max(math.isqrt(PLACES // places), 1)


def is_cut(n1: int, n2: int, places: int, *, paired: bool) -> bool:
    """Whether the kernel of n1 x n2 images of so many positions is computed tile by tile."""
    return max(n1, n2) > side_of(places, paired=paired) if paired else n1 * n2 * places > PLACES


def kernel_in_tiles(
    compute: Callable[[jax.Array, jax.Array, jax.Array], Kernel],
    x1: Float[jax.Array, "n1 *positions channels"],
    x2: Float[jax.Array, "n2 *positions channels"] | None = None,
    *,
    paired: bool = False,
    places: int | None = None,
) -> Kernel:
    """Kernel compute(x1, x2, identical), tile by tile: the same NNGP and NTK up to rounding.

    It works under jit, grad and vmap. A gradient takes each tile through the layers once more, so that no layer's
    arrays are kept. `log_scale` may differ from that of `compute`, and `ntk_scaled` with it; their product is the same.

    Args:
        compute: function of images (m1, h, w, c) and (m2, h, w, c), and an array (m1, m2) that is 1 where the two are
            one and the same image, else 0. It returns the kernel behind a network that treats each pair by itself.
        x1: images (n1, h, w, c), sequences or volumes.
        x2: the same (n2, ...), or None for x1 with itself.
        paired: whether the network needs all pairs of positions, not equal positions only.
        places: largest number of positions inside the network; None: that of the inputs.

    Raises:
        NotImplementedError: the network normalises over the batch, or has a layer without an infinite-width kernel.
    """
    second = x1 if x2 is None else x2
    side = side_of(places or math.prod(x1.shape[1:-1]), paired=paired)
    rows, columns = _tiles(x1, side), _tiles(second, side)
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
        found = {name: getattr(tile, name) for name in names}
        return {name: values for name, values in found.items() if values is not None}, Units(tile.law)

    tiles, units = jax.lax.map(arrays, jnp.asarray(corners))
    scale = jnp.max(tiles["log_scale"])
    factor = jnp.exp(tiles["log_scale"] - scale)
    tiles["ntk_scaled"] = tiles["ntk_scaled"] * factor.reshape(-1, *(1,) * (tiles["ntk_scaled"].ndim - 1))
    joined = {name: _along(tiles[name], number[:, -1])[: len(x1)] for name in OF_FIRST if name in tiles}
    joined |= {name: _along(tiles[name], number[0])[: len(second)] for name in OF_SECOND if name in tiles}
    mirrored = _mirrored(tiles["distance"].ndim - 1, paired="within1" in tiles) if x2 is None else None
    joined |= {name: _joined(tiles[name], number, mirrored)[: len(x1), : len(second)] for name in OF_PAIRS}
    error = jnp.max(tiles["relative_error"])
    return Kernel(
        **joined,  # type: ignore[arg-type]
        log_scale=scale,
        relative_error=error,
        law=units.law,
        joint=x2 is None,
    )


def _tiles(x: jax.Array, side: int) -> jax.Array:
    """The images as tiles (tiles, images in each, *positions, channels); the last image fills the last tile."""
    count = -(-len(x) // side)
    size = -(-len(x) // count)
    padded = jnp.pad(x, ((0, count * size - len(x)), *((0, 0),) * (x.ndim - 1)), mode="edge")
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


def _mirrored(ndim: int, *, paired: bool) -> tuple[int, ...]:
    """The axes of pairs of so many axes in the order in which they are those of (second, first) inputs."""
    first, second = position_axes(ndim) if paired else ((), tuple(range(2, ndim)))
    return (1, 0, *second, *first)


def _joined(values: jax.Array, number: np.ndarray, mirrored: tuple[int, ...] | None) -> jax.Array:
    """Values of all pairs, from tiles (m, m1, m2, ...); of images with themselves below the diagonal those above it.

    `mirrored` are their axes then, in the order of (second, first), else None.
    """
    (rows, columns), (_, size1, size2, *pairs) = number.shape, values.shape
    joined = jnp.swapaxes(values[number], 1, 2).reshape(rows * size1, columns * size2, *pairs)
    if mirrored is None:
        return joined
    # within a tile on the diagonal, too: programs may round the two sides of a pair differently
    row, column = jnp.arange(rows * size1), jnp.arange(columns * size2)
    below = (row[:, None] > column[None]).reshape(len(row), len(column), *(1,) * len(pairs))
    return jnp.where(below, joined.transpose(mirrored), joined)
