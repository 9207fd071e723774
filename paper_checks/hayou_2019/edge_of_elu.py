"""The edge of chaos of ELU, from error functions: sigma_w = 1.22925 at sigma_b = 0.2."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import optimize, special

from ntk_analysis.meanfield import critical_line

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import quadrature

Theory: TypeAlias = Callable[[float], float]

CLAIM = Claim(
    id="edge_of_elu",
    title="the edge of chaos of ELU",
    statement="ELU has an edge of chaos for every sigma_b > 0, where sigma_w^2 E[phi'^2] = 1 at the settled variance.",
    source="Section 3, the algorithm for the edge of chaos",
    scope="Fully connected ELU networks of infinite width with biases.",
    formula=r"\sigma_w^2\, \mathbb{E}[\phi'(u)^2] = 1,\quad q = \sigma_b^2 + \frac{\mathbb{E}[\phi(u)^2]}"
    r"{\mathbb{E}[\phi'(u)^2]}",
    recorded=Verdict.HOLDS,
    summary="True: sigma_w = 1.22925 at sigma_b = 0.2, by error functions and by the library's quadrature.",
)
B_VAR = 0.04


def below(power: int, q: float) -> float:
    """Returns E[exp(power u); u < 0] of u ~ N(0, q)."""
    return float(np.exp(power**2 * q / 2) * special.ndtr(-power * np.sqrt(q)))


def kept(q: float) -> float:
    """Returns E[ELU^2]."""
    return q / 2 + below(2, q) - 2 * below(1, q) + 0.5


def sloped(q: float) -> float:
    """Returns E[ELU'^2]."""
    return 0.5 + below(2, q)


def edge(ratio: Callable[[float], float]) -> float:
    """Returns sigma_w where q = b_var + ratio(q)."""
    q = optimize.brentq(lambda q: q - ratio(q) - B_VAR, 1e-3, 50.0, xtol=1e-14)
    return float(1 / np.sqrt(sloped(q)))


THEORY: Theory = lambda b_var: edge(lambda q: kept(q) / sloped(q))  # noqa: E731
WRONG: dict[str, Theory] = {
    "that of ReLU": lambda b_var: float(np.sqrt(2)),
    "biases left out": lambda b_var: edge(lambda q: kept(q) / sloped(q) - b_var / 2),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the edge with the library's critical line."""
    del setting  # one size
    evidence = Evidence()
    measured, error = line()
    evidence.stated(
        "sigma_w on the edge of chaos",
        expected=theory(B_VAR),
        measured=measured,
        tolerance=quadrature(error + 1e-10, "the error that the library states for w_var, and 1e-10 for the root"),
        condition="ELU, sigma_b 0.2",
    )
    return evidence


@functools.cache
def line() -> tuple[float, float]:
    """Returns sigma_w of the library's line at b_var, and a bound on its error."""

    def left(q: float) -> float:
        try:
            return float(critical_line("elu", q=q).b_var[0]) - B_VAR
        except ValueError:  # no bias at so small a q
            return -B_VAR

    found = critical_line("elu", q=float(optimize.brentq(left, 0.05, 20.0, xtol=1e-13)))
    return float(np.sqrt(found.w_var[0])), float(found.w_var_error[0] + found.b_var_error[0])
