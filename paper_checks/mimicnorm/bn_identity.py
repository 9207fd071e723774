"""The kernel of batch normalisation at its fixed point: a projector before the ReLU, correlation 1/pi behind it."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import batch_norm
from ntk_analysis.layers import Activation, BatchNorm, Dense, Serial
from ntk_analysis.meanfield import analyse

from ..by_depth import common_correlation, infinite_kernels
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, quadrature, rounding, sampling


class Correlations(NamedTuple):
    """Correlations of two inputs at the fixed point, in the batch normalisation's output and behind the ReLU."""

    normalized: float
    activated: float


Theory: TypeAlias = Callable[[int], Correlations]

CLAIM = Claim(
    id="bn_identity",
    title="batch normalisation's kernel at its fixed point",
    statement="With depth the kernel of a batch-normalised ReLU network tends to the identity: different inputs become "
    "uncorrelated.",
    source="Theorem 2, its proof and discussion",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "batch normalisation behind every fully connected layer, in the limit of depth; no batch size is "
    "given.",
    formula=r"K_{\mathrm{BN}} \to I",
    recorded=Verdict.CONDITIONS,
    summary="True of the output of the normalisation in the limit of large batches: its kernel is B/(B - 1) "
    "(I - 11'/B), which lacks the constant mode. Behind the ReLU inputs stay correlated at every batch size: .250 at "
    "B = 8, 1/pi = .318 in the limit.",
    figures=("kernel_matrices", "fig3"),
)
LAYERS = 60
LARGE = (16, 32, 64)  # batches


def fixed_point(batch_size: int) -> Correlations:
    """Returns -1/(B - 1) and J(-1/(B - 1))."""
    return Correlations(-1 / (batch_size - 1), analyse("relu", normalization="batch", batch_size=batch_size).c_star)


THEORY: Theory = fixed_point
WRONG: dict[str, Theory] = {
    "the identity": lambda batch_size: Correlations(0.0, 0.0),
    "the large batch's correlations at every batch size": lambda batch_size: Correlations(0.0, 1 / np.pi),
    "no correlation but the projector's behind the ReLU": lambda batch_size: Correlations(
        *2 * (-1 / (batch_size - 1),)
    ),
}


def off_diagonal(kernel: np.ndarray) -> np.ndarray:
    """Returns the correlations of different inputs."""
    scale = np.sqrt(np.diagonal(kernel))
    correlations: np.ndarray = (kernel / np.outer(scale, scale))[~np.eye(len(kernel), dtype=bool)]
    return correlations


