"""Theorem 2: batch normalisation after every layer makes a network chaotic, at the rate 1/(1 - 1/pi)."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import numpy as np

from ntk_analysis import batch_norm, data
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import extrapolation, nearest, quadrature, sampling

Theory: TypeAlias = Callable[[str, int | None], float]

CLAIM = Claim(
    id="thm2",
    title="batch normalisation is chaotic",
    statement="With batch normalisation after every fully connected layer, small perturbations of a wide ReLU network "
    "grow by chi_1 = 1/(1 - 1/pi) = 1.4669 a layer: it is chaotic.",
    source="Theorem 2, App. A",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "batch normalisation behind every fully connected layer; no batch size is given.",
    formula=r"\chi_1 \to \frac{1}{1 - 1/\pi} = 1.4669",
    recorded=Verdict.HOLDS,
    summary="Chaotic at every batch size, but 1.4669 is the limit of large batches only: a batch of 4 grows by 3.084 a "
    "layer, one of 16 by 1.590, one of 64 by 1.493; it takes 112 inputs to be within 1 %.",
    figures=("bn_growth",),
    published=(Published("chi_1", 1.4669, "Theorem 2"),),
)


def growth_rate(activation: str, batch: int | None) -> float:
    """Returns chi(B); None is the limit of large batches."""
    return analyse(activation, normalization="batch", batch_size=batch).chi_1


def diagonal_push(activation: str, batch: int | None) -> float:
    """Returns the rate of Step o T / v, which forgets that a batch normalisation couples its inputs."""
    if batch is None:
        return growth_rate(activation, None)
    off = -1 / (batch - 1)  # correlation of the normalised units
    step = np.where(np.eye(batch) > 0, 0.5, (np.pi - np.arccos(off)) / (2 * np.pi))
    dual = (np.sqrt(1 - off**2) + (np.pi - np.arccos(off)) * off) / np.pi  # J(c), of unit second moment
    center = np.eye(batch) - 1 / batch
    variance = (1 - dual) * (1 - 1 / batch) / 2  # tr(S^G) / B at the fixed point with second moment 1/2
    pushed = step * center / variance
    return float(np.trace(center @ pushed) / (batch - 1))


THEORY: Theory = growth_rate
WRONG: dict[str, Theory] = {
    "Step o T / v in place of the exact push": diagonal_push,
    "the limit at every batch size": lambda activation, batch: growth_rate(activation, None),
    "the identity's (B - 2)/(B - 3)": lambda activation, batch: 1.0 if batch is None else (batch - 2) / (batch - 3),
}
BATCHES = (4, 8, 16, 32, 64)


def recursion(x: np.ndarray, layers: int, activation: str = "relu", eps: float = 0.0) -> np.ndarray:
    """Returns the growth of an infinitely wide network's tangent kernel on the zero-mean space at each layer.

    The gain is 2: at eps = 0 it cancels.
    """
    sigma = theta = x @ x.T / x.shape[1]
    traces = []
    for _ in range(layers):
        found = batch_norm.propagate(sigma, theta, activation, eps)
        sigma, theta = 2 * found.nngp, 2 * found.pushed
        traces.append(np.trace(theta) - theta.mean() * len(x))
        theta = theta / traces[-1]  # neither over- nor underflows
    return np.array(traces[1:])


def orthogonal(batch: int) -> np.ndarray:
    """Returns inputs whose batch is at its fixed point behind one layer."""
    return np.sqrt(batch) * np.eye(batch)


def relative_error(batch: int) -> float:
    """Returns the relative error of a growth rate, from two traces of kernels without the constant mode."""
    return 2 * (1 + batch) * batch_norm.rule_error(batch - 1)


def limit(batches: tuple[int, ...], rates: list[float]) -> tuple[float, float]:
    """Extrapolates all rates to 1/B = 0 by a polynomial; the error is the change without the smallest batch."""
    inverse = 1 / np.array(batches)
    values = [np.polyfit(inverse[k:], rates[k:], len(rates) - k - 1)[-1] for k in (0, 1)]
    return float(values[0]), float(abs(values[0] - values[1]))


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks the exact recursion by batch size and its limit, then other conditions, then finite networks."""
    evidence = Evidence()
    by_batch(evidence, theory, setting)
    other_conditions(evidence, theory, setting)
    finite_networks(evidence, theory, setting)
    return evidence


