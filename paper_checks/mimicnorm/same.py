"""Weight centering and batch normalisation: the same map of pairs and the same rate, but not the same kernel."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from ntk_analysis import batch_norm, data, last_batch_norm, spectrum
from ntk_analysis.depth_study.image_networks import NETWORKS, behind_weights
from ntk_analysis.layers import Activation, BatchNorm, Serial
from ntk_analysis.meanfield import MeanField, analyse

from ..by_depth import common_correlation, infinite_kernels
from ..contract import Claim, Evidence, Setting, Verdict
from ..tolerances import extrapolation, quadrature, rounding, sampling

Theory: TypeAlias = Callable[[int], float]

CLAIM = Claim(
    id="same",
    title="weight centering's kernel and batch normalisation's",
    statement="Networks with weight centering and networks with batch normalisation have the same NTK, which converges "
    "at the same linear rate.",
    source="Sections 1 and 3",
    scope="A fully connected ReLU network in NTK parametrisation, of infinite width, on inputs of norm 1, "
    "batch normalisation behind every fully connected layer.",
    formula=r"\Theta_{\mathrm{WM}} = \Theta_{\mathrm{BN}}",
    recorded=Verdict.CONDITIONS,
    summary="The map of one pair's correlation and the rates, 1.4669 backwards and .7335 forwards, agree for large "
    "batches of uncorrelated inputs. The kernels do not: batch normalisation's keeps a constant mode and a "
    "condition number of 6.27 for 8 inputs (5.50 for many), weight centering's goes to 1. With batch normalisation "
    "behind every layer, the read-out included, the constant mode is gone, and with it this difference. Nor do the "
    "kernels agree in networks of images: 4.00 against weight centering's 12.6 in a VGG-like one, 13.7 to 8.36 in a "
    "ResNet-like one.",
    figures=("same_kernel", "image_kernels", "bn_growth", "kernel_matrices"),
)
LAYERS = 60


def condition_limit(batch_size: int) -> float:
    """Returns chi(B)/e1(B), to which the condition number of the batch-normalised NTK tends with depth."""
    return analyse("relu", normalization="batch", batch_size=batch_size).condition_number


THEORY: Theory = condition_limit
WRONG: dict[str, Theory] = {
    "the same kernel": lambda batch_size: 1.0,
    "the large batch's condition number at every batch size": lambda batch_size: 2 * np.pi / (np.pi - 2),
}


def centered_correlation(sigma: np.ndarray) -> float:
    """Returns the correlation of the first two inputs behind the subtraction of the batch's mean."""
    g = sigma - sigma.mean(axis=0) - sigma.mean(axis=1)[:, None] + sigma.mean()
    return float(g[0, 1] / np.sqrt(g[0, 0] * g[1, 1]))


