"""Kernels of freshly drawn finite networks: the NTK, and the NNGP given the hidden layers."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.empirical.coupling import coupling, known_coupling
from ntk_analysis.empirical.functions import Side
from ntk_analysis.empirical.layerwise import layerwise_method
from ntk_analysis.layers import Dense, Serial
from ntk_analysis.layers.base import Params


def draw_kernels(networks: Sequence[Serial], x: AnyArray, seeds: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """NTK (mean over outputs) and NNGP of each of the S draws of each network, (2, S, n, n), as in `width_study`.

    Networks differ in width or depth only, so the first one says whether outputs couple the batch. Each is compiled,
    which takes most of the time, beside another on a thread of its own.

    Args:
        networks: networks to draw.
        x: inputs (n, ...); float64 is kept, everything else becomes float32.
        seeds: the number S of draws of each network.
        seed: seed of all draws.
    """
    x = concrete(x, "x")
    x = x if x.dtype == np.float64 else x.astype(np.float32)
    coupled = _couples(networks[0], x)
    keys = [jax.random.fold_in(jax.random.key(seed), number) for number in range(len(networks))]

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(
            pool.map(lambda network, key, draws: _drawn(network, x, key, draws, coupled), networks, keys, seeds)
        )


def _couples(network: Serial, x: np.ndarray) -> bool:
    known = known_coupling(network)
    if known is not None:
        return known
    with jax.enable_x64(x.dtype == np.float64):
        params = jax.jit(lambda key: network.init(key, (-1, *x.shape[1:]))[1])(jax.random.key(0))
        return bool(coupling(network, params, x))


def _drawn(network: Serial, x: np.ndarray, key: jax.Array, draws: int, coupled: bool) -> np.ndarray:
    with jax.enable_x64(x.dtype == np.float64), jax.default_matmul_precision("highest"):
        side = Side(jnp.asarray(x), jnp.arange(len(x)) if coupled else None)
        method = layerwise_method(network, "trace")

        def one(key: jax.Array) -> jax.Array:
            (_, outputs), params = network.init(key, (-1, *x.shape[1:]))
            prepared = method.prepare(params, side)
            ntk = method.contract(params, prepared, prepared) / outputs
            return jnp.stack([ntk, output_covariance(network, params, side.x)])

        # one draw after another: a batch of draws takes twice as long to compile and no less to run
        kernels = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, draws))
        return np.asarray(kernels, np.float64).swapaxes(0, 1)


def output_covariance(network: Serial, params: Params, x: jax.Array) -> Float[jax.Array, "n n"]:
    """Covariance (n, n) of an output over read-out weights and biases, given the hidden layers.

    It is exact at every width: standardised weights are sqrt(fan-in) times a uniformly distributed unit vector of the
    space of sum 0, which has one dimension fewer, so their covariance is that of centered weights.
    """
    *hidden, readout = network.layers
    assert isinstance(readout, Dense), "checked before"
    phi = Serial(*hidden).apply(params[:-1], x) if hidden else x
    weights = readout.weights
    if weights.centered:
        phi = phi - jnp.mean(phi, axis=1, keepdims=True)
    gain = weights.w_var / (phi.shape[1] - weights.centered)
    return gain * jnp.matmul(phi, phi.T, precision="highest") + weights.b_var
