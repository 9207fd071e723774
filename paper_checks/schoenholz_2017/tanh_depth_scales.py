"""Lengths and correlations settle exponentially, each with a depth scale of its own."""

import functools
from typing import NamedTuple

import numpy as np

from ntk_analysis import activations

from ..averages import mean_of, product_of
from ..contract import Claim, Evidence, Setting, Verdict
from ..tanh_theory import bend, settled_correlation, settled_variance, slope
from ..tolerances import quadrature

CLAIM = Claim(
    id="tanh_depth_scales",
    title="two depth scales",
    statement="Near the fixed point |q - q*| falls like exp(-l / xi_q) with 1/xi_q = -log(chi_1 + w_var E[phi'' phi]), "
    "and |c - c*| like exp(-l / xi_c) with 1/xi_c = -log(w_var E[phi'(u) phi'(v)]).",
    source="Eqs. 7, 9",
    scope="Fully connected tanh networks of infinite width with biases.",
    formula=r"\xi_q^{-1} = -\log\left(\chi_1 + \sigma_w^2\, \mathbb{E}[\phi''(u) \phi(u)]\right),\quad "
    r"\xi_c^{-1} = -\log\left(\sigma_w^2\, \mathbb{E}[\phi'(u) \phi'(v)]\right)",
    recorded=Verdict.HOLDS,
    summary="True: xi_q = 1.17988 at w_var 2.5 and b_var 0.05, where xi_c = 11.796.",
)
W_VAR, B_VAR = 2.5, 0.05
LAYERS, AT = 60, {"lengths": 16, "correlations": 58}
"""Layers of the iteration, and the one whose step is measured: late enough for the linear law, before rounding."""


class Theory(NamedTuple):
    """What is multiplied: phi'' phi in the rate of lengths, and the share of c* at which phi' phi' is taken."""

    bending: float
    correlation: float


THEORY = Theory(1.0, 1.0)
WRONG = {
    "lengths settle like chi_1": Theory(0.0, 1.0),
    "correlations settle as they would at 0": Theory(1.0, 0.0),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Iterates the library's maps, and compares late steps with the rates."""
    del setting  # one size
    evidence = Evidence()
    q = settled_variance(W_VAR, B_VAR)
    bent = mean_of(lambda u: slope(u) ** 2 + theory.bending * bend(u) * np.tanh(u), q)
    turned = product_of(slope, q, theory.correlation * settled_correlation(W_VAR, B_VAR))
    for part, expected in (("lengths", W_VAR * bent), ("correlations", W_VAR * turned)):
        steps = np.abs(np.diff(iterated()[part]))
        at = AT[part]
        evidence.stated(
            f"factor of a layer, {part}",
            expected=expected,
            measured=steps[at] / steps[at - 1],
            tolerance=quadrature(1e-4, "curvature of the map: the steps are below 1e-5"),
            condition=f"w_var {W_VAR}, b_var {B_VAR}, layer {at}; xi = {-1 / np.log(abs(expected)):.5f}",
            part=part,
        )
    return evidence


@functools.cache
def iterated() -> dict[str, np.ndarray]:
    """Returns lengths from 2 on, and correlations from beside c* on, by layer."""
    dual = activations.get("tanh").dual
    lengths, correlations = [2.0], [settled_correlation(W_VAR, B_VAR) + 0.01]
    q = settled_variance(W_VAR, B_VAR)
    for _ in range(LAYERS):
        lengths.append(W_VAR * float(dual.second_moment(lengths[-1])) + B_VAR)
        correlations.append((W_VAR * float(dual(q, q, correlations[-1])) + B_VAR) / q)
    return {"lengths": np.array(lengths), "correlations": np.array(correlations)}
