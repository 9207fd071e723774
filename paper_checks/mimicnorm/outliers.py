"""What removes the outlier eigenvalue of the NTK: weight centering or the last layer, not batch norm inside."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ntk_analysis import last_batch_norm, spectrum
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Serial
from ntk_analysis.networks import fully_connected

from ..by_depth import infinite_kernels
from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import OPTIMISED
from ..tolerances import resolution, sampling

Theory: TypeAlias = Callable[[str, np.ndarray], float]

CLAIM = Claim(
    id="outliers",
    title="what removes the outlier eigenvalues",
    statement="Normalising the hidden layers as batch normalisation does removes the outlier eigenvalue of the NTK, "
    "which is of the order of the number of inputs.",
    source="Section 3; Karakida et al. 2019 (1906.02926), who say it of the last layer",
    scope="Networks as deep as those that the paper trains, with batch normalisation in their hidden layers.",
    formula=r"\lambda_{\max} / \bar\lambda = O(1)",
    recorded=Verdict.HOLDS,
    summary="True at the depth of the paper's networks: with 64 inputs from 7 hidden layers on, at infinite width. "
    "Behind four layers of weights, with 100 inputs, the largest eigenvalue under BN is still the constant mode, twice "
    "what is left without it; weight centering alone has no outlier there.",
    figures=("kernel_matrices", "same_kernel"),
)
N, D, DEPTH = 100, 50, 3
DEEP = 15  # hidden layers of the paper's VGG16
NORMALIZATIONS = ("none", "batch", "weight_mean")
NAMES = {"none": "no normalisation", "batch": "BN in hidden layers", "weight_mean": "weight mean"}


def constant_share(matrix: np.ndarray) -> float:
    """Returns the Rayleigh quotient of the vector of ones over the mean eigenvalue: linear up to the scale."""
    return float(matrix.sum() / np.trace(matrix))


def at_infinite_width(normalization: str, x: np.ndarray) -> float:
    """Returns the constant mode's share behind one hidden layer."""
    return constant_share(np.asarray(infinite_kernel(fully_connected(1, 1, normalization), x).ntk_scaled))


THEORY: Theory = at_infinite_width
WRONG: dict[str, Theory] = {
    "BN in hidden layers leaves no constant mode": lambda normalization, x: (
        1.0 if normalization == "batch" else at_infinite_width(normalization, x)
    ),
    "weight centering keeps the straight network's": lambda normalization, x: at_infinite_width("none", x),
}


class Ratios(NamedTuple):
    """Ratios of the largest eigenvalue to the mean eigenvalue, (draws,) each.

    Attributes:
        whole: ratio of the NTK of all outputs.
        subtracted: ratio with the mean over the inputs subtracted from each output, which leaves no constant mode.
        last: ratio behind a last batch normalisation.
    """

    whole: np.ndarray
    subtracted: np.ndarray
    last: np.ndarray


