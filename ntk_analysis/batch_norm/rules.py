"""Quadrature over the Laplace parameter s: double-exponential rules and the errors they are known to have."""

import math
from typing import NamedTuple

import numpy as np


class Rule(NamedTuple):
    """Double-exponential quadrature: s = exp((pi/2) sinh t) / (B - 1) at t = -reach, -reach + step, ..., reach."""

    step: float
    reach: float


COARSE = Rule(1 / 8, 3.6)
FINE = Rule(1 / 16, 4.4)
FINEST = Rule(1 / 64, 4.4)


def automatic(rank: int, eps: float) -> Rule:
    """The rule for this rank of G Sigma G and eps: COARSE, FINE for eps > 0 or rank <= 3, FINEST for both.

    Both make the integrand decay slowly: up to s = 1/(B eps), or like s^(-rank/2).
    """
    return (COARSE, FINE, FINEST)[(eps > 0) + (rank <= 3)]


def rule_error(rank: int, eps: float) -> float:
    """Relative error of the integrals under the automatic rule: 1e-9 (COARSE), 1e-11 (FINE), 1e-12 (FINEST).

    Relative to the largest entry, for eigenvalues of G Sigma G of one order of magnitude. Known exceptions: 4e-9 for
    `push` at B = 2, 2e-8 with COARSE for three large eigenvalues among small ones. `quadrature_error` measures it.
    """
    return {COARSE: 1e-9, FINE: 1e-11, FINEST: 1e-12}[automatic(rank, eps)]


def nodes_and_log_weights(rule: Rule, B: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Nodes s and logarithms of the weights of Int f(s) ds/s.

    In float32 the coarse reach, s = 1e-12 to 1e12, is all: beyond it gradients, which hold s^2, leave the range, and
    the integral there is within rounding.
    """
    reach = rule.reach if dtype == np.float64 else min(rule.reach, COARSE.reach)
    t = np.arange(-reach, reach + rule.step / 2, rule.step)
    return np.exp((math.pi / 2) * np.sinh(t) - math.log(B - 1)), np.log(rule.step * (math.pi / 2) * np.cosh(t))
