"""The proof of Theorem 2, step by step: what it replaces by an average, and what is true of every single layer."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from ntk_analysis import activations, batch_norm
from ntk_analysis.correlation import CorrelationByLayer, layer_correlations
from ntk_analysis.layers import Dense
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected

from ..contract import Claim, Evidence, Setting, Verdict
from ..draws import average, five_sigma, inputs_of, pairs_of, samples
from ..tolerances import extrapolation, nearest, quadrature, rounding, sampling

RELU = activations.relu
EPS = float(np.finfo(np.float64).eps)
OfWeights: TypeAlias = Callable[[np.ndarray, float], np.ndarray]

CLAIM = Claim(
    id="thm2_proof",
    title="the proof of Theorem 2",
    statement="In the proof that batch normalisation's map of correlations tends to that of centered weights, in "
    "probability as the width grows: a unit's product of two inputs, averaged over the samples for given weights, is "
    "the dual activation, and its variance is proportional to the sum of the weights.",
    source="Appendix A, Eq. 2, 4 and 5",
    scope="One fully connected ReLU layer, given weights, independent samples, in the limit of width.",
    formula=r"\mathbb{E}[h_i(u) h_i(v)] = \hat\phi(\rho),\quad T_{BN} \to \bar T",
    recorded=Verdict.FAILS,
    summary="Both are true only on average over the weights, or with squared weights. Repaired, the result is "
    "stronger: with population statistics T_BN = T_bar for every W and every width. It needs independent samples: a "
    "correlation common to all of them is removed by batch norm in one layer, by weight centering in many (0.9 takes "
    "15 to fall below 0.1).",
    figures=("fig4", "supp2"),
)


class Theory(NamedTuple):
    """Moments of units with weights W (n, units), h = W^T phi / sqrt(n), over samples of correlation rho.

    Attributes:
        product: E[h(u) h(v)], as printed.
        variance: Var[h], as printed.
        repaired_product: E[h(u) h(v)], as it is.
        repaired_variance: Var[h], as it is.
        transition: T_BN(rho; rho0), rho0 the correlation common to all samples.
    """

    product: OfWeights
    variance: OfWeights
    repaired_product: OfWeights
    repaired_variance: OfWeights
    transition: Callable[[np.ndarray | float, float], np.ndarray | float]


def _dual(rho: float) -> float:
    return float(RELU.dual(1.0, 1.0, rho))


def _squares(w: np.ndarray, rho: float) -> np.ndarray:
    return (w**2).mean(axis=0) * (_dual(rho) - _dual(0.0))


def _product(w: np.ndarray, rho: float) -> np.ndarray:
    return _squares(w, rho) + w.sum(axis=0) ** 2 / len(w) * _dual(0.0)


def _transition(rho: np.ndarray | float, common: float) -> np.ndarray | float:
    """Returns (phihat(rho) - phihat(rho0)) / (phihat(1) - phihat(rho0)), in the distances that phihat loses from 1."""
    lost = np.asarray(RELU.dual.cosine_distance(1.0, 1.0, 1 - np.array([*np.atleast_1d(rho), common])))
    return 1 - lost[:-1] / lost[-1]


THEORY = Theory(
    product=lambda w, rho: np.full(w.shape[1], _dual(rho)),
    variance=lambda w, rho: w.mean(axis=0) * (_dual(1.0) - _dual(0.0)),
    repaired_product=_product,
    repaired_variance=lambda w, rho: _squares(w, 1.0),
    transition=_transition,
)
WRONG = {
    "the proof as repaired": THEORY._replace(product=_product, variance=lambda w, rho: _squares(w, 1.0)),
    "repaired without the cross terms of phihat(0)": THEORY._replace(
        repaired_product=lambda w, rho: (w**2).mean(axis=0) * _dual(rho)
    ),
    "no mean subtracted": THEORY._replace(
        transition=lambda rho, common: 2 * np.asarray(RELU.dual(1.0, 1.0, np.atleast_1d(rho)))
    ),
    "the samples' common correlation ignored": THEORY._replace(transition=lambda rho, common: _transition(rho, 0.0)),
}

FAN_IN, UNITS, RHO = 16, 8, 0.5
WIDTHS = (2, 3, 10, 300)
GRID = np.array([-0.9, -0.5, 0.0, 0.3, 0.6, 0.9, 0.99])
COMMON, INSIDE = 0.9, 0.95  # correlation of all samples, and of one pair among them
DEPTH, INPUTS = 12, 6


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks given weights, the equality at any width, samples with a common correlation, and the layers it takes."""
    evidence = Evidence()
    given_weights(evidence, theory, setting.size(40_000, 1_000_000), setting.seed)
    every_width(evidence, theory, setting.seed)
    common_correlation(evidence, theory)
    width, draws = setting.size((256, 24), (2000, 100))
    layers_to_forget(evidence, width, draws, setting.seed)
    return evidence


