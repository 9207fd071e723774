"""Finite networks: small batches explode faster, at the rate that the theory says."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tolerances import nearest, sampling
from .formulas import relu_rate

Theory: TypeAlias = Callable[[int], float]

CLAIM = Claim(
    id="measured_explosion",
    title="the explosion in finite networks",
    statement="Gradients of wide networks with batch normalisation grow from layer to layer at the rate of the theory.",
    source="Figs. 1, 2",
    scope="Fully connected ReLU networks with batch normalisation before each activation, eps = 0, wide and behind "
    "enough layers to have forgotten their inputs.",
    formula="",
    recorded=Verdict.HOLDS,
    summary="True at width 128 and batches of 8 and 32, for gradients of any direction.",
)
THEORY: Theory = relu_rate
WRONG: dict[str, Theory] = {
    "the linear rate": lambda batch: (batch - 2) / (batch - 3),
    "gradients keep their size": lambda batch: 1.0,
}
WIDTH, BURN, DEPTH = 128, 3, 3


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Takes random gradients back through drawn networks."""
    evidence = Evidence()
    draws = setting.size(40, 400)
    for batch in (8, 32):
        found, expected = measured(batch, draws, setting.seed), theory(batch) ** DEPTH
        evidence.stated(
            f"growth of squared gradients over {DEPTH} layers",
            expected=expected,
            measured=found.mean,
            tolerance=sampling(
                five_sigma(draws) * found.error + 8 * DEPTH / WIDTH * found.mean,
                f"5 sigma of {draws} networks, and 8 depth / width for the width",
                draws,
            ),
            rival=nearest(expected, (one(batch) ** DEPTH for one in (THEORY, *WRONG.values()))),
            condition=f"B = {batch}, width {WIDTH}",
        )
    return evidence


@functools.cache
def measured(batch: int, draws: int, seed: int) -> Average:
    """Returns the ratio of squared gradients behind a normalisation, before and after their way through the layers."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        h = rng.standard_normal((batch, WIDTH))
        way = []
        for _ in range(BURN + DEPTH + 1):
            centered = h - h.mean(axis=0)
            deviation = np.sqrt(np.mean(centered**2, axis=0))
            unit = centered / deviation
            weights = rng.standard_normal((WIDTH, WIDTH), np.float32) * np.sqrt(2 / WIDTH)
            way.append((unit, deviation, weights))
            h = np.maximum(unit, 0) @ weights
        gradient = rng.standard_normal((batch, WIDTH))
        squares = []
        for unit, deviation, weights in way[: BURN - 1 : -1]:
            back = (gradient @ weights.T) * (unit > 0)
            back = back - back.mean(axis=0) - unit * np.mean(unit * back, axis=0)
            gradient = back / deviation
            squares.append(np.sum(gradient**2))
        found.append(squares[-1] / squares[0])
    return average(np.array(found))
