"""The last-norm method: where only the last layer, a batch norm, couples the batch, as in MimicNorm networks.

With f the outputs before it and J_c the (B, B) Jacobian of output c's normalised values by its values f_c,
    Theta[a, b, c, d] = sum_pq J_c[a, p] Theta_f[p, q, c, d] J_d[b, q].
So the kernel is that of the network without the norm, for which every input has C signals in place of B C.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ntk_analysis.empirical.coupling import known_coupling
from ntk_analysis.empirical.functions import Side
from ntk_analysis.empirical.layerwise import Factors, layerwise_method
from ntk_analysis.empirical.layouts import Layout
from ntk_analysis.empirical.methods import Method
from ntk_analysis.layers import BatchNorm, LastBatchNorm, Layer, Serial
from ntk_analysis.layers.base import Params, as_params_dtype


class Behind(NamedTuple):
    """The prepared rows of a tile, behind a last batch norm.

    Attributes:
        before: factors of the network without the norm, on the whole batch.
        jacobian: derivatives (rows, B, C) of each row's normalised output c by output c of every input.
    """

    before: list[Factors | None]
    jacobian: jax.Array


def last_norm_method(network: Layer, layout: Layout) -> Method:
    """The kernel of the network without its last batch norm, multiplied by the norm's Jacobian on both sides.

    Memory: the kernel of the whole batch without the norm, whatever the tile. FLOPs: those of `layerwise` without the
    norm, and 4 B^3 C^2 (full) or 4 B^3 C.

    Raises, when the method is planned:
        NotImplementedError: the network does not end in a batch norm without parameters, or it is not known that
            nothing before it couples the batch.
    """
    inner, norm = _parted(network)
    method = layerwise_method(inner, "full" if layout == "full" else "diagonal")

    def prepare(params: Params, side: Side) -> Behind:
        if side.rows is None:
            raise NotImplementedError("method 'last_norm' is for outputs that are coupled: leave coupled to 'detect'")
        own = params[:-1]
        outputs = inner.apply(own, as_params_dtype(params, side.x))
        if outputs.ndim != 2:
            raise NotImplementedError(f"method 'last_norm' needs (batch, outputs) before the norm, got {outputs.shape}")
        _, pull = jax.vjp(lambda f: norm.compute((), f), outputs)

        def row(index: jax.Array) -> jax.Array:
            return pull(jnp.zeros_like(outputs).at[index].set(1))[0]  # each output is normalised by itself

        return Behind(method.prepare(own, Side(side.x)), jax.vmap(row)(side.rows))

    def contract(params: Params, left: Behind, right: Behind) -> jax.Array:
        theta = method.contract(params[:-1], left.before, right.before)
        if layout == "full":
            return jnp.einsum("acqd,bqd->acbd", jnp.einsum("apc,pcqd->acqd", left.jacobian, theta), right.jacobian)
        half = jnp.einsum("apc,pqc->aqc", left.jacobian, theta)
        return jnp.einsum("aqc,bqc->ab" if layout == "trace" else "aqc,bqc->abc", half, right.jacobian)

    return Method("last_norm", prepare, contract)


def _parted(network: Layer) -> tuple[Serial, BatchNorm | LastBatchNorm]:
    """The network without its last norm, and that norm."""
    match network:
        case Serial(layers=(*before, BatchNorm(train_scale=False, train_shift=False) | LastBatchNorm() as norm)) if (
            before
        ):
            inner = Serial(*before)
            if known_coupling(inner) is False:
                return inner, norm
    raise NotImplementedError(
        "method 'last_norm' needs a Serial of layers that treat each input by itself, and behind them a batch norm "
        "without parameters: use 'layerwise'"
    )
