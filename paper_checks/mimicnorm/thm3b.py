"""Theorem 3.2: the weight-centered ReLU block is stable at w_var = 2n/((n - 1)(1 - 1/pi)), and chaotic."""

import numpy as np
from scipy.optimize import brentq

from ntk_analysis import activations
from ntk_analysis.meanfield import MeanField, analyse

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import quadrature
from .theorem3 import SOLVED, Theory, compare, measure

RELU = activations.relu

CLAIM = Claim(
    id="thm3b",
    title="the weight-centered block",
    statement="A ReLU layer with centered weights of fan-in n keeps the variance at w_var = 2n/((n - 1)(1 - 1/pi)), "
    "maps correlations by the dual activation less its value at 0, normalised, and has chi_1 = 1/(1 - 1/pi): the "
    "stable fixed point moves from correlation 1 to 0.",
    source="Theorem 3.2, Fig. 4",
    scope="One fully connected ReLU layer with centered weights and without biases, averaged over the weights.",
    formula=r"\sigma_w^2 = \frac{2n}{(n-1)(1-1/\pi)},\quad \bar T(\rho) = \frac{\hat\phi(\rho)-\hat\phi(0)}"
    r"{\hat\phi(1)-\hat\phi(0)},\quad \chi_1 = \frac{1}{1-1/\pi}",
    recorded=Verdict.HOLDS,
    summary="True on average over the weights, at every fan-in; every other nonlinear activation tried moves its "
    "fixed point to 0 too. A single draw scatters about T_bar, and biases undo it: the stable correlation rises above "
    "0 with any bias, and is 1 again from b_var = 1/pi on.",
    figures=("fig4", "supp2"),
    published=(Published("chi_1", 1.4669, "Theorem 3.2"),),
)


def _gain(fan_in: int) -> float:
    return RELU.stable_gain(centered=True) * fan_in / (fan_in - 1)


def _normalised(rho: np.ndarray) -> np.ndarray:
    dual = np.asarray(RELU.dual(1.0, 1.0, np.array([0.0, 1.0])))
    return (np.asarray(RELU.dual(1.0, 1.0, rho)) - dual[0]) / (dual[1] - dual[0])


def _chi_1() -> float:
    return RELU.stable_gain(centered=True) * float(RELU.derivative_dual.second_moment(1.0))


THEORY = Theory(_gain, _normalised, _chi_1(), 0.0, 2)
WRONG = {
    "the straight gain": THEORY._replace(gain=lambda n: 2.0 * n / (n - 1)),
    "no n/(n - 1)": THEORY._replace(gain=lambda n: _gain(n) * (n - 1) / n),
    "the dual at 0 is not subtracted": THEORY._replace(transition=lambda rho: 2 * RELU.dual(1.0, 1.0, rho)),
    "chi_1 = 1": THEORY._replace(chi_1=1.0),
    "the fixed point stays at 1": THEORY._replace(stable=1.0, fixed_points=1),
}


def _block(activation: str = "relu", b_var: float = 0.0) -> MeanField:
    return analyse(activation, normalization="weight_mean", b_var=b_var)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks finite blocks, single draws, biases, and other activations at their stable gain."""
    evidence = Evidence()
    draws = setting.size(20_000, 200_000)
    blocks = measure(True, draws, setting.seed)
    compare(evidence, theory, (THEORY, *WRONG.values()), blocks, _block(), draws)
    cases = {name: _block(name) for name in ("abs", "gelu", "tanh")}
    cases |= {f"relu, b_var {b_var}": _block(b_var=b_var) for b_var in (0.01, 0.2, 0.4)}
    because = "the error that the library states for chi_1, or rounding"
    for condition, block in cases.items():
        tolerance = max(SOLVED, float(block.chi_1_error or 0.0))
        stable = [point.correlation for point in block.fixed_points if point.stable][-1]
        evidence.varied(
            "stable fixed point of T",
            expected=theory.stable,
            measured=stable,
            tolerance=quadrature(tolerance, because),
            condition=condition,
        )
        relation = Relation.AT_LEAST
        evidence.varied(
            "chi_1",
            expected=1,
            measured=block.chi_1,
            tolerance=quadrature(tolerance, because),
            condition=condition,
            relation=relation,
        )
    edge = brentq(lambda b_var: float(_block(b_var=b_var).chi_1 or 0.0) - 1, 0.1, 0.9, xtol=1e-9)
    evidence.edge("b_var", float(edge), "chi_1 falls below 1 and correlation 1 is stable again")
    return evidence
