"""The rule of the verdict, its thresholds, and what would decide where nothing is decided."""

import math
from typing import NamedTuple

from ntk_analysis.diagnosis.growth import Growth

THRESHOLD = 0.125  # bound on |ln chi_1| per layer: "critical" is a correlation length of at least 8 layers
VERDICTS = ("ordered", "critical", "chaotic", "not decidable")
MOST_TIMES = 100  # factor of width and of shuffles that is still advised
MOST_LAYERS = 10_000  # number of layers that is still advised


class Verdict(NamedTuple):
    """One of VERDICTS, and the reason for it."""

    phase: str
    reason: str


def verdict_of(growth: Growth, products: int, ntk_ratio: float, *, threshold: float = THRESHOLD) -> Verdict:
    """The phase, from an interval of ln chi_1 = ln G / layers, with layers = products - 1.

    Half the interval's width is `half_width`: the standard error of `Growth.estimate` at Student's 95 % quantile, and a
    factor of 2 for what happens once and not per layer. That factor is what a critical network may show: by mean-field
    theory |ln G| of a critical tanh network stays below 0.65 at any depth, for inputs of a mean square from 1/2 to 2
    and a variance q* up to 3, and that of He's ReLU is 0. Other inputs are tried at mean square 1, too, and the factor
    grows by the difference.

    If all of the interval is below 0, the network is ordered; if all is above 0, chaotic; if it contains 0 and lies
    within +-threshold, critical. Otherwise it is not decidable, and the reason says how many layers or shuffles would
    decide it.

    It is not decidable either if the other evidence contradicts: ordered with outputs less alike than inputs or an NTK
    that is nearly diagonal (ratio below 1/4), chaotic with outputs all alike (above 0.95) or an NTK near rank one
    (ratio above 3/4). Nor is it where outputs, or their derivatives by the inputs, are zero.
    """
    if math.isnan(growth.log_gain):
        return Verdict("not decidable", "outputs are zero for all inputs: a dead network, as by large negative biases")
    if growth.log_gain == -math.inf:
        return Verdict("not decidable", "outputs have no slope by the inputs: all units of a layer saturated or dead")
    layers = products - 1
    if layers < 1:
        return Verdict("not decidable", f"{products} matrix products in a row have no layer between them: too shallow")
    center, half = growth.estimate[0] / layers, half_width(growth, layers)
    low, high = center - half, center + half
    interval = f"ln chi_1 in [{low:.3g}, {high:.3g}] over {_count(layers)}"
    if high < 0:
        against = (
            "outputs are less alike than inputs"
            if growth.outputs_alike < growth.inputs_alike - growth.outputs_alike_error
            else ""
        )
        against = against or ("the NTK is nearly diagonal" if ntk_ratio < 0.25 else "")
        return _unless(against, Verdict("ordered", f"{interval}, below 0: differences die"))
    if low > 0:
        against = "outputs are all alike" if growth.outputs_alike > 0.95 else ""
        against = against or ("the NTK is nearly of rank one" if ntk_ratio > 0.75 else "")
        return _unless(against, Verdict("chaotic", f"{interval}, above 0: differences grow"))
    if -threshold <= low and high <= threshold:
        said = "differences neither die nor grow" + _fading(growth, layers, threshold)
        return Verdict("critical", f"{interval}, 0 among them and all within +-{threshold:g}: {said}")
    reason = f"{interval}, 0 among them and not all within +-{threshold:g}"
    return Verdict("not decidable", f"{reason}: {_what_decides(growth, layers, threshold)}")


def half_width(growth: Growth, layers: int) -> float:
    """Half the width of the interval of ln chi_1: statistical error, and `ends` for what happens once."""
    return (growth.quantile * growth.estimate[1] + growth.ends) / layers


def _unless(against: str, verdict: Verdict) -> Verdict:
    return Verdict("not decidable", f"{verdict.reason}, but {against}") if against else verdict


def _fading(growth: Growth, layers: int, threshold: float) -> str:
    """A remark for a signal that fades from layer to layer: differences fade with it, however little they are lost."""
    fading = math.log(growth.scale) / layers if 0 < growth.scale < math.inf else 0.0
    if fading >= -threshold:
        return ""
    return f" relative to the signal, which fades: its square falls to {math.exp(fading):.2g} of itself per layer"


def _what_decides(growth: Growth, layers: int, threshold: float) -> str:
    """The depth at which the same rate would be decided, and the shuffles, or the width, that decide it at this depth.

    The error of ln G grows like the root of the depth, and falls like one over the root of width and of shuffles.
    """
    gain, error = growth.estimate
    rate, noise = abs(gain) / layers, growth.quantile * error / math.sqrt(layers)
    deeper = min(_depth(slope, noise, growth.ends) for slope in (rate, threshold - rate))
    ways = [f"about {deeper:,.0f} layers like these would decide it"] if deeper <= MOST_LAYERS else []
    spare = max(abs(gain), threshold * layers - abs(gain)) - growth.ends  # what the error may be at this depth
    times = (growth.quantile * error / spare) ** 2 if spare > 0 else math.inf
    if times > MOST_TIMES:
        return ", but ".join([f"too shallow for any width and any number of shuffles at {_count(layers)}", *ways])
    if growth.typical:
        ways.append(f"{math.ceil(times * (growth.shuffles + 1)):,} shuffles of the weights")
    return ", or ".join([*ways, f"layers {times:.2g} times as wide"])


def _count(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers:,} layers"


def _depth(slope: float, noise: float, ends: float) -> float:
    """Smallest whole L with slope L >= noise sqrt(L) + ends; infinite for a slope that is not positive."""
    if not slope > 0 or not math.isfinite(noise):
        return math.inf
    return float(math.ceil(((noise + math.sqrt(noise**2 + 4 * slope * ends)) / (2 * slope)) ** 2))
