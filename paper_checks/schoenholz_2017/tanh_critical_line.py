"""The line of tanh networks on which chi_1 = 1: at b_var = 0.05 it passes through w_var = 1.760955."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import optimize

from ntk_analysis.meanfield import critical_line

from ..averages import mean_of
from ..contract import Claim, Evidence, Setting, Verdict
from ..tanh_theory import slope, square
from ..tolerances import quadrature

Theory: TypeAlias = Callable[[float], float]

CLAIM = Claim(
    id="tanh_critical_line",
    title="the critical line of tanh",
    statement="Order and chaos of tanh networks meet where w_var E[phi'(u)^2] = 1 at the settled variance.",
    source="Eq. 5, Fig. 1",
    scope="Fully connected tanh networks of infinite width with biases.",
    formula=r"\chi_1 = \sigma_w^2\, \mathbb{E}[\phi'(u)^2] = 1,\quad q^* = \sigma_w^2\, \mathbb{E}[\phi(u)^2] + "
    r"\sigma_b^2",
    recorded=Verdict.HOLDS,
    summary="Two integrations agree to 1e-10: w_var = 1.760955 at b_var = 0.05, 1.347436 at 0.01.",
)


def chi_is_one(power: int = 2, biases: float = 1.0) -> Theory:
    """Returns w_var by b_var where w_var E[phi'^power] = 1 and q = w_var E[phi^2] + biases b_var."""

    def w_var(q: float) -> float:
        return 1 / mean_of(lambda u: slope(u) ** power, q)

    def found(b_var: float) -> float:
        def left(q: float) -> float:
            return q - w_var(q) * mean_of(square, q) - biases * b_var

        return w_var(float(optimize.brentq(left, 1e-4, 20.0, xtol=1e-14)))

    return found


THEORY: Theory = chi_is_one()
WRONG: dict[str, Theory] = {
    "biases as deviations": lambda b_var: chi_is_one()(b_var**2),
    "critical at w_var = 1, whatever the biases": lambda b_var: 1.0,
    "biases counted twice": chi_is_one(biases=2.0),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the line, integrated in NumPy, with the library's."""
    evidence = Evidence()
    for b_var in setting.size((0.05,), (0.01, 0.05, 0.3)):
        measured, error = line(b_var)
        evidence.stated(
            "w_var on the critical line",
            expected=theory(b_var),
            measured=measured,
            tolerance=quadrature(error + 1e-10, "the error that the library states, and 1e-10 for NumPy's quadrature"),
            condition=f"b_var = {b_var:g}",
        )
    return evidence


@functools.cache
def line(b_var: float) -> tuple[float, float]:
    """Returns w_var at b_var on the library's line, whose parameter is q, and its error."""

    def left(q: float) -> float:
        try:
            return float(critical_line("tanh", q=q).b_var[0]) - b_var
        except ValueError:  # no bias at so small a q
            return -b_var

    found = critical_line("tanh", q=float(optimize.brentq(left, 0.01, 4.0, xtol=1e-14)))
    return float(found.w_var[0]), float(np.max(found.w_var_error))
