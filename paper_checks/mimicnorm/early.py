"""Sec. 5, Fig. 6 and 7: weight mean speeds up early training."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import sampling
from .recorded import FULL_VGG16, NARROW_VGG16, TRAIN, of_single_runs, study
from .trained import NAMES, Mlp, because, interval, seeds_of


class Theory(NamedTuple):
    """The signs of what weight mean gains, and of how the gain changes with depth."""

    gain: int
    growth: int


CLAIM = Claim(
    id="early",
    title="early training",
    statement="Weight mean speeds up the first epochs of training, and more so in deeper networks.",
    source="Section 5, Fig. 6 and 7",
    scope="VGG16, ResNet18 and ResNet50 on CIFAR-100, the first epochs (Fig. 6 and 7).",
    recorded=Verdict.OPEN,
    summary="In MLPs on digits, at rate 0.01, weight mean gains 2 points of training accuracy in three epochs at 3 "
    "hidden layers, 13 at 10 and 24 at 13, but loses 21 at 19; at rate 0.003 it is behind from 16 on. Test accuracy "
    "follows. On 5,000 images of MNIST it gains 1 to 3 points at 3 and 5 hidden layers and is behind from 10 (rate "
    "0.01) or 13 on. A VGG16 of a quarter of its channels on part of CIFAR-10 gains 3 points in three epochs, within "
    "the error.",
    figures=("learning_rates",),
    published=(
        Published("best accuracy of VGG16 in 10 epochs at rate 0.01, weight mean, %", 34.81, "Table 2"),
        Published("the same without normalisation, %", 22.12, "Table 2"),
    ),
)

THEORY = Theory(1, 1)
WRONG = {
    "weight mean slows training down": Theory(-1, 1),
    "it speeds up shallow networks more": Theory(1, -1),
}
EPOCHS = 3
RATE = 0.01  # the smallest of the paper's Table 2
SMALLER_RATE = 0.00316228
RECORDED_RATE = 0.02
FULL_RATES = (0.01, 0.02, 0.05, 0.1)
SHALLOW, DEEP, DEEPEST = 3, 10, 19  # hidden layers
OPEN = (
    "the claim is about VGG16 and ResNets on CIFAR-100, as the paper trains them: Fig. 6 and 7 for ten epochs, with "
    "three seeds; MLPs, a narrow VGG16 and a variant of VGG16 at full width were trained here"
)
WORDS = {"train": "training", "test": "test"}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares best accuracies in three epochs with and without weight mean, on digits and in full on MNIST too."""
    evidence = Evidence(open=OPEN)
    seeds = seeds_of(setting.seed, setting.size(16, 32))
    depths = setting.size((SHALLOW, DEEP, DEEPEST), (SHALLOW, 5, DEEP, 13, 16, DEEPEST))
    by_depth(evidence, theory, "digits", setting.track(depths, "early: digits"), RATE, seeds)
    if setting.full:
        by_depth(evidence, theory, "digits", depths, SMALLER_RATE, seeds)
        few = seeds_of(setting.seed, 8)
        for rate in (RATE, SMALLER_RATE):
            by_depth(evidence, theory, "mnist5k", setting.track(depths, f"early: MNIST, {rate:g}"), rate, few)
    _recorded(evidence, theory)
    _full_width(evidence, theory)
    return evidence


def by_depth(
    evidence: Evidence,
    theory: Theory,
    data: str,
    depths: Iterable[int],
    rate: float,
    seeds: tuple[int, ...],
) -> None:
    """Adds rows of one data set and rate."""
    found = {}
    for depth in depths:
        subject = Mlp(depth, data)
        found[depth] = gains("train", subject, rate, seeds)
        _row(evidence, "train", theory.gain * found[depth], subject, f"rate {rate:g}")
        test = theory.gain * gains("test", subject, rate, seeds)
        _row(evidence, "test", test, subject, f"rate {rate:g}")
    growth = theory.growth * (found[DEEP] - found[SHALLOW])
    _row(evidence, "train", growth, Mlp(DEEP, data), f"less with {SHALLOW}, rate {rate:g}")
    lost = next((depth for depth, values in found.items() if values.mean() < 0), None)
    meaning = f"first of {tuple(found)} at which weight mean is behind on {NAMES[data]}, rate {rate:g}"
    evidence.edge("hidden layers", lost, meaning)


def gains(part: str, subject: Mlp, rate: float, seeds: tuple[int, ...]) -> np.ndarray:
    """Returns the gain of accuracy by seed; weights and shuffles come from one key with and without weight mean."""
    straight, centered = (subject.best(part, name, (rate,), seeds, EPOCHS)[0] for name in ("none", "weight_mean"))
    return centered - straight


def _recorded(evidence: Evidence, theory: Theory) -> None:
    """Adds rows of a narrow VGG16, at the rate that suits it best both with and without weight mean."""
    found = study(NARROW_VGG16)
    for epochs in (EPOCHS, None):
        straight, centered = (found.best("train", name, RECORDED_RATE, epochs) for name in ("none", "weight_mean"))
        gained = theory.gain * (centered - straight)
        evidence.varied(
            f"training accuracy that weight mean gains in {epochs or 'all'} epochs",
            expected=0.0,
            measured=gained.mean(),
            tolerance=sampling(interval(gained, 1 / TRAIN), because(len(gained), "one image"), len(gained)),
            relation=Relation.AT_LEAST,
            condition=f"{found.condition}, rate {RECORDED_RATE:g}",
        )


def _full_width(evidence: Evidence, theory: Theory) -> None:
    """Adds rows of a VGG16 of all its channels, at the rates at which weight mean does not diverge, one seed each."""
    found = study(FULL_VGG16)
    for epochs in (EPOCHS, None):
        straight, centered = (
            np.array([found.best("train", name, rate, epochs)[0] for rate in FULL_RATES])
            for name in ("none", "weight_mean")
        )
        evidence.varied(
            f"training accuracy that weight mean gains in {epochs or 'all'} epochs",
            expected=0.0,
            measured=theory.gain * (centered - straight),
            tolerance=of_single_runs(found, "train", epochs),
            relation=Relation.AT_LEAST,
            condition=f"{found.condition}, rates {', '.join(f'{rate:g}' for rate in FULL_RATES)}",
        )


def _row(evidence: Evidence, part: str, values: np.ndarray, subject: Mlp, where: str) -> None:
    evidence.varied(
        f"{WORDS[part]} accuracy that weight mean gains in {EPOCHS} epochs",
        expected=0.0,
        measured=values.mean(),
        tolerance=sampling(
            interval(values, 1 / len(getattr(subject.dataset, part).images)), because(len(values), "one image")
        ),
        relation=Relation.AT_LEAST,
        condition=f"{subject.condition}, {where}",
    )
