"""Kernels of the paper's networks after every number of layers, in their true size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Activation, Conv, Dense, GlobalAvgPool, Identity, Layer, Serial
from ntk_analysis.meanfield import analyse, critical_line

ACTIVATION = "erf"  # the paper's
CRITICAL_VARIANCE = 0.5
WEIGHTS_OFF = {"ordered": 0.8, "critical": 1.0, "chaotic": 1.4}
"""Weight variances of the three phases, in units of the critical one at the same biases."""
CORRELATIONS = (0.1, 0.3, -0.2, 0.5)


def variances(phase: str, activation: str = ACTIVATION) -> tuple[float, float]:
    """Returns w_var and b_var of a phase: the point of the critical line at q = 1/2, or weights off it."""
    if activation == "relu":
        return 2.0, 0.0
    line = critical_line(activation, q=CRITICAL_VARIANCE)
    return WEIGHTS_OFF[phase] * float(line.w_var[0]), float(line.b_var[0])


@functools.cache
def settled(phase: str) -> tuple[float, float, float]:
    """Returns q*, chi_1, and the slope chi_c* of the correlation map at its stable fixed point."""
    field = analyse(ACTIVATION, w_var=variances(phase)[0], b_var=variances(phase)[1])
    assert field.q_star is not None
    assert field.chi_1 is not None
    return field.q_star, field.chi_1, next(point.slope for point in field.fixed_points if point.stable)


def vectors(m: int, variance: float = 1.0) -> np.ndarray:
    """Returns (m, m) inputs of this variance whose correlations differ: those of a moving average."""
    apart = np.abs(np.subtract.outer(np.arange(m), np.arange(m)))
    gram = np.where(apart == 0, 1.0, np.append(CORRELATIONS, np.zeros(m))[np.maximum(apart, 1) - 1] / 2)
    values, basis = np.linalg.eigh(variance * gram)
    root: np.ndarray = (basis * np.sqrt(m * values)) @ basis.T
    return root


@functools.cache  # measured once for all theories
def dense_kernels(phase: str, m: int, layers: int, activation: str = ACTIVATION) -> np.ndarray:
    """Returns the NTK (layers, m, m) of m inputs after 1 to `layers` hidden layers, from the settled variance on."""
    w_var, b_var = variances(phase, activation)
    variance = 1.0 if activation == "relu" else settled(phase)[0] - b_var
    dense = Dense(1, w_var, b_var)
    return _scanned(
        Dense(1, 1.0, b_var), Serial(Activation(activation), dense), Identity(), vectors(m, variance), layers
    )


@functools.cache
def pooled_kernels(m: int, pixels: int, layers: int) -> np.ndarray:
    """Returns the critical NTK (layers, m, m) of m sequences after 1 to `layers` circular convolutions and a mean."""
    w_var, b_var = variances("critical")
    conv = functools.partial(Conv, 1, (3,), padding="circular")
    units = vectors(m * pixels, CRITICAL_VARIANCE - b_var).reshape(m, pixels, m * pixels)
    block = Serial(Activation(ACTIVATION), conv(w_var=w_var, b_var=b_var))
    return _scanned(conv(w_var=1.0, b_var=b_var), block, GlobalAvgPool(), units, layers)


def _scanned(first: Layer, block: Layer, readout: Layer, x: np.ndarray, layers: int) -> np.ndarray:
    with jax.enable_x64(True):
        scaled, log_scale = _kernels(first, block, readout, jnp.asarray(x), layers)
    return np.asarray(scaled) * np.exp(np.asarray(log_scale))[:, None, None]


@functools.partial(jax.jit, static_argnames=("first", "block", "readout", "layers"))
def _kernels(first: Layer, block: Layer, readout: Layer, x: jax.Array, layers: int) -> tuple[jax.Array, jax.Array]:
    def one(kernel: Kernel, _: None) -> tuple[Kernel, tuple[jax.Array, jax.Array]]:
        after = block.kernel(kernel)
        read = readout.kernel(after)
        return after, (read.ntk_scaled, read.log_scale)

    start = first.kernel(input_kernel(x, paired=readout.pairs_positions))
    return jax.lax.scan(one, start, length=layers)[1]


def condition_numbers(kernels: np.ndarray) -> np.ndarray:
    """Returns the condition number of each kernel."""
    values = np.linalg.eigvalsh(kernels)
    return np.asarray(values[:, -1] / values[:, 0])
