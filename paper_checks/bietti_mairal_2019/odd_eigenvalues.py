"""A ReLU network of one hidden layer without biases cannot see odd harmonics from the third on."""

import numpy as np

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import quadrature
from .sphere import eigenvalues

CLAIM = Claim(
    id="odd_eigenvalues",
    title="odd harmonics",
    statement="On the sphere the NTK of a ReLU network with one hidden layer has eigenvalues mu_k = 0 for all odd k >= "
    "3.",
    source="Proposition 5",
    scope="One hidden layer, no biases, infinite width, inputs on the sphere (here in 3 dimensions).",
    formula=r"\mu_k = 0,\quad k = 3, 5, 7, \ldots",
    recorded=Verdict.HOLDS,
    summary="True to rounding. Biases or a second hidden layer bring them back.",
)
THEORY = 3  # the first odd k whose eigenvalue is 0
WRONG = {"the first one, too": 1}
LARGEST, ROUNDING = 15, 1e-12


def check(setting: Setting, theory: int = THEORY) -> Evidence:
    """Computes the eigenvalues, and those of two other networks."""
    del setting  # one size
    evidence = Evidence()
    tolerance = quadrature(ROUNDING, "rounding of 1,200 nodes: the kernel is analytic in the angle")
    for layers, b_var in ((1, 0.0), (1, 0.1), (2, 0.0)):
        values = eigenvalues(layers, b_var, LARGEST)
        row = evidence.stated if (layers, b_var) == (1, 0.0) else evidence.varied
        condition = f"{layers} hidden layer{'s' * (layers > 1)}, b_var {b_var:g}, odd k up to {LARGEST}"
        row(
            "mu_k / mu_0",
            expected=0,
            measured=values[theory::2] / values[0],
            tolerance=tolerance,
            condition=condition,
        )
    values = eigenvalues(1, 0.0, LARGEST)
    evidence.stated(
        "smallest mu_k / mu_0 of even k and of k = 1",
        expected=1e-6,
        measured=np.append(values[::2], values[1]) / values[0],
        tolerance=tolerance,
        condition="1 hidden layer, b_var 0",
        relation=Relation.AT_LEAST,
    )
    return evidence
