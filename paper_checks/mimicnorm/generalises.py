"""Generalisation: does a better conditioned tangent kernel learn better?"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from scipy.stats import t

from ntk_analysis import batch_norm, data
from ntk_analysis.depth_study.generalisation import Measures, measure
from ntk_analysis.depth_study.kernels import kernels
from ntk_analysis.meanfield import analyse
from ntk_analysis.regression import KernelClassifier

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import extrapolation, rounding, sampling

Theory: TypeAlias = Callable[[str], float]

CLAIM = Claim(
    id="generalises",
    title="conditioning and generalisation",
    statement="The better conditioned tangent kernel learns better: the chaotic, weight-centered network generalises "
    "at least as well as the straight one. (Implied by the paper's use of the condition number.)",
    source="Sec. 3, Thm. 1; what its argument leaves out (Xiao et al. 2019)",
    scope="At the depth of the paper's kernels, 50 hidden layers.",
    formula=r"\|\Theta_* \Theta^{-1} y\| = O\left(L\, (\chi_{c^*} / \chi_1)^L\right)",
    recorded=Verdict.FAILS,
    summary="At depth 50 the centered kernel is the identity: it fits its images at once and says nothing of others. "
    "Its mean prediction shrinks like L 2^-L and explains none of the test targets, and one trained network is at "
    "chance, where the straight network is not. Only the order of the classes survives, in the mean over all networks. "
    "With batch norm it does not: behind the statistics of 30 training images the mean prediction of 10 layers gets "
    "18 % right, where that of the straight network gets 68 %.",
    figures=("generalisation", "condition_number"),
    question=True,
)


def decay(which: str) -> float:
    """Returns the factor per layer by which a deep weight-centered network's mean prediction on new inputs decays."""
    field = analyse("relu", normalization="weight_mean")
    slope = next(point.slope for point in field.fixed_points if point.stable)
    assert field.chi_1 is not None
    return slope if which == "nngp" else slope / field.chi_1


