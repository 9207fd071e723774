"""An Equinox module as f(params, x) of a batch. `networks.from_equinox` makes it; it needs the extra `equinox`."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ntk_analysis.common.extras import how_to_install
from ntk_analysis.common.messages import first_line
from ntk_analysis.common.precision import as_wide_as
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.flax_networks.modes import check_mode
from ntk_analysis.layers.base import Params

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(f"Equinox's modules need Equinox ({error}){how_to_install(error)}") from error


@dataclass(frozen=True, eq=False)
class EquinoxFunction:
    """f(params, x) of an Equinox module, mapped over the batch; what the module writes into its state is lost.

    Attributes:
        rest: the module without its parameters.
        shapes: shapes of the parameters.
        state: the module's state, or None.
        key: random key, or None.
        axis: name of the batch's axis.
        mode: mode of the module, "eval" or "train".
    """

    rest: Any = field(repr=False)
    shapes: Any = field(repr=False)
    state: Any = field(repr=False)
    key: Any = field(repr=False)
    axis: Any
    mode: str

    @property
    def module(self) -> eqx.Module:
        """The module, with shapes in place of its parameters."""
        return eqx.combine(self.shapes, self.rest)

    def __call__(self, params: Params, x: Tree) -> Tree:
        """The module's outputs."""
        module = eqx.combine(params, self.rest)
        state = None if self.state is None else as_wide_as((params, x), self.state)
        keys = None if self.key is None else jax.random.split(self.key, len(jax.tree.leaves(x)[0]))

        def one(x: Tree, key: Any) -> Tree:
            keyed = {} if key is None else {"key": key}
            return module(x, **keyed) if state is None else module(x, state, **keyed)[0]

        return jax.vmap(one, axis_name=self.axis)(x, keys)


def from_equinox(
    module: object, x: Tree, mode: str, *, state: Any, key: jax.Array | None
) -> tuple[EquinoxFunction, Params, Any]:
    """See `networks.from_equinox`."""
    if not isinstance(module, eqx.Module):
        raise TypeError(f"got {type(module).__name__}, expected an equinox.Module")
    check_mode(mode)
    kind = type(module).__name__
    if state is None and _parts(module, eqx.nn.StateIndex):
        raise ValueError(
            f"{kind} has layers with a state: give state=, as equinox.nn.make_with_state({kind}) returns it"
        )
    names = {part.axis_name for part in _parts(module, eqx.nn.BatchNorm)}
    if len(names) > 1:
        raise ValueError(
            f"the batch norms of {kind} name the axes {sorted(map(str, names))}, expected one, the batch's"
        )
    module = eqx.nn.inference_mode(eqx.nn.delete_init_state(module), value=mode == "eval")
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError(f"{kind} has no arrays of floats")
    # a counter that Equinox made as a weak integer has another dtype under another x64 flag
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)
    f = EquinoxFunction(rest, jax.eval_shape(lambda: params), state, key, names.pop() if names else "batch", mode)
    try:
        jax.eval_shape(f, params, x)
    except Exception as error:  # a user's module may raise anything
        cure = ": give key=jax.random.key(0), or choose mode='eval'" if key is None and "key" in str(error) else ""
        why = first_line(error).rstrip(".")
        raise ValueError(f"{kind} cannot be called with x in mode {mode!r}: {why}{cure}") from error
    return f, params, x


def _parts(module: Any, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
