"""Lemma 1 as the supplement prints it: with the fan-out in the factor, where the main text has the fan-in."""

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis.layers import Activation, Dense, Serial

from ..contract import Claim, Evidence, Outcome, Setting, Verdict
from ..draws import Average, average, pairs_of, samples
from ..tolerances import nearest, sampling
from . import lem1

Case: TypeAlias = tuple[int, int, float]


class Theory(NamedTuple):
    """The factor by (fan-in, fan-out) that the supplement claims, and the one that replaces it."""

    claimed: lem1.Theory
    corrected: lem1.Theory


CLAIM = Claim(
    id="lem1_supplement",
    title="Lemma 1 with the fan-out",
    statement="Lemma 1 in the supplement's version: the centered layer's factor is (n_o - 1)/n_o, n_o its fan-out.",
    source="Lemma 1, supplement",
    scope="One fully connected ReLU layer with independent weights; every fan-out.",
    formula=r"\mathbb{E}_W[\bar\Phi(\rho)] = \frac{n_o-1}{n_o}\,\mathbb{E}_W[\Phi(\rho) - \Phi(0)]",
    recorded=Verdict.FAILS,
    summary="The factor is the main text's (n_i - 1)/n_i: with 16 units in, 8 out and correlation 0.9 the outputs' "
    "product is 35.474, not 33.109. The two agree only in layers as wide as their input.",
)


def fan_out_factor(fan_in: int, fan_out: int) -> float:
    """Returns the factor of the supplement: fan-out, not fan-in."""
    del fan_in
    return (fan_out - 1) / fan_out


THEORY = Theory(fan_out_factor, lem1.THEORY)
WRONG = {
    "the supplement says fan-in": Theory(lem1.THEORY, lem1.THEORY),
    "corrected by no factor at all": Theory(fan_out_factor, lem1.WRONG["no finite fan-in factor"]),
}

STATED: tuple[Case, ...] = ((16, 8, 0.9), (16, 2, 0.5), (4, 16, 0.9))
VARIED: tuple[Case, ...] = ((8, 8, 0.9),)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks layers that narrow, that widen, and one that keeps its width."""
    evidence = Evidence()
    draws = setting.size(100_000, 2_000_000)
    cases = (*STATED, *VARIED)
    measured = outputs_products(cases, draws, setting.seed)
    because = f"5 standard errors of {draws} pairs of layers"
    agreeing: list[float] = []
    for case, mean, error in zip(cases, measured.mean, measured.error, strict=True):
        fan_in, fan_out, rho = case
        condition = f"{fan_in} units in, {fan_out} out, correlation {rho}"
        whole = fan_in * fan_out * lem1.gap("relu", rho)
        claimed = evidence.stated if case in STATED else evidence.varied
        quantity = "sum over outputs of the centered layer's product"
        expected = theory.claimed(fan_in, fan_out) * whole
        row = claimed(
            quantity,
            expected=expected,
            measured=mean,
            tolerance=sampling(5 * error, because, draws),
            rival=nearest(expected, (one(fan_in, fan_out) * whole for one in (fan_out_factor, lem1.THEORY))),
            condition=condition,
        )
        if row.outcome is not Outcome.REFUTED:
            agreeing.append(fan_out / fan_in)
        expected = theory.corrected(fan_in, fan_out) * whole
        evidence.corrected(
            f"{quantity}, main text",
            expected=expected,
            measured=mean,
            tolerance=sampling(5 * error, because, draws),
            condition=condition,
        )
    ratios = sorted(fan_out / fan_in for fan_in, fan_out, _ in cases)
    at = agreeing[0] if agreeing else None
    evidence.edge("fan-out / fan-in", at, f"of {ratios}, the ratio at which the supplement is right")
    return evidence


@functools.cache  # measured once for all theories
def outputs_products(cases: tuple[Case, ...], draws: int, seed: int) -> Average:
    """Returns for each case the sum over the outputs of (W P phi(u)) (W P phi(v)), W ~ N(0, 1), P centering."""
    # w_var = n - 1 undoes the gain of a centered layer
    networks = [Serial(Dense(n), Activation("relu"), Dense(out, n - 1.0, center=True)) for n, out, _ in cases]
    inputs = [pairs_of([rho]) for _, _, rho in cases]

    def products(key: jax.Array) -> jax.Array:
        outputs = [network.apply(network.init(key, x.shape)[1], x) for network, x in zip(networks, inputs, strict=True)]
        return jnp.stack([jnp.sum(y[0] * y[1]) for y in outputs])

    return average(samples(products, draws, jax.random.key(seed)))
