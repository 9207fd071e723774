"""Batch-normalised networks have exploding gradients at every batch size, with or without an activation."""

from collections.abc import Callable
from typing import TypeAlias

from ntk_analysis.meanfield import analyse

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import rounding
from .formulas import linear_rate, relu_rate

Theory: TypeAlias = dict[str, Callable[[int], float]]

CLAIM = Claim(
    id="batch_norm_explosion",
    title="the rate of explosion",
    statement="At the fixed point of batch normalisation squared gradients grow by ((B - 1 + J')/(1 - J) - 1)/(B "
    "- 3) a "
    "layer for ReLU and (B - 2)/(B - 3) for linear networks: more than 1 at every batch size B.",
    source="Theorems 3.9, F.13 (linear), Corollary on ReLU",
    scope="Fully connected networks of infinite width with batch normalisation before each activation, eps = 0, B "
    ">= 4.",
    formula=r"\lambda_{\text{ReLU}} = \frac{1}{B - 3} \left(\frac{B - 1 + J'(c)}{1 - J(c)} - 1\right),\quad "
    r"\lambda_{\text{id}} = \frac{B - 2}{B - 3},\quad c = \frac{-1}{B - 1}",
    recorded=Verdict.HOLDS,
    summary="True to rounding: the library's push-forward, derived for any homogeneous activation, is the same number.",
)
THEORY: Theory = {"relu": relu_rate, "identity": linear_rate}
WRONG: dict[str, Theory] = {
    "the large-batch rate at every batch": {"relu": lambda batch: 1.4669, "identity": lambda batch: 1.0},
    "B - 2 dimensions are left": {
        "relu": lambda batch: relu_rate(batch) * (batch - 3) / (batch - 2),
        "identity": lambda batch: 1.0,
    },
}
BATCHES = (4, 5, 8, 32, 256, 4096)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the rates with the library's."""
    del setting  # one size
    evidence = Evidence()
    for name, rate in theory.items():
        measured = [analyse(name, normalization="batch", batch_size=batch).chi_1 for batch in BATCHES]
        condition = f"{name}, B = {', '.join(map(str, BATCHES))}"
        tolerance = rounding(1e-11, "float64: 1 - J loses no digits here")
        evidence.stated(
            "growth of squared gradients a layer",
            expected=[rate(batch) for batch in BATCHES],
            measured=measured,
            tolerance=tolerance,
            condition=condition,
        )
        evidence.stated(
            "growth of squared gradients a layer",
            expected=1,
            measured=measured,
            tolerance=tolerance,
            condition=condition,
            relation=Relation.AT_LEAST,
        )
    return evidence
