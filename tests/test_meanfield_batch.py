"""Batch normalisation's rates at its fixed point: golden values, the exact integrals, a full Jacobian, limits."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import batch_norm
from ntk_analysis.activations import get
from ntk_analysis.cli.output import meanfield_table
from ntk_analysis.meanfield import BatchNormField, MeanField, analyse, critical_line, phase_diagram

from .tiers import full

LIMIT = math.pi / (math.pi - 1)
HOMOGENEOUS = ["relu", "leaky_relu(0.2)", "leaky_relu(-3)", "abs", "identity"]
SOME = ["leaky_relu(-3)", *full("relu", "leaky_relu(0.2)", "abs", "identity")]  # both parts of a x + b |x|, unequal


def field(B, name="relu"):
    return analyse(name, normalization="batch", batch_size=B)


@pytest.mark.parametrize(
    ("B", "chi", "ratio"),
    [
        (4, 3.08406095, 0.123386),
        (16, 1.58995042, 0.171580),
        (64, 1.49306294, 0.179320),
        (None, 1.46694221, 0.181690),
    ],
)
def test_golden_values_of_relu(B, chi, ratio):
    found = field(B)
    assert (found.normalization, found.batch_size, found.phase) == ("batch", B, "chaotic")
    assert found.chi_1 == pytest.approx(chi, abs=5e-9)
    assert found.e1 / found.chi_1 == pytest.approx(ratio, abs=5e-7)
    assert found.condition_number == pytest.approx(found.chi_1 / found.e1, rel=1e-15)


def test_limits_of_large_batches():
    found = field(None)
    assert found.chi_1 == pytest.approx(LIMIT, rel=1e-15)
    assert found.condition_number == pytest.approx(2 * math.pi / (math.pi - 2), rel=1e-14)
    assert found.c_star == pytest.approx(1 / math.pi, rel=1e-15)
    assert found.eigenvalues == pytest.approx((0, LIMIT / 2, 1), rel=1e-15)
    # chi(B) = pi/(pi - 1) + 1.5914/B + O(1/B^2)
    sizes = np.array([1000, 2000, 4000])
    excess = sizes * [field(int(B)).chi_1 - LIMIT for B in sizes]
    assert np.polynomial.Polynomial.fit(1 / sizes, excess, 2)(0.0) == pytest.approx(1.5914, abs=5e-5)
    # a batch that is no limit yet but beyond every integral
    assert field(10**9).chi_1 == pytest.approx(LIMIT, rel=1e-8)


@pytest.mark.parametrize("name", SOME)
def test_large_batches_grow_like_weight_centering(name):
    """chi(B) -> chi_1 of weight centering and lam_M -> its T'(0): from there two theories that share no code."""
    centered = analyse(name, normalization="weight_mean")
    found = field(None, name)
    assert found.chi_1 == pytest.approx(centered.chi_1, rel=1e-13)
    if name != "identity":  # there every correlation is fixed
        (zero,) = [point for point in centered.fixed_points if point.stable]
        assert zero.correlation == 0
        assert zero.slope == pytest.approx(found.eigenvalues.correlations, abs=1e-14)


@pytest.mark.parametrize("name", ["relu", "leaky_relu(-3)", *full("leaky_relu(0.2)", "abs", "identity")])
@pytest.mark.parametrize("B", [6, *full(4, 16)])
def test_against_the_exact_integrals(name, B):
    found = field(B, name)
    G, ones = np.eye(B) - 1 / B, np.ones((B, B))
    second_moment = float(get(name).dual.second_moment(1.0))
    fixed = batch_norm.nngp(0.7 * np.eye(B) + 0.2, name)
    # quadrature: 1e-9, as batch_norm.nngp documents
    expected = second_moment * ((1 - found.c_star) * np.eye(B) + found.c_star)
    np.testing.assert_allclose(fixed, expected, atol=1e-8 * second_moment)
    # the stable gain makes the push-forward that of a network; a wrong one divides Sigma and the rate alike
    for gain in (1.0, 2.7):
        pushed = gain * batch_norm.push(gain * fixed, G, name)
        np.testing.assert_allclose(pushed, found.chi_1 * G + found.e1 / B, atol=1e-8 * found.chi_1)
    np.testing.assert_allclose(batch_norm.push(fixed, ones, name), 0, atol=1e-10)


