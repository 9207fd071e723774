"""ReLU is ordered at every bias; normalised, it is chaotic until the bias variance reaches 1/pi."""

import functools
import math
from typing import NamedTuple

from scipy import optimize

from ntk_analysis.meanfield import analyse

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import quadrature

CLAIM = Claim(
    id="order_of_relu",
    title="the boundary of order and chaos",
    statement="With bias variance beta^2 and weights that keep the variance, ReLU has the characteristic value r = 1 - "
    "beta^2 < 1, and normalised ReLU r = (1 - beta^2) pi/(pi - 1), which is 1 at beta^2 = 1/pi.",
    source="Sections 3, 4",
    scope="Fully connected networks of infinite width, activations standardised to a second moment of 1; "
    "normalised ones "
    "to a mean of 0 as well.",
    formula=r"r = 1 - \beta^2,\quad \bar r = (1 - \beta^2) \frac{\pi}{\pi - 1},\quad \beta^2_{\text{crit}} = "
    r"\frac1\pi",
    recorded=Verdict.HOLDS,
    summary="True to rounding: the boundary is at 0.318310.",
)


class Theory(NamedTuple):
    """Characteristic values at beta = 0, and the critical beta^2."""

    straight: float
    normalised: float
    boundary: float


THEORY = Theory(1.0, math.pi / (math.pi - 1), 1 / math.pi)
WRONG = {
    "normalisation changes nothing": Theory(1.0, 1.0, 0.0),
    "critical at (pi - 1)/pi": THEORY._replace(boundary=1 - 1 / math.pi),
}
SQUARES = (0.1, 0.2, 0.5)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares chi_1 of the library with both laws, and finds the boundary."""
    del setting  # one size
    evidence = Evidence()
    tolerance = quadrature(1e-12, "closed forms, rounding and a root")
    for square in SQUARES:
        for name, slope in (("none", theory.straight), ("weight_mean", theory.normalised)):
            evidence.stated(
                "characteristic value r",
                expected=(1 - square) * slope,
                measured=characteristic(name, square),
                tolerance=tolerance,
                condition=f"beta^2 = {square}, {'normalised' if name == 'weight_mean' else 'straight'} ReLU",
            )
    boundary = optimize.brentq(lambda square: characteristic("weight_mean", square) - 1, 0.1, 0.9, xtol=1e-14)
    evidence.stated("beta^2 where r = 1", expected=theory.boundary, measured=boundary, tolerance=tolerance)
    return evidence


@functools.cache
def characteristic(normalization: str, square: float) -> float:
    """Returns chi_1 where q = 1 is kept: of centered units that is the normalised activation's r."""
    found = analyse("relu", normalization=normalization, b_var=square).chi_1
    assert found is not None
    return found
