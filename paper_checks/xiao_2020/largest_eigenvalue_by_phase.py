"""The largest eigenvalue of the NTK settles in order, grows linearly at the edge, exponentially in chaos."""

from typing import NamedTuple

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tolerances import nearest, quadrature
from .by_layer import dense_kernels, settled

CLAIM = Claim(
    id="largest_eigenvalue_by_phase",
    title="the largest eigenvalue in three phases",
    statement="The largest eigenvalue of the NTK of m inputs tends to m q*/(1 - chi_1) in the ordered phase, "
    "grows like "
    "l q* (m + 2)/3 on the critical line, and by chi_1 a layer in the chaotic phase.",
    source="Section 3, Table 1",
    scope="A fully connected network of a smooth activation (erf), in NTK parametrisation, of infinite width, on "
    "inputs "
    "of one norm.",
    formula=r"\lambda_{\max} \to \frac{m q^*}{1 - \chi_1},\quad \lambda_{\max} \sim \frac{m + 2}{3}\, l q^*,\quad "
    r"\lambda_{\max} \sim \chi_1^l",
    recorded=Verdict.HOLDS,
    summary="True in all three phases.",
)
M, LAYERS, FROM = 4, 1000, 99
ORDERED_LAYERS, CHAOTIC_LAYERS = 500, 200


class Theory(NamedTuple):
    """What the largest eigenvalue does: over q*/(1 - chi_1), over l q*, and the power of chi_1 by which it grows."""

    ordered: float
    critical: float
    chaotic: float


THEORY = Theory(M, (M + 2) / 3, 1.0)
WRONG = {
    "the ordered kernel is a multiple of the identity": THEORY._replace(ordered=1.0),
    "two critical inputs keep 1/4 of the diagonal": THEORY._replace(critical=(M + 3) / 4),
    "chaos grows like the square root of chi_1": THEORY._replace(chaotic=0.5),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Computes deep kernels in each phase."""
    del setting  # one size
    evidence = Evidence()
    q, chi_1, _ = settled("ordered")
    evidence.stated(
        "largest eigenvalue (1 - chi_1) / q*",
        expected=theory.ordered,
        measured=_largest("ordered", ORDERED_LAYERS)[-1] * (1 - chi_1) / q,
        tolerance=quadrature(1e-9, f"what is left after {ORDERED_LAYERS} layers, chi_1^l l < 1e-17, and rounding"),
        condition=f"ordered, chi_1 = {chi_1:.3f}",
        part="ordered",
    )
    q, depths = settled("critical")[0], np.arange(1, LAYERS + 1)
    found = limit((_largest("critical", LAYERS) / (depths * q))[FROM:], depths[FROM:], "log l / l")
    evidence.stated(
        "largest eigenvalue / (l q*), infinite depth",
        expected=theory.critical,
        measured=found.value,
        tolerance=found.tolerance,
        rival=nearest(theory.critical, (other.critical for other in (THEORY, *WRONG.values()))),
        condition="critical",
        part="critical",
    )
    chi_1 = settled("chaotic")[1]
    largest = _largest("chaotic", CHAOTIC_LAYERS)
    evidence.stated(
        "power of chi_1 in the growth of a layer",
        expected=theory.chaotic,
        measured=np.log(largest[-1] / largest[-2]) / np.log(chi_1),
        tolerance=quadrature(1e-8, f"what is left after {CHAOTIC_LAYERS} layers, chi_1^-l < 1e-11, and rounding"),
        condition=f"chaotic, chi_1 = {chi_1:.3f}",
        part="chaotic",
    )
    return evidence


def _largest(phase: str, layers: int) -> np.ndarray:
    return np.asarray(np.linalg.eigvalsh(dense_kernels(phase, M, layers))[:, -1])
