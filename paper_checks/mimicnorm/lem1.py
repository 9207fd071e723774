"""Lemma 1: centering costs the expected Gram matrix a factor (n - 1)/n, at every finite fan-in n."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import activations
from ntk_analysis.layers import Dense

from ..contract import Claim, Evidence, Outcome, Setting, Verdict
from ..draws import Average, average, inputs_of, pairs_of, samples
from ..tolerances import nearest, sampling

Theory: TypeAlias = Callable[[int, int], float]

CLAIM = Claim(
    id="lem1",
    title="the centered Gram matrix at finite fan-in",
    statement="Subtracting the mean over the n channels of a layer turns the expected product of two inputs' "
    "activations into (n - 1)/n times the dual activation less its value at correlation 0, exactly at every finite n.",
    source="Lemma 1",
    scope="One fully connected ReLU layer with independent weights; every fan-in.",
    formula=r"\mathbb{E}_W[\bar\Phi(\rho)] = \frac{n-1}{n}\,\mathbb{E}_W[\Phi(\rho) - \Phi(0)]",
    recorded=Verdict.HOLDS,
    summary="Exact for every fan-in, correlation and activation tried, as long as the units of the fan-in are "
    "independent. Over the 3 x 3 window of a convolution they are not: for an image of equal pixels and c channels the "
    "factor is (c - 1)/c, not (9 c - 1)/(9 c).",
)

FAN_INS = (4, 16, 64)
CORRELATIONS = (0.0, 0.5, 0.9)
OTHERS = ("erf", "gelu", "abs")
OTHERS_FAN_IN = 16
POSITIONS, CHANNELS = 9, 4  # a 3 x 3 window
PIXEL_CORRELATIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def factor(fan_in: int, fan_out: int) -> float:
    """Returns the factor of the main text: fan-in, not fan-out."""
    del fan_out
    return (fan_in - 1) / fan_in


THEORY: Theory = factor
WRONG: dict[str, Theory] = {
    "the supplement's fan-out": lambda fan_in, fan_out: (fan_out - 1) / fan_out,
    "no finite fan-in factor": lambda fan_in, fan_out: 1.0,
}


def product(y: jax.Array) -> jax.Array:
    """Returns the mean over channels of the first row's centered activations times each other row's."""
    centered = y - y.mean(axis=-1, keepdims=True)
    return jnp.mean(centered[..., :1, :] * centered[..., 1:, :], axis=-1)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks fan-ins of 4 to 64 and three correlations, other activations, and the window of a convolution."""
    evidence = Evidence()
    draws = setting.size(20_000, 1_000_000)
    because = f"5 standard errors of {draws} layers"
    measured = dense_layers(draws, setting.seed)
    quantity = "mean product of centered activations"
    cases = [("relu", fan_in, rho) for fan_in in FAN_INS for rho in CORRELATIONS]
    cases += [(name, OTHERS_FAN_IN, CORRELATIONS[-1]) for name in OTHERS]
    for (name, fan_in, rho), mean, error in zip(cases, measured.mean, measured.error, strict=True):
        row = evidence.stated if name == "relu" else evidence.varied
        condition = f"{name}, fan-in {fan_in}, correlation {rho}"
        expected, *others = (one(fan_in, fan_in // 2) * gap(name, rho) for one in (theory, THEORY, *WRONG.values()))
        row(
            quantity,
            expected=expected,
            measured=mean,
            tolerance=sampling(5 * error, because, draws),
            rival=nearest(expected, others),
            condition=condition,
        )
    windows(evidence, theory, windows_of_images(draws, setting.seed), because)
    return evidence


def gap(name: str, rho: float) -> float:
    """Returns the dual activation at rho less the dual activation at 0."""
    phi = activations.get(name)
    return float(np.subtract(*np.asarray(phi.dual(1.0, 1.0, np.array([rho, 0.0])))))


@functools.cache  # measured once for all theories
def dense_layers(draws: int, seed: int) -> Average:
    """Checks ReLU at every fan-in and correlation, then other activations: the first channels of one wide layer.

    The channels of a layer on the inputs are independent, so the first n of them are a layer of n.
    """
    layer, inputs = Dense(max(FAN_INS)), pairs_of(CORRELATIONS)

    def products(key: jax.Array) -> jax.Array:
        h = layer.apply(layer.init(key, inputs.shape)[1], inputs)
        relu = [product(activations.relu(h[:, :fan_in])) for fan_in in FAN_INS]
        others = [product(activations.get(name)(h[:, :OTHERS_FAN_IN]))[-1:] for name in OTHERS]
        return jnp.concatenate(relu + others)

    return average(samples(products, draws, jax.random.key(seed)))


@functools.cache
def windows_of_images(draws: int, seed: int) -> Average:
    """Returns 3 x 3 windows of a layer of CHANNELS channels, for every correlation of the pixels within an image.

    The two images' correlation is 0.9 at the same pixel; the fan-in is all channels at all positions.
    """
    layer = Dense(CHANNELS)
    between = np.array([[1.0, CORRELATIONS[-1]], [CORRELATIONS[-1], 1.0]])
    one = np.eye(POSITIONS)
    inputs = jnp.asarray(np.stack([inputs_of(np.kron(between, one + r * (1 - one))) for r in PIXEL_CORRELATIONS]))

    def products(key: jax.Array) -> jax.Array:
        params = layer.init(key, inputs.shape[1:])[1]
        h = jax.vmap(lambda x: layer.apply(params, x))(inputs)
        return product(activations.relu(h).reshape(len(inputs), 2, POSITIONS * CHANNELS))[:, 0]

    # another key than that of the dense layers
    return average(samples(products, draws, jax.random.fold_in(jax.random.key(seed), 1)))


def windows(evidence: Evidence, theory: Theory, measured: Average, because: str) -> None:
    """Checks a fan-in of dependent units, where the lemma breaks, and what holds at the far end."""
    rho, fan_in = CORRELATIONS[-1], POSITIONS * CHANNELS
    expected = theory(fan_in, fan_in // 2) * gap("relu", rho)
    quantity = "mean product of activations centered over a window"
    rows = [
        evidence.varied(
            quantity,
            expected=expected,
            measured=mean,
            tolerance=sampling(5 * error, because),
            condition=f"pixels of correlation {pixels}",
        )
        for pixels, mean, error in zip(PIXEL_CORRELATIONS, measured.mean, measured.error, strict=True)
    ]
    repeated = THEORY(CHANNELS, CHANNELS // 2) * gap("relu", rho)
    evidence.corrected(
        quantity,
        expected=repeated,
        measured=measured.mean[-1],
        tolerance=sampling(5 * measured.error[-1], because),
        condition="equal pixels: the fan-in counts channels, not positions",
    )
    broken = [pixels for pixels, row in zip(PIXEL_CORRELATIONS, rows, strict=True) if row.outcome is Outcome.REFUTED]
    evidence.edge(
        "correlation of the pixels in a window",
        broken[0] if broken else None,
        f"first of {PIXEL_CORRELATIONS} at which (n - 1)/n with n = 9 c is missed, c = {CHANNELS}",
    )
