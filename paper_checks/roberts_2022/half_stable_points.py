"""GELU and SWISH are critical at one variance each, which is stable from one side only."""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import optimize, special

from ntk_analysis.meanfield import critical_line

from ..averages import mean_of
from ..contract import Claim, Evidence, Published, Setting, Verdict
from ..tolerances import quadrature, resolution

Theory: TypeAlias = Callable[[str], float]

POINTS = {
    "gelu": ((3 + math.sqrt(17)) / 2, 1.98305826, 0.17292239),
    "silu": (14.32017362, 1.98800468, 0.55514317),
}
"""Variance, w_var and b_var, as printed."""

CLAIM = Claim(
    id="half_stable_points",
    title="half-stable points of GELU and SWISH",
    statement="GELU and SWISH are critical in both directions, of the variance and of the correlation, at one point: "
    "GELU at variance (3 + sqrt 17)/2, SWISH at 14.32017362.",
    source="Section 5.3.4",
    scope="Fully connected networks of infinite width.",
    formula=r"\chi_\parallel = \chi_\perp = 1",
    recorded=Verdict.HOLDS,
    summary="True to all printed digits: there E[phi phi''] = 0, so that the slope of the variance map is 1 as well.",
    published=tuple(
        Published(f"{what} of {name}", value, "Section 5.3.4")
        for name, (_, *values) in POINTS.items()
        for what, value in zip(("w_var", "b_var"), values, strict=True)
    ),
)


def _gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    step, bell = special.ndtr(x), np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return x * step, step + x * bell, (2 - x**2) * bell


def _silu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    step = special.expit(x)
    bell = step * (1 - step)
    return x * step, step + x * bell, bell * (2 + x * (1 - 2 * step))


FUNCTIONS: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "gelu": _gelu,
    "silu": _silu,
}


def without_bend(name: str) -> float:
    """Returns the variance at which E[phi phi''] is 0: there the slope of the variance map is chi_perp."""

    def product(u: np.ndarray) -> np.ndarray:
        value, _, bend = FUNCTIONS[name](u)
        return value * bend

    return float(optimize.brentq(lambda q: mean_of(product, q), 0.5, 60.0, xtol=1e-13))


THEORY: Theory = without_bend
WRONG: dict[str, Theory] = {
    "at variance 1": lambda name: 1.0,
    "at twice the variance": lambda name: 2 * without_bend(name),
}


def point(name: str, q: float) -> tuple[float, float]:
    """Returns w_var and b_var at which chi_perp is 1 and this variance is kept, integrated in NumPy."""
    function = FUNCTIONS[name]
    w_var = 1 / mean_of(lambda u: function(u)[1] ** 2, q)
    return w_var, q - w_var * mean_of(lambda u: function(u)[0] ** 2, q)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the points with the printed digits, and with the library's critical line."""
    del setting  # one size
    evidence = Evidence()
    for name, printed in POINTS.items():
        found = point(name, theory(name))
        w_var, b_var, slope, error = line(name)
        for what, expected, own, theirs in zip(("w_var", "b_var"), printed[1:], found, (w_var, b_var), strict=True):
            evidence.stated(
                what,
                expected=expected,
                measured=theirs,
                tolerance=resolution(6e-9, "eight printed digits"),
                condition=f"{name}, the library's line at the printed variance",
            )
            evidence.stated(
                what,
                expected=own,
                measured=theirs,
                tolerance=quadrature(error + 1e-8, "the error of the line, and the printed digits of the variance"),
                condition=f"{name}, where E[phi phi''] = 0",
            )
        evidence.stated(
            "slope of the variance map",
            expected=1,
            measured=slope,
            tolerance=quadrature(1e-8, "printed digits of the variance"),
            condition=name,
        )
    return evidence


@functools.cache
def line(name: str) -> tuple[float, float, float, float]:
    """Returns w_var, b_var and the slope of the library's line at the printed variance, and the line's error."""
    found = critical_line(name, q=POINTS[name][0])
    error = float(found.w_var_error[0] + found.b_var_error[0])
    return float(found.w_var[0]), float(found.b_var[0]), float(found.variance_slope[0]), error
