"""Quadrature over the Laplace parameter s: the trapezoidal rule in a variable in which the integrand is smooth.

Towards s = 0 the integrand of Int ds/s falls like s, towards infinity faster than every power where the batch is large,
and like s^(1 - rank/2) where it is not. So s = exp(t - exp(-t)) in units of 1 / (tr S + B eps): on the left it vanishes
double exponentially, on the right every factor of 10 takes equally many nodes, whatever the eigenvalues. Nodes too
small to change the sum are never computed: of 119, some 26 are left at B = 128, 38 at 16. A large batch does with few
nodes of its own, see `few_nodes`.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from ntk_analysis.common.arrays import whole_number

START = -3.5  # s = 1e-16, beyond which nothing is left
LARGEST_FLOAT32 = 27.0  # s = 5e11: beyond it gradients, which hold s^2, leave the range


class Rule(NamedTuple):
    """Quadrature at s = exp(t - exp(-t)) / (tr S + B eps), t = -3.5, -3.5 + step, ..., reach, tr S scaled to B - 1."""

    step: float
    reach: float

    @property
    def finer(self) -> "Rule":
        """A rule whose own error is far below."""
        return Rule(self.step / 2, self.reach + 6)


@dataclass(frozen=True)
class FewNodes:
    """Gauss quadrature for large batches, see `few_nodes`: its error depends on the batch, `quadrature_error` tells it.

    Attributes:
        count: number of nodes, 1 to 8.
    """

    count: int

    def __post_init__(self) -> None:
        whole_number(self.count, "count", MOST_NODES)

    @property
    def finer(self) -> "AnyRule":
        """The rule of one node more, behind the last a `Rule`."""
        return FewNodes(self.count + 1) if self.count < MOST_NODES else COARSE


MOST_NODES = 8
COARSE = Rule(0.3, 32.0)
FINE = Rule(0.2, 66.0)
LARGE_BATCH = FewNodes(3)

AnyRule: TypeAlias = Rule | FewNodes


def automatic(rank: int) -> Rule:
    """The rule for this rank of G Sigma G: FINE for at most 3, where the integrand of `push` falls like s^(-1/2)."""
    return FINE if rank <= 3 else COARSE


def rule_error(rank: int) -> float:
    """Relative error of the integrals under the automatic rule: 1e-11 (COARSE), 1e-12 (FINE).

    The error is relative to the largest entry; `quadrature_error` measures it. There is one known exception: 1e-7 for
    COARSE where the rank is 3, which is not known under a trace.
    """
    return {COARSE: 1e-11, FINE: 1e-12}[automatic(rank)]


def nodes_and_log_weights(rule: Rule, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Nodes s, in units of 1 / (tr S + B eps), and logarithms of the weights of Int f(s) ds/s."""
    reach = rule.reach if dtype == np.float64 else min(rule.reach, LARGEST_FLOAT32)
    t = np.arange(START, reach + rule.step / 2, rule.step)
    return np.exp(t - np.exp(-t)), np.log(rule.step * (1 + np.exp(-t)))


def points(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of fine nodes s and of their weights, from s = 1e-31 on, for integrals of the eigenvalues alone."""
    t = np.arange(-4.2, LARGEST_FLOAT32, 0.1)
    return (t - np.exp(-t)).astype(dtype), np.log(0.1 * (1 + np.exp(-t))).astype(dtype)
