"""On the sphere in d dimensions eigenvalues of the NTK fall like k^-d, at every depth."""

import numpy as np

from ..by_depth import fitted
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, nearest
from .sphere import eigenvalues

CLAIM = Claim(
    id="eigenvalue_decay",
    title="the decay of eigenvalues",
    statement="On the sphere in d dimensions the eigenvalues of the NTK that are not 0 fall like k^-d.",
    source="Proposition 5; for deep networks with biases Geifman et al. 2020 (2007.01580), Theorem 1",
    scope="ReLU networks of infinite width, inputs on the sphere (here d = 3), one hidden layer or more.",
    formula=r"\mu_k \sim C\, k^{-d}",
    recorded=Verdict.HOLDS,
    summary="True with d = 3: even k with one hidden layer, even and odd k with biases and three.",
)
THEORY = 3.0
WRONG = {"k^-(d - 1)": 2.0, "k^-(d + 1), as of the NNGP's even k": 4.0}
FROM, LARGEST = 20, 120


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Fits the power of k."""
    del setting  # one size
    evidence = Evidence()
    for layers, b_var, parity in ((1, 0.0, 0), (3, 0.1, 0), (3, 0.1, 1)):
        k = np.arange(FROM + parity, LARGEST + 1, 2, dtype=np.float64)
        values = np.log(eigenvalues(layers, b_var, LARGEST)[FROM + parity :: 2])
        found, errors = fitted(values, np.log(k), 1.0, 1 / k, k**-2)
        evidence.stated(
            "power of 1/k",
            expected=theory,
            measured=-found[0],
            tolerance=extrapolation(2 * errors[0] + 1e-3, "twice the fit error, and 1e-3 for terms left out"),
            rival=nearest(theory, (THEORY, *WRONG.values())),
            condition=f"{layers} hidden layer{'s' * (layers > 1)}, b_var {b_var:g}, {'odd' if parity else 'even'} k",
        )
    return evidence
