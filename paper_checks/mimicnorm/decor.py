"""Supp. Fig. 2: correlations of deep networks with batch norm or weight mean stay near 0; how near, and why."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm, t

from ntk_analysis import activations, correlation, data
from ntk_analysis.correlation import CorrelationByLayer, random_pairs
from ntk_analysis.correlation.pairs import cosine, pearson
from ntk_analysis.layers import Serial
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..draws import OPTIMISED
from ..tolerances import resolution, sampling

Theory: TypeAlias = Callable[[int, str], float]

CLAIM = Claim(
    id="decor",
    title="decorrelation in deep networks",
    statement="At width 300 and depth 50 batch normalisation and weight mean decorrelate pairs of inputs: their "
    "correlations are within [-0.2, 0.2].",
    source="Fig. 3, Supp. Fig. 2",
    scope="Fully connected ReLU networks of width 300 and depth 50 at initialisation, pairs of MNIST images.",
    formula=r"|\rho_{50}| \le 0.2",
    recorded=Verdict.CONDITIONS,
    summary="They decorrelate, to means of 0.01. But the band holds 98 % of the pairs under weight mean and 95 to 98 % "
    "under batch norm (batches of 400 and 64), not all, and none of the cosines, which stay near 1/pi. Under weight "
    "mean the spread is 1.471/sqrt(width), as predicted, whatever the depth; below width 50 it is more than 10 % "
    "wider.",
    figures=("supp2", "fig3"),
    published=(Published("largest |correlation|", 0.2, "Fig. 3, Supp. Fig. 2"),),
)


def spread(width: int, observable: str) -> float:
    """Returns the standard deviation of a deep weight-centered network's correlations."""
    return correlation.predicted_spread(width, observable=observable)


THEORY: Theory = spread
WRONG: dict[str, Theory] = {
    "independent channels, 1/sqrt(n)": lambda width, observable: width**-0.5,
    "noise added up over 50 layers": lambda width, observable: (50 / width) ** 0.5,
}
BAND, MOST = 0.2, 0.95
WIDTH, DEPTH, PAIRS = 300, 50, 200
NARROW = {32: 160, 64: 40}
"""Depth by width."""


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks the paper's width and depth, each correlation that may be meant, then narrower and deeper networks."""
    evidence = Evidence()
    draws, images = setting.size((40, 64), (64, 400))
    names = setting.track(("weight_mean", "batch"), "decor: networks")
    found = {name: behind_all_layers(name, images, draws, setting.seed) for name in names}
    weight_mean, batch = (found[name]["activation"] for name in ("weight_mean", "batch"))
    shares(evidence, {"weight_mean": weight_mean, "batch": batch})
    weight_mean_band(evidence, theory, weight_mean)
    evidence.varied(
        "standard deviation under batch norm, against that predicted for weight mean",
        expected=theory(WIDTH, "activation"),
        measured=batch.standard_deviation()[-1],
        tolerance=sampling(quantile(draws) * batch.standard_deviation_error()[-1], because(draws), draws),
        relation=Relation.AT_LEAST,
        condition=f"batch of {images}",
    )
    other_correlations(evidence, theory, found["weight_mean"]["pre_activation"], found["weight_mean"]["cosine"])
    few = setting.size(20, 200)
    narrow = {
        width: in_every_layer(depth, width, images, few, setting.seed)
        for width, depth in setting.track(NARROW.items(), "decor: widths")
    }
    narrow_and_deep(evidence, theory, narrow)
    return evidence


