"""Without normalisation deep linear residual networks become one-dimensional; with it they do not."""

import functools

import numpy as np

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import Average, average, five_sigma
from ..tolerances import sampling

CLAIM = Claim(
    id="rank_of_batch_norm",
    title="batch norm keeps the rank",
    statement="In deep linear residual networks whose layers are divided by their deviations over the batch, the "
    "rank of "
    "the representation stays of the order of sqrt(d) or above; without that it falls to 1.",
    source="Theorem 2, Fig. 1",
    scope="H -> BN(H + gamma W H) at width d with as many inputs, entries of W uniform; the mean over layers of "
    "tr(M)^2 / |M|^2, which bounds the rank of M = H H^T from below.",
    formula=r"r(H) = \frac{(\mathrm{tr} M)^2}{\|M\|_F^2} = \Omega(\sqrt d)",
    recorded=Verdict.HOLDS,
    summary="True, also with the mean over the batch subtracted, which the paper leaves out: 0.9 to 1.0 sqrt(d) for d "
    "from 8 to 32 (64). Without normalisation 1.0.",
)
THEORY = 0.8  # times sqrt(d): the constant of the order, the same for all widths
WRONG = {"twice as much": 1.6, "a fixed share of d": 3.0}
GAMMA, LAYERS, SKIPPED = 0.3, 400, 100


def check(setting: Setting, theory: float = THEORY) -> Evidence:
    """Draws networks of several widths, normalised by deviations, by deviations and means, and not at all."""
    evidence = Evidence()
    draws = setting.size(40, 200)
    for width in setting.size((8, 32), (8, 16, 32, 64)):
        because = f"5 sigma of {draws} networks"
        for kind, row in (("deviations", evidence.stated), ("means and deviations", evidence.varied)):
            found = ranks(kind, width, draws, setting.seed)
            row(
                "mean rank over sqrt(d)",
                expected=theory,
                measured=found.mean / np.sqrt(width),
                tolerance=sampling(five_sigma(draws) * found.error / np.sqrt(width), because, draws),
                condition=f"d = {width}, divided by {kind}",
                relation=Relation.AT_LEAST,
            )
        found = ranks("nothing", width, draws, setting.seed)
        evidence.stated(
            "mean rank without normalisation",
            expected=1.5,
            measured=found.mean,
            tolerance=sampling(five_sigma(draws) * found.error, because, draws),
            condition=f"d = {width}, layers {SKIPPED} to {LAYERS}",
            relation=Relation.AT_MOST,
        )
    return evidence


@functools.cache
def ranks(kind: str, width: int, draws: int, seed: int) -> Average:
    """Returns the mean rank over layers of each drawn network."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((draws, width, 1)) + 0.1 * rng.standard_normal((draws, width, width))
    total = np.zeros(draws)
    for layer in range(LAYERS):
        h = h + GAMMA * np.sqrt(3 / width) * rng.uniform(-1, 1, (draws, width, width)) @ h
        if kind == "means and deviations":
            h = h - h.mean(axis=2, keepdims=True)
        axes = (1, 2) if kind == "nothing" else 2
        h = h / np.sqrt(np.mean(h**2, axis=axes, keepdims=True))
        if layer >= SKIPPED:
            moment = h @ h.transpose(0, 2, 1)
            total += np.trace(moment, axis1=1, axis2=2) ** 2 / np.sum(moment**2, axis=(1, 2))
    return average(total / (LAYERS - SKIPPED))
