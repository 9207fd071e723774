"""Batch normalisation behind the last activation leaves the constant mode of the NTK nothing but the bias."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.layers import Activation, BatchNorm, Dense, Serial

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..tolerances import rounding

CLAIM = Claim(
    id="constant_mode_of_batch_norm",
    title="batch norm and the constant mode",
    statement="With batch normalisation behind the last activation the NTK's average over all pairs of a batch, its "
    "constant mode, is beta^2: the variance of the last biases.",
    source="Section 4, the theorem on batch normalisation",
    scope="Networks of any width with batch normalisation behind the last hidden activation, on its own batch.",
    formula=r"\frac{1}{N^2} \sum_{ij} \Theta(x_i, x_j) = \beta^2",
    recorded=Verdict.HOLDS,
    summary="True of every draw, exactly. Batch normalisation before the activation does not do it: the constant mode "
    "is the largest there.",
)


class Theory(NamedTuple):
    """The constant mode over beta^2."""

    over: float


THEORY = Theory(1.0)
WRONG = {"the constant mode is gone": Theory(0.0), "each input has its own bias": Theory(1 / 8)}
BETA_SQUARED, WIDTH, BATCH = 0.3, 16, 8


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Takes the tangent kernel of drawn networks by automatic differentiation."""
    evidence = Evidence()
    for after in (True, False):
        kernels = drawn(after, setting.size(4, 40), setting.seed)
        row = evidence.stated if after else evidence.varied
        row(
            "mean of the NTK over all pairs",
            expected=theory.over * BETA_SQUARED,
            measured=kernels.mean(axis=(1, 2)),
            tolerance=rounding(1e-9, "float64, with a division by deviations"),
            condition=f"batch norm {'behind' if after else 'before'} the activation, width {WIDTH}, {BATCH} inputs",
            relation=Relation.EQUAL,
        )
    return evidence


@functools.cache
def drawn(after: bool, draws: int, seed: int) -> np.ndarray:
    """Returns NTKs (draws, N, N) of finite networks."""
    units = (Activation("relu"), BatchNorm()) if after else (BatchNorm(), Activation("relu"))
    network = Serial(Dense(WIDTH), *units, Dense(1, 1 - BETA_SQUARED, BETA_SQUARED))
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(seed), (BATCH, 5), jnp.float64)

        @jax.jit
        def kernel(key: jax.Array) -> jax.Array:
            params = network.init(key, x.shape)[1]
            params = jax.tree.map(lambda array: array.astype(jnp.float64), params)
            jacobian = jax.jacrev(lambda p: network.apply(p, x)[:, 0])(params)
            return sum(
                (flat @ flat.T for flat in (leaf.reshape(BATCH, -1) for leaf in jax.tree.leaves(jacobian))),
                jnp.zeros((BATCH, BATCH)),
            )

        return np.stack([np.asarray(kernel(key)) for key in jax.random.split(jax.random.key(seed), draws)])