@pytest.mark.parametrize("B", [4, 16, 64])
def test_wrong_theories_fail(B):
    found = field(B)
    c, J = -1 / (B - 1), found.c_star
    # batch normalisation as a division by the mean variance: chi and the constant mode are both wrong
    step = (math.pi - math.acos(c)) / math.pi
    naive_chi = (1 - 1 / B + step / B) / (1 - J)
    naive_e1 = (1 - 1 / B - (B - 1) * step / B) / (1 - J)
    assert naive_e1 / found.e1 > 1.4
    assert abs(naive_chi / found.chi_1 - 1) > 0.5 / B
    # weight centering's rate at finite B, and a constant mode with the rate of the others
    assert found.chi_1 - LIMIT > 1.5 / B
    assert found.e1 < 0.2 * found.chi_1


@pytest.mark.full
@pytest.mark.parametrize("name", SOME)
def test_eigenvalues_of_the_full_jacobian(name):
    """All B (B + 1)/2 eigenvalues of Sigma -> NNGP at the fixed point: B + 1, B (B - 3)/2 and B - 1 of the three."""
    B = 5
    i, j = np.array(list(itertools.combinations_with_replacement(range(B), 2))).T
    fixed = batch_norm.nngp(np.eye(B), name)

    def forward(entries):
        sigma = jnp.zeros((B, B)).at[i, j].set(entries).at[j, i].set(entries)
        return batch_norm.nngp(sigma, name)[i, j]

    eigenvalues = np.linalg.eigvals(np.asarray(jax.jit(jax.jacfwd(forward))(jnp.asarray(fixed[i, j]))))
    zero, lam_M, lam_L = field(B, name).eigenvalues
    expected = [zero] * (B + 1) + [lam_M] * (B * (B - 3) // 2) + [lam_L] * (B - 1)
    # the zeros are defective to rounding only: a perturbation 1e-12 moves them by its square root
    np.testing.assert_allclose(np.sort(eigenvalues.real), np.sort(expected), atol=1e-6)
    assert np.max(np.abs(eigenvalues.imag)) < 1e-6


@pytest.mark.parametrize("B", [6, *full(4, 24)])
def test_eigenvalues_by_a_directional_derivative(B):
    """One direction for each; the rest of the image of an unequal variance has eigenvalue 0."""
    found, fixed = field(B), batch_norm.nngp(np.eye(B))
    u = np.zeros(B)
    u[:2] = 1, -1
    G = np.eye(B) - 1 / B
    unequal_correlations = np.zeros((B, B))
    unequal_correlations[[0, 1, 2, 3], [1, 0, 3, 2]] = 1
    unequal_correlations[[1, 2, 0, 3], [2, 1, 3, 0]] = -1
    for direction, expected in (
        (unequal_correlations, found.eigenvalues.correlations),
        (np.diag(u), found.eigenvalues.variances),
        (G, found.eigenvalues.scale),
        (u[:, None] + u[None, :], found.eigenvalues.scale),
    ):
        _, moved = jax.jvp(batch_norm.nngp, (jnp.asarray(fixed),), (jnp.asarray(direction),))
        np.testing.assert_allclose(G @ moved @ G, expected * G @ direction @ G, atol=1e-8)


def test_identity():
    for B in (4, 7, 100):
        found = field(B, "identity")
        assert found.chi_1 == pytest.approx((B - 2) / (B - 3), rel=1e-14)
        assert found.eigenvalues == pytest.approx((0, (B - 1) / (B + 1), (B - 1) / (B + 1)), rel=1e-14)
        # the output of batch normalisation has no constant mode, exactly
        assert (found.e1, found.condition_number, found.phase) == (0, math.inf, "chaotic")
    limit = field(None, "identity")
    assert (limit.chi_1, limit.phase, limit.c_star) == (1, "critical", 0)


def test_every_batch_size_is_chaotic_and_smaller_ones_more_so():
    for name in HOMOGENEOUS:
        rates = [field(B, name).chi_1 for B in (4, 5, 8, 32, 1024, None)]
        assert np.all(np.diff(rates) < 0)
        assert all(abs(value) <= 1 for B in (4, 8, 1024) for value in field(B, name).eigenvalues)


def test_the_recursion_of_a_network_reaches_the_rate_and_the_condition_number():
    """Sigma' = 2 NNGP, Theta' = 2 (NNGP + PUSH), from inputs that are not equicorrelated."""
    B = 6
    x = np.random.default_rng(0).standard_normal((B, 20))
    sigma = theta = x @ x.T / 20
    G = np.eye(B) - 1 / B
    for _ in range(60):
        nngp = np.asarray(batch_norm.nngp(sigma))
        before = np.trace(G @ theta)
        sigma, theta = 2 * nngp, 2 * (nngp + np.asarray(batch_norm.push(sigma, theta)))
    found = field(B)
    assert np.trace(G @ theta) / before == pytest.approx(found.chi_1, rel=1e-8)
    assert np.linalg.cond(theta) == pytest.approx(found.condition_number, rel=1e-6)


def test_names_variances_and_precision():
    reference = field(8)
    assert isinstance(reference, BatchNormField)
    assert isinstance(analyse("relu"), MeanField)
    # undone by batch normalisation, hence without effect
    plain: dict[str, Any] = {"normalization": "batch", "batch_size": 8}
    for arguments in ({"normalization": "Batch-Norm"}, {"w_var": 0.3, "b_var": 5.0}, {"batch_size": np.int64(8)}):
        assert analyse("relu", **plain | arguments) == reference
    with jax.enable_x64(False):
        assert field(8) == reference


def test_no_phase_diagram():
    with pytest.raises(NotImplementedError, match="undoes w_var and b_var: use analyse"):
        critical_line("relu", normalization="batch")
    with pytest.raises(NotImplementedError, match="undoes w_var and b_var: use analyse"):
        phase_diagram("relu", normalization="batch_norm", w_var=1.0, b_var=0.0)


def test_table():
    table = meanfield_table(field(16))
    assert table["batch size"] == "16"
    assert table["chi_1"].startswith("1.58995 ")
    assert table["phase"] == "chaotic"
    assert table["NTK condition number, deep"].startswith("5.82819 ")
    assert table["c*"].startswith("0.285684 ")
    assert table["forward eigenvalues"].startswith("0.630815 (unequal correlations), 0.865584 ")
    limit = meanfield_table(field(None, "identity"))
    assert (limit["batch size"], limit["phase"]) == ("infinite", "critical")
    assert limit["NTK condition number, deep"].startswith("inf")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"batch_size": 3}, ValueError, "got batch_size=3, expected an integer batch_size >= 4"),
        ({"batch_size": 0}, ValueError, "batch_size >= 4"),
        ({"batch_size": True}, ValueError, "got batch_size=True"),
        (
            {"batch_size": 8.0},
            Exception,
            "batch_size|Type-check error",
        ),  # annotations are checked here: they come first
        ({"batch_size": 8, "normalization": "none"}, ValueError, "it goes with 'batch' only"),
        ({"batch_size": 8, "normalization": "weight_mean"}, ValueError, "it goes with 'batch' only"),
        ({"activation": "tanh"}, NotImplementedError, "'tanh' has no closed form"),
        ({"activation": jax.nn.silu}, NotImplementedError, "positively homogeneous"),
        ({"w_var": 0.0}, ValueError, "got w_var=0, expected a number > 0"),
        ({"w_var": -1.0}, ValueError, "got w_var=-1.0"),
        ({"b_var": math.nan}, ValueError, "got b_var=nan"),
        ({"activation": "rlu"}, ValueError, "unknown activation 'rlu'"),
        ({"normalization": "bath"}, ValueError, "unknown normalization 'bath'"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, error, words):
    with pytest.raises(error, match=words) as refusal:
        analyse(**{"activation": "relu", "normalization": "batch"} | arguments)
    if error is not Exception:
        assert "\n" not in str(refusal.value)
