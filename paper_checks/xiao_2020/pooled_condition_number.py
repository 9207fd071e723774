"""With a mean over d pixels at the end, the critical condition number is (dm + 2)/2: pooling makes it d times worse."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tolerances import nearest
from .by_layer import condition_numbers, pooled_kernels

Theory: TypeAlias = Callable[[int, int], float]

CLAIM = Claim(
    id="pooled_condition_number",
    title="pooling and the condition number",
    statement="On the critical line, with convolutions and global average pooling over d pixels, the condition number "
    "of the NTK of m inputs tends to (dm + 2)/2.",
    source="Section 3.4, Table 1",
    scope="A convolutional network of a smooth activation (erf) with circular padding and global average pooling, in "
    "NTK parametrisation, with infinitely many channels, on the critical line, on pixels of one norm.",
    formula=r"\kappa^{(l)} \to \frac{d m + 2}{2}",
    recorded=Verdict.HOLDS,
    summary="True: the mean over pixels divides the bulk by d, and leaves the largest eigenvalue.",
)


def pooled(m: int, pixels: int) -> float:
    """Returns the limit: all dm pixels are one batch, whose largest eigenvalue the pooling keeps."""
    return (pixels * m + 2) / 2


THEORY: Theory = pooled
WRONG: dict[str, Theory] = {
    "pooling changes nothing": lambda m, pixels: (m + 2) / 2,
    "the pixels count once more": lambda m, pixels: (pixels * (m + 2)) / 2,
    "two inputs keep 1/4 of the diagonal": lambda m, pixels: (pixels * m + 3) / 3,
}
LAYERS, FROM = 1000, 99


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Extrapolates the condition number from 100 to 1,000 convolutions of sequences."""
    evidence = Evidence()
    depths = np.arange(1, LAYERS + 1)[FROM:]
    for m, pixels in setting.size(((2, 4),), ((2, 4), (3, 4), (3, 6))):
        found = limit(condition_numbers(pooled_kernels(m, pixels, LAYERS))[FROM:], depths, "log l / l")
        evidence.stated(
            "condition number of the NTK, infinite depth",
            expected=theory(m, pixels),
            measured=found.value,
            tolerance=found.tolerance,
            rival=nearest(theory(m, pixels), (other(m, pixels) for other in (THEORY, *WRONG.values()))),
            condition=f"m = {m} sequences of d = {pixels} pixels",
        )
    return evidence
