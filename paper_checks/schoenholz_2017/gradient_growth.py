"""Gradients grow or fade by chi_1 a layer: they explode where inputs grow apart, and vanish where they grow alike."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tanh_theory import chi_1, layers, settled_variance, slope
from ..tolerances import nearest, sampling

Theory: TypeAlias = Callable[[float], float]

CLAIM = Claim(
    id="gradient_growth",
    title="gradients by depth",
    statement="The mean square of backpropagated gradients changes by chi_1 a layer, exploding in the chaotic "
    "phase and "
    "vanishing in the ordered one.",
    source="Eqs. 13, 14",
    scope="Fully connected tanh networks, wide, with b_var 0.05.",
    formula=r"\tilde q^{l} = \chi_1\, \tilde q^{l+1}",
    recorded=Verdict.HOLDS,
    summary="True of the weights that were drawn, although the paper assumes other ones on the way back.",
)
THEORY: Theory = lambda growth: growth  # noqa: E731  # what a layer multiplies by, given chi_1
WRONG: dict[str, Theory] = {
    "gradients keep their size": lambda growth: 1.0,
    "the square root of chi_1": lambda growth: growth**0.5,
}
B_VAR, WIDTH, DEPTH = 0.05, 200, 6


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Takes random gradients back through finite networks of each phase."""
    evidence = Evidence()
    draws = setting.size(100, 1000)
    for phase, w_var in (("ordered", 0.8), ("chaotic", 4.0)):
        growth, found = chi_1(w_var, B_VAR), measured(w_var, draws, setting.seed)
        expected = theory(growth) ** DEPTH
        bias = 2 * DEPTH / WIDTH * growth**DEPTH
        evidence.stated(
            f"mean square of the gradient, {DEPTH} layers back",
            expected=expected,
            measured=found.mean,
            tolerance=sampling(
                five_sigma(draws) * found.error + bias,
                f"5 sigma of {draws} networks of width {WIDTH}, and 2 depth / width for the width",
                draws,
            ),
            rival=nearest(expected, (one(growth) ** DEPTH for one in (THEORY, *WRONG.values()))),
            condition=f"{phase}: w_var {w_var}, chi_1 {growth:.4f}",
            part=phase,
        )
    return evidence


@functools.cache
def measured(w_var: float, draws: int, seed: int) -> Average:
    """Returns the mean square of a gradient of mean square 1, after its way back through the layers."""
    rng, q = np.random.default_rng(seed), settled_variance(w_var, B_VAR)
    found = []
    for _ in range(draws):
        h = rng.standard_normal(WIDTH) * np.sqrt(q)
        way = []
        for weights, biases in layers(rng, WIDTH, DEPTH, w_var, B_VAR):
            way.append((weights, slope(h)))
            h = np.tanh(h) @ weights + biases
        gradient = rng.standard_normal(WIDTH)
        gradient /= np.sqrt(np.mean(gradient**2))
        for weights, factor in reversed(way):
            gradient = factor * (weights @ gradient)
        found.append(np.mean(gradient**2))
    return average(np.array(found))
