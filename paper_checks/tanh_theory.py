"""The mean-field maps of tanh networks, integrated in NumPy, and finite tanh networks beside them."""

import functools
from collections.abc import Iterator

import numpy as np
from scipy import optimize

from ntk_analysis.meanfield import MeanField, analyse, phase_diagram

from .averages import fixed_point, mean_of, product_of


def slope(u: np.ndarray) -> np.ndarray:
    """Returns tanh'."""
    return np.asarray(1 / np.cosh(u) ** 2)


def bend(u: np.ndarray) -> np.ndarray:
    """Returns tanh''."""
    return np.asarray(-2 * np.tanh(u) * slope(u))


def square(u: np.ndarray) -> np.ndarray:
    """Returns tanh^2."""
    return np.asarray(np.tanh(u) ** 2)


@functools.cache
def settled_variance(w_var: float, b_var: float) -> float:
    """Returns q* = w_var E[tanh^2] + b_var, from q = 1 on."""
    return fixed_point(lambda q: w_var * mean_of(square, q) + b_var, 1.0, error=1e-13)


def chi_1(w_var: float, b_var: float) -> float:
    """Returns w_var E[tanh'^2] at q*."""
    return w_var * mean_of(lambda u: slope(u) ** 2, settled_variance(w_var, b_var))


@functools.cache
def settled_correlation(w_var: float, b_var: float) -> float:
    """Returns c* = (w_var E[tanh tanh] + b_var) / q* < 1 of the chaotic phase."""
    q = settled_variance(w_var, b_var)
    root = optimize.brentq(lambda c: (w_var * product_of(np.tanh, q, c) + b_var) / q - c, 0.0, 0.99, xtol=1e-14)
    return float(root)


def layers(
    rng: np.random.Generator, width: int, depth: int, w_var: float, b_var: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields float32 weights (width, width), of variance w_var / width, and biases of a finite network."""
    for _ in range(depth):
        weights = rng.standard_normal((width, width), np.float32) * np.float32(np.sqrt(w_var / width))
        yield weights, rng.standard_normal(width, np.float32) * np.float32(np.sqrt(b_var))


@functools.cache
def found_by_library(w_var: float, b_var: float) -> tuple[float, float]:
    """Returns q* and chi_1 of the library."""
    diagram = phase_diagram("tanh", w_var=w_var, b_var=b_var)
    return float(diagram.q_star[0, 0]), float(diagram.chi_1[0, 0])


@functools.cache
def field(w_var: float, b_var: float) -> MeanField:
    """Returns all that the library says of a block, fixed points of the correlation included."""
    return analyse("tanh", w_var=w_var, b_var=b_var)
