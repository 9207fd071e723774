"""What a method of computing an empirical kernel is, and the methods that need nothing but the function.

A method takes a tile apart: it `prepare`s the rows and the columns, each once, and `contract`s the two.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.functions import Flat, Side
from ntk_analysis.empirical.layouts import Layout, inner
from ntk_analysis.layers.base import Params


class Method(NamedTuple):
    """One way to compute a kernel, for one layout.

    Attributes:
        name: name of the method, as given to `empirical_ntk(method=...)`.
        prepare: function (params, side) -> what one side brings to a tile, a pytree of arrays.
        contract: function (params, left, right) -> the tile, from its prepared rows and columns; its axes are those of
            `inner`, for `arranged` to put in order.
        part: function (prepared, start, size) -> `size` of the prepared rows from `start` on; None if they are not kept
            row by row.
    """

    name: str
    prepare: Callable[[Params, Side], Any]
    contract: Callable[[Params, Any, Any], jax.Array]
    part: Callable[[Any, jax.Array, int], Any] | None = None


class Programs(NamedTuple):
    """A method whose programs are compiled on first use; its tiles have the axes of the layout.

    Attributes:
        name: name of the method.
        prepare: function (params, side) -> the prepared side, as in `Method`.
        contract: function (params, left, right) -> tile (n1, n2, *outputs).
        square: function (params, side) -> tile of inputs with themselves, exactly symmetric, in one program.
    """

    name: str
    prepare: Callable[[Params, Side], Any]
    contract: Callable[[Params, Any, Any], jax.Array]
    square: Callable[[Params, Side], jax.Array]


def outputs_method(f: Flat, layout: Layout) -> Method:
    """The method of the NNGP: products of outputs."""

    def prepare(params: Params, side: Side) -> jax.Array:
        y = f(params, side.x)
        return y[:, :, None] if side.rows is None else y[side.rows, :, None]

    return Method("outputs", prepare, lambda params, left, right: inner(left, right, layout), part_of)


def jacobian_method(f: Flat, layout: Layout) -> Method:
    """The method "jacobian": gradients of all outputs of both sides, contracted parameter array by array.

    Memory: n C P numbers for each side of the tile. FLOPs of a pair of inputs: 2 C^2 P (full) or 2 C P, P parameters.
    """

    def contract(params: Params, left: Any, right: Any) -> jax.Array:
        pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
        total: jax.Array = sum(inner(_rows(first), _rows(second), layout) for first, second in pairs)  # type: ignore[assignment]
        return total

    return Method("jacobian", lambda params, side: jacobian(f, params, side), contract, part_of)


def part_of(prepared: Tree, start: jax.Array, size: int) -> Tree:
    """The given rows of every array."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), prepared)


def _rows(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(*leaf.shape[:2], -1)


def jacobian(f: Flat, params: Params, side: Side) -> Tree:
    """Gradients of all outputs on the side's rows: the tree of params, with axes (n, C) before those of each array."""
    if side.rows is None:
        return jax.vmap(lambda x: jax.jacrev(lambda p: f(p, x[None])[0])(params))(side.x)
    y, pull = jax.vjp(lambda p: f(p, side.x), params)
    return jax.vmap(jax.vmap(lambda cotangent: pull(cotangent)[0]))(unit_cotangents(y, side.rows))


def unit_cotangents(y: jax.Array, rows: jax.Array) -> Float[jax.Array, "n C N C"]:
    """Cotangents (N, C) that pick each output of each of these rows out of y."""
    total, outputs = y.shape
    row, output = jax.nn.one_hot(rows, total, dtype=y.dtype), jnp.eye(outputs, dtype=y.dtype)
    return row[:, None, :, None] * output[None, :, None, :]


def products_method(f: Flat, layout: Layout) -> Method:
    """The method "products": each gradient of the columns' outputs is pushed through the rows' network, as a tangent.

    Memory: C P numbers and the rows' activations times C. FLOPs of a pair of inputs: C forward-mode derivatives,
    whatever the layout; about 4 C P for dense networks. A coupled batch is pushed through as a whole, whichever of its
    rows the tile needs: cutting its rows saves nothing, and a plan counts its FLOPs accordingly.

    Raises, when the method is planned:
        NotImplementedError: f has no forward mode, for example behind `jax.custom_vjp`.
    """

    def contract(params: Params, left: Side, right: Side) -> jax.Array:
        y, push = jax.linearize(lambda p: f(p, left.x), params)
        each, gradients = jnp.arange(y.shape[1]), _gradients(f, params, right)

        def column(index: jax.Array) -> jax.Array:
            products = jax.vmap(push)(gradients(index))  # (d, a, c)
            if left.rows is not None:
                products = products[:, left.rows]
            if layout == "full":
                return products.transpose(1, 2, 0)
            diagonal = products[each, :, each].T
            return diagonal if layout == "diagonal" else jnp.sum(diagonal, axis=1)

        size = len(right.x) if right.rows is None else len(right.rows)
        return jnp.moveaxis(jax.lax.map(column, jnp.arange(size)), 0, 2 if layout == "full" else 1)

    return Method("products", lambda params, side: side, forward_mode()(contract))


def _gradients(f: Flat, params: Params, side: Side) -> Callable[[jax.Array], Any]:
    """A function from a row to the gradients of its outputs, with a first axis (C,); a batch runs forward only once."""
    if side.rows is None:
        return lambda index: jax.jacrev(lambda p: f(p, side.x[index][None])[0])(params)
    rows = side.rows
    y, pull = jax.vjp(lambda p: f(p, side.x), params)
    return lambda index: jax.vmap(lambda cotangent: pull(cotangent)[0])(unit_cotangents(y, rows[index][None])[0])


@contextmanager
def forward_mode() -> Iterator[None]:
    """A context for forward-mode derivatives; raises NotImplementedError for functions that have none."""
    try:
        yield
    except TypeError as error:
        # JAX has no class for this error, and raises it when linearising or when pushing, depending on its version
        if "forward-mode" in str(error) and "custom_vjp" in str(error):
            raise NotImplementedError(
                "method 'products' needs derivatives in forward mode, which functions of jax.custom_vjp do not have: "
                "use method='jacobian', or 'auto'"
            ) from error
        raise
