"""Empirical kernels of neural-tangents, in our layouts and with our sums."""

from collections.abc import Callable
from typing import Any

import jax

from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.reference.comparison import permissive
from ntk_analysis.reference.loading import load

IMPLEMENTATIONS = {"contraction": 1, "products": 2, "structured": 3}
AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "full": {"trace_axes": (), "diagonal_axes": ()},
    "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
    "trace": {"trace_axes": (-1,), "diagonal_axes": ()},
}


def empirical_ntk_fn(
    f: Callable[..., jax.Array],
    *,
    layout: Layout = "full",
    implementation: str = "structured",
    coupled: bool = False,
) -> Callable[..., jax.Array]:
    """neural-tangents' jitted kernel(params, x1, x2=None) of f(params, x), for comparison with our `empirical_ntk(f)`.

    neural-tangents averages over the outputs that it traces; here they are summed, as everywhere in this library.

    Args:
        f: pure function (params, x) -> (n, C). Structured derivatives take single operations apart and know no rule for
            scans: give layers in `Serial`; for a `Repeat` they take the memory of its dense Jacobian.
        layout: layout of the kernel, "full" (n1, n2, C, C), "diagonal" (n1, n2, C) or "trace" (n1, n2).
        implementation: "contraction" of Jacobians, NTK-vector "products" or "structured" derivatives, which are the
            fastest for dense networks.
        coupled: whether f couples the batch; if not, neural-tangents may map over inputs (its `vmap_axes`), without
            which it takes orders of magnitude longer.

    Raises:
        ImportError: neural-tangents cannot be loaded.
        ValueError: there is no such layout or implementation.
    """
    for name, value, choices in (("layout", layout, AXES), ("implementation", implementation, IMPLEMENTATIONS)):
        if value not in choices:
            raise ValueError(f"got {name}={value!r}: choose one of {', '.join(choices)}")
    theirs = load().empirical_ntk_fn(
        f, **AXES[layout], vmap_axes=None if coupled else 0, implementation=IMPLEMENTATIONS[implementation]
    )

    def kernel(params: Any, x1: jax.Array, x2: jax.Array | None = None) -> jax.Array:
        with permissive():
            found = theirs(x1, x2, params)
        return found * jax.eval_shape(f, params, x1).shape[-1] if layout == "trace" else found

    return jax.jit(kernel)