@functools.cache  # measured once for all theories
def sampled_units(draws: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns one layer's weights (FAN_IN, UNITS), and units (draws, 2, UNITS) for given and for new weights."""
    layer, previous, inputs = Dense(UNITS), Dense(FAN_IN), pairs_of([RHO])
    sample_key, weight_key = jax.random.split(jax.random.key(seed))
    given = layer.init(weight_key, (-1, FAN_IN))[1]

    def units(key: jax.Array) -> jax.Array:
        sample, own = jax.random.split(key)
        # independent Gaussians over the channels: a layer on two inputs, a new one for every sample
        y = RELU(previous.apply(previous.init(sample, inputs.shape)[1], inputs))
        return jnp.stack([layer.apply(given, y), layer.apply(layer.init(own, y.shape)[1], y)])

    values = samples(units, draws, sample_key)
    return np.asarray(given["w"], np.float64), values[:, 0], values[:, 1]


def given_weights(evidence: Evidence, theory: Theory, draws: int, seed: int) -> None:
    """Checks Eq. 2, 4 and 5 for one draw of the weights, and averaged over the weights."""
    w, h, anew = sampled_units(draws, seed)
    because = f"5 standard errors of {draws} samples"
    condition = f"W given, fan-in {FAN_IN}, correlation {RHO}, each of {UNITS} units"
    centered = h - h.mean(axis=0)
    product, variance = average(h[:, 0] * h[:, 1]), average(centered[:, 0] ** 2)
    for row, name, of_product, of_variance in (
        (evidence.stated, "as printed", theory.product, theory.variance),
        (evidence.corrected, "repaired", theory.repaired_product, theory.repaired_variance),
    ):
        for quantity, expected, rival, found in (
            ("E[h(u) h(v)]", of_product(w, RHO), _product(w, RHO), product),
            ("Var[h]", of_variance(w, RHO), _squares(w, 1.0), variance),
        ):
            row(
                f"{quantity}, {name}",
                expected=expected,
                measured=found.mean,
                tolerance=sampling(5 * found.error, because, draws),
                rival=nearest(expected, [rival, np.zeros(UNITS)]),
                condition=condition,
            )
    # W drawn anew for every sample: what Eq. 2 says is true on this average
    mean = average(np.mean(anew[:, 0] * anew[:, 1], axis=1))
    evidence.corrected(
        "E[h(u) h(v)]",
        expected=_dual(RHO),
        measured=mean.mean,
        tolerance=sampling(5 * mean.error, because, draws),
        condition="averaged over W",
    )
    unit = centered / centered.std(axis=0)
    correlation = np.mean(unit[:, 0] * unit[:, 1], axis=0)
    influence = average(unit[:, 0] * unit[:, 1] - correlation * (unit**2).mean(axis=1))
    evidence.corrected(
        "T_BN(rho) = T_bar(rho)",
        expected=theory.transition(RHO, 0.0),
        measured=correlation,
        tolerance=sampling(5 * influence.error, because, draws),
        condition=condition,
    )


def every_width(evidence: Evidence, theory: Theory, seed: int) -> None:
    """Checks T_BN of single units with population statistics, from the covariance of all channels, at any width."""
    generator = np.random.default_rng(seed)
    duals, mean = np.asarray(RELU.dual(1.0, 1.0, np.array([*GRID, 1.0, 0.0]))), float(RELU.mean(1.0))
    for width in WIDTHS:
        w = generator.standard_normal((width, 100))
        # E[phi(z_j(u)) phi(z_k(v))] - E[phi]^2 of channels j, k, which are independent for j != k
        covariances = [np.where(np.eye(width), own, duals[-1]) - mean**2 for own in duals[:-1]]
        units = np.stack([np.sum(w * (covariance @ w), axis=0) for covariance in covariances])
        error = 8 * EPS * width * (w**2).sum(axis=0) / units[-1]
        evidence.corrected(
            "T_BN(rho) = T_bar(rho)",
            expected=np.asarray(theory.transition(GRID, 0.0))[:, None],
            measured=units[:-1] / units[-1],
            tolerance=rounding(error, "8 roundings of a sum over all pairs of channels"),
            condition=f"population statistics, width {width}, each of 100 draws of W, {len(GRID)} correlations",
        )


def common_correlation(evidence: Evidence, theory: Theory) -> None:
    """Checks correlated samples: the exact kernel of a batch, extrapolated to large batches, against the map."""
    sizes = 32, 64, 128
    found = [_pair_behind_batch_norm(size, INSIDE) for size in sizes]
    coarse, fine = (2 * found[i + 1] - found[i] for i in (0, 1))
    error, because = abs(fine - coarse), f"change of the extrapolation in 1/B, B = {sizes}"
    condition = f"correlation {INSIDE} of one pair, {COMMON} of all others"
    t_bar = analyse("relu", normalization="weight_mean")
    evidence.varied(
        "T_BN(rho) = T_bar(rho)",
        expected=t_bar.transition(INSIDE),
        measured=fine,
        tolerance=extrapolation(error, because),
        condition=condition,
    )
    evidence.corrected(
        "correlation behind one batch norm",
        expected=-1 / (sizes[0] - 1),
        measured=_pair_behind_batch_norm(sizes[0], COMMON),
        tolerance=quadrature(2 * batch_norm.rule_error(sizes[0] - 1), "twice the error of the quadrature rule"),
        condition=f"batch of {sizes[0]}, all inputs of correlation {COMMON}",
    )
    expected = theory.transition(INSIDE, COMMON)
    evidence.corrected(
        "T_BN(rho; rho0)",
        expected=expected,
        measured=fine,
        tolerance=extrapolation(error, because),
        condition=condition,
    )

    def apart(common: float) -> float:
        return float(abs(_transition(INSIDE, common) - t_bar.transition(INSIDE))[0]) - 0.01

    edge = brentq(apart, 0.0, COMMON)
    evidence.edge("common correlation of the samples", float(edge), f"T_BN({INSIDE}) is 0.01 away from T_bar")


def _pair_behind_batch_norm(size: int, inside: float) -> float:
    """Returns one pair's correlation behind ReLU, dense layer and batch norm, among inputs that all have COMMON."""
    common, between, own = np.asarray(RELU.dual(1.0, 1.0, np.array([COMMON, inside, 1.0])))
    sigma = np.full((size, size), common)
    sigma[0, 1] = sigma[1, 0] = between
    np.fill_diagonal(sigma, own)
    kernel = np.asarray(batch_norm.nngp(sigma, "identity"))
    return float(kernel[0, 1] / np.sqrt(kernel[0, 0] * kernel[1, 1]))


@functools.cache
def correlations_by_layer(width: int, draws: int, seed: int) -> CorrelationByLayer:
    """Returns correlations by layer of weight-centered networks on inputs that all have correlation COMMON."""
    gram = np.full((INPUTS, INPUTS), COMMON) + (1 - COMMON) * np.eye(INPUTS)
    pairs = np.stack(np.triu_indices(INPUTS, 1), axis=1)
    network = fully_connected(DEPTH, width, "weight_mean")
    return layer_correlations(network, inputs_of(gram), pairs, seed=seed, draws=draws, observable="pre_activation")


def layers_to_forget(evidence: Evidence, width: int, draws: int, seed: int) -> None:
    """Checks how a common correlation of 0.9 dies out: finite networks against the recursion."""
    expected = np.asarray(analyse("relu", normalization="weight_mean").trajectory(COMMON, 40))
    found = correlations_by_layer(width, draws, seed)
    layers = np.array([2, 4, 8, 12])
    evidence.corrected(
        "mean correlation at layers 2, 4, 8, 12",
        expected=expected[layers - 1],
        measured=found.mean()[layers - 1],
        tolerance=sampling(
            five_sigma(draws) * found.mean_error()[layers - 1], f"5 sigma of {draws} networks by Student's t"
        ),
        condition=f"weight mean, width {width}, inputs of correlation {COMMON}",
    )
    for level in (0.1, 0.01):
        layer = int(np.argmax(expected < level))
        evidence.edge("layers of weight centering", layer, f"the correlation falls from {COMMON} to below {level}")