def by_batch(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Checks orthogonal inputs, and finds the batch at which the limit is 1 % off."""
    rates = {B: float(recursion(orthogonal(B), 3)[-1]) for B in setting.track(BATCHES, "thm2: batches")}
    at, error = limit(BATCHES[1:], [rates[B] for B in BATCHES[1:]])
    evidence.stated(
        "chi_1",
        expected=theory("relu", None),
        measured=at,
        tolerance=extrapolation(error, "the polynomial in 1/B moves by this if its smallest batch is left out"),
        rival=nearest(theory("relu", None), (one("relu", None) for one in (THEORY, *WRONG.values()))),
        part="the rate, in large batches",
        condition=f"exact kernels of batches of {BATCHES[1]} to {BATCHES[-1]}, continued to infinite batches",
    )
    evidence.stated(
        "chi_1 of a chaotic network",
        expected=1.0,
        measured=list(rates.values()),
        tolerance=quadrature([relative_error(B) for B in BATCHES], "quadrature"),
        relation=Relation.AT_LEAST,
        part="it is chaotic",
        condition=f"batches of {', '.join(map(str, BATCHES))}",
    )
    for B, rate in rates.items():
        error, condition = relative_error(B) * rate, f"batch of {B}, infinite width"
        evidence.varied(
            "chi_1",
            expected=theory("relu", None),
            measured=rate,
            tolerance=quadrature(error, "quadrature"),
            condition=condition,
        )
        evidence.corrected(
            "chi(B)",
            expected=theory("relu", B),
            measured=rate,
            tolerance=quadrature(error, "quadrature"),
            condition=condition,
        )
    low, high = BATCHES[0], 10 * BATCHES[-1]  # in closed form, now that the kernels confirm it
    while high - low > 1:
        middle = (low + high) // 2
        excess = theory("relu", middle) / theory("relu", None) - 1
        low, high = (low, middle) if excess <= 0.01 else (middle, high)
    evidence.edge("batch size", high, "in smaller batches gradients grow by more than 1 % more than 1.4669 a layer")


def other_conditions(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Checks another activation, eps, and images in place of orthogonal inputs."""
    rate = float(recursion(orthogonal(16), 3, "leaky_relu")[-1])
    error, condition = relative_error(16) * rate, "leaky ReLU, batch of 16"
    evidence.corrected(
        "chi(B)",
        expected=theory("leaky_relu", 16),
        measured=rate,
        tolerance=quadrature(error, "quadrature"),
        condition=condition,
    )
    batches = (8, 16, 32)
    rates = [float(recursion(orthogonal(B), 12, eps=0.1)[-1]) for B in batches]
    at, error = limit(batches, rates)
    evidence.varied(
        "chi_1",
        expected=theory("relu", None),
        measured=at,
        tolerance=extrapolation(error, "the polynomial in 1/B moves by this if its smallest batch is left out"),
        condition="eps = 0.1, batches of 8 to 32, continued to infinite batches",
    )
    layers, B = setting.size(60, 200), 16
    growth = recursion(
        data.preprocess(data.load_digits().subset(B, setting.seed).images, image_centering="dataset"), layers
    )
    thirds = [np.exp(np.mean(np.log(part))) for part in np.split(growth[-(layers // 3 * 2) :], 2)]
    evidence.corrected(
        "chi(B)",
        expected=theory("relu", B),
        measured=thirds[1],
        tolerance=extrapolation(abs(thirds[1] - thirds[0]), "change from the second to the last third of the layers"),
        condition=f"{B} images of digits, {layers} layers",
    )


def finite_networks(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Checks squared gradients of finite networks, by automatic differentiation."""
    B, layers, widths, draws = setting.size((16, 12, (64, 128), 40), (16, 20, (256, 512), 100))
    keys = jax.random.split(jax.random.key(setting.seed), len(widths))
    found = [gradient_growth(B, layers, width, draws, key) for width, key in zip(widths, keys, strict=True)]
    (narrow, narrow_error), (wide, wide_error) = found
    evidence.corrected(
        "chi(B)",
        expected=theory("relu", B),
        measured=wide,
        tolerance=sampling(
            5 * np.hypot(wide_error, narrow_error) + abs(wide - narrow),
            f"5 standard errors of {draws} networks, and the change from half the width",
        ),
        condition=f"growth of squared gradients, width {widths[-1]}, {layers} layers, batch of {B}",
    )


def gradient_growth(B: int, layers: int, width: int, draws: int, key: jax.Array) -> tuple[float, float]:
    """Returns the growth per layer, towards the input, of a random output's squared weight gradient, and its error."""
    network, x = fully_connected(layers, width, "batch"), orthogonal(B).astype(np.float32)

    @jax.jit
    def squares(key: jax.Array) -> jax.Array:
        network_key, output_key = jax.random.split(key)
        _, params = network.init(network_key, (-1, B))
        weights = jax.random.normal(output_key, (B, 1))
        gradient = jax.grad(lambda params: (weights * network.apply(params, x)).sum())(params)
        return (gradient[-2][0]["w"] ** 2).sum(axis=(1, 2))  # the repeated block's, stacked along the first axis

    found = np.array([np.asarray(squares(one), np.float64) for one in jax.random.split(key, draws)])
    first, last = 1, layers - 3  # behind the first layers and before the read-out
    growth = (found[:, first] / found[:, last]) ** (1 / (last - first))
    return float(growth.mean()), float(growth.std(ddof=1) / np.sqrt(draws))