THEORY: Theory = decay
WRONG: dict[str, Theory] = {
    "the NNGP's rate for both": lambda which: decay("nngp"),
    "1/chi_1 for the tangent kernel": lambda which: decay("nngp") if which == "nngp" else decay("ntk") / decay("nngp"),
    "no decay": lambda which: 1.0,
}
DEPTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)
BATCH_DEPTHS = (2, 10)
COMPARED = ("ensemble", "single", "explained")
NAMES = {
    "ensemble": "test accuracy of the mean prediction",
    "single": "test accuracy of one network",
    "explained": "share of the test targets' squares that the mean prediction explains",
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares both networks by depth on digits, half of them for training, over several random splits."""
    evidence = Evidence()
    images, splits = setting.size((200, 6), (1000, 10))
    chosen = data.load_digits().subset(images, setting.seed)
    x, labels = data.preprocess(chosen.images, image_centering="dataset"), chosen.labels
    generator, half = np.random.default_rng(setting.seed), images // 2
    orders = [generator.permutation(images) for _ in range(splits)]
    found, deep = {}, {}
    for name in setting.track(("none", "weight_mean"), "generalises: kernels"):
        deep[name] = kernels(x, name, DEPTHS)
        found[name] = [
            [measure(nngp, ntk, labels, train=order[:half], test=order[half:], seed=setting.seed) for order in orders]
            for nngp, ntk in deep[name]
        ]
    for index in (DEPTHS.index(50), DEPTHS.index(2)):
        compare(evidence, found, index, half)
    for column, which in enumerate(("nngp", "ntk")):
        decays(evidence, theory, which, deep["weight_mean"][:, column], labels, orders[0])
    edges(evidence, found)
    with_batch_norm(evidence, setting)
    return evidence


def with_batch_norm(evidence: Evidence, setting: Setting) -> None:
    """Compares batch norm, which predicts with the statistics of its training images, with none."""
    half, splits = setting.size((30, 4), (100, 6))
    chosen = data.load_digits().subset(2 * half, setting.seed)
    x, generator = data.preprocess(chosen.images, image_centering="dataset"), np.random.default_rng(setting.seed)
    train, test = np.split(np.arange(2 * half), 2)
    weights = np.repeat([1 / half, 0.0], half)
    found: dict[str, list[list[Measures]]] = {"none": [], "batch": []}
    for order in [generator.permutation(2 * half) for _ in range(splits)]:
        for name, measures in found.items():
            images = x[order]
            pairs = predicting(images, weights) if name == "batch" else kernels(images, name, BATCH_DEPTHS)
            labels = chosen.labels[order]
            measures.append(
                [measure(nngp, ntk, labels, train=train, test=test, seed=setting.seed) for nngp, ntk in pairs]
            )
    for index, depth in enumerate(BATCH_DEPTHS):
        straight, batch = (np.array([one[index].ensemble for one in found[name]]) for name in ("none", "batch"))
        evidence.varied(
            NAMES["ensemble"],
            expected=straight.mean(),
            measured=batch.mean(),
            tolerance=sampling(
                max(t.isf(0.005, splits - 1) * (batch - straight).std(ddof=1) / np.sqrt(splits), 1 / half),
                f"Student's t at 99 % over {splits} random splits, at least one test image",
            ),
            relation=Relation.AT_LEAST,
            condition=f"batch norm, statistics of its {half} training images, against none, {depth} hidden layers",
        )


def predicting(x: np.ndarray, weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns NNGP and NTK at `BATCH_DEPTHS` behind batch norms whose statistics are of inputs with these weights."""
    sigma = theta = x @ x.T / x.shape[1]
    found = []
    for depth in range(1, max(BATCH_DEPTHS) + 1):
        behind = batch_norm.propagate(sigma, theta, weights=weights)
        sigma, theta = 2 * np.asarray(behind.nngp), 2 * np.asarray(behind.nngp + behind.pushed)
        if depth in BATCH_DEPTHS:
            found.append((sigma, theta))
    return found


def compare(evidence: Evidence, found: dict[str, list[list[Measures]]], index: int, tests: int) -> None:
    """Compares weight mean with none at one depth; at depth 50 as stated."""
    row = evidence.stated if DEPTHS[index] == 50 else evidence.varied
    condition = f"weight mean against none, {DEPTHS[index]} hidden layers, {tests} training images of digits"
    row(
        "condition number",
        expected=mean(found["none"][index], "condition_number"),
        measured=mean(found["weight_mean"][index], "condition_number"),
        tolerance=rounding(1e-9, "rounding"),
        relation=Relation.AT_MOST,
        condition=condition,
    )
    for key in COMPARED:
        straight, centered = (
            np.array([getattr(one, key) for one in found[name][index]]) for name in ("none", "weight_mean")
        )
        difference = centered - straight
        row(
            NAMES[key],
            expected=straight.mean(),
            measured=centered.mean(),
            tolerance=sampling(
                max(t.isf(0.0005, len(difference) - 1) * difference.std(ddof=1) / np.sqrt(len(difference)), 1 / tests),
                f"Student's t at 99.9 % over {len(difference)} random splits, at least one test image",
            ),
            relation=Relation.AT_LEAST,
            condition=condition,
        )


def mean(splits: list[Measures], key: str) -> float:
    """Returns the mean of one of the `Measures` over splits."""
    return float(np.mean([getattr(one, key) for one in splits]))


def decays(
    evidence: Evidence, theory: Theory, which: str, matrices: np.ndarray, labels: np.ndarray, order: np.ndarray
) -> None:
    """Checks the decay of the mean prediction on test images: A r^L under the NNGP, A (L + a) r^L under the NTK."""
    half, sizes = len(order) // 2, []
    train, test = order[:half], order[half:]
    for matrix in matrices[-4:]:
        classifier = KernelClassifier("precomputed", which="nngp" if which == "nngp" else "ntk")
        outputs = classifier.fit(matrix[np.ix_(train, train)], labels[train]).outputs(matrix[np.ix_(test, train)])
        sizes.append(float(np.sqrt(np.mean(outputs**2))))
    rate = of_line if which == "ntk" else of_power
    early, late = (rate(DEPTHS[-4:][k : k + 3], sizes[k : k + 3]) for k in (0, 1))
    evidence.corrected(
        "decay per layer of the mean prediction" + (", beside a factor linear in depth" if which == "ntk" else ""),
        expected=theory(which),
        measured=late,
        tolerance=extrapolation(abs(late - early), "change from depths 20, 30, 40 to depths 30, 40, 50"),
        condition=f"weight mean, {which.upper()}, root mean square over test images",
    )


def of_power(depths: tuple[int, ...], sizes: list[float]) -> float:
    """Returns r of A r^L, from the last two sizes."""
    return (sizes[2] / sizes[1]) ** (1 / (depths[2] - depths[1]))


def of_line(depths: tuple[int, ...], sizes: list[float]) -> float:
    """Returns r of A (L + a) r^L, from three evenly spaced depths."""
    first, second, gap = sizes[1] / sizes[0], sizes[2] / sizes[1], depths[1] - depths[0]
    middle = gap / np.sqrt(1 - second / first)  # L + a at the middle one, as first / second = m^2 / (m^2 - gap^2)
    return float((second * middle / (middle + gap)) ** (1 / gap))


def edges(evidence: Evidence, found: dict[str, list[list[Measures]]]) -> None:
    """Finds the first depth at which weight mean does worse, by each measure."""
    for key in COMPARED:
        worse = [mean(c, key) < mean(s, key) for s, c in zip(found["none"], found["weight_mean"], strict=True)]
        start = next((depth for k, depth in enumerate(DEPTHS) if all(worse[k:])), None)
        evidence.edge("hidden layers", start, f"from here on weight mean is below none in {NAMES[key]}")
