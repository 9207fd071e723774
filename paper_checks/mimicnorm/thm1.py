"""Theorem 1 (Xiao et al. 2019): where the NTK's condition number goes with depth, in each phase."""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ntk_analysis import data, spectrum
from ntk_analysis.meanfield import analyse, critical_line

from ..by_depth import common_correlation, critical_terms, fitted, infinite_kernels, square_inputs
from ..contract import Claim, Evidence, Row, Setting, Verdict
from ..tolerances import extrapolation, nearest

Theory: TypeAlias = Callable[[float, int, bool], float]
Record: TypeAlias = Callable[..., Row]

CLAIM = Claim(
    id="thm1",
    title="the limiting condition number of the NTK",
    statement="With depth the condition number of the NTK diverges where chi_1 < 1, becomes proportional to the number "
    "of inputs m where chi_1 = 1, and tends to 1 where chi_1 > 1.",
    source="Theorem 1, after Xiao et al. 2019 (1912.13053)",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "in the limit of depth; distinct inputs of equal norm, as in its source.",
    formula=r"\kappa \to \infty \; (\chi_1 < 1), \quad \kappa \propto m \; (\chi_1 = 1), "
    r"\quad \kappa \to 1 \; (\chi_1 > 1)",
    recorded=Verdict.HOLDS,
    summary="Holds for distinct inputs of equal norm: straight ReLU networks go to (m + 3)/3, slowly and not "
    "monotonically. With unequal norms a chaotic ReLU network keeps their ratio squared, and batch normalisation, "
    "chaotic as it is, keeps 6.27 for 8 inputs.",
    figures=("condition_number", "kernel_matrices"),
)
W_VAR, B_VAR = 1.5, 0.25  # an ordered ReLU network with these keeps the variance 1
RHO, SIZES = 0.1, (4, 10, 30)


def limit(chi_1: float, m: int, cusp: bool) -> float:
    """Returns the limit of the condition number: off-diagonal over diagonal entry goes to 1, r or 0.

    On the critical line r = 1/4 where the derivative's dual has ReLU's square-root cusp, 1/3 for smooth activations.
    """
    if abs(chi_1 - 1) < 1e-8:
        return (m + 3) / 3 if cusp else (m + 2) / 2
    return math.inf if chi_1 < 1 else 1.0


THEORY: Theory = limit
WRONG: dict[str, Theory] = {
    "m itself on the critical line": lambda chi_1, m, cusp: (
        float(m) if abs(chi_1 - 1) < 1e-8 else limit(chi_1, m, cusp)
    ),
    "the number of inputs plays no part": lambda chi_1, m, cusp: limit(chi_1, 10, cusp),
    "chaos conditions no better than the critical line": lambda chi_1, m, cusp: limit(min(chi_1, 1.0), m, cusp),
    "order is trainable": lambda chi_1, m, cusp: limit(max(chi_1, 1.0), m, cusp),
}


def condition_numbers(ntk: np.ndarray) -> np.ndarray:
    """Returns the condition numbers of a stack of kernels (layers, m, m)."""
    return np.array([spectrum.condition_number(matrix) for matrix in ntk])


def rounding_of_inverse(ntk: np.ndarray) -> float:
    """Returns the error of 1 / condition number: the kernel's rounding, as `spectrum` states it, over the largest."""
    found = spectrum.analyse(ntk)
    return 4 * found.rounding / float(found.eigenvalues_scaled[0])


