"""Is the tangent kernel better conditioned than that of a straight ReLU network of the same depth?"""

from typing import Any

import numpy as np

from ntk_analysis import spectrum
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected
from ntk_analysis.spectrum import Spectrum

from ...contract import Claim, Evidence, Relation, Setting
from ...subject import Subject
from ...tolerances import rounding

CLAIM = Claim(
    id="conditioning",
    title="a well conditioned tangent kernel",
    statement="The tangent kernel is better conditioned, and its largest eigenvalue stands out less, than that of a "
    "straight ReLU network of the same depth on the same inputs.",
    source="Theorem 1",
    formula=r"\kappa = \lambda_{\max} / \lambda_{\min}",
    recorded=None,
    summary="",
)


def check(setting: Setting, subject: Subject) -> Evidence:
    """Compares the measured kernel, averaged over outputs, with that of an infinitely wide straight network."""
    del setting
    found, evidence = subject.found, Evidence()
    depth = found.products - 1
    if depth < 1:
        evidence.open = (
            f"{found.products} matrix products in a row: there is no straight network of no layers to compare"
        )
        return evidence
    straight, centered = (_infinite(depth, name, subject.x) for name in ("none", "weight_mean"))
    if not (straight.resolved and found.trace.resolved):
        evidence.open = "the smallest eigenvalue is below rounding, as for inputs that repeat: kappa is only bounded"
        return evidence
    condition = f"{found.inputs} inputs, {depth} hidden layers"
    for quantity, expected, measured, tolerance in (
        ("condition number", straight.condition_number, found.trace.condition_number, _error(found.trace)),
        ("largest / mean eigenvalue", straight.outlier_ratio, found.trace.outlier_ratio, _error(found.trace)),
    ):
        evidence.stated(
            quantity,
            expected=expected,
            measured=measured,
            tolerance=rounding(tolerance, f"rounding of the kernel's entries, {found.trace.input_dtype}"),
            condition=condition,
            relation=Relation.AT_MOST,
        )
    evidence.note(
        f"A weight-centered network of infinite width has condition number {centered.condition_number:.4g} here, "
        f"largest / mean eigenvalue {centered.outlier_ratio:.4g}."
    )
    evidence.note(
        f"Largest stable learning rate: {found.spectrum.learning_rate:.4g} ({found.learning_rate_convention})."
    )
    return evidence


def _infinite(depth: int, normalization: str, x: Any) -> Spectrum:
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    return spectrum.analyse(infinite_kernel(fully_connected(depth, 1, normalization), rows))


def _error(found: Spectrum) -> float:
    """Returns the error that rounding r of eigenvalues makes in their ratio: kappa (r / largest + r / smallest)."""
    largest, smallest = (float(found.eigenvalues_scaled[index]) for index in (0, -1))
    return found.condition_number * found.rounding * (1 / largest + 1 / smallest)
