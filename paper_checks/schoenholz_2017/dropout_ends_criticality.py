"""With dropout the correlation 1 is no fixed point any more, and no weights make signals reach deep."""

import functools
from typing import NamedTuple

import numpy as np

from ..averages import fixed_point, mean_of, product_of
from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tanh_theory import layers, slope, square
from ..tolerances import nearest, quadrature, sampling

CLAIM = Claim(
    id="dropout_ends_criticality",
    title="dropout and the edge of chaos",
    statement="With dropout of any rate an input and itself, seen through two masks, do not stay alike: the critical "
    "line is gone, and the depth scale of correlations is finite for all weights.",
    source="Section 4, Fig. 4",
    scope="Fully connected tanh networks with independent dropout in every layer, b_var 0.05.",
    formula=r"c = \frac{1}{\bar q^*}\left(\sigma_w^2\, \mathbb{E}[\phi(u) \phi(v)] + \sigma_b^2\right),\quad "
    r"\bar q^* = \frac{\sigma_w^2}{\rho}\, \mathbb{E}[\phi(u)^2] + \sigma_b^2",
    recorded=Verdict.HOLDS,
    summary="True: keeping 90 % of the units leaves a scale of 4.7 layers at most, where the straight network has no "
    "bound.",
)


class Theory(NamedTuple):
    """Whether two masks differ, and whether units that are kept are scaled up."""

    apart: bool
    scaled: bool


THEORY = Theory(apart=True, scaled=True)
WRONG = {
    "one mask for both": Theory(apart=False, scaled=True),
    "kept units are not scaled up": Theory(apart=True, scaled=False),
}
B_VAR, CRITICAL, KEPT = 0.05, 1.760955, 0.9
W_VARS = np.linspace(1.0, 4.0, 25)
WIDTH, DEPTH = 200, 25


def settled(theory: Theory, w_var: float, kept: float) -> tuple[float, float]:
    """Returns the correlation at which two copies of an input settle, and the slope of the map there."""
    alone = w_var / kept if theory.scaled else w_var * kept
    both = alone if not theory.apart else w_var if theory.scaled else w_var * kept**2
    q = fixed_point(lambda q: alone * mean_of(square, q) + B_VAR, 1.0, error=1e-9)
    c = fixed_point(lambda c: min((both * product_of(np.tanh, q, c) + B_VAR) / q, 1.0), 0.9, error=1e-9)
    return c, both * product_of(slope, q, c)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the fixed point with finite networks, and looks for weights with a long depth scale."""
    evidence = Evidence()
    draws = setting.size(100, 1000)
    found, (c, _) = measured(draws, setting.seed), settled(theory, CRITICAL, KEPT)
    others = (settled(one, CRITICAL, KEPT)[0] for one in (THEORY, *WRONG.values()))
    evidence.stated(
        f"correlation of two copies after {DEPTH} layers",
        expected=c,
        measured=found.mean,
        tolerance=sampling(
            five_sigma(draws) * found.error + 3 / WIDTH,
            f"5 sigma of {draws} networks of width {WIDTH}, and 3 / width for the width",
            draws,
        ),
        rival=nearest(c, others),
        condition=f"w_var {CRITICAL}, critical without dropout; {KEPT:.0%} of the units kept",
    )
    for kept, layers_at_most in setting.size(((KEPT, 5.0),), ((KEPT, 5.0), (0.99, 15.0))):
        scales = [-1 / np.log(min(settled(theory, w_var, kept)[1], 1 - 1e-12)) for w_var in W_VARS]
        evidence.stated(
            "longest depth scale of all weights, in layers",
            expected=layers_at_most,
            measured=max(scales),
            tolerance=quadrature(0.01, "the iteration is stopped at 1e-9"),
            condition=f"{kept:.1%} of the units kept, w_var {W_VARS[0]:g} to {W_VARS[-1]:g}",
            relation=Relation.AT_MOST,
        )
    return evidence


@functools.cache
def measured(draws: int, seed: int) -> Average:
    """Returns the correlation of two copies of an input behind networks whose units are dropped independently."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        h = np.tile(rng.standard_normal(WIDTH), (2, 1))
        for weights, biases in layers(rng, WIDTH, DEPTH, CRITICAL, B_VAR):
            h = np.tanh(h) * (rng.random(h.shape) < KEPT) / KEPT @ weights + biases
        found.append(h[0] @ h[1] / np.sqrt((h[0] @ h[0]) * (h[1] @ h[1])))
    return average(np.array(found))
