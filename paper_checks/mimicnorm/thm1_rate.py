"""The rate at which the condition number diverges in the ordered phase: not the same for ReLU as for smooth units."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ntk_analysis import activations, data, spectrum
from ntk_analysis.meanfield import analyse

from ..by_depth import fitted, infinite_kernels, square_inputs
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, nearest

Theory: TypeAlias = Callable[[bool], tuple[float, float]]
Case: TypeAlias = tuple[str, float, float]
"""Activation, w_var, b_var."""

CLAIM = Claim(
    id="thm1_rate",
    title="how fast the ordered phase diverges",
    statement="In the ordered phase the condition number of the NTK grows with depth L like 1/(L chi_1^L).",
    source="Theorem 1, with the rate of its source, Xiao et al. 2019 (1912.13053)",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "in the ordered phase.",
    formula=r"\kappa \sim \frac{1}{L \chi_1^L}",
    recorded=Verdict.FAILS,
    summary="True of smooth activations. For ReLU, the paper's, kappa grows like chi_1^(-L/2): the dual of its "
    "derivative falls from correlation 1 like a square root.",
    question=True,
)
M, RHO = 10, 0.1
WINDOW = 1e4, 1e9  # before, the approach to the law is still seen, relatively 1 / kappa; behind, the kernel's rounding


def powers(cusp: bool) -> tuple[float, float]:
    """Returns (a, b) of kappa ~ L^-b chi_1^(-a L)."""
    return (0.5, 0.0) if cusp else (1.0, 1.0)


def stated_powers(cusp: bool) -> tuple[float, float]:
    """Returns the powers as stated, the same for every activation."""
    del cusp
    return 1.0, 1.0


THEORY: Theory = powers
WRONG: dict[str, Theory] = {
    "the stated rate, for ReLU too": stated_powers,
    "half the rate for every activation": lambda cusp: (0.5, 0.0),
    "a factor of 1/L for ReLU": lambda cusp: (0.5, 1.0) if cusp else (1.0, 1.0),
}


def growth(x: np.ndarray, layers: int, name: str, w_var: float, b_var: float) -> tuple[np.ndarray, np.ndarray, str]:
    """Fits -log kappa = p L + s log L + const + c/L; returns (p, s), their errors, and the range of the fit."""
    ntk = infinite_kernels(x, layers, "none", name, w_var, b_var)[1]
    kappa, found = 1.0, {}
    for depth, matrix in enumerate(ntk, 1):
        if kappa < WINDOW[1]:  # an unresolved one would warn
            kappa = found[depth] = spectrum.condition_number(matrix)
    depths = np.array([depth for depth, kappa in found.items() if WINDOW[0] < kappa < WINDOW[1]], np.float64)
    values = -np.log([found[int(depth)] for depth in depths])
    coefficients, errors = fitted(values, depths, np.log(depths), 1.0, 1 / depths)
    return coefficients[:2], errors[:2], f"fit error over {depths[0]:.0f} to {depths[-1]:.0f} layers"


def check_rate(evidence: Evidence, theory: Theory, gram: np.ndarray, layers: int, case: Case, inputs: str) -> None:
    """Checks the stated and the right rate for one network."""
    name, w_var, b_var = case
    field = analyse(name, w_var=w_var, b_var=b_var)
    assert field.chi_1 is not None
    assert field.q_star is not None
    found, errors, because = growth(np.sqrt(field.q_star - b_var) * square_inputs(gram), layers, *case)
    power = found[0] / math.log(field.chi_1), found[1]
    error = errors[0] / abs(math.log(field.chi_1)), errors[1]
    cusp = isinstance(field.activation, activations.PiecewiseLinear)
    condition = f"ordered {name}, chi_1 = {field.chi_1:.3f}, {inputs}"
    for i, what in enumerate(("chi_1^-L", "1/L")):
        row = evidence.stated if cusp else evidence.varied
        row(
            f"power of {what} in kappa",
            expected=stated_powers(cusp)[i],
            measured=power[i],
            tolerance=extrapolation(error[i], because),
            rival=nearest(stated_powers(cusp)[i], (one(cusp)[i] for one in (THEORY, *WRONG.values()))),
            condition=condition,
        )
        what = f"power of {what} in kappa, by the kind of activation"
        evidence.corrected(
            what,
            expected=theory(cusp)[i],
            measured=power[i],
            tolerance=extrapolation(error[i], because),
            condition=condition,
        )


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks ReLU on inputs of one correlation and on digits, and a smooth activation."""
    evidence = Evidence()
    common = (1 - RHO) * np.eye(M) + RHO
    x = data.preprocess(data.load_digits().subset(M, seed=setting.seed).images, image_centering="dataset")
    relu: Case = ("relu", 1.5, 0.25)
    for name, gram in ((f"{M} inputs of correlation {RHO}", common), (f"{M} digits", x @ x.T / x.shape[1])):
        check_rate(evidence, theory, gram, 200, relu, name)
    cases: tuple[Case, ...] = (("erf", 1.2, 0.1),)
    cases += setting.size((), (("relu", 1.8, 0.1), ("erf", 0.8, 0.1), ("tanh", 1.2, 0.1)))
    for case in setting.track(cases, "thm1_rate"):
        check_rate(evidence, theory, common, setting.size(200, 450), case, f"{M} inputs of correlation {RHO}")
    return evidence
