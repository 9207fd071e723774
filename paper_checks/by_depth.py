"""Infinite-width kernels after every number of hidden layers in one pass, and what their numbers tend to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Layer, Serial
from ntk_analysis.networks import fully_connected


def common_correlation(m: int, rho: float) -> np.ndarray:
    """Returns (m, m) inputs of variance 1 of which every two have this correlation."""
    return square_inputs((1 - rho) * np.eye(m) + rho)


def square_inputs(gram: np.ndarray) -> np.ndarray:
    """Returns (m, m) inputs with this matrix of products x.x'/d: all have one shape, and so one program."""
    values, vectors = np.linalg.eigh(gram)
    root: np.ndarray = (vectors * np.sqrt(len(gram) * np.maximum(values, 0))) @ vectors.T
    return root


def infinite_kernels(
    x: np.ndarray,
    layers: int,
    normalization: str,
    activation: str = "relu",
    w_var: float | None = None,
    b_var: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns NNGP and NTK of the outputs after 1 to `layers` hidden layers, (layers, m, m) each, float64.

    The layer that reads out a network is the one that leads on to the next hidden layer of a deeper one. Each NTK is
    up to a positive factor of its depth.
    """
    first, *activated, dense = fully_connected(1, 1, normalization, activation, w_var=w_var, b_var=b_var).layers
    with jax.enable_x64(True):
        nngp, ntk = _scanned(first, Serial(*activated, dense), jnp.asarray(x), layers)
        return np.asarray(nngp), np.asarray(ntk)


@functools.partial(jax.jit, static_argnames=("first", "block", "layers"))
def _scanned(first: Layer, block: Layer, x: jax.Array, layers: int) -> tuple[jax.Array, jax.Array]:
    def one(kernel: Kernel, _: None) -> tuple[Kernel, tuple[jax.Array, jax.Array]]:
        after = block.kernel(kernel)
        return after, (after.nngp, after.ntk_scaled)

    return jax.lax.scan(one, first.kernel(input_kernel(x)), length=layers)[1]


def fitted(values: np.ndarray, *terms: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Fits the terms to the later half of the values; returns their coefficients and the errors of the fit.

    The error is the change from the fit on all values, whose neglected terms are larger.
    """
    columns = np.stack([np.broadcast_to(term, np.shape(values)) for term in terms], axis=1)
    half = len(values) // 2
    everything, later = (np.linalg.lstsq(columns[i:], values[i:])[0] for i in (0, half))
    return later, np.abs(later - everything)


def critical_terms(depths: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the terms of an approach to a limit on the critical line: 1, log(L)/L, 1/L, and their products."""
    one, small, log = np.ones(len(depths)), 1 / depths, np.log(depths)
    return one, log * small, small, (log * small) ** 2, log * small**2, small**2
