"""Gains that keep the variance behind weight-standardised layers: a formula, and published constants."""

import functools
import math

import numpy as np
from scipy import special

from ntk_analysis import activations

from ..contract import Claim, Evidence, Published, Setting, Verdict
from ..tolerances import quadrature, resolution

PUBLISHED = {
    "relu": 1.7139588594436646,
    "elu": 1.2716004848480225,
    "celu": 1.270926833152771,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "softsign": 2.338853120803833,
    "softplus": 1.9203323125839233,
    "tanh": 1.5939117670059204,
    "log_sigmoid": 1.9193484783172607,
}
"""The constants of the authors' code, by activation."""
QUICK = ("relu", "elu", "celu", "gelu", "leaky_relu")

CLAIM = Claim(
    id="scaled_gains",
    title="gains of scaled weight standardisation",
    statement="The gain gamma = 1 / sqrt(Var[phi(u)]) keeps the variance behind standardised weights, for ReLU "
    "sqrt(2 / (1 - 1/pi)); the code's table has gamma of 13 activations.",
    source="Section 4.1, and the table of constants in the published code",
    scope="Layers of standardised weights behind an activation of unit Gaussians.",
    formula=r"\gamma = \frac{1}{\sqrt{\mathrm{Var}[\phi(u)]}},\quad \gamma_{\text{ReLU}} = "
    r"\sqrt{\frac{2}{1 - 1/\pi}}",
    recorded=Verdict.CONDITIONS,
    summary="The formula is exact. The constants have 16 digits and are right to three: they were drawn, once, so that "
    "ELU and CELU, the same function, have 1.27160 and 1.27093 (exact: 1.27084). All are too large, by 5e-4 on "
    "average, as the biased variance of 1,024 draws is too small.",
    published=tuple(Published(f"gain of {name}", value, "base.py of the code") for name, value in PUBLISHED.items()),
)
THEORY = 1.0  # the power of 1/pi in the gain of ReLU
WRONG = {"the second moment in place of the variance": math.inf, "1/pi^2": 2.0}


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Compares the library's gains with the formula, and with the constants."""
    evidence = Evidence()
    evidence.stated(
        "gain of ReLU by the formula",
        expected=math.sqrt(2 / (1 - math.pi**-theory)),
        measured=exact("relu"),
        tolerance=quadrature(1e-12, "rounding"),
        part="formula",
    )
    apart = []
    for name in setting.size(QUICK, tuple(PUBLISHED)):
        gain = exact(name)
        apart.append(PUBLISHED[name] / gain - 1)
        evidence.stated(
            "published gain",
            expected=PUBLISHED[name],
            measured=gain,
            tolerance=resolution(1e-6, "float32, in which they were computed"),
            condition=name,
            part="constants",
        )
    evidence.corrected(
        "gain of ELU and of CELU",
        expected=elu_gain(),
        measured=[exact("elu"), exact("celu")],
        tolerance=quadrature(1e-10, "the library's quadrature of ELU, relatively 1e-12"),
    )
    evidence.note(
        f"published over exact gains, less 1: {min(apart):.1e} to {max(apart):.1e}, mean {np.mean(apart):.1e}; "
        f"the biased variance of 1,024 draws gives {(1 - 1 / 1024) ** -0.5 - 1:.1e}"
    )
    return evidence


def elu_gain() -> float:
    """Returns the gain of ELU by error functions: E[exp(a u); u < 0] = exp(a^2 / 2) Phi(-a)."""
    once, twice = math.exp(0.5) * special.ndtr(-1), math.exp(2) * special.ndtr(-2)
    mean = 1 / math.sqrt(2 * math.pi) + once - 0.5
    return 1 / math.sqrt(1 + twice - 2 * once - mean**2)


@functools.cache
def exact(name: str) -> float:
    """Returns the library's gain; log_sigmoid(u) is -softplus(-u), which has the same variance."""
    phi = activations.get({"log_sigmoid": "softplus"}.get(name, name))
    return math.sqrt(phi.stable_gain(centered=True))