def digits(images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs, float32, and pairs of them."""
    x = data.preprocess(data.load_digits().subset(images, seed).images, image_centering="dataset").astype(np.float32)
    return x, random_pairs(images, PAIRS, seed)


@functools.cache  # measured once for all theories
def behind_all_layers(normalization: str, images: int, draws: int, seed: int) -> dict[str, CorrelationByLayer]:
    """Returns correlations in the last layer of networks of the paper's width and depth, by what is correlated."""
    x, pairs = digits(images, seed)
    network, chosen = fully_connected(DEPTH, WIDTH, normalization), jnp.asarray(pairs)

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def networks(keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            before, behind = (outputs[-1] for outputs in hidden_layers(network, key, x))
            return jnp.stack([pearson(behind, chosen), pearson(before, chosen), cosine(behind, chosen)])

        return jax.lax.map(one, keys)

    values = np.asarray(networks(jax.random.split(jax.random.key(seed), draws)), np.float64)
    names = "activation", "pre_activation", "cosine"
    return {name: collected(values[:, i, None], x, pairs, name) for i, name in enumerate(names)}


@functools.cache
def in_every_layer(depth: int, width: int, images: int, draws: int, seed: int) -> CorrelationByLayer:
    """Returns correlations of activations in every layer of weight-centered networks, on 64 of the images."""
    x, pairs = digits(images, seed)
    x, pairs = x[:64], pairs_within(pairs, 64)
    network, chosen = fully_connected(depth, width, "weight_mean"), jnp.asarray(pairs)

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def networks(keys: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            return jax.lax.map(lambda layer: pearson(layer, chosen), hidden_layers(network, key, x)[1])

        return jax.lax.map(one, keys)

    values = np.asarray(networks(jax.random.split(jax.random.key(seed), draws)), np.float64)
    return collected(values, x, pairs, "activation")


def hidden_layers(network: Serial, key: jax.Array, x: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns the values before and behind all activations of one network, (depth, inputs, width) each."""
    *_, before, behind, repeated, _ = network.activations(network.init(key, x.shape)[1], x)
    return jnp.concatenate([before[None], repeated[-2]]), jnp.concatenate([behind[None], repeated[-1]])


def collected(values: np.ndarray, x: np.ndarray, pairs: np.ndarray, observable: str) -> CorrelationByLayer:
    """Puts values and the cosines of the inputs into a `CorrelationByLayer`."""
    unit = np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True)
    return CorrelationByLayer(values, np.sum(unit[pairs[:, 0]] * unit[pairs[:, 1]], axis=1), pairs, observable)


def shares(evidence: Evidence, found: dict[str, CorrelationByLayer]) -> None:
    """Checks the share of pairs within the paper's band, and the mean of all."""
    for name, measured in found.items():
        last = measured.values[:, -1]
        inside = np.mean(np.abs(last) <= BAND, axis=1)
        condition = f"{name}, Pearson of the activations, width {WIDTH}, depth {DEPTH}, {len(last)} networks"
        evidence.varied(
            "share of pairs within [-0.2, 0.2]",
            expected=MOST,
            measured=inside.mean(),
            tolerance=sampling(
                quantile(len(last)) * inside.std(ddof=1) / np.sqrt(len(last)), because(len(last)), len(last)
            ),
            relation=Relation.AT_LEAST,
            condition=f"{condition}: 19 of 20",
        )
        evidence.stated(
            "share of pairs within [-0.2, 0.2]",
            expected=1.0,
            measured=inside.mean(),
            tolerance=resolution(0.5 / last.size, "less than one pair"),
            part="every pair is within the band",
            condition=condition,
        )
        evidence.stated(
            "|mean correlation|",
            expected=BAND,
            measured=abs(measured.mean()[-1]),
            tolerance=sampling(quantile(len(last)) * measured.mean_error()[-1], because(len(last)), len(last)),
            relation=Relation.AT_MOST,
            part="pairs are uncorrelated on average",
            condition=f"{name}, width {WIDTH}, depth {DEPTH}",
        )


def weight_mean_band(evidence: Evidence, theory: Theory, measured: CorrelationByLayer) -> None:
    """Checks the spread, and the share that a normal law of that spread has within the paper's band."""
    draws, predicted = len(measured.values), theory(WIDTH, "activation")
    evidence.corrected(
        "standard deviation of the correlation",
        expected=predicted,
        measured=measured.standard_deviation()[-1],
        tolerance=sampling(quantile(draws) * measured.standard_deviation_error()[-1], because(draws), draws),
        condition=f"weight mean, Pearson of the activations, width {WIDTH}, depth {DEPTH}",
    )
    inside = np.mean(np.abs(measured.values[:, -1]) <= BAND, axis=1)
    evidence.corrected(
        "share of pairs within [-0.2, 0.2]",
        expected=1 - 2 * norm.sf(BAND / predicted),
        measured=inside.mean(),
        tolerance=sampling(quantile(draws) * inside.std(ddof=1) / np.sqrt(draws), because(draws), draws),
        condition="weight mean, against a normal law of the predicted spread",
    )


def other_correlations(
    evidence: Evidence, theory: Theory, pre_activation: CorrelationByLayer, cosine: CorrelationByLayer
) -> None:
    """Checks the numbers of the other correlations that may be meant."""
    draws = len(cosine.values)
    for measured in (pre_activation, cosine):
        evidence.varied(
            "share of pairs within [-0.2, 0.2]",
            expected=1.0,
            measured=np.mean(np.abs(measured.values[:, -1]) <= BAND),
            tolerance=resolution(0.5 / measured.values[:, -1].size, "less than one pair"),
            condition=f"weight mean, {measured.observable}",
        )
    evidence.corrected(
        "standard deviation of the correlation",
        expected=theory(WIDTH, "pre_activation"),
        measured=pre_activation.standard_deviation()[-1],
        tolerance=sampling(quantile(draws) * pre_activation.standard_deviation_error()[-1], because(draws), draws),
        condition="weight mean, Pearson of the pre-activations",
    )
    dual = np.asarray(activations.relu.dual(1.0, 1.0, np.array([0.0, 1.0])))
    evidence.corrected(
        "mean cosine of the activations",
        expected=dual[0] / dual[1],
        measured=cosine.mean()[-1],
        tolerance=sampling(
            quantile(draws) * cosine.mean_error()[-1] + 1 / WIDTH, f"{because(draws)}, and terms of order 1/width"
        ),
        condition="weight mean: uncentered activations of decorrelated inputs keep 1/pi",
    )


def narrow_and_deep(evidence: Evidence, theory: Theory, measured: dict[int, CorrelationByLayer]) -> None:
    """Finds where the first order in 1/width stops being enough: by width at depth 40, by depth at width 32."""
    widths, excess, error = tuple(measured), {}, {}
    for width, found in measured.items():
        draws, predicted = len(found.values), theory(width, "activation")
        excess[width] = found.standard_deviation() / predicted - 1
        error[width] = quantile(draws) * found.standard_deviation_error() / predicted
    deep, noise = excess[widths[0]], error[widths[0]]
    evidence.corrected(
        "relative excess of the spread over its prediction",
        expected=deep[39],
        measured=deep[[79, 119, 159]],
        tolerance=sampling(np.hypot(noise[39], noise[[79, 119, 159]]), because(draws), draws),
        condition=f"weight mean, width {widths[0]}, depth 80, 120, 160 against 40: depth/width up to 5 changes nothing",
    )
    order = np.mean([width * excess[width][39] for width in widths])  # excess = order / width
    evidence.edge(
        "width",
        float(order / 0.1),
        f"in narrower weight-centered networks the spread is more than 10 % wider than predicted (by "
        f"{order:.2g}/width, from widths {widths[0]} and {widths[1]})",
    )
    moved = np.flatnonzero(np.abs(deep[39:] - deep[39]) > np.hypot(noise[39:], noise[39]))
    evidence.edge(
        "depth / width",
        float((moved[0] + 40) / widths[0]) if len(moved) else None,
        f"where the spread leaves its value of depth 40; width {widths[0]}, searched up to depth 160",
    )


def pairs_within(pairs: np.ndarray, count: int) -> np.ndarray:
    """Returns the pairs of which both are among the first inputs."""
    return pairs[(pairs < count).all(axis=1)]


def quantile(draws: int) -> float:
    """Returns how many standard errors of Student's t, for so few networks, are as unlikely as 5 of a normal law."""
    return float(t.isf(norm.sf(5), draws - 1))


def because(draws: int) -> str:
    """Returns words for where the tolerances come from."""
    return f"Student's t over {draws} networks, as unlikely as 5 standard errors"
