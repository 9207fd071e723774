"""The rule of the verdict, and its thresholds."""

import math
from typing import NamedTuple

from ntk_analysis.diagnosis.growth import ENDS, QUANTILE, Growth

THRESHOLD = 0.1  # bound on |ln chi_1| per layer: "critical" is a correlation length of at least 10 layers
VERDICTS = ("ordered", "critical", "chaotic", "not decidable")


class Verdict(NamedTuple):
    """One of VERDICTS, and the reason for it."""

    phase: str
    reason: str


def verdict_of(growth: Growth, products: int, ntk_ratio: float, *, threshold: float = THRESHOLD) -> Verdict:
    """The phase, from an interval of ln chi_1 = ln G / layers, with layers = products - 1.

    Half the interval's width is (t error + ln 2) / layers: the standard error of `Growth.estimate` at Student's 95 %
    quantile t, and a factor of 2 for what happens once and not per layer. If all of the interval is below -threshold,
    the network is ordered; if all is above threshold, chaotic; if all is between the two, critical. Otherwise it is not
    decidable. It is not decidable either if the other evidence contradicts: ordered with outputs less alike than inputs
    or an NTK that is nearly diagonal (ratio below 1/4), chaotic with outputs all alike (above 0.95) or an NTK near rank
    one (ratio above 3/4). Nor is it where outputs, or their derivatives by the inputs, are zero.
    """
    if math.isnan(growth.log_gain):
        return Verdict("not decidable", "outputs are zero for all inputs: a dead network, as by large negative biases")
    if growth.log_gain == -math.inf:
        return Verdict("not decidable", "outputs have no slope by the inputs: all units of a layer saturated or dead")
    layers = products - 1
    if layers < 1:
        return Verdict("not decidable", f"{products} matrix products in a row have no layer between them: too shallow")
    gain, error = growth.estimate
    center, half = gain / layers, (QUANTILE * error + ENDS) / layers
    low, high = center - half, center + half
    interval = f"ln chi_1 in [{low:.3g}, {high:.3g}] over {layers} layers"
    if high < -threshold:
        against = (
            "outputs are less alike than inputs"
            if growth.outputs_alike < growth.inputs_alike - growth.outputs_alike_error
            else ""
        )
        against = against or ("the NTK is nearly diagonal" if ntk_ratio < 0.25 else "")
        return _unless(against, Verdict("ordered", f"{interval}, below -{threshold:g}: differences die"))
    if low > threshold:
        against = "outputs are all alike" if growth.outputs_alike > 0.95 else ""
        against = against or ("the NTK is nearly of rank one" if ntk_ratio > 0.75 else "")
        return _unless(against, Verdict("chaotic", f"{interval}, above {threshold:g}: differences grow"))
    if -threshold <= low and high <= threshold:
        return Verdict("critical", f"{interval}, within +-{threshold:g}: differences neither die nor grow")
    shallow = f": too shallow for +-{threshold:g}" if ENDS / layers > threshold else f", which contains +-{threshold:g}"
    return Verdict("not decidable", f"{interval}{shallow}" if half > threshold else f"{interval}, across a boundary")


def _unless(against: str, verdict: Verdict) -> Verdict:
    return Verdict("not decidable", f"{verdict.reason}, but {against}") if against else verdict
