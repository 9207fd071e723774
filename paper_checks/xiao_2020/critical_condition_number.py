"""On the critical line the NTK of m inputs has a condition number of (m + 2)/2, however deep the network."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tolerances import nearest
from .by_layer import ACTIVATION, condition_numbers, dense_kernels

Theory: TypeAlias = Callable[[int], float]

CLAIM = Claim(
    id="critical_condition_number",
    title="the condition number on the critical line",
    statement="On the critical line the condition number of the NTK of m inputs tends to (m + 2)/2 with depth.",
    source="Section 3.2, Table 1",
    scope="A fully connected network of a smooth activation (erf), in NTK parametrisation, of infinite width, on the "
    "critical line, on inputs of one norm.",
    formula=r"\kappa^{(l)} \to \frac{m + 2}{2}",
    recorded=Verdict.HOLDS,
    summary="True of erf. What is left falls like log l / l. ReLU has (m + 3)/3: its kernel of two inputs tends to 1/4 "
    "of the diagonal, not to 1/3.",
)


def thirds(m: int) -> float:
    """Returns the limit: two inputs keep 1/3 of the diagonal, and so the eigenvalues are m + 2 and 2, over 3."""
    return (m + 2) / 2


THEORY: Theory = thirds
WRONG: dict[str, Theory] = {
    "two inputs keep 1/4 of the diagonal": lambda m: (m + 3) / 3,
    "two inputs keep 1/2": lambda m: m + 1.0,
    "a limit without m": lambda m: 1.0,
}
LAYERS, FROM = 1000, 99


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Extrapolates the condition number from 100 to 1,000 layers; ReLU is beyond the claim."""
    evidence = Evidence()
    depths = np.arange(1, LAYERS + 1)[FROM:]
    for m in setting.size((4,), (4, 12)):
        for activation, row in ((ACTIVATION, evidence.stated), ("relu", evidence.varied)):
            kappa = condition_numbers(dense_kernels("critical", m, LAYERS, activation))[FROM:]
            found = limit(kappa, depths, "log l / l")
            row(
                "condition number of the NTK, infinite depth",
                expected=theory(m),
                measured=found.value,
                tolerance=found.tolerance,
                rival=nearest(theory(m), (other(m) for other in (THEORY, *WRONG.values()))),
                condition=f"critical {activation}, m = {m}",
            )
            if activation == ACTIVATION:
                left = (theory(m) - kappa) * depths
                evidence.note(f"m = {m}: {left[100]:.1f}/l is missing at 200 layers, {left[-1]:.1f}/l at {LAYERS}")
    return evidence
