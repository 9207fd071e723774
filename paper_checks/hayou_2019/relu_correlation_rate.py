"""On its edge of chaos ReLU lets correlations tend to 1 like 9 pi^2 / (2 l^2)."""

import math
from typing import NamedTuple

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tolerances import nearest
from .by_layer import kernels

CLAIM = Claim(
    id="relu_correlation_rate",
    title="ReLU forgets slowly",
    statement="For ReLU at w_var = 2 and b_var = 0 the correlation of two inputs has 1 - c ~ 9 pi^2 / (2 l^2).",
    source="Proposition 1",
    scope="A fully connected ReLU network of infinite width on the edge of chaos.",
    formula=r"1 - c^l \sim \frac{9 \pi^2}{2 l^2}",
    recorded=Verdict.HOLDS,
    summary="True: l^2 (1 - c) tends to 44.413, with a remainder like log l / l.",
)


class Theory(NamedTuple):
    """1 - c ~ constant / l^power."""

    constant: float
    power: float


THEORY = Theory(9 * math.pi**2 / 2, 2.0)
WRONG = {
    "9 pi^2 / 4": Theory(9 * math.pi**2 / 4, 2.0),
    "pi^2 / 2": Theory(math.pi**2 / 2, 2.0),
}
LAYERS, FROM = 1000, 99


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Extrapolates l^2 (1 - c) from 100 to 1,000 layers."""
    del setting  # one size
    evidence = Evidence()
    depths = np.arange(1, LAYERS + 1)[FROM:]
    found = limit(kernels("relu", 2.0, 0.0, 1.0, LAYERS)[0][FROM:] * depths**theory.power, depths, "log l / l")
    evidence.stated(
        "l^2 (1 - c), infinite depth",
        expected=theory.constant,
        measured=found.value,
        tolerance=found.tolerance,
        rival=nearest(theory.constant, (other.constant for other in (THEORY, *WRONG.values()))),
        condition="w_var 2, b_var 0",
    )
    return evidence
