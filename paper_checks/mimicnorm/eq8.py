"""Eq. 8: in a straight deep ReLU network every pair's correlation tends to 1."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from ntk_analysis.correlation import CorrelationByLayer, layer_correlations
from ntk_analysis.meanfield import MeanField, analyse, phase_diagram
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import five_sigma, inputs_of
from ..tolerances import extrapolation, nearest, quadrature, sampling

CLAIM = Claim(
    id="eq8",
    title="straight networks freeze",
    statement="With depth the NNGP kernel of a straight ReLU network loses all differences between inputs: the "
    "correlation of every pair tends to 1.",
    source="Eq. 8, Fig. 2, Supp. Fig. 1",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "sigma_w = sqrt 2, no biases; figures at width 300 (MNIST) and a network of 51 layers.",
    formula=r"\rho^{(L)} \to 1 \quad (L \to \infty)",
    recorded=Verdict.HOLDS,
    summary="True of ReLU, with and without biases, but slowly: 1 - rho falls like 44/L^2, and is still 0.012 at layer "
    "50. Smooth activations beyond the edge of chaos do not freeze (tanh with w_var = 2.5, b_var = 0.05 settles at "
    "0.447), nor do linear or weight-centered networks.",
    figures=("fig2", "supp1"),
)


class Theory(NamedTuple):
    """Correlation in the limit of depth, and (1 + depth, pairs) correlations layer by layer from the inputs'."""

    limit: float
    trajectory: Callable[[Any, int], Any]


def _trajectory(rho: Any, depth: int) -> Any:
    return analyse("relu").trajectory(rho, depth)


THEORY = Theory(1.0, _trajectory)
WRONG = {
    "correlations settle at 1/pi": Theory(1 / np.pi, _trajectory),
    "weight mean's recursion": Theory(1.0, lambda rho, depth: _centered().trajectory(rho, depth)),
    "frozen after one layer": Theory(1.0, lambda rho, depth: np.stack([rho] + [np.ones_like(rho)] * depth)),
}


def _centered() -> MeanField:
    return analyse("relu", normalization="weight_mean")


GRAM = [[1.0, -0.45, 0.5], [-0.45, 1.0, 0.0], [0.5, 0.0, 1.0]]
PAIRS = np.array([[0, 1], [0, 2], [1, 2]])
STARTS = np.array([-0.9, 0.0, 0.5, 0.9])
DEPTH, NARROW = 50, 16
SHOWN = (5, 10, 20, 50)
TANH_BIAS = 0.05


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks the limit of the recursion, networks of the paper's depth, narrow ones, and maps that do not freeze."""
    evidence = Evidence()
    limits(evidence, theory, setting.size(512, 4096))
    draws, width = setting.size((48, 128), (100, 300))
    cases = (evidence.stated, width, Relation.EQUAL), (evidence.varied, NARROW, Relation.AT_LEAST)
    for row, units, relation in setting.track(cases, "eq8: networks"):
        networks(functools.partial(row, relation=relation), theory, units, draws, setting.seed)
    other_maps(evidence, theory)
    edge = brentq(_excess, 1.2, 2.5, xtol=1e-6)
    evidence.edge("w_var of tanh", float(edge), f"chi_1 = 1 at b_var = {TANH_BIAS}; above, correlations stay below 1")
    return evidence


def limits(evidence: Evidence, theory: Theory, depth: int) -> None:
    """Extrapolates to infinite depth in 1/L^2, from L and 2 L; the error is the change from half the depth."""
    rho = _trajectory(STARTS, 2 * depth)
    extrapolated = [rho[2 * n] + (rho[2 * n] - rho[n]) / 3 for n in (depth // 2, depth)]
    evidence.stated(
        "correlation in the limit of depth",
        expected=theory.limit,
        measured=extrapolated[1],
        tolerance=extrapolation(
            np.abs(extrapolated[1] - extrapolated[0]), f"change of the extrapolation from depth {depth} to {2 * depth}"
        ),
        rival=nearest(theory.limit, (other.limit for other in (THEORY, *WRONG.values()))),
        condition=f"correlation of the inputs {STARTS[0]} to {STARTS[-1]}",
    )
    scaled = float((1 - rho[-1, 1]) * (2 * depth) ** 2)
    evidence.note(f"(1 - rho) L^2 = {scaled:.2f} at L = {2 * depth} for inputs of correlation 0: no exponential decay")


@functools.cache  # measured once for all theories
def measured(width: int, draws: int, seed: int) -> CorrelationByLayer:
    """Returns correlations over the channels of the pre-activations, layer by layer."""
    return layer_correlations(
        fully_connected(DEPTH, width), inputs_of(GRAM), PAIRS, seed=seed, draws=draws, observable="pre_activation"
    )


def networks(row: Callable[..., Any], theory: Theory, width: int, draws: int, seed: int) -> None:
    """Checks the correlation of the pre-activations over the channels, averaged over networks."""
    found = measured(width, draws, seed)
    expected, *others = (
        np.asarray(one.trajectory(found.initial, DEPTH - 1)).mean(axis=1) for one in (theory, THEORY, *WRONG.values())
    )
    rivals = nearest(expected, others)
    for layer in SHOWN:
        row(
            f"mean correlation at layer {layer}",
            expected=expected[layer - 1],
            measured=found.mean()[layer - 1],
            tolerance=sampling(
                five_sigma(draws) * found.mean_error()[layer - 1], f"5 sigma of {draws} networks by Student's t", draws
            ),
            rival=rivals[layer - 1],
            condition=f"width {width}, three pairs of inputs",
        )


def other_maps(evidence: Evidence, theory: Theory) -> None:
    """Checks where blocks of other kinds settle."""
    blocks = {
        "relu, b_var 0.1": analyse("relu", b_var=0.1),
        "abs": analyse("abs"),
        f"tanh in its ordered phase, w_var 1.5, b_var {TANH_BIAS}": _tanh(1.5),
        f"tanh in its chaotic phase, w_var 2.5, b_var {TANH_BIAS}": _tanh(2.5),
        "relu, weight mean": _centered(),
    }
    for condition, block in blocks.items():
        stable = [point.correlation for point in block.fixed_points if point.stable][-1]
        because = "relative error of the block's quadrature, and rounding of the root"
        tolerance = max(float(block.chi_1_error or 0), 1e-12)
        evidence.varied(
            "stable correlation",
            expected=theory.limit,
            measured=stable,
            tolerance=quadrature(tolerance, because),
            condition=condition,
        )
    if analyse("identity").every_correlation_fixed:
        evidence.note("a linear network keeps every correlation")


def _excess(w_var: float) -> float:
    return float(phase_diagram("tanh", w_var=w_var, b_var=TANH_BIAS).chi_1[0, 0]) - 1


def _tanh(w_var: float) -> MeanField:
    return analyse("tanh", w_var=w_var, b_var=TANH_BIAS)
