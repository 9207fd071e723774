"""Theorem 3.1: the straight ReLU block is stable and critical at w_var = 2."""

import numpy as np

from ntk_analysis import activations
from ntk_analysis.meanfield import analyse

from ..contract import Claim, Evidence, Published, Setting, Verdict
from ..tolerances import quadrature
from .theorem3 import SOLVED, Theory, compare, measure

RELU = activations.relu

CLAIM = Claim(
    id="thm3a",
    title="the straight block",
    statement="A straight ReLU layer keeps the variance at w_var = 2, maps correlations by twice the dual activation, "
    "and has chi_1 = 1; correlation 1 is its only fixed point.",
    source="Theorem 3.1, Fig. 4",
    scope="One fully connected ReLU layer at sigma_w = sqrt 2 without biases, averaged over the weights.",
    formula=r"\sigma_w^2 = 2,\quad T(\rho) = 2\hat\phi(\rho),\quad \chi_1 = 1",
    recorded=Verdict.HOLDS,
    summary="True on average over the weights, at every fan-in. A single draw scatters about T, any bias makes the "
    "block ordered (chi_1 = 1 - b_var), and GELU and tanh at their stable gains are chaotic.",
    figures=("fig4",),
    published=(
        Published("chi_1", 1.0, "Theorem 3.1"),
        Published("sigma_w^2", 2.0, "Theorem 3.1"),
    ),
)


def _twice_the_dual(rho: np.ndarray) -> np.ndarray:
    return 2 * np.asarray(RELU.dual(1.0, 1.0, rho))


THEORY = Theory(lambda n: RELU.stable_gain(), _twice_the_dual, 1.0, 1.0, 1)
WRONG = {
    "gain 1": THEORY._replace(gain=lambda n: 1.0),
    "the gain of centered weights": THEORY._replace(gain=lambda n: RELU.stable_gain(centered=True)),
    "T without the factor 2": THEORY._replace(transition=lambda rho: _twice_the_dual(rho) / 2),
    "chi_1 of centered weights": THEORY._replace(chi_1=float(1 / (1 - 1 / np.pi))),
    "a fixed point at 0": THEORY._replace(stable=0.0, fixed_points=2),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks finite blocks, single draws, biases, and other activations at their stable gain."""
    evidence = Evidence()
    draws = setting.size(10_000, 200_000)
    blocks = measure(False, draws, setting.seed)
    compare(evidence, theory, (THEORY, *WRONG.values()), blocks, analyse("relu"), draws)
    cases = {
        "relu, b_var 0.2, gain 2 (1 - b_var)": analyse("relu", b_var=0.2),
        "leaky_relu(0.2) at its stable gain": analyse("leaky_relu(0.2)"),
        "gelu at its stable gain": analyse("gelu"),
        "tanh at its stable gain": analyse("tanh"),
    }
    for condition, block in cases.items():
        tolerance = max(SOLVED, float(block.chi_1_error or 0.0))
        because = "the error that the library states for chi_1, or rounding"
        evidence.varied(
            "chi_1",
            expected=theory.chi_1,
            measured=block.chi_1,
            tolerance=quadrature(tolerance, because),
            condition=condition,
        )
    broken = [b for b in np.geomspace(1e-6, 0.5, 7) if abs(float(analyse("relu", b_var=b).chi_1 or 0) - 1) > SOLVED]
    evidence.edge("b_var", float(broken[0]) if broken else None, "smallest of 1e-6 to 0.5 at which chi_1 is not 1")
    return evidence
