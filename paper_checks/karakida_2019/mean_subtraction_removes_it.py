"""Subtracting the mean over the inputs behind the last layer leaves eigenvalues kappa_1 - kappa_2 alone."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import rounding
from .orders import B_VAR, LAYERS, W_VAR, kernel, order_parameters

Theory: TypeAlias = Callable[[int, float, float], float]

CLAIM = Claim(
    id="mean_subtraction_removes_it",
    title="mean subtraction in the last layer",
    statement="Where the mean over the inputs is subtracted from the outputs, the largest eigenvalue falls to "
    "kappa_1 - "
    "kappa_2, which does not grow with the number of inputs.",
    source="Theorem 3.3",
    scope="Fully connected networks of infinite width with one output, on inputs that are orthogonal and of one norm.",
    formula=r"\lambda_{\max} = \kappa_1 - \kappa_2",
    recorded=Verdict.HOLDS,
    summary="True to rounding: the outlier is the constant vector. Inputs of unequal norm keep a part of it.",
)
THEORY: Theory = lambda n, one, two: one - two  # noqa: E731
WRONG: dict[str, Theory] = {
    "the outlier stays": lambda n, one, two: (n - 1) * two + one,
    "kappa_1 is left": lambda n, one, two: one,
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Subtracts the mean from the library's NTK on both sides."""
    del setting  # one size
    evidence = Evidence()
    for inputs in (4, 16):
        centered = np.eye(inputs) - 1 / inputs
        values = np.linalg.eigvalsh(centered @ kernel(inputs) @ centered)
        evidence.stated(
            "largest eigenvalue with the mean subtracted",
            expected=theory(inputs, *order_parameters()),
            measured=values[-1],
            tolerance=rounding(1e-11 * inputs, "float64"),
            condition=f"N = {inputs}, ReLU, {LAYERS} hidden layers, w_var {W_VAR:g}, b_var {B_VAR:g}",
        )
    return evidence