def finite_kernel(network: Serial, key: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the NTK (N, N, C, C) by autodiff, and the outputs (N, C), of one network."""
    params = network.init(key, x.shape)[1]
    outputs = network.apply(params, x)
    jacobian = jax.jacobian(lambda params: network.apply(params, x))(params)
    rows = jnp.concatenate([leaf.reshape(*outputs.shape, -1) for leaf in jax.tree.leaves(jacobian)], axis=2)
    return jnp.einsum("icp,jdp->ijcd", rows, rows), outputs


def network_ratios(x: np.ndarray, network: Serial, keys: jax.Array) -> Ratios:
    """Returns the ratios of one finite network for each key."""
    kernel_of = jax.jit(
        functools.partial(finite_kernel, network, x=jnp.asarray(x, jnp.float32)), compiler_options=OPTIMISED
    )
    found = []
    for key in keys:
        kernel, outputs = (np.asarray(a, np.float64) for a in kernel_of(key))
        theta = np.asarray(last_batch_norm.as_matrix(kernel))
        constant = np.kron(np.eye(outputs.shape[1]), np.ones((len(x), 1)))
        behind = np.asarray(last_batch_norm.as_matrix(last_batch_norm.ntk(kernel, outputs)))
        cases = ((theta, None), (theta, constant), (behind, np.asarray(last_batch_norm.null_space(outputs))))
        # float32 kernels: the smallest eigenvalues are not asked for
        found.append([spectrum_ratio(matrix, without) for matrix, without in cases])
    return Ratios(*np.array(found).T)


def spectrum_ratio(matrix: np.ndarray, without: np.ndarray | None) -> float:
    """Returns the largest eigenvalue over the mean eigenvalue, on the complement of some vectors."""
    values = spectrum.eigenvalues(matrix.astype(np.float32), without=without)
    return float(values[0] / values.mean())


def compare(ratios: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """Returns the means of others and of ratios, and the error of their difference: Student's t for one in 10,000."""
    error = (ratios - others).std(ddof=1) / np.sqrt(len(ratios))
    return others.mean(), ratios.mean(), float(stats.t.ppf(0.9999, len(ratios) - 1) * error)


def check_networks(evidence: Evidence, x: np.ndarray, setting: Setting) -> None:
    """Checks outlier ratios of networks of four layers of weights, one of them the read-out."""
    width, classes, draws = setting.size((128, 1, 6), (512, 3, 20))
    keys = jax.random.split(jax.random.key(setting.seed), draws)
    networks = {name: fully_connected(DEPTH, width, name, outputs=classes) for name in NORMALIZATIONS}
    found = {name: network_ratios(x, network, keys) for name, network in setting.track(networks.items(), "outliers")}
    because = f"Student's t for 1 in 10,000, {draws} networks"
    condition = f"width {width}, {DEPTH} hidden layers, {len(x)} inputs, {classes} outputs"
    quantity = "largest / mean eigenvalue, against that with each output's mean subtracted"
    outlier = found["none"].whole.mean()
    for name, row in (("batch", evidence.varied), ("weight_mean", evidence.corrected)):
        expected, ratio, error = compare(found[name].whole, found[name].subtracted)
        row(
            quantity,
            expected=expected,
            measured=ratio,
            tolerance=sampling(error, because, draws),
            rival=outlier,
            condition=f"{NAMES[name]}, {condition}",
        )
    expected, ratio, error = compare(found["weight_mean"].whole, found["weight_mean"].last)
    evidence.corrected(
        "largest / mean eigenvalue, against that behind a last BN",
        expected=expected,
        measured=ratio,
        tolerance=sampling(error, because, draws),
        rival=outlier,
        condition=f"weight mean, {condition}",
    )
    means = [f"{NAMES[name]} {r.whole.mean():.1f} (behind a last BN {r.last.mean():.1f})" for name, r in found.items()]
    evidence.note(f"largest / mean eigenvalue, {condition}: " + ", ".join(means))


def check_theory(evidence: Evidence, theory: Theory, x: np.ndarray, setting: Setting) -> None:
    """Checks the constant mode behind one hidden layer, where the mean over networks is exact at every width."""
    draws = setting.size(100, 5000)
    for name in NORMALIZATIONS:
        network = fully_connected(1, 64, name)

        def parts(key: jax.Array, network: Serial = network) -> jax.Array:
            kernel = finite_kernel(network, key, jnp.asarray(x, jnp.float32))[0][:, :, 0, 0]
            return jnp.stack([kernel.sum(), jnp.trace(kernel)])

        keys = jax.random.split(jax.random.key(setting.seed), draws)
        constant, trace = np.asarray(jax.lax.map(parts, keys), np.float64).T
        ratio = constant.mean() / trace.mean()
        error = (constant - ratio * trace).std(ddof=1) / (np.sqrt(draws) * trace.mean())
        evidence.corrected(
            "constant mode / mean eigenvalue",
            expected=theory(name, x),
            measured=ratio,
            tolerance=sampling(5 * error, f"5 standard errors of {draws} networks"),
            condition=f"{NAMES[name]}, 1 hidden layer of 64, {len(x)} inputs",
        )


def check_depth(evidence: Evidence, samples: tuple[np.ndarray, ...]) -> None:
    """Finds, at infinite width, how deep a network has to be for batch normalisation to remove the outlier."""
    for inputs in samples:
        ntk = infinite_kernels(inputs, DEEP, "batch")[1]
        rest = np.array([spectrum_ratio(matrix, np.ones(len(inputs))) for matrix in ntk])
        whole = np.array([spectrum.outlier_ratio(matrix) for matrix in ntk])
        outlier = np.array([constant_share(matrix) for matrix in ntk]) > rest
        evidence.edge(
            "hidden layers",
            float(np.flatnonzero(outlier)[-1] + 1),
            f"up to here BN's largest mode is the constant one, {len(inputs)} inputs; searched 1 to {DEEP}",
        )
    for depth, row in ((1, evidence.varied), (DEEP, evidence.stated)):
        row(
            "largest / mean eigenvalue, against that with the constant mode left out",
            expected=rest[depth - 1],
            measured=whole[depth - 1],
            tolerance=resolution(rest[depth - 1] / (len(inputs) - 1) + 1e-9, "one eigenvalue more in the mean"),
            condition=f"BN in hidden layers, infinite width, {depth} hidden layers, {len(inputs)} inputs",
            relation=Relation.AT_MOST,
        )


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks finite networks of four layers, the theory of one hidden layer, and the depth that batch norm needs."""
    evidence = Evidence()
    x = np.random.default_rng(setting.seed).standard_normal((N, D))
    x *= np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    check_networks(evidence, x, setting)
    check_theory(evidence, theory, x[:16], setting)
    check_depth(evidence, setting.size((x[:64],), (x[:25], x)))
    return evidence
