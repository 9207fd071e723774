"""The rate of ReLU falls to pi/(pi - 1) in large batches, and not to 1."""

import math

import numpy as np

from ntk_analysis.meanfield import analyse

from ..contract import Claim, Evidence, Published, Setting, Verdict
from ..limits import limit
from ..tolerances import nearest

CLAIM = Claim(
    id="large_batch_explosion",
    title="large batches",
    statement="In the limit of large batches the rate of ReLU is pi/(pi - 1); smaller batches explode faster.",
    source="Section 3.3, Fig. 2",
    scope="Fully connected ReLU networks of infinite width with batch normalisation before each activation, eps = 0.",
    formula=r"\lim_{B \to \infty} \lambda = \frac{\pi}{\pi - 1}",
    recorded=Verdict.HOLDS,
    summary="True: 1.466942, reached like 1/B from above.",
    published=(Published("rate in large batches", 1.467, "Section 3.3"),),
)
THEORY = math.pi / (math.pi - 1)
WRONG = {"1: large batches are harmless": 1.0, "pi/2": math.pi / 2}
BATCHES = np.unique(np.geomspace(32, 4096, 60).astype(int))


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Extrapolates the library's rate in the batch size."""
    del setting  # one size
    evidence = Evidence()
    rates = [analyse("relu", normalization="batch", batch_size=int(batch)).chi_1 for batch in BATCHES]
    found = limit(rates, BATCHES, "1/l")
    evidence.stated(
        "growth of squared gradients, infinite batch",
        expected=theory,
        measured=found.value,
        tolerance=found.tolerance,
        rival=nearest(theory, (THEORY, *WRONG.values())),
        condition=f"B = {BATCHES[0]} to {BATCHES[-1]}",
    )
    return evidence
