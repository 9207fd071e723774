"""Gradients of tanh residual networks grow like exp(A sqrt(l)), not exponentially."""

import functools
import math
from typing import NamedTuple

import numpy as np

from ntk_analysis import infinite_kernel
from ntk_analysis.networks import residual

from ..by_depth import fitted
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, nearest, quadrature
from .tanh_blocks import followed

CLAIM = Claim(
    id="residual_tanh_gradients",
    title="gradients of tanh blocks",
    statement="Gradients of tanh residual networks explode subexponentially: the squared gradient grows like "
    "exp(A sqrt(l)), with A = (8/3) sqrt(w_var / (2 pi)).",
    source="Section 3, the theorem on the gradients of tanh",
    scope="Blocks h + W tanh(h) without biases, of infinite width.",
    formula=r"\log \frac{\chi^{0}}{\chi^{l}} \sim \frac{8}{3} \sqrt{\frac{\sigma_w^2\, l}{2 \pi}}",
    recorded=Verdict.HOLDS,
    summary="True: the power of l in the exponent is 1/2. The NTK is 303.1 behind 50 blocks and 4.09e5 behind 200 at "
    "w_var 1, by the recursion in NumPy and by the library.",
)


class Theory(NamedTuple):
    """Of the logarithm of the growth the factors of l and of sqrt(l)."""

    linear: float
    root: float


THEORY = Theory(0.0, 8 / 3 / math.sqrt(2 * math.pi))
WRONG = {
    "exponential, as of a plain network": Theory(0.1, 8 / 3 / math.sqrt(2 * math.pi)),
    "polynomial": Theory(0.0, 0.0),
    "without the 2 of the integral of l^-1/2": Theory(0.0, 4 / 3 / math.sqrt(2 * math.pi)),
}
BLOCKS, FROM = 5000, 100


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Fits the growth of the recursion, and compares the recursion's NTK with the library's."""
    evidence = Evidence()
    at = np.arange(FROM, BLOCKS + 1, dtype=np.float64)
    root, log = np.sqrt(at), np.log(at)
    values, errors = fitted(followed(1.0, BLOCKS)[1][FROM:], at, root, log, 1.0, log / root, 1 / root)
    for what, index, field in (("l", 0, "linear"), ("sqrt(l)", 1, "root")):
        evidence.stated(
            f"factor of {what} in the log of the growth",
            expected=getattr(theory, field),
            measured=values[index],
            tolerance=extrapolation(errors[index], f"fit error over {FROM} to {BLOCKS} blocks"),
            rival=nearest(getattr(theory, field), (getattr(one, field) for one in (THEORY, *WRONG.values()))),
            condition="w_var 1",
        )
    for blocks in setting.size((50,), (50, 200)):
        expected = followed(1.0, blocks)[2][-1]
        evidence.stated(
            f"NTK behind {blocks} blocks",
            expected=expected,
            measured=library(blocks),
            tolerance=quadrature(1e-9 * expected, "two quadratures of tanh, relatively 1e-12 a block"),
            condition="w_var 1, one input of variance 1",
        )
    return evidence


@functools.cache
def library(blocks: int) -> float:
    """Returns the library's NTK of one input."""
    network = residual(blocks, 1, "none", "tanh", w_var=1.0, scale=1.0)
    return float(infinite_kernel(network, np.ones((1, 1))).ntk[0, 0])
