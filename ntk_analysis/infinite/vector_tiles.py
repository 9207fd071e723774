"""A kernel of vectors taken through all layers tile by tile: the arrays of a tile stay in the processor's cache.

Layers without statistics over the batch treat every pair of inputs by itself. Through whole (n1, n2) arrays a deep
network is bound by memory: each operation reads and writes all of them. Here about TILE x TILE pairs go through all
layers before the next tile starts, and of a symmetric kernel only the tiles on and above the diagonal do.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.infinite.kernel import Kernel, Units

TILE = 500  # rows and columns at most; fewer are slower where every tile integrates an activation of its inputs anew


class _Arrays(NamedTuple):
    """The arrays of a kernel of vectors, for each input and for each pair."""

    variance1: jax.Array
    variance2: jax.Array
    mean1: jax.Array
    mean2: jax.Array
    distance: jax.Array
    ntk_scaled: jax.Array


def propagate_in_tiles(propagate: Callable[[Kernel], Kernel], kernel: Kernel) -> Kernel:
    """The kernel propagate(kernel) for vectors, tile by tile: the same NNGP and NTK up to rounding.

    It works under jit, grad and vmap, and the program does not grow with the number of inputs. A gradient takes each
    tile through the layers once more, so that no layer's arrays are kept. `log_scale` may differ from that of
    `propagate`, and `ntk_scaled` with it; their product is the same.

    Args:
        propagate: function that takes a kernel through a network whose layers treat each pair of inputs by itself.
        kernel: kernel (n1, n2) of vectors, symmetric if it is `joint`.

    Raises:
        ValueError: the kernel has positions (images).
        NotImplementedError: the network normalises over the batch, or has a layer without an infinite-width kernel.
    """
    if kernel.positions:
        raise ValueError(f"tiles are cut from kernels of vectors, got images of {kernel.positions} positions")
    counts, sizes = zip(*map(_cut, kernel.distance.shape), strict=True)
    padded = _padded(_arrays(kernel), counts[0] * sizes[0], counts[1] * sizes[1])
    corners = np.argwhere(np.triu(np.ones(counts)) if kernel.joint else np.ones(counts)).astype(np.int32)

    def propagated(corner: jax.Array) -> Kernel:
        rows, columns = (
            jnp.minimum(start + jnp.arange(size, dtype=start.dtype), n - 1)  # the last input fills the last tile
            for start, size, n in zip(corner, sizes, kernel.distance.shape, strict=True)
        )
        identical = (rows[:, None] == columns[None]).astype(kernel.distance.dtype) if kernel.joint else None
        return propagate(replace(kernel, **_taken(padded, corner, sizes)._asdict(), joint=False, identical=identical))

    def step(whole: _Arrays, corner: jax.Array) -> tuple[_Arrays, tuple[jax.Array, jax.Array, Units]]:
        tile = jax.checkpoint(propagated, prevent_cse=False)(corner)
        whole = _put(whole, _arrays(tile), corner, symmetric=kernel.joint)
        return whole, (tile.log_scale, tile.relative_error, Units(tile.law))

    places = jnp.asarray(corners * np.asarray(sizes, np.int32))
    whole, (log_scales, errors, units) = jax.lax.scan(step, jax.tree.map(jnp.zeros_like, padded), places)
    ntk_scaled, log_scale = _at_one_scale(whole.ntk_scaled, log_scales, corners, counts, symmetric=kernel.joint)
    n1, n2 = kernel.distance.shape
    sides = {name: getattr(whole, name)[:n] for name, n in zip(_Arrays._fields, (n1, n2, n1, n2), strict=False)}
    return replace(
        kernel,
        **sides,
        distance=whole.distance[:n1, :n2],
        ntk_scaled=ntk_scaled[:n1, :n2],
        log_scale=log_scale,
        relative_error=jnp.max(errors),
        law=units.law,
        identical=None,
    )


def _cut(n: int) -> tuple[int, int]:
    """Number and size of the tiles of n inputs: as few tiles as possible, then as small as possible."""
    count = -(-n // TILE)
    return count, -(-n // count)


def _arrays(kernel: Kernel) -> _Arrays:
    return _Arrays(*(getattr(kernel, name) for name in _Arrays._fields))


def _padded(arrays: _Arrays, rows: int, columns: int) -> _Arrays:
    """The arrays padded to whole tiles by the last input, whose pairs are as harmless as the others."""
    extra1, extra2 = rows - arrays.distance.shape[0], columns - arrays.distance.shape[1]
    widths = [((0, extra1),), ((0, extra2),)] * 2 + [((0, extra1), (0, extra2))] * 2
    return _Arrays(*(jnp.pad(array, width, mode="edge") for array, width in zip(arrays, widths, strict=True)))


def _starts(corner: jax.Array) -> tuple[tuple[jax.Array, ...], ...]:
    row, column = corner
    return ((row,), (column,)) * 2 + ((row, column),) * 2


def _taken(arrays: _Arrays, corner: jax.Array, sizes: tuple[int, ...]) -> _Arrays:
    rows, columns = sizes
    shapes = ((rows,), (columns,)) * 2 + ((rows, columns),) * 2
    return _Arrays(*map(jax.lax.dynamic_slice, arrays, _starts(corner), shapes))


def _put(whole: _Arrays, tile: _Arrays, corner: jax.Array, *, symmetric: bool) -> _Arrays:
    """The whole with this tile at its corner and, for a symmetric kernel, also at the mirrored corner."""
    whole = _Arrays(*map(jax.lax.dynamic_update_slice, whole, tile, _starts(corner)))
    if not symmetric:
        return whole
    mirrored = _Arrays(tile.variance2, tile.variance1, tile.mean2, tile.mean1, tile.distance.T, tile.ntk_scaled.T)
    return _Arrays(*map(jax.lax.dynamic_update_slice, whole, mirrored, _starts(corner[::-1])))


def _at_one_scale(
    ntk: jax.Array, log_scales: jax.Array, corners: np.ndarray, counts: tuple[int, ...], *, symmetric: bool
) -> tuple[jax.Array, jax.Array]:
    """The NTK at one log_scale, and that log_scale, given the log_scale of each tile."""
    common = jnp.max(log_scales)
    by_tile = jnp.zeros(counts, ntk.dtype).at[*corners.T].set(jnp.exp(log_scales - common))
    if symmetric:
        by_tile = by_tile.at[*corners.T[::-1]].set(jnp.exp(log_scales - common))

    def rescaled() -> jax.Array:
        tiles = ntk.reshape(counts[0], len(ntk) // counts[0], counts[1], ntk.shape[1] // counts[1])
        return (tiles * by_tile[:, None, :, None]).reshape(ntk.shape)

    return jax.lax.cond(jnp.all(log_scales == common), lambda: ntk, rescaled), common
