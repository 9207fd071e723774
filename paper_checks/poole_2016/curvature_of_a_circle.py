"""A circle grows longer by sqrt(chi_1) a layer in chaos, and its curvature settles instead of being diluted."""

import functools
from typing import NamedTuple

import numpy as np

from ..averages import mean_of
from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tanh_theory import bend, chi_1, layers, settled_variance, slope
from ..tolerances import nearest, sampling

CLAIM = Claim(
    id="curvature_of_a_circle",
    title="curves in chaos",
    statement="On a circle of inputs of length q* the squared speed grows by chi_1 a layer, and the curvature follows "
    "kappa^2 -> kappa^2 / chi_1 + 3 chi_2 / chi_1^2, with chi_2 = w_var E[phi''^2].",
    source="Eqs. 10 to 12, Fig. 3",
    scope="Fully connected tanh networks in the chaotic phase, sigma_b 0.3; theory at infinite width, wide networks as "
    "its test.",
    formula=r"g^{l} = \chi_1 g^{l-1},\quad (\kappa^{l})^2 = 3 \frac{\chi_2}{\chi_1^2} + "
    r"\frac{(\kappa^{l-1})^2}{\chi_1}",
    recorded=Verdict.HOLDS,
    summary="True of networks of width 300, within their scatter: chi_2 makes new curvature as fast as growth "
    "dilutes it.",
)


class Theory(NamedTuple):
    """The power of chi_1 by which the squared speed grows, and the factor of chi_2 / chi_1^2."""

    growth: float
    bending: float


THEORY = Theory(1.0, 3.0)
WRONG = {
    "lengths grow by chi_1": Theory(2.0, 3.0),
    "second derivatives counted once": Theory(1.0, 1.0),
    "growth only dilutes the curvature": Theory(1.0, 0.0),
}
SIGMA_W, SIGMA_B = 2.5, 0.3
WIDTH, DEPTH = 300, 3
BIASES = {"squared speed / q*": 5.0, "q* curvature^2": 25.0}
"""What a finite width adds, relatively and times the width: generously, 1.4 and 21 were measured at width 100."""


def said(theory: Theory) -> tuple[float, float]:
    """Returns squared speed over q* and q* kappa^2 after the layers."""
    w_var, b_var = SIGMA_W**2, SIGMA_B**2
    q, growth = settled_variance(w_var, b_var), chi_1(w_var, b_var)
    chi_2 = w_var * mean_of(lambda u: bend(u) ** 2, q)
    curvature = 1 / q
    for _ in range(DEPTH):
        curvature = theory.bending * chi_2 / growth**2 + curvature / growth
    return growth ** (theory.growth * DEPTH), q * curvature


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Takes position, speed and acceleration of one point of the circle through finite networks."""
    evidence = Evidence()
    draws = setting.size(100, 1000)
    found = measured(draws, setting.seed)
    others = [said(one) for one in (THEORY, *WRONG.values())]
    for index, (quantity, bias) in enumerate(BIASES.items()):
        evidence.stated(
            f"{quantity} after {DEPTH} layers",
            expected=said(theory)[index],
            measured=found.mean[index],
            tolerance=sampling(
                five_sigma(draws) * found.error[index] + bias * said(THEORY)[index] / WIDTH,
                f"5 sigma of {draws} networks, and {bias:g} / width for the width",
                draws,
            ),
            rival=nearest(said(theory)[index], (other[index] for other in others)),
            condition=f"sigma_w {SIGMA_W}, sigma_b {SIGMA_B}, width {WIDTH}",
            part=quantity,
        )
    return evidence


@functools.cache
def measured(draws: int, seed: int) -> Average:
    """Returns squared speed over q* and q* times squared curvature, lengths being divided by the root of the width."""
    rng, q = np.random.default_rng(seed), settled_variance(SIGMA_W**2, SIGMA_B**2)
    found = []
    for _ in range(draws):
        h, speed = rng.standard_normal((2, WIDTH)) * np.sqrt(q)
        turn = -h
        for weights, biases in layers(rng, WIDTH, DEPTH, SIGMA_W**2, SIGMA_B**2):
            first, second = slope(h), bend(h)
            moved = np.stack([np.tanh(h), first * speed, second * speed**2 + first * turn]) @ weights
            h, speed, turn = moved[0] + biases, moved[1], moved[2]
        square, across, along = speed @ speed / WIDTH, turn @ turn / WIDTH, speed @ turn / WIDTH
        found.append([square / q, q * (square * across - along**2) / square**3])
    return average(np.array(found))
