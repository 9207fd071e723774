"""On ReLU's edge of chaos the NTK over its depth tends to 1/4, to 1 for an input with itself, at the rate log L / L."""

from typing import NamedTuple

import numpy as np

from ..by_depth import critical_terms, fitted
from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tolerances import extrapolation, nearest
from .by_layer import kernels

CLAIM = Claim(
    id="ntk_over_depth",
    title="the NTK over its depth",
    statement="On the edge of chaos of ReLU the NTK of L layers over L tends to 1/4 + 3/4 delta, at the rate log "
    "L / L.",
    source="the same authors' Mean-field Behaviour of Neural Tangent Kernel (1905.13654), Theorem 2",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, w_var 2 and b_var 0, on inputs of "
    "one norm.",
    formula=r"\frac{\Theta^L(x, x')}{L} \to \tfrac14 + \tfrac34 \delta_{x x'},\quad "
    r"\left|\frac{\Theta^L}{L} - \Theta^\infty\right| = O\left(\frac{\log L}{L}\right)",
    recorded=Verdict.HOLDS,
    summary="True, and the rate is reached: 1/4 + (3/8) log L / L, as the expansion of the angle to its third order "
    "says.",
)


class Theory(NamedTuple):
    """Of two inputs the limit, and the factor of log L / L."""

    limit: float
    logarithm: float


THEORY = Theory(1 / 4, 3 / 8)
WRONG = {
    "1/3, as of smooth activations": Theory(1 / 3, 3 / 8),
    "no logarithm": Theory(1 / 4, 0.0),
}
LAYERS, FROM = 1000, 99


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Extrapolates the ratio of two inputs' NTK and one's, and fits what is left."""
    del setting  # one size
    evidence = Evidence()
    depths = np.arange(1, LAYERS + 1, dtype=np.float64)[FROM:]
    ratio = kernels("relu", 2.0, 0.0, 1.0, LAYERS)[1][FROM:]
    found = limit(ratio, depths, "log l / l")
    evidence.stated(
        "NTK of two inputs over that of one, infinite depth",
        expected=theory.limit,
        measured=found.value,
        tolerance=found.tolerance,
        rival=nearest(theory.limit, (other.limit for other in (THEORY, *WRONG.values()))),
    )
    values, errors = fitted(ratio, *critical_terms(depths))
    evidence.stated(
        "factor of log L / L in what is left",
        expected=theory.logarithm,
        measured=values[1],
        tolerance=extrapolation(errors[1], f"fit error over {FROM + 1} to {LAYERS} layers"),
        rival=nearest(theory.logarithm, (other.logarithm for other in (THEORY, *WRONG.values()))),
    )
    return evidence