def settled(evidence: Record, theory: Theory, chi_1: float | None, ntk: np.ndarray, condition: str) -> None:
    """Checks the limit of 1 / kappa away from the critical line, which is reached by a factor for each layer."""
    assert chi_1 is not None
    m, depth = ntk.shape[1], len(ntk)
    last, before = (1 / spectrum.condition_number(ntk[i]) for i in (-1, depth // 2))
    evidence(
        "1 / condition number, depth to infinity",
        expected=1 / theory(chi_1, m, True),
        measured=last,
        tolerance=extrapolation(
            abs(last - before) + rounding_of_inverse(ntk[-1]),
            f"change over the last {depth - depth // 2} of {depth} layers, and rounding",
        ),
        rival=nearest(1 / theory(chi_1, m, True), (1 / one(chi_1, m, True) for one in (THEORY, *WRONG.values()))),
        condition=condition,
    )


def check_critical(evidence: Record, theory: Theory, ntk: np.ndarray, cusp: bool, condition: str) -> None:
    """Checks the limit on the critical line, from a fit in log(L)/L and 1/L."""
    depths = np.unique(np.geomspace(len(ntk) / 20, len(ntk), 24).round().astype(int))
    coefficients, errors = fitted(condition_numbers(ntk[depths - 1]), *critical_terms(depths))
    evidence(
        "condition number, depth to infinity",
        expected=theory(1.0, ntk.shape[1], cusp),
        measured=coefficients[0],
        tolerance=extrapolation(errors[0], f"fit error in log(L)/L and 1/L over {depths[0]} to {depths[-1]} layers"),
        rival=nearest(
            theory(1.0, ntk.shape[1], cusp), (one(1.0, ntk.shape[1], cusp) for one in (THEORY, *WRONG.values()))
        ),
        condition=condition,
    )


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks ReLU at one correlation, then digits, tanh, unequal norms and batch norm, and the depth it takes."""
    evidence = Evidence()
    deep = setting.size(1000, 5000)
    inputs = common_correlation(SIZES[-1], RHO)
    straight = infinite_kernels(inputs, deep, "none")[1]
    for m in SIZES:
        condition = f"straight ReLU, {m} inputs of correlation {RHO}"
        check_critical(evidence.stated, theory, straight[:, :m, :m], True, condition)
    check_relu_phases(evidence.stated, theory, inputs[:10], f"ReLU, 10 inputs of correlation {RHO}")
    images = data.load_digits().subset(SIZES[-1], seed=setting.seed)
    x = data.preprocess(images.images, image_centering="dataset")
    digits = x @ x.T / x.shape[1]
    ntk = infinite_kernels(square_inputs(digits), deep, "none")[1]
    check_critical(evidence.varied, theory, ntk, True, f"straight ReLU, {len(digits)} digits")
    check_relu_phases(evidence.varied, theory, square_inputs(digits[:10, :10]), "ReLU, 10 digits")
    check_smooth(evidence, theory, setting.size("erf", "tanh"), deep)
    check_exceptions(evidence, theory, digits[:10, :10])
    search_depths(evidence, straight[:, :10, :10], inputs[:10])
    return evidence


def check_relu_phases(record: Record, theory: Theory, x: np.ndarray, condition: str) -> None:
    """Checks order and chaos of ReLU networks."""
    chaotic = infinite_kernels(x, 80, "weight_mean")[1]
    settled(record, theory, analyse("relu", normalization="weight_mean").chi_1, chaotic, f"weight mean, {condition}")
    ordered = infinite_kernels(np.sqrt(1 - B_VAR) * x, 80, "none", "relu", W_VAR, B_VAR)[1]
    settled(record, theory, analyse("relu", w_var=W_VAR, b_var=B_VAR).chi_1, ordered, f"ordered, {condition}")


def check_smooth(evidence: Evidence, theory: Theory, name: str, deep: int) -> None:
    """Checks a smooth activation on the critical line and on both sides of it."""
    q = 0.5
    line = critical_line(name, q=np.array([q]))
    w_var, b_var = float(line.w_var[0]), float(line.b_var[0])
    x = np.sqrt(q - b_var) * common_correlation(10, RHO)  # K^1 has the variance of the critical fixed point
    ntk = infinite_kernels(x, deep, "none", name, w_var, b_var)[1]
    condition = f"straight {name}, 10 inputs of correlation {RHO}"
    check_critical(evidence.varied, theory, ntk, False, f"critical {condition}")
    for factor, phase in ((0.7, "ordered"), (2.0, "chaotic")):
        ntk = infinite_kernels(x, 80, "none", name, factor * w_var, b_var)[1]
        chi_1 = analyse(name, w_var=factor * w_var, b_var=b_var).chi_1
        settled(evidence.varied, theory, chi_1, ntk, f"{phase} {condition}")


def check_exceptions(evidence: Evidence, theory: Theory, gram: np.ndarray) -> None:
    """Checks chaotic networks whose condition number does not go to 1."""
    norms = np.linspace(1, 2, len(gram))
    unequal = infinite_kernels(square_inputs(gram * np.outer(norms, norms)), 80, "weight_mean")[1]
    chi_1 = analyse("relu", normalization="weight_mean").chi_1
    settled(evidence.varied, theory, chi_1, unequal, f"weight mean, {len(gram)} digits of norms from 1 to 2")
    batch = analyse("relu", normalization="batch", batch_size=8)
    ntk = infinite_kernels(square_inputs(gram[:8, :8]), 80, "batch")[1]
    settled(evidence.varied, theory, batch.chi_1, ntk, "batch normalisation of 8 digits")


def search_depths(evidence: Evidence, straight: np.ndarray, x: np.ndarray) -> None:
    """Finds the depths from which the limits are good."""
    straight_kappa = condition_numbers(straight)
    far = np.flatnonzero(np.abs(straight_kappa / limit(1.0, len(x), True) - 1) > 0.05) + 1
    evidence.edge(
        "hidden layers, critical",
        float(far[-1]),
        f"up to here kappa is more than 5 % off (m + 3)/3; searched 1 to {len(straight)}, straight ReLU, 10 inputs of "
        f"correlation {RHO}",
    )
    evidence.note(
        f"not monotone on the critical line: kappa is {straight_kappa[0]:.2f} behind 1 hidden layer, rises to "
        f"{straight_kappa.max():.2f} at {straight_kappa.argmax() + 1} and falls towards {limit(1.0, len(x), True):.2f}"
    )
    kappa = condition_numbers(infinite_kernels(x, 80, "weight_mean")[1])
    evidence.edge(
        "hidden layers, chaotic",
        float(np.flatnonzero(kappa > 1.01)[-1] + 1),
        f"up to here kappa is more than 1 % above 1; searched 1 to 80, weight mean, 10 inputs of correlation {RHO}",
    )
