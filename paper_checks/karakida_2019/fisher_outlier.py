"""The Fisher information has one outlier, of the order of the number of inputs, above equal eigenvalues."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import rounding
from .orders import B_VAR, LAYERS, W_VAR, kernel, order_parameters

Theory: TypeAlias = Callable[[int, float, float], tuple[float, float]]

CLAIM = Claim(
    id="fisher_outlier",
    title="the outlier of the Fisher information",
    statement="The Fisher information of N inputs, and so the NTK, has one eigenvalue (N - 1) kappa_2 + kappa_1; the "
    "others are kappa_1 - kappa_2.",
    source="Section 2.3; Karakida et al. 2019, Universal Statistics (1806.01316), Theorems 2, 3",
    scope="Fully connected networks of infinite width with one output, on inputs that are orthogonal and of one norm.",
    formula=r"\lambda_{\max} = (N - 1) \kappa_2 + \kappa_1",
    recorded=Verdict.HOLDS,
    summary="True to rounding of ReLU, with kappa_1 and kappa_2 from closed forms; it grows with N, the mean "
    "eigenvalue does not.",
)
THEORY: Theory = lambda n, one, two: ((n - 1) * two + one, one - two)  # noqa: E731
WRONG: dict[str, Theory] = {
    "N kappa_2": lambda n, one, two: (n * two, one - two),
    "no outlier": lambda n, one, two: (one, one),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the eigenvalues of the library's NTK with the order parameters."""
    del setting  # one size
    evidence = Evidence()
    for inputs in (4, 16):
        largest, other = theory(inputs, *order_parameters())
        values = np.linalg.eigvalsh(kernel(inputs))
        for what, expected, measured in (("largest", largest, values[-1]), ("every other", other, values[:-1])):
            evidence.stated(
                f"{what} eigenvalue of the NTK",
                expected=expected,
                measured=measured,
                tolerance=rounding(1e-11 * largest, "float64"),
                condition=f"N = {inputs}, ReLU, {LAYERS} hidden layers, w_var {W_VAR:g}, b_var {B_VAR:g}",
            )
    return evidence