def large_batch_map(rho: float, common: float, batches: tuple[int, ...]) -> tuple[float, float]:
    """Returns T_BN of a pair in a large batch, and its error: extrapolated in 1/B from three batch sizes.

    The batch is of pairs with correlation rho, and `common` between pairs.
    """
    found = []
    for B in batches:
        pairs = np.kron(np.eye(B // 2), np.full((2, 2), rho - common)) + (1 - rho) * np.eye(B) + common
        found.append(centered_correlation(np.asarray(batch_norm.nngp(pairs))))
    quadratic, linear = (np.polynomial.Polynomial.fit(1 / np.array(batches[-n:]), found[-n:], n - 1)(0) for n in (3, 2))
    return float(quadratic), abs(float(quadratic - linear))


def check_pair_map(evidence: Evidence, centered: MeanField, batches: tuple[int, ...]) -> None:
    """Compares T_BN and T_bar, for uncorrelated and for correlated batches."""
    because = f"extrapolation to infinite batches in 1/B from {batches[0]} to {batches[-1]}"
    for rho in (0.3, 0.6, 0.9):
        measured, error = large_batch_map(rho, 0.0, batches)
        condition = f"large batch, correlation {rho}, other inputs uncorrelated"
        evidence.stated(
            "correlation behind one layer",
            expected=centered.transition(rho),
            measured=measured,
            tolerance=extrapolation(error, because),
            rival=rho,
            part="the map of a pair, and the rates",
            condition=condition,
        )
    rho, common = 0.95, 0.9
    measured, error = large_batch_map(rho, common, batches)
    condition = f"large batch, correlation {rho}, {common} between all others"
    evidence.varied(
        "correlation behind one layer",
        expected=centered.transition(rho),
        measured=measured,
        tolerance=extrapolation(error, because),
        condition=condition,
    )
    without_common = centered.transition((rho - common) / (1 - common))
    evidence.corrected(
        "correlation behind one layer, the common one removed",
        expected=without_common,
        measured=measured,
        tolerance=extrapolation(error, because),
        condition=condition,
    )


def check_rates(evidence: Evidence, centered: MeanField, batches: tuple[int, ...]) -> None:
    """Compares chi backwards, and forwards the slope at the fixed point; at finite batches too."""
    limit = analyse("relu", normalization="batch")
    two_forms = "rounding of two closed forms"
    evidence.stated(
        "growth of the NTK per layer",
        expected=centered.chi_1,
        measured=limit.chi_1,
        tolerance=rounding(1e-12, two_forms),
        part="the map of a pair, and the rates",
        condition="limit of large batches",
    )
    evidence.stated(
        "decay of correlations per layer",
        expected=centered.fixed_points[0].slope,
        measured=limit.eigenvalues.correlations,
        tolerance=rounding(1e-12, two_forms),
        part="the map of a pair, and the rates",
        condition="limit of large batches",
    )
    evidence.varied(
        "decay of correlations per layer, against that of unequal distances from the batch's mean",
        expected=centered.fixed_points[0].slope,
        measured=limit.eigenvalues.variances,
        tolerance=rounding(1e-12, two_forms),
        condition="limit of large batches, inputs at unequal distances from their mean",
    )
    for B in batches:
        G = np.eye(B) - 1 / B
        chi = np.linalg.eigvalsh(batch_norm.push(batch_norm.nngp(np.eye(B)), G))[-1]
        error = batch_norm.rule_error(B - 1) * B
        condition, because = f"batch of {B}, exact push-forward", "quadrature error of each entry, B of them"
        evidence.varied(
            "growth of the NTK per layer",
            expected=centered.chi_1,
            measured=chi,
            tolerance=quadrature(error, because),
            condition=condition,
        )
        closed = analyse("relu", normalization="batch", batch_size=B).chi_1
        evidence.corrected(
            "growth of the NTK per layer, chi(B)",
            expected=closed,
            measured=chi,
            tolerance=quadrature(error, because),
            condition=condition,
        )


def check_matrices(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Compares condition numbers of deep kernels: whole, without the constant mode, behind a last batch norm."""
    for m in setting.size((8,), (8, 64)):
        x = common_correlation(m, 0.0)
        (_, centered), (nngp, batch) = (infinite_kernels(x, LAYERS, name) for name in ("weight_mean", "batch"))
        change = abs(spectrum.condition_number(batch[-1]) - spectrum.condition_number(batch[LAYERS // 2])) + 1e-9 * m
        because = f"change over layers {LAYERS // 2} to {LAYERS}, and quadrature"
        kappa = spectrum.condition_number(batch[-1])
        condition = f"{m} uncorrelated inputs, one batch"
        expected = spectrum.condition_number(centered[-1])
        evidence.stated(
            "condition number of the deep NTK",
            expected=expected,
            measured=kappa,
            tolerance=extrapolation(change, because),
            rival=theory(m),
            part="the kernel",
            condition=condition,
        )
        evidence.corrected(
            "condition number of the deep NTK, chi/e1",
            expected=theory(m),
            measured=kappa,
            tolerance=extrapolation(change, because),
            condition=condition,
        )
        without = np.ones(m)
        evidence.corrected(
            "condition number without the constant mode",
            expected=spectrum.condition_number(centered[-1], without=without),
            measured=spectrum.condition_number(batch[-1], without=without),
            tolerance=extrapolation(change, because),
            condition=condition,
        )
        outputs = last_batch_norm.sample_outputs(nngp[-1], 1, setting.seed)
        behind = last_batch_norm.ntk(batch[-1], outputs)[:, :, 0, 0]
        evidence.corrected(
            "condition number behind a last batch normalisation",
            expected=1.0,
            measured=spectrum.condition_number(behind, without=last_batch_norm.null_space(outputs)),
            tolerance=extrapolation(change, because),
            condition=condition,
        )


def check_images(evidence: Evidence, setting: Setting) -> None:
    """Compares condition numbers of convolutional networks, whole and behind a last batch norm, on 16 digits."""
    digits = data.load_digits().subset(16, setting.seed)
    x = data.preprocess(digits.images, image_centering="dataset").reshape(digits.images.shape)
    because = "rounding and quadrature, relative to the condition number"
    for name in setting.size((), tuple(NETWORKS)):
        kernels = {norm: list(behind_weights(NETWORKS[name](norm), x))[-1] for norm in ("weight_mean", "batch")}
        expected, kappa = (kernels[norm].condition_number for norm in ("weight_mean", "batch"))
        condition = f"{name} network of 16 digits, 8 x 8, one batch"
        evidence.stated(
            "condition number of the NTK",
            expected=expected,
            measured=kappa,
            tolerance=quadrature(1e-6 * kappa, because),
            part="the kernel",
            condition=condition,
        )
        behind = {norm: kernel.condition_number_behind_last(setting.seed) for norm, kernel in kernels.items()}
        evidence.varied(
            "condition number behind a last batch normalisation",
            expected=behind["weight_mean"],
            measured=behind["batch"],
            tolerance=quadrature(1e-6 * behind["batch"], because),
            condition=condition,
        )


def check_neurons(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Checks the push-forward of the zero-mean space by autodiff: mean over neurons at the fixed point."""
    B, draws = 8, setting.size(20_000, 1_000_000)
    layers = Serial(BatchNorm(), Activation("relu"))
    sigma = jnp.asarray(batch_norm.nngp(np.eye(B)), jnp.float32)
    root = jnp.linalg.cholesky(sigma)

    @jax.jit
    def parts(key: jax.Array) -> jax.Array:
        def neuron(x: jax.Array) -> jax.Array:
            # the subtraction of the mean is in J already: J G J' = J J'
            jacobian = jax.jacobian(lambda x: layers.apply(((), ()), x[:, None])[:, 0])(x)
            constant = jnp.sum(jnp.sum(jacobian, axis=0) ** 2) / B
            return jnp.stack([constant, (jnp.sum(jacobian**2) - constant) / (B - 1)])

        return jax.vmap(neuron)(jax.random.normal(key, (draws, B)) @ root.T)

    constant, other = np.asarray(parts(jax.random.key(setting.seed)), np.float64).T
    ratio = constant.mean() / other.mean()
    error = (constant - ratio * other).std(ddof=1) / (np.sqrt(draws) * other.mean())
    evidence.corrected(
        "constant mode / other eigenvalues, e1/chi",
        expected=1 / theory(B),
        measured=ratio,
        tolerance=sampling(5 * error, f"5 standard errors of {draws} neurons"),
        condition=f"autodiff of finite layers, batch of {B}",
    )


def search(evidence: Evidence, centered: MeanField) -> None:
    """Finds batch size, common correlation and depth from which the two agree."""
    sizes = range(4, 1000)
    far = [
        B for B in sizes if analyse("relu", normalization="batch", batch_size=B).chi_1 > 1.01 * (centered.chi_1 or 0)
    ]
    evidence.edge(
        "batch size", far[-1], "up to here chi(B) is more than 1 % above weight centering's; searched 4 to 999"
    )
    common = float(brentq(lambda rho: float(centered.transition(rho)) - 0.1, 1e-6, 0.9))
    evidence.edge(
        "common correlation of the inputs",
        common,
        "from here on one weight-centered layer leaves more than .1 of it, batch normalisation none; searched 0 to .9",
    )
    path = centered.trajectory(0.9, 50)
    evidence.edge(
        "layers",
        float(np.flatnonzero(path > 0.1)[-1] + 1),
        "that weight centering takes to bring a common correlation of .9 below .1, batch normalisation one",
    )


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks pair map, rates and matrices, images, finite networks, correlated inputs and finite batches."""
    evidence = Evidence()
    centered = analyse("relu", normalization="weight_mean")
    check_pair_map(evidence, centered, setting.size((8, 16, 32), (32, 64, 128)))
    check_rates(evidence, centered, setting.size((4, 16), (4, 16, 64)))
    check_matrices(evidence, theory, setting)
    check_images(evidence, setting)
    check_neurons(evidence, theory, setting)
    search(evidence, centered)
    return evidence
