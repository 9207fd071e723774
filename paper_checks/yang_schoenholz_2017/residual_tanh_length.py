"""Behind tanh blocks the length of the signal grows linearly: nothing saturates, nothing explodes."""

import numpy as np

from ..by_depth import fitted
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, nearest
from .tanh_blocks import followed

CLAIM = Claim(
    id="residual_tanh_length",
    title="lengths behind tanh blocks",
    statement="In a residual network of tanh the squared length grows like w_var l with the number of blocks l.",
    source="Section 3, Theorem 1 of tanh",
    scope="Blocks h + W tanh(h) without biases, of infinite width.",
    formula=r"q^{l} \sim \sigma_w^2\, l",
    recorded=Verdict.HOLDS,
    summary="True; what is missing falls like 1/sqrt(l).",
)
THEORY = 1.0  # the power of l
WRONG = {"lengths settle": 0.0, "they grow like sqrt(l)": 0.5}
BLOCKS, FROM = 5000, 100


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Fits the power of l, and its factor."""
    del setting  # one size
    evidence = Evidence()
    at = np.arange(FROM, BLOCKS + 1, dtype=np.float64)
    for w_var in (0.5, 2.0):
        lengths = followed(w_var, BLOCKS)[0][FROM:]
        values, off = fitted(np.log(lengths), np.log(at), 1.0, at**-0.5, 1 / at, at**-1.5)
        for what, expected, index, rival in (
            ("power of l", theory, 0, nearest(theory, (THEORY, *WRONG.values()))),
            ("log of the factor", np.log(w_var), 1, 0.0),
        ):
            evidence.stated(
                what,
                expected=expected,
                measured=values[index],
                tolerance=extrapolation(off[index], f"fit error over {FROM} to {BLOCKS} blocks"),
                rival=rival,
                condition=f"w_var {w_var}",
            )
    return evidence
