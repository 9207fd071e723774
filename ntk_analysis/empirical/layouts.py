"""How an empirical kernel of networks with C outputs is laid out: full, diagonal or trace."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.stores.grid import mirrored

Layout: TypeAlias = Literal["full", "diagonal", "trace"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


def outputs_shape(layout: Layout, outputs: int) -> tuple[int, ...]:
    """Shape of the kernel's axes after (N1, N2): (C, C), (C,) or ()."""
    return {"full": (outputs, outputs), "diagonal": (outputs,), "trace": ()}[layout]


def inner(
    left: Float[jax.Array, "n1 C k"], right: Float[jax.Array, "n2 C k"], layout: Layout
) -> Float[jax.Array, "n1 *rest"]:
    """Inner products of the vectors of every output on every input: the one contraction that all methods share.

    The result is a plain matrix product, of shape (n1, C, n2, C) for "full". `arranged` puts its axes in order, once
    for all products that are added up.
    """
    if layout == "diagonal":
        return jnp.einsum("ack,bck->abc", left, right, precision="highest")
    # as one matrix product: a contraction over or of two axes is not one on CPUs
    rows, columns = (v.reshape(len(v), -1) if layout == "trace" else v.reshape(-1, v.shape[2]) for v in (left, right))
    product = jnp.matmul(rows, columns.T, precision="highest")
    return product if layout == "trace" else product.reshape(*left.shape[:2], *right.shape[:2])


def weighted(
    pairs: Float[jax.Array, "n1 n2"], products: Float[jax.Array, "n1 *rest"], layout: Layout
) -> Float[jax.Array, "n1 *rest"]:
    """Inner products as `inner` gives them, each times a weight of its pair of inputs."""
    axes = {"full": (1, 3), "diagonal": (2,), "trace": ()}[layout]
    return jnp.expand_dims(pairs, axes) * products


def arranged(products: Float[jax.Array, "n1 *rest"], layout: Layout) -> Float[jax.Array, "n1 n2 *outputs"]:
    """Inner products with their axes in the order of the layout."""
    return products.swapaxes(1, 2) if layout == "full" else products


def symmetric(kernel: np.ndarray) -> np.ndarray:
    """The kernel of inputs with themselves from its upper triangle: exactly its own mirror image."""
    rows, columns = (np.arange(len(kernel)).reshape(shape + (1,) * (kernel.ndim - 2)) for shape in ((-1, 1), (1, -1)))
    upper = rows <= columns
    if kernel.ndim == 4:  # an input with itself gives a matrix over outputs, which has an upper triangle, too
        upper = (rows < columns) | ((rows == columns) & np.triu(np.ones(kernel.shape[2:], dtype=bool)))
    return np.where(upper, kernel, mirrored(kernel))
