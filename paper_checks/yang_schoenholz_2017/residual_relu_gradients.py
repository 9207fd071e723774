"""Behind ReLU blocks lengths and gradients grow exponentially, by 1 + w_var/2 a block."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ntk_analysis import infinite_kernel
from ntk_analysis.networks import residual

from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import rounding

Theory: TypeAlias = Callable[[float], float]

CLAIM = Claim(
    id="residual_relu_gradients",
    title="lengths and gradients of ReLU blocks",
    statement="In a residual network of ReLU lengths and squared gradients grow by 1 + w_var/2 a block, exponentially "
    "for all weights.",
    source="Section 4, the theorems on ReLU",
    scope="Blocks h + W relu(h) without biases, of infinite width.",
    formula=r"q^{l} = q^0 \left(1 + \tfrac{\sigma_w^2}{2}\right)^l,\quad \chi^{0} = \chi^{l} "
    r"\left(1 + \tfrac{\sigma_w^2}{2}\right)^l",
    recorded=Verdict.HOLDS,
    summary="True to rounding: the NTK of L blocks is that of the recursion, in closed form.",
)
THEORY: Theory = lambda w_var: 1 + w_var / 2  # noqa: E731
WRONG: dict[str, Theory] = {
    "the branch alone": lambda w_var: w_var / 2,
    "amplitudes add": lambda w_var: (1 + (w_var / 2) ** 0.5) ** 2,
}
BLOCKS = 20


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares NNGP and NTK of one input with the growth: every block adds its own share to the NTK."""
    del setting  # one size
    evidence = Evidence()
    for w_var in (0.5, 2.0):
        growth = theory(w_var)
        nngp = growth**BLOCKS * w_var / 2
        ntk = w_var / 2 * (growth**BLOCKS + growth**BLOCKS + BLOCKS * growth ** (BLOCKS - 1) * w_var / 2)
        for what, expected, measured in (("NNGP", nngp, kernels(w_var)[0]), ("NTK", ntk, kernels(w_var)[1])):
            evidence.stated(
                f"{what} behind {BLOCKS} blocks",
                expected=expected,
                measured=measured,
                tolerance=rounding(1e-12 * measured, "float64"),
                condition=f"w_var {w_var}, one input of variance 1",
            )
    return evidence


@functools.cache
def kernels(w_var: float) -> tuple[float, float]:
    """Returns the library's NNGP and NTK of one input."""
    kernel = infinite_kernel(residual(BLOCKS, 1, "none", "relu", w_var=w_var, scale=1.0), np.ones((1, 1)))
    return float(kernel.nngp[0, 0]), float(kernel.ntk[0, 0])
