"""Averages over Gaussians by the trapezoidal rule, in NumPy alone: a second way to what the library integrates."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

Function: TypeAlias = Callable[[np.ndarray], np.ndarray]

REACH = 12.0  # deviations: what lies beyond has a probability of 4e-33
FINE, COARSE = 1201, 241  # nodes in one dimension, and in each of two


def _rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    at = np.linspace(-REACH, REACH, nodes)
    return at, np.exp(-(at**2) / 2) * (at[1] - at[0]) / np.sqrt(2 * np.pi)


def mean_of(function: Function, variance: float) -> float:
    """Returns E[f(u)] of u ~ N(0, variance), to rounding where f is analytic, to 1e-4 where it has a kink."""
    at, weights = _rule(FINE)
    return float(np.sum(weights * function(np.sqrt(variance) * at)))


def product_of(function: Function, variance: float, correlation: float) -> float:
    """Returns E[f(u) f(v)] of two Gaussians of one variance; see `mean_of`."""
    at, weights = _rule(COARSE)
    u = np.sqrt(variance) * at
    v = correlation * u[:, None] + np.sqrt(variance * (1 - correlation**2)) * at
    return float((weights * function(u)) @ (function(v) @ weights))


def fixed_point(step: Callable[[float], float], start: float, steps: int = 10_000, error: float = 1e-14) -> float:
    """Returns where the iteration of a map settles.

    Raises:
        ValueError: it has not, after these steps.
    """
    for _ in range(steps):
        after = step(start)
        if abs(after - start) <= error * abs(after):
            return after
        start = after
    raise ValueError(f"the map still moves from {start:g} to {step(start):g} after {steps} steps")
