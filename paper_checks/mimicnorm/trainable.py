"""Trainability: does a decorrelated, well conditioned network bear larger learning rates, and train faster?"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from scipy.stats import t

from ntk_analysis import data, spectrum
from ntk_analysis.depth_study.kernels import tangent_kernels
from ntk_analysis.depth_study.trainability import first_depth, largest_eigenvalues, mini_batches, stability
from ntk_analysis.descent import loss_curve
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import extrapolation, resolution, rounding, sampling

Theory: TypeAlias = Callable[[np.ndarray], float]

CLAIM = Claim(
    id="trainable",
    title="decorrelation and trainability",
    statement="A chaotic network, whose inputs decorrelate, has a better conditioned tangent kernel than a straight "
    "one, and so trains at larger learning rates and in fewer steps. (Implied by the paper's use of the "
    "condition number.)",
    source="Sec. 3, Thm. 1; what its argument leaves out",
    scope="Networks as deep as those that the paper trains, on the whole training set.",
    formula=r"\eta_{\max} = 2 / \lambda_{\max}(\Theta)",
    recorded=Verdict.HOLDS,
    summary="True at the depths of the paper's VGGs: at 13 hidden layers and the full set of digits the centered "
    "network bears 11 times the rate, it is better conditioned, and training takes fewer steps at each network's own "
    "rate. But the largest rate is 2/lambda_max, and lambda_max grows like 1.4669^L under weight centering, linearly "
    "in L without: from 22 hidden layers on (14 for a mini-batch of 128) the centered network bears the smaller rate, "
    "at 50 layers 25,000 times smaller. The paper credits large rates to the last batch norm, see lr.",
    figures=("trainability", "condition_number"),
)

THEORY: Theory = spectrum.largest_stable_learning_rate
WRONG: dict[str, Theory] = {
    "1 over the largest eigenvalue": lambda kernel: 1 / float(np.linalg.eigvalsh(kernel)[-1]),
    "2 over the diagonal": lambda kernel: 2 / float(np.mean(np.diagonal(kernel))),
    "2 over the mean of largest and smallest eigenvalue": lambda kernel: (
        4 / float(np.linalg.eigvalsh(kernel)[[0, -1]].sum())
    ),
}
DEPTH = 50
PAPERS = (10, 15)  # hidden layers of VGG11 and VGG16
ROUNDING = 1e-9  # relative, of largest eigenvalues: some hundred operations a layer, times 50 layers, in float64


def by_depth(x: np.ndarray, normalization: str, parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns largest eigenvalues (depths, full set or mini-batch) of depth 1 to 50, and the last kernel."""
    found = []
    for kernel in tangent_kernels(x, normalization, range(1, DEPTH + 1)):
        found.append(largest_eigenvalues(kernel, parts))
    return np.array(found), kernel


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks infinite width by depth, on digits, then finite networks."""
    evidence = Evidence()
    images, batch = setting.size((200, 64), (1797, 128))
    chosen = data.load_digits().subset(images, setting.seed)
    x = data.preprocess(chosen.images, image_centering="dataset")
    infinite(evidence, theory, x, batch, setting)
    signs = np.where(chosen.labels % 2 == 0, 1.0, -1.0)
    finite(evidence, theory, x, signs, setting)
    return evidence


def infinite(evidence: Evidence, theory: Theory, x: np.ndarray, batch: int, setting: Setting) -> None:
    """Checks rates and condition numbers at depth 50, and the depth from which on centering bears less."""
    parts = mini_batches(len(x), batch, setting.size(3, 10), setting.seed)
    largest, kernels = {}, {}
    for name in setting.track(("none", "weight_mean"), "trainable: kernels"):
        largest[name], kernels[name] = by_depth(x, name, parts)
    evidence.varied(
        "largest stable rate of weight mean / none",
        expected=1.0,
        measured=theory(kernels["weight_mean"]) / theory(kernels["none"]),
        tolerance=rounding(ROUNDING, "rounding"),
        relation=Relation.AT_LEAST,
        condition=f"infinite width, {DEPTH} hidden layers, {len(x)} images",
    )
    evidence.stated(
        "condition number",
        expected=spectrum.condition_number(kernels["none"]),
        measured=spectrum.condition_number(kernels["weight_mean"]),
        tolerance=rounding(ROUNDING, "rounding"),
        part="better conditioned",
        relation=Relation.AT_MOST,
        condition=f"weight mean against none, infinite width, {DEPTH} hidden layers",
    )
    centered, depths = largest["weight_mean"], np.arange(1, DEPTH + 1)
    evidence.corrected(
        "growth per layer of the largest eigenvalue",
        expected=analyse("relu", normalization="weight_mean").chi_1,
        measured=centered[-1, 0] / centered[-2, 0],
        tolerance=extrapolation(
            centered[-1, 0] / np.mean(np.diagonal(kernels["weight_mean"])) - 1 + 1 / centered[-2, 0] + ROUNDING,
            "what is left of the outlier, the last layer's own kernel, rounding",
        ),
        condition=f"weight mean, {DEPTH} hidden layers",
    )
    for column, what in enumerate((f"all {len(x)} images", f"mini-batches of {batch}")):
        ratio = largest["none"][:, column] / centered[:, column]
        for depth in (5, *PAPERS, 20):
            quantity, condition = "largest stable rate of weight mean / none", f"infinite width, {depth} layers, {what}"
            values: dict[str, Any] = {
                "expected": 1.0,
                "measured": ratio[depth - 1],
                "tolerance": rounding(ROUNDING, "rounding"),
            }
            where: dict[str, Any] = {"relation": Relation.AT_LEAST, "condition": condition}
            if depth in PAPERS and not column:
                evidence.stated(quantity, **values, **where, part="larger rates")
            else:
                evidence.varied(quantity, **values, **where)
        evidence.edge(
            "hidden layers", first_depth(depths, ratio < 1), f"from here on weight mean bears the smaller rate, {what}"
        )


def finite(evidence: Evidence, theory: Theory, x: np.ndarray, signs: np.ndarray, setting: Setting) -> None:
    """Checks rates by bisection against 2/lambda_max of the networks' own kernels, and steps at each one's own rate."""
    depth, width, images, draws, steps = setting.size((10, 32, 24, 16, 20), (15, 128, 64, 16, 100))
    inputs, y = x[:images], signs[:images, None]
    keys = jax.random.split(jax.random.key(setting.seed), draws)
    rates, left = {}, {}
    for name in setting.track(("none", "weight_mean"), "trainable: networks"):
        found = [stability(inputs, name, depth=depth, width=width, steps=steps, key=key) for key in keys]
        rates[name] = np.array([one.rate for one in found])
        evidence.corrected(
            "largest stable learning rate, by bisection",
            expected=[theory(one.kernel) for one in found],
            measured=rates[name],
            tolerance=resolution(
                [(one.bias + one.error) * one.rate for one in found],
                "bracket of the bisection, and what few steps let pass",
            ),
            condition=f"{draws} networks, {name}, {depth} hidden layers, width {width}, {images} images, near targets",
        )
        left[name] = np.array(
            [
                loss_left(inputs, y, name, depth, width, steps, rate / 2, key)
                for rate, key in zip(rates[name], keys, strict=True)
            ]
        )
    difference = np.log(rates["weight_mean"] / rates["none"])
    evidence.varied(
        "log of the largest stable rate of weight mean / none",
        expected=0.0,
        measured=difference.mean(),
        tolerance=sampling(interval(difference), f"Student's t at 99 % for {draws} pairs of networks"),
        relation=Relation.AT_LEAST,
        condition=f"finite networks, {depth} hidden layers, {images} images",
    )
    difference = np.log(left["weight_mean"] / left["none"])
    evidence.stated(
        f"log of what is left of the loss after {steps} steps, weight mean / none",
        expected=0.0,
        measured=difference.mean(),
        tolerance=sampling(interval(difference), f"Student's t at 99 % for {draws} pairs of networks", draws),
        part="fewer steps",
        relation=Relation.AT_MOST,
        condition="parity of digits, each network at half its own largest rate",
    )


def loss_left(
    x: np.ndarray, y: np.ndarray, name: str, depth: int, width: int, steps: int, rate: float, key: jax.Array
) -> float:
    """Returns the loss after training over the loss at the start, of the network that `stability` draws from `key`."""
    network = fully_connected(depth, width, name)
    with jax.enable_x64(True):
        params = network.init(jax.random.split(key)[0], (-1, x.shape[1]))[1]
        losses = np.asarray(loss_curve(network, params, x, y, learning_rate=rate, steps=steps))
    return float(losses[-1] / losses[0])


def interval(values: np.ndarray) -> float:
    """Returns half the width of the 99 % confidence interval of the mean."""
    return float(t.isf(0.005, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
