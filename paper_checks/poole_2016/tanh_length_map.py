"""The length of an input settles at the same q* wherever it begins, and quickly."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..averages import fixed_point, mean_of
from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tanh_theory import found_by_library, square
from ..tolerances import quadrature, resolution

Theory: TypeAlias = Callable[[float, float], Callable[[float], float]]

CLAIM = Claim(
    id="tanh_length_map",
    title="lengths settle",
    statement="The length map q -> w_var E[tanh(u)^2] + b_var has one stable fixed point q*, which every input "
    "reaches, "
    "and rapidly: within a few layers.",
    source="Eq. 3, Fig. 1",
    scope="Fully connected tanh networks of infinite width with biases.",
    formula=r"q^{l} = \sigma_w^2\, \mathbb{E}[\phi(u)^2] + \sigma_b^2,\quad u \sim \mathcal{N}(0, q^{l-1})",
    recorded=Verdict.HOLDS,
    summary="True: from q = 0.01 and from q = 100 the same q* is reached, to 1 % in 4 to 6 layers at the paper's "
    "sigma_w 1.3, 2.5 and 4. Near sigma_w = 1 with small biases it takes 1,900.",
)


def length_map(w_var: float, b_var: float) -> Callable[[float], float]:
    """Returns the map of the variance by one layer."""
    return lambda q: w_var * mean_of(square, q) + b_var


def _size(u: np.ndarray) -> np.ndarray:
    return np.abs(np.tanh(u))


THEORY: Theory = length_map
WRONG: dict[str, Theory] = {
    "biases counted twice": lambda w_var, b_var: lambda q: w_var * mean_of(square, q) + 2 * b_var,
    "the mean of |tanh|, squared": lambda w_var, b_var: lambda q: w_var * mean_of(_size, q) ** 2 + b_var,
}
SETTINGS = ((1.3, 0.3), (2.5, 0.3), (4.0, 0.3))
"""sigma_w and sigma_b of the paper's figures."""
FEW = 10


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares fixed points of the map, from both sides, with the library's, and counts layers."""
    del setting  # one size
    evidence = Evidence()
    for sigma_w, sigma_b in SETTINGS:
        step = theory(sigma_w**2, sigma_b**2)
        condition = f"sigma_w {sigma_w:g}, sigma_b {sigma_b:g}"
        for start in (0.01, 100.0):
            evidence.stated(
                "q*",
                expected=fixed_point(step, start, error=1e-13),
                measured=found_by_library(sigma_w**2, sigma_b**2)[0],
                tolerance=quadrature(1e-11, "quadrature of tanh by the library, relatively 1e-13, and its root"),
                condition=f"{condition}, from q = {start:g}",
            )
        evidence.stated(
            "layers until q is within 1 % of q*, from q = 1",
            expected=FEW,
            measured=layers_to(step, fixed_point(step, 1.0, error=1e-13)),
            tolerance=resolution(0.5, "a count"),
            condition=condition,
            relation=Relation.AT_MOST,
        )
    step = theory(1.0, 1e-4)
    evidence.varied(
        "layers until q is within 1 % of q*, from q = 1",
        expected=FEW,
        measured=layers_to(step, fixed_point(step, 1.0, error=1e-13)),
        tolerance=resolution(0.5, "a count"),
        condition="sigma_w 1, sigma_b 0.01",
        relation=Relation.AT_MOST,
    )
    return evidence


def layers_to(step: Callable[[float], float], limit: float) -> int:
    """Returns the number of layers after which q, from 1 on, is within 1 % of its limit."""
    q, count = 1.0, 0
    while np.abs(q - limit) > 0.01 * limit:
        q, count = step(q), count + 1
    return count
