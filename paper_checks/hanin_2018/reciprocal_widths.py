"""Only the sum of reciprocal widths counts: at the same number of units, equal widths fluctuate least."""

import numpy as np

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import five_sigma
from ..tolerances import sampling
from .lengths import squares_of_lengths

CLAIM = Claim(
    id="reciprocal_widths",
    title="equal widths are best",
    statement="Of networks with the same depth and number of units, those with equal widths have the smallest "
    "fluctuations.",
    source="Section 3, the remark on architecture",
    scope="Fully connected ReLU networks without biases, Gaussian weights of variance 2 / fan-in.",
    formula=r"\beta = \sum_l \frac{1}{n_l}",
    recorded=Verdict.HOLDS,
    summary="True: 4 layers of 25 units fluctuate less than 40, 10, 40, 10.",
)
THEORY = 1.0  # the sign of what unequal widths add
WRONG = {"bottlenecks calm": -1.0}
EQUAL, UNEQUAL = (25,) * 4, (40, 10, 40, 10)


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Compares drawn networks of both kinds."""
    evidence = Evidence()
    draws = setting.size(20_000, 400_000)
    equal, unequal = (squares_of_lengths((20, *widths), draws, setting.seed) for widths in (EQUAL, UNEQUAL))
    error = five_sigma(draws) * float(np.hypot(equal.error, unequal.error))
    evidence.stated(
        "E|h|^4 / (E|h|^2)^2 of unequal widths, less that of equal ones",
        expected=0,
        measured=unequal.mean - equal.mean,
        tolerance=sampling(error, f"5 sigma of {draws} networks of each kind", draws),
        condition=f"widths {UNEQUAL} against {EQUAL}",
        relation=Relation.AT_LEAST if theory > 0 else Relation.AT_MOST,
    )
    return evidence
