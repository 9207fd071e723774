"""The tile of inputs with themselves: its upper half in blocks, each written where it stands and where it is mirrored.

The tile's rows are prepared once, and a block takes its part. Only full kernels are cut: for the others to prepare
them costs more than the products, and smaller matrix products lose what half of them save; and in a coupled batch
the signals of the columns would be carried to the positions of the rows for each block anew.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.empirical.functions import Side
from ntk_analysis.empirical.layouts import Layout, arranged
from ntk_analysis.empirical.methods import Method
from ntk_analysis.layers.base import Params

BLOCKS = 4  # blocks along either axis, of which 10 of 16 are computed; 8 blocks gain no more
FEWEST = 16  # rows of a block below which nothing is gained


def symmetric_tile(method: Method, layout: Layout, params: Params, side: Side) -> jax.Array:
    """The kernel of the side's inputs with themselves, (n, n, *outputs), exactly its own mirror image."""
    prepared = method.prepare(params, side)
    count = len(side.x if side.rows is None else side.rows)
    part = method.part
    if layout != "full" or side.rows is not None or part is None or count < BLOCKS * FEWEST:
        return arranged(_symmetric(method.contract(params, prepared, prepared), layout), layout)
    size = math.ceil(count / BLOCKS)
    # the last block's rows and columns may overlap those before, so its diagonal block is written last
    starts = np.minimum(np.arange(0, count, size), count - size)
    corners = np.stack([starts[index] for index in np.triu_indices(len(starts))], axis=1).astype(np.int32)

    def block(corner: jax.Array) -> jax.Array:
        rows, columns = (part(prepared, start, size) for start in corner)
        return method.contract(params, rows, columns)

    def step(kernel: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
        found = block(corner)
        found = jax.lax.cond(corner[0] == corner[1], lambda same: _symmetric(same, layout), lambda other: other, found)
        for values, place in ((found, corner), (found.transpose(2, 3, 0, 1), corner[::-1])):
            tile = arranged(values, layout)
            kernel = jax.lax.dynamic_update_slice(kernel, tile, (*place, *jnp.zeros(kernel.ndim - 2, place.dtype)))
        return kernel, None

    shape = jax.eval_shape(lambda corner: arranged(block(corner), layout), corners[0])
    empty = jnp.zeros((count, count, *shape.shape[2:]), shape.dtype)
    return jax.lax.scan(step, empty, jnp.asarray(corners))[0]


def _symmetric(products: jax.Array, layout: Layout) -> jax.Array:
    """Products of inputs with themselves, made exactly symmetric from their upper triangle."""
    n = math.prod(products.shape[:2]) if layout == "full" else len(products)
    matrix = products.reshape(n, n, *products.shape[4 if layout == "full" else 2 :])
    index = jnp.arange(n)
    upper = (index[:, None] <= index[None]).reshape(n, n, *(1,) * (matrix.ndim - 2))
    return jnp.where(upper, matrix, matrix.swapaxes(0, 1)).reshape(products.shape)
