"""In the chaotic phase two inputs, however alike, settle at a correlation below 1."""

import functools
from typing import NamedTuple

import numpy as np

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tanh_theory import chi_1, field, layers, settled_correlation, settled_variance
from ..tolerances import nearest, quadrature, sampling

CLAIM = Claim(
    id="tanh_chaos_correlation",
    title="two inputs in the chaotic phase",
    statement="For large weights chi_1 > 1: the correlation 1 is unstable, and every two inputs settle at c* < 1, the "
    "fixed point of the correlation map.",
    source="Eqs. 5, 6, Fig. 2",
    scope="Fully connected tanh networks with biases; theory at infinite width, wide networks as its test.",
    formula=r"c^* = \frac{1}{q^*} \left(\sigma_w^2\, \mathbb{E}[\phi(u) \phi(v)] + \sigma_b^2\right),\quad "
    r"\chi_1 = \sigma_w^2\, \mathbb{E}[\phi'(u)^2] > 1",
    recorded=Verdict.HOLDS,
    summary="True: c* = 0.12210 and 0.02970, chi_1 = 1.5852 and 2.3673 at sigma_w 2.5 and 4 with sigma_b 0.3; networks "
    "of width 200 are there after 20 layers.",
)


class Theory(NamedTuple):
    """The factor of c* and of the biases that a theory has: 1 and 1 are right."""

    scale: float
    biases: float


THEORY = Theory(1.0, 1.0)
WRONG = {
    "chaos forgets everything: c* = 0": Theory(0.0, 1.0),
    "inputs of the same length converge: c* = 1": Theory(np.inf, 1.0),
    "no biases": Theory(1.0, 0.0),
}
SIGMA_B = 0.3
SIGMAS = (2.5, 4.0)
WIDTH, DEPTH, FIRST = 200, 20, 0.3


def said(theory: Theory, sigma_w: float) -> float:
    """Returns c* as a theory says it."""
    if np.isinf(theory.scale):
        return 1.0
    biases = theory.biases * SIGMA_B**2
    return theory.scale * settled_correlation(sigma_w**2, biases) if theory.scale and biases else 0.0


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the map's fixed point, integrated in NumPy, with the library's and with finite networks."""
    evidence = Evidence()
    draws = setting.size(80, 400)
    for sigma_w in setting.size(SIGMAS[:1], SIGMAS):
        block = field(sigma_w**2, SIGMA_B**2)
        condition = f"sigma_w {sigma_w:g}, sigma_b {SIGMA_B}"
        stable = next(point.correlation for point in block.fixed_points if point.stable)
        evidence.stated(
            "c*",
            expected=said(theory, sigma_w),
            measured=stable,
            tolerance=quadrature(1e-10, "two quadratures of tanh, relatively 1e-12, and a root"),
            condition=condition,
        )
        evidence.stated(
            "chi_1",
            expected=chi_1(sigma_w**2, SIGMA_B**2),
            measured=block.chi_1,
            tolerance=quadrature(1e-10, "two quadratures of tanh, relatively 1e-12"),
            condition=condition,
        )
        evidence.stated(
            "chi_1",
            expected=1,
            measured=block.chi_1,
            tolerance=quadrature(1e-10, "quadrature of tanh"),
            condition=condition,
            relation=Relation.AT_LEAST,
        )
        if sigma_w == SIGMAS[0]:
            found = finite(sigma_w, draws, setting.seed)
            error = five_sigma(draws) * found.error + 3 / WIDTH
            evidence.stated(
                f"correlation after {DEPTH} layers",
                expected=said(theory, sigma_w),
                measured=found.mean,
                tolerance=sampling(error, f"5 sigma of {draws} networks, and 3 / width for the width", draws),
                rival=nearest(said(theory, sigma_w), (said(one, sigma_w) for one in (THEORY, *WRONG.values()))),
                condition=f"{condition}, width {WIDTH}, from correlation {FIRST}",
            )
    return evidence


@functools.cache
def finite(sigma_w: float, draws: int, seed: int) -> Average:
    """Returns the correlation of two inputs, 0.3 in the beginning, behind finite networks."""
    rng, q = np.random.default_rng(seed), settled_variance(sigma_w**2, SIGMA_B**2)
    found = []
    for _ in range(draws):
        u, other = rng.standard_normal((2, WIDTH)) * np.sqrt(q)
        h = np.stack([u, FIRST * u + np.sqrt(1 - FIRST**2) * other])
        for weights, biases in layers(rng, WIDTH, DEPTH, sigma_w**2, SIGMA_B**2):
            h = np.tanh(h) @ weights + biases
        found.append(h[0] @ h[1] / np.sqrt((h[0] @ h[0]) * (h[1] @ h[1])))
    return average(np.array(found))
