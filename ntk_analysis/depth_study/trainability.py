"""The largest learning rate that a network bears: 2/lambda_max of its tangent kernel, and what training finds."""

from typing import NamedTuple

import jax
import numpy as np

from ntk_analysis import spectrum
from ntk_analysis.descent import largest_stable_learning_rate
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import fully_connected

NEAR = 1e-6  # targets lie that far from the outputs at the start: training stays in its linear regime
RESOLUTION = 0.01  # relative, of the bisection


def mini_batches(count: int, batch: int, batches: int, seed: int) -> list[np.ndarray]:
    """Returns random choices of `batch` of `count` inputs, as indices (batch,) each."""
    generator = np.random.default_rng(seed)
    return [generator.choice(count, batch, replace=False) for _ in range(batches)]


def largest_eigenvalues(kernel: np.ndarray, chosen: list[np.ndarray]) -> tuple[float, float]:
    """Returns the largest eigenvalue of the kernel (m, m) of all inputs, and the mean of those of its parts.

    Args:
        kernel: (m, m) kernel of all inputs.
        chosen: indices of the inputs of each part.
    """
    parts = [spectrum.eigenvalues(kernel[np.ix_(part, part)])[0] for part in chosen]
    return float(spectrum.eigenvalues(kernel)[0]), float(np.mean(parts))


class Stability(NamedTuple):
    """The learning rate that one finite network bears.

    Attributes:
        rate: largest stable learning rate, by bisection.
        bound: 2/lambda_max of its own tangent kernel.
        bias: relative excess over the bound that a linear model reaches in so few steps.
        error: relative error of the bisection.
        kernel: (m, m) tangent kernel of the network itself.
    """

    rate: float
    bound: float
    bias: float
    error: float
    kernel: np.ndarray


def stability(x: np.ndarray, normalization: str, *, depth: int, width: int, steps: int, key: jax.Array) -> Stability:
    """Finds the largest stable rate of one network of inputs x (m, d), in float64, in the linear regime of training.

    The targets are as close to its first outputs as the linear regime needs.
    """
    network = fully_connected(depth, width, normalization)
    network_key, target_key = jax.random.split(key)
    with jax.enable_x64(True):
        _, params = network.init(network_key, (-1, x.shape[1]))
        residual = NEAR * np.asarray(jax.random.normal(target_key, (len(x), 1)))
        y = np.asarray(network.apply(params, x)) + residual
        found = largest_stable_learning_rate(network, params, x, y, steps=steps, resolution=RESOLUTION)
        kernel = np.asarray(empirical_ntk(network, params, x, method="jacobian", coupled=False).ntk)[:, :, 0, 0]
    share = np.sum((np.linalg.eigh(kernel)[1][:, -1] @ residual) ** 2) / np.sum(residual**2)
    bias = (share ** (-1 / (2 * steps)) - 1) / 2  # see largest_stable_learning_rate
    return Stability(found.rate, spectrum.largest_stable_learning_rate(kernel), float(bias), found.error, kernel)


def first_depth(depths: np.ndarray, holds: np.ndarray) -> int | None:
    """Returns the smallest depth from which on it `holds` at all larger depths; None if not at the largest."""
    fails = np.flatnonzero(~holds)
    after = fails[-1] + 1 if len(fails) else 0
    return int(depths[after]) if after < len(depths) else None
