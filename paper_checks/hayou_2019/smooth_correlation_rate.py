"""On the edge of chaos smooth activations let correlations tend to 1 like beta / l: slower than ReLU."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy import optimize

from ..averages import mean_of
from ..contract import Claim, Evidence, Setting, Verdict
from ..limits import limit
from ..tanh_theory import bend, slope, square
from ..tolerances import nearest
from .by_layer import kernels

Theory: TypeAlias = Callable[[float], float]

CLAIM = Claim(
    id="smooth_correlation_rate",
    title="smooth activations forget more slowly",
    statement="For smooth activations on the edge of chaos 1 - c ~ beta / l, with beta = 2 E[phi'^2] / (q E[phi''^2]).",
    source="Proposition 3",
    scope="A fully connected tanh network of infinite width on the edge of chaos, sigma_b = 0.2.",
    formula=r"1 - c^l \sim \frac{\beta_q}{l},\quad \beta_q = \frac{2\, \mathbb{E}[\phi'(u)^2]}"
    r"{q\, \mathbb{E}[\phi''(u)^2]}",
    recorded=Verdict.HOLDS,
    summary="True: at sigma_b = 0.2, where sigma_w = 1.30415, beta is 7.0837.",
)
B_VAR = 0.04


def edge() -> tuple[float, float]:
    """Returns w_var and q on the edge, integrated in NumPy."""

    def w_var(q: float) -> float:
        return 1 / mean_of(lambda u: slope(u) ** 2, q)

    q = optimize.brentq(lambda q: q - w_var(q) * mean_of(square, q) - B_VAR, 1e-3, 5.0, xtol=1e-14)
    return w_var(q), float(q)


def beta(q: float) -> float:
    """Returns beta at the variance q."""
    return 2 * mean_of(lambda u: slope(u) ** 2, q) / (q * mean_of(lambda u: bend(u) ** 2, q))


THEORY: Theory = beta
WRONG: dict[str, Theory] = {
    "without the 2": lambda q: beta(q) / 2,
    "q left out": lambda q: beta(q) * q,
}
LAYERS, FROM = 500, 49


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Extrapolates l (1 - c) of the library's kernels from 50 to 500 layers."""
    del setting  # one size
    evidence = Evidence()
    depths = np.arange(1, LAYERS + 1)[FROM:]
    w_var, q = edge()
    found = limit(kernels("tanh", w_var, B_VAR, q, LAYERS)[0][FROM:] * depths, depths, "log l / l")
    evidence.stated(
        "l (1 - c), infinite depth",
        expected=theory(q),
        measured=found.value,
        tolerance=found.tolerance,
        rival=nearest(theory(q), (other(q) for other in (THEORY, *WRONG.values()))),
        condition=f"tanh, sigma_b 0.2, sigma_w {np.sqrt(w_var):.5f}",
    )
    return evidence
