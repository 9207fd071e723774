"""In the chaotic phase the mean predictor of a trained network decays with depth: it memorises and says nothing."""

from typing import NamedTuple

import numpy as np

from ..by_depth import fitted
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, nearest
from .by_layer import dense_kernels, settled

CLAIM = Claim(
    id="mean_predictor_in_chaos",
    title="the mean predictor in chaos",
    statement="In the chaotic phase the mean predictor at new points decays with depth like l (chi_c* / chi_1)^l, "
    "chi_c* being the slope of the correlation map at its stable fixed point.",
    source="Section 3.3, Table 1",
    scope="A fully connected network of a smooth activation (erf), in NTK parametrisation, of infinite width, trained "
    "to the end on inputs of one norm, in the chaotic phase; labels of mean 0.",
    formula=r"\Theta_{\text{test}} \Theta_{\text{train}}^{-1} Y \sim l\, (\chi_{c^*} / \chi_1)^l",
    recorded=Verdict.HOLDS,
    summary="True where the labels have mean 0. Their mean is forgotten more slowly, like chi_1^-l: the kernel of two "
    "different inputs tends to a constant, which the factor chi_c*^l does not multiply.",
)


class Theory(NamedTuple):
    """Of l^a (chi_c*^b / chi_1)^l the powers a and b."""

    depth: float
    slope: float


THEORY = Theory(1.0, 1.0)
WRONG = {
    "no factor l": Theory(0.0, 1.0),
    "chi_1^-l alone": Theory(0.0, 0.0),
    "chi_c* squared": Theory(1.0, 2.0),
}
TRAINED, LAYERS, FROM = 5, 160, 40
LABELS = np.array([1.0, -1.0, 2.0, -2.0, 0.0])


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Fits the prediction at a new point by depth, for labels of mean 0 and of mean 1."""
    del setting  # one size
    evidence = Evidence()
    others = (THEORY, *WRONG.values())
    slope, depth = powers(LABELS)
    for what, index, (found, error) in (("chi_c*^l", 1, slope), ("l", 0, depth)):
        evidence.stated(
            f"power of {what} in the mean predictor",
            expected=theory[index],
            measured=found,
            tolerance=extrapolation(error, f"fit error over {FROM} to {LAYERS} layers"),
            rival=nearest(theory[index], (other[index] for other in others)),
            condition="labels of mean 0",
        )
    found, error = powers(LABELS + 1)[0]
    quantity, condition = "power of chi_c*^l in the mean predictor", "labels of mean 1"
    tolerance = extrapolation(error, f"fit error over {FROM} to {LAYERS} layers")
    evidence.varied(quantity, expected=THEORY.slope, measured=found, tolerance=tolerance, condition=condition)
    evidence.corrected(quantity, expected=0, measured=found, tolerance=tolerance, condition=condition)
    return evidence


def powers(labels: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Fits log |prediction| + l log chi_1 = b l log chi_c* + a log l + const + c/l; returns (b, error), (a, error)."""
    ntk = dense_kernels("chaotic", TRAINED + 1, LAYERS)[FROM - 1 :]
    _, chi_1, chi_c = settled("chaotic")
    said = np.linalg.solve(ntk[:, :TRAINED, :TRAINED], labels[None, :, None])[..., 0]
    depths = np.arange(FROM, LAYERS + 1, dtype=np.float64)
    values = np.log(np.abs(np.sum(ntk[:, TRAINED, :TRAINED] * said, axis=1))) + depths * np.log(chi_1)
    found, errors = fitted(values, depths * np.log(chi_c), np.log(depths), 1.0, 1 / depths)
    return (float(found[0]), float(errors[0])), (float(found[1]), float(errors[1]))
