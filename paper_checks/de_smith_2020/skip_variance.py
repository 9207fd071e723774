"""Behind l residual blocks the variance is 2^l, with batch normalisation in the branches l + 1."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ntk_analysis import infinite_kernel
from ntk_analysis.layers import Serial
from ntk_analysis.networks import residual

from ..by_depth import common_correlation
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import quadrature

Theory: TypeAlias = dict[str, Callable[[int], float]]

CLAIM = Claim(
    id="skip_variance",
    title="the variance on the skip path",
    statement="At initialisation the variance behind l residual blocks is l + 1 with batch normalisation in each "
    "branch, "
    "so that a branch is a share of 1/(l + 1), and 2^l without.",
    source="Section 3",
    scope="Residual ReLU networks of infinite width with He initialisation, on inputs of variance 1.",
    formula=r"\mathrm{Var}(x^{l}) = l + 1 \text{ (normalised)},\quad 2^l \text{ (not)}",
    recorded=Verdict.HOLDS,
    summary="True on average over the batch, exactly at every batch size; single inputs differ.",
)


THEORY: Theory = {"batch": lambda blocks: blocks + 1.0, "none": lambda blocks: 2.0**blocks}
WRONG: dict[str, Theory] = {
    "normalised branches double it": THEORY | {"batch": lambda blocks: 2.0**blocks},
    "bare branches add": THEORY | {"none": lambda blocks: blocks + 1.0},
}
BATCH = 6


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Compares the mean variance of a batch behind the blocks."""
    evidence = Evidence()
    for normalization, law in theory.items():
        for blocks in setting.size((4,), (1, 4, 16)):
            evidence.stated(
                "mean variance over the batch",
                expected=law(blocks),
                measured=np.mean(variances(normalization, blocks)),
                tolerance=quadrature(1e-9 * law(blocks), "the integrals of batch normalisation, and rounding"),
                condition=f"{normalization}, {blocks} blocks, {BATCH} inputs",
                part=normalization,
            )
    return evidence


@functools.cache
def variances(normalization: str, blocks: int) -> np.ndarray:
    """Returns the variance of each input of a batch behind the blocks, before the read-out."""
    first, chain, *_ = residual(blocks, 1, normalization, "relu", scale=1.0).layers
    return np.diagonal(infinite_kernel(Serial(first, chain), common_correlation(BATCH, 0.2)).nngp)