def network_correlations(B: int, width: int, key: jax.Array) -> tuple[Correlations, Correlations]:
    """Returns mean correlations behind one layer of `width` neurons on uncorrelated inputs, and standard errors.

    A covariance a I + b 11' is at the fixed point behind one layer.
    """
    layers = Serial(Dense(width), BatchNorm()), Activation("relu")

    @jax.jit
    def products(key: jax.Array) -> jax.Array:
        x = jnp.sqrt(float(B)) * jnp.eye(B, dtype=jnp.float32)
        normalized = layers[0].apply(layers[0].init(key, (-1, B))[1], x)
        both = normalized, jnp.maximum(normalized, 0)
        return jnp.stack([(y.sum(axis=0) ** 2 - (y**2).sum(axis=0)) / (B * (B - 1)) for y in both])

    # over E[y^2], which is 1 and 1/2 exactly
    values = np.asarray(products(key), np.float64) * np.array([[1.0], [2.0]])
    return Correlations(*values.mean(axis=1)), Correlations(*values.std(axis=1, ddof=1) / np.sqrt(width))


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks deep kernels from random and from correlated inputs, large batches, and a finite network."""
    evidence = Evidence()
    random = np.random.default_rng(setting.seed).standard_normal((2, 8, 32)).sum(axis=0)
    for x, inputs in ((random, "random inputs"), (common_correlation(64, 0.5), "inputs of correlation .5")):
        B = len(x)
        nngp = infinite_kernels(x, LAYERS, "batch")[0]
        normalized = off_diagonal(np.asarray(batch_norm.nngp(nngp[-1], "identity")))
        activated = off_diagonal(nngp[-1])
        error = np.max(np.abs(nngp[-1] - nngp[LAYERS // 2])) / nngp[-1].max() + batch_norm.rule_error(B - 1)
        because = f"change over layers {LAYERS // 2} to {LAYERS}, and quadrature error"
        condition = f"{LAYERS} layers, batch of {B} {inputs}"
        expected = theory(B)
        evidence.varied(
            "correlation behind BN",
            expected=0.0,
            measured=normalized,
            tolerance=extrapolation(error, because),
            condition=condition,
        )
        evidence.corrected(
            "correlation behind BN, -1/(B - 1)",
            expected=expected.normalized,
            measured=normalized,
            tolerance=extrapolation(error, because),
            condition=condition,
        )
        evidence.corrected(
            "correlation behind BN and ReLU, c*",
            expected=expected.activated,
            measured=activated,
            tolerance=extrapolation(error, because),
            condition=condition,
        )
    check_large_batch(evidence)
    check_network(evidence, theory, setting)
    return evidence


def check_large_batch(evidence: Evidence) -> None:
    """Checks the claim where its source makes it, in the limit of large batches."""
    limit = analyse("relu", normalization="batch")
    condition = "limit of large batches"
    found = [off_diagonal(np.asarray(batch_norm.nngp(np.eye(B), "identity"))).mean() for B in LARGE]
    coarse, fine = (np.polynomial.Polynomial.fit(1 / np.array(LARGE[k:]), found[k:], 1)(0) for k in (0, 1))
    evidence.stated(
        "correlation behind BN",
        expected=0.0,
        measured=fine,
        tolerance=extrapolation(abs(fine - coarse), f"extrapolation in 1/B, B = {LARGE}"),
        rival=-1 / (LARGE[-1] - 1),
        part="behind the normalisation",
        condition=condition,
    )
    evidence.stated(
        "correlation behind BN and ReLU",
        expected=0.0,
        measured=limit.c_star,
        tolerance=rounding(1e-12, "rounding of a closed form"),
        part="behind the ReLU",
        condition=condition,
    )
    B = 64
    eigenvalue = np.linalg.eigvalsh(batch_norm.nngp(np.eye(B), "identity"))[0]
    error = batch_norm.rule_error(B - 1) * B
    evidence.varied(
        "smallest eigenvalue of BN's kernel",
        expected=1.0,
        measured=eigenvalue,
        tolerance=quadrature(error, "quadrature error of B entries"),
        condition=f"batch of {B}",
    )
    sizes = [B for B in range(4, 1000) if abs(fixed_point(B).normalized) > 0.01]
    evidence.edge(
        "batch size",
        sizes[-1],
        "up to here entries of BN's kernel are more than .01 off the identity's; searched 4 to 999",
    )
    smallest = min(fixed_point(B).activated for B in range(4, 1000))
    evidence.edge(
        "batch size",
        None,
        f"every batch of 4 to 999 stays correlated behind the ReLU, by {smallest:.3f} to {limit.c_star:.3f}",
    )


def check_network(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Checks one layer of a finite network."""
    B, width = 8, setting.size(100_000, 4_000_000)
    mean, error = network_correlations(B, width, jax.random.key(setting.seed))
    for i, name in enumerate(("behind BN", "behind BN and ReLU")):
        # behind BN the neurons agree to rounding: their products sum to -B each
        tolerance = 5 * error[i] + 1e-5
        evidence.corrected(
            f"correlation {name}",
            expected=theory(B)[i],
            measured=mean[i],
            tolerance=sampling(tolerance, f"5 standard errors of {width} neurons, and float32 rounding of their mean"),
            condition=f"finite network, batch of {B}",
        )
