"""The last batch normalisation against automatic differentiation, whole finite networks, and infinite-width kernels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from ntk_analysis import infinite_kernel, last_batch_norm, networks, spectrum
from ntk_analysis.last_batch_norm import as_matrix, jacobian, ntk, null_space, sample_outputs
from ntk_analysis.layers import LastBatchNorm, Serial

from .tiers import full

B, C = 7, 3


def random_outputs(seed=0, shape=(B, C)):
    """Outputs whose mean and scale differ from column to column."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * rng.uniform(0.3, 3, size=shape[1]) + rng.normal(size=shape[1])


def random_theta(seed=0, n=B, outputs=None):
    """A tangent kernel of n inputs, (n, n) or (n, n, outputs, outputs), from random features."""
    shape = (n, 5 * n) if outputs is None else (n, outputs, 5 * n * outputs)
    features = np.random.default_rng(seed).normal(size=shape)
    return features @ features.T if outputs is None else np.einsum("acp,bdp->abcd", features, features)


def standardised(outputs, eps=0.0):
    return (outputs - outputs.mean(axis=0)) / np.sqrt(outputs.var(axis=0) + eps)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.5])
@pytest.mark.parametrize("outputs", [1, 4])
def test_jacobian_is_the_layers_derivative(outputs, eps):
    f = random_outputs(1, (B, outputs))
    whole = jax.jit(jax.jacobian(lambda f: LastBatchNorm(eps).compute((), f)))(jnp.asarray(f))
    expected = np.zeros((B, outputs, B, outputs))
    for c, block in enumerate(jacobian(f, eps)):
        expected[:, c, :, c] = block
    assert_allclose(whole, expected, atol=1e-14 / f.std(axis=0).min())  # rounding of the largest entries, order 1/s


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_the_scale_is_damped_but_not_fixed_by_eps(eps):
    f = random_outputs(2)
    variance = f.var(axis=0)
    for c, block in enumerate(jacobian(f, eps)):
        projector = block * np.sqrt(variance[c] + eps)
        scale = standardised(f, eps)[:, c]
        assert_allclose(projector @ scale, eps / (variance[c] + eps) * scale, atol=1e-14)
        assert_allclose(projector @ np.ones(B), 0, atol=1e-14)


@pytest.mark.parametrize("n", [3, 4, 20])
def test_a_projector_without_eps(n):
    f = random_outputs(3, (n, C))
    for c, block in enumerate(jacobian(f)):
        projector = block * f.std(axis=0)[c]
        assert_allclose(projector @ projector, projector, atol=1e-14)
        assert_allclose(projector, projector.T, atol=1e-15)
        assert_allclose(np.linalg.eigvalsh(projector), [0, 0] + [1] * (n - 2), atol=1e-14)


def empirical_ntk(network, params, x):
    """<d f_c(x_a), d f_d(x_b)> over all parameters, [a, b, c, d], by automatic differentiation."""
    flat, unflatten = ravel_pytree(params)
    J = jax.jit(jax.jacobian(lambda flat: network.apply(unflatten(flat), x)))(flat)
    return np.asarray(jnp.einsum("acp,bdp->abcd", J, J))


@functools.cache
def finite_network(normalization, eps):
    """Outputs and tangent kernel before the last BN, and the tangent kernel of the whole network."""
    network = networks.fully_connected(2, 16, normalization, outputs=C, b_var=0.1, last_batch_norm=True)
    before = Serial(*network.layers[:-1])
    whole = Serial(*network.layers[:-1], LastBatchNorm(eps))
    x = jax.random.normal(jax.random.key(1), (B, 5))
    params = jax.jit(lambda key: whole.init(key, x.shape)[1])(jax.random.key(0))
    outputs = np.asarray(jax.jit(before.apply)(params[:-1], x))
    return outputs, empirical_ntk(before, params[:-1], x), empirical_ntk(whole, params, x)


def relative_error(computed, expected):
    return np.max(np.abs(computed - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("eps", [1e-3, *full(0.0)])
@pytest.mark.parametrize("normalization", full("none", "batch", "weight_mean"))
def test_the_kernel_of_a_whole_finite_network(normalization, eps):
    outputs, theta, whole = finite_network(normalization, eps)
    assert relative_error(ntk(theta, outputs, eps), whole) < 1e-12  # rounding; measured 2e-15 or less


@pytest.mark.parametrize("normalization", full("none", "batch", "weight_mean"))
def test_wrong_theories_are_caught(normalization):
    outputs, theta, whole = finite_network(normalization, 1e-3)
    centered, deviation = theta, np.sqrt(outputs.var(axis=0) + 1e-3)
    for axis in (0, 1):
        centered = centered - centered.mean(axis=axis, keepdims=True)
    wrong = {
        "the scale is not differentiated": centered / np.multiply.outer(deviation, deviation),
        "unbiased variance in s": ntk(theta, outputs, 1e-3) * (B - 1) / B,
        "no eps": ntk(theta, outputs),
        "no cross terms": ntk(theta, outputs, 1e-3) * np.eye(C),
        "outputs the other way round": ntk(theta.swapaxes(2, 3), outputs, 1e-3),
        "outputs already normalised": ntk(theta, standardised(outputs), 1e-3),
    }
    for name, kernel in wrong.items():
        assert relative_error(kernel, whole) > 1e-3, name  # 3e-3 to 1.7; the right one is below 1e-12


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_kernel_of_the_inputs_alone_is_that_times_the_identity(eps):
    theta, outputs = random_theta(), random_outputs()
    full = theta[:, :, None, None] * np.eye(C)
    assert_allclose(ntk(theta, outputs, eps), ntk(full, outputs, eps), atol=1e-12)
    assert_array_equal(ntk(theta, outputs, eps)[:, :, ~np.eye(C, dtype=bool)], 0)


def test_against_the_matrices_written_out():
    theta, outputs = random_theta(1, outputs=C), random_outputs(1)
    left = block_diagonal(jacobian(outputs, 0.1))
    assert_allclose(as_matrix(ntk(theta, outputs, 0.1)), left @ as_matrix(theta) @ left.T, atol=1e-11)


def block_diagonal(blocks):
    matrix = np.zeros((len(blocks) * B, len(blocks) * B))
    for c, block in enumerate(blocks):
        matrix[c * B : (c + 1) * B, c * B : (c + 1) * B] = block
    return matrix


def test_as_matrix_goes_output_by_output():
    theta, outputs = random_theta(2, outputs=C), random_outputs(2)
    matrix, vector = as_matrix(theta), outputs.T.ravel()
    assert_array_equal(matrix, matrix.T)
    assert matrix[1 * B + 4, 2 * B + 6] == theta[4, 6, 1, 2]
    assert_allclose(vector @ matrix @ vector, np.einsum("ac,abcd,bd->", outputs, theta, outputs))


@pytest.mark.parametrize("factor", [1e-6, 3.0, -2.0, 1e6])
def test_larger_outputs_make_a_smaller_kernel(factor):
    theta, outputs = random_theta(3, outputs=C), random_outputs(3)
    assert_allclose(ntk(theta, factor * outputs) * factor**2, ntk(theta, outputs), atol=1e-11)
    assert_allclose(ntk(theta, outputs + 5.0), ntk(theta, outputs), atol=1e-11)


@pytest.mark.parametrize(("eps", "per_output"), [(0.0, 2), (0.1, 1)])
def test_null_space(eps, per_output):
    theta, outputs = random_theta(4, outputs=C), random_outputs(4)
    matrix, vectors = as_matrix(ntk(theta, outputs, eps)), null_space(outputs, eps)
    assert vectors.shape == (B * C, per_output * C)
    assert_allclose(matrix @ vectors, 0, atol=1e-12 * np.max(matrix))
    gram = vectors.T @ vectors
    assert_allclose(gram, B * np.eye(per_output * C), atol=1e-13)
    resolved = spectrum.analyse(matrix, without=vectors)
    assert resolved.resolved
    assert len(resolved.eigenvalues) == (B - per_output) * C
    assert_allclose(resolved.eigenvalues, np.linalg.eigvalsh(matrix)[::-1][: (B - per_output) * C], rtol=1e-11)
    with pytest.warns(spectrum.UnresolvedSpectrumWarning):
        spectrum.condition_number(matrix)


def test_eps_leaves_a_frozen_scale_in_the_condition_number():
    """About (var / eps)^2, as documented; for a multiple of the identity exactly ((var + eps) / eps)^2."""
    outputs, eps = random_outputs(5, (B, 1)), 1e-2
    kernel = ntk(np.eye(B), outputs, eps)[:, :, 0, 0]
    expected = ((outputs.var() + eps) / eps) ** 2
    assert_allclose(spectrum.condition_number(kernel, without=null_space(outputs, eps)), expected, rtol=1e-9)
    assert_allclose(spectrum.condition_number(kernel, without=null_space(outputs)), 1, rtol=1e-12)


# -- outputs of the infinitely wide network ------------------------------------------------------------------------


def inputs(m=12, d=40):
    """Unit-variance inputs with a common part: correlations around 0.3."""
    x = np.random.default_rng(0).normal(size=(m, d)) + 0.7
    return x * math.sqrt(d) / np.linalg.norm(x, axis=1, keepdims=True)


DEPTH = 10  # one depth, so one program, for what holds at any


@functools.cache
def infinite(depth, normalization):
    """NNGP and (scaled) NTK."""
    kernel = infinite_kernel(networks.fully_connected(depth, 1, normalization), inputs())
    return kernel.nngp, kernel.ntk_scaled


@pytest.mark.full  # draws
def test_drawn_outputs_have_the_nngp_as_covariance():
    nngp, draws = infinite(DEPTH, "none")[0], 40_000
    f = sample_outputs(nngp, draws, seed=1)
    variance = np.diag(nngp)
    standard_error = np.sqrt((np.multiply.outer(variance, variance) + nngp**2) / draws)
    assert np.max(np.abs(f @ f.T / draws - nngp) / standard_error) < 4.5
    assert np.max(np.abs(f.mean(axis=1)) / np.sqrt(variance / draws)) < 4.5


def test_drawing_is_deterministic_and_float64():
    kernel = infinite_kernel(networks.fully_connected(DEPTH, 1), inputs())
    first = sample_outputs(kernel, C, seed=3)
    assert first.dtype == np.float64
    assert_array_equal(first, sample_outputs(kernel, C, seed=3))
    assert_allclose(first, sample_outputs(np.asarray(kernel.nngp), C, seed=3), atol=1e-14)
    assert np.max(np.abs(first - sample_outputs(kernel, C, seed=4))) > 0.1
    with jax.enable_x64(False):
        assert_array_equal(first, sample_outputs(np.asarray(kernel.nngp), C, seed=3))
        assert sample_outputs(jnp.asarray(np.asarray(kernel.nngp, np.float32)), C).dtype == np.float64


def test_equal_eigenvalues_leave_no_choice():
    """The draw is a function of the matrix: a change of 1e-14, which turns degenerate eigenvectors, hardly moves it."""
    nngp = 0.3 * np.ones((B, B)) + np.eye(B)
    change = np.random.default_rng(0).normal(size=(B, B)) * 1e-14
    assert_allclose(sample_outputs(nngp, C), sample_outputs(nngp + change + change.T, C), atol=1e-12)


def test_duplicated_inputs_have_the_same_outputs():
    x = inputs()
    x[7] = x[3]
    f = sample_outputs(infinite_kernel(networks.fully_connected(DEPTH, 1), x), 100)
    assert_allclose(f[7], f[3], atol=1e-14)
    assert np.max(np.abs(f[7] - f[4])) > 1


def per_output(theta, outputs):
    """Condition number of each output's block on its range."""
    after = ntk(theta, outputs)
    return np.array(
        [
            spectrum.condition_number(after[:, :, c, c], without=null_space(outputs[:, [c]]))
            for c in range(outputs.shape[1])
        ]
    )


def of_all_outputs(theta, outputs):
    return spectrum.condition_number(as_matrix(ntk(theta, outputs)), without=null_space(outputs))


def on_the_zero_mean_space(theta):
    return spectrum.condition_number(theta, without=np.ones(len(theta)))


@pytest.mark.parametrize("normalization", ["none", *full("weight_mean")])
def test_rank_of_an_infinite_networks_kernel(normalization):
    nngp, theta = infinite(DEPTH, normalization)
    outputs = sample_outputs(nngp, C)
    for c, block in enumerate(np.moveaxis(np.diagonal(ntk(theta, outputs), axis1=2, axis2=3), -1, 0)):
        values = np.linalg.eigvalsh(block) / np.max(block)
        assert_allclose(values[:2], 0, atol=1e-14)
        assert values[2] > 0.1
        projector = jacobian(outputs)[c] * outputs.std(axis=0)[c]
        assert_allclose(block, projector @ theta @ projector / outputs.var(axis=0)[c], atol=1e-12 * np.max(block))


@pytest.mark.parametrize("depth", [DEPTH, *full(1, 50)])
@pytest.mark.parametrize("normalization", ["none", *full("weight_mean")])
def test_no_output_is_worse_than_the_zero_mean_space(normalization, depth):
    """Cauchy's interlacing: P_c theta P_c is a compression of G theta G, s_c only a factor."""
    nngp, theta = infinite(depth, normalization)
    outputs = sample_outputs(nngp, 5)
    each, worst = per_output(theta, outputs), on_the_zero_mean_space(theta)
    assert np.all((each >= 1) & (each <= worst * (1 + 1e-12)))
    assert worst < spectrum.condition_number(theta)
    assert of_all_outputs(theta, outputs) >= np.max(each)
    assert_allclose(per_output(theta, outputs * np.arange(1, 6)), each, rtol=1e-10)


@pytest.mark.parametrize(
    ("normalization", "depth", "all_of_it", "zero_mean"),
    [
        *full(("none", 1, 12.877763, 3.228911)),
        ("none", 10, 8.103080, 1.270948),
        *full(("none", 50, 6.047187, 1.043144)),
        *full(("weight_mean", 1, 7.671358, 3.228911), ("weight_mean", 10, 1.031676, 1.014994)),
        ("weight_mean", 50, 1.000000, 1.000000),
    ],
)
def test_condition_numbers_by_depth(normalization, depth, all_of_it, zero_mean):
    """Regression values. After one layer centering changes the constant mode only; behind a last BN both tend to 1."""
    _, theta = infinite(depth, normalization)
    assert_allclose(spectrum.condition_number(theta), all_of_it, atol=1e-6)
    assert_allclose(on_the_zero_mean_space(theta), zero_mean, atol=1e-6)


@pytest.mark.full
def test_deep_weight_centering_and_batch_normalisation_agree_behind_a_last_bn():
    """theory.md section 5: a last BN removes the constant mode, and with it the difference between the two."""
    centered_nngp, centered = infinite(50, "weight_mean")
    normalised_nngp, normalised = infinite(50, "batch")
    assert spectrum.condition_number(normalised) > 5.5
    assert_allclose(per_output(centered, sample_outputs(centered_nngp, C)), 1, atol=1e-12)
    # slower than weight centering's 0.73 a layer: the forward map's eigenvalue lam_L is above that at finite batch
    assert_allclose(per_output(normalised, sample_outputs(normalised_nngp, C)), 1, atol=1e-3)


def test_over_all_outputs_the_spread_of_their_scales_remains():
    nngp, theta = infinite(50, "weight_mean")
    outputs = sample_outputs(nngp, C)
    spread = outputs.var(axis=0).max() / outputs.var(axis=0).min()
    assert_allclose(of_all_outputs(theta, outputs), spread, rtol=1e-11)
    assert_allclose(of_all_outputs(theta, standardised(outputs)), 1, atol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(("m", "golden"), [(4, None), (8, 6.2749), (16, None)])
def test_batch_normalisation_keeps_only_the_constant_mode(m, golden):
    """theory.md sections 4 and 5: condition number chi/e1 in all, 1 on the zero-mean space; common correlation 0.1."""
    x = math.sqrt(m) * np.linalg.cholesky(0.1 * np.ones((m, m)) + 0.9 * np.eye(m))
    theta = infinite_kernel(networks.fully_connected(60, 1, "batch"), x).ntk_scaled
    c = -1 / (m - 1)
    slope = 1 - math.acos(c) / math.pi
    dual = math.sqrt(1 - c**2) / math.pi + c * slope
    chi = (m - 2 + slope + dual) / ((m - 3) * (1 - dual))
    constant = ((m - 2) - (m - 1) * (slope + dual)) / ((1 - dual) * (m - 3))
    # the quadrature is good to 1e-9; measured 1e-11 or less
    assert_allclose(spectrum.condition_number(theta), chi / constant, rtol=1e-9)
    assert golden is None or abs(chi / constant - golden) < 5e-5
    assert_allclose(on_the_zero_mean_space(theta), 1, atol=1e-13)


# -- precision, transformations, errors ----------------------------------------------------------------------------


def functions(theta, outputs, eps):
    return jacobian(outputs, eps), ntk(theta, outputs, eps), null_space(outputs, eps), as_matrix(ntk(theta, outputs))


@pytest.mark.parametrize("flag", [False, *full(True)])
@pytest.mark.parametrize("outputs", [None, *full(C)])
def test_numpy_is_float64_whatever_the_flag(flag, outputs):
    theta, f = random_theta(6, outputs=outputs), random_outputs(6)
    with jax.enable_x64(flag):
        results = functions(theta, f, 0.1)
        single = functions(jnp.asarray(theta, np.float32), jnp.asarray(f, np.float32), 0.1)
    for result, narrow, reference in zip(results, single, functions(theta, f, 0.1), strict=True):
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float64
        assert_array_equal(result, reference)
        assert isinstance(narrow, jax.Array)
        assert narrow.dtype == np.float32
        assert_allclose(narrow, reference, atol=2e-5 * np.max(np.abs(reference)))


@pytest.mark.parametrize("outputs", [C, *full(None)])
@pytest.mark.parametrize("eps", full(0.1, 0.0))
def test_jit_vmap_and_grad(outputs, eps):
    thetas = np.stack([random_theta(seed, outputs=outputs) for seed in (7, 8)])
    fs = np.stack([random_outputs(seed) for seed in (7, 8)])
    compiled = jax.jit(functools.partial(functions, eps=eps))(jnp.asarray(thetas[0]), jnp.asarray(fs[0]))
    mapped = jax.jit(jax.vmap(functools.partial(functions, eps=eps)))(jnp.asarray(thetas), jnp.asarray(fs))
    for plain, one, both in zip(functions(thetas[0], fs[0], eps), compiled, mapped, strict=True):
        assert_allclose(one, plain, atol=1e-11)
        assert_allclose(both[0], plain, atol=1e-11)
    assert_allclose(mapped[1][1], ntk(thetas[1], fs[1], eps), atol=1e-11)
    check_grads(jax.jit(lambda t, f: ntk(t, f, eps)), (jnp.asarray(thetas[0]), jnp.asarray(fs[0])), 1, rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.3, 1e5 / 3])
@pytest.mark.parametrize("n", [7, *full(3, 100)])
def test_a_constant_output_under_a_trace_is_nan(constant, n):
    f = random_outputs(9, (n, 2))
    f[:, 1] = constant * (1 + np.finfo(np.float64).eps * (np.arange(n) % 2))  # constant up to rounding
    result = jax.jit(ntk)(jnp.asarray(random_theta(9, n)), jnp.asarray(f))
    assert np.isnan(result[:, :, 1, 1]).all()
    assert_allclose(result[:, :, 0, 0], ntk(random_theta(9, n), f[:, :1])[:, :, 0, 0], atol=1e-11)
    assert np.isnan(jax.jit(jacobian)(jnp.asarray(f))[1]).all()
    with pytest.raises(ValueError, match="output 1 has no deviation to divide by, it is constant over the batch"):
        jacobian(f)
    centered = jacobian(f, 0.1)[1] * math.sqrt(0.1)
    assert_allclose(centered, np.eye(n) - 1 / n, atol=1e-13)


def test_a_variance_beyond_the_dtype_is_not_silent():
    with pytest.raises(ValueError, match="variance leaves float32's range: leave it out or rescale it"):
        jacobian(jnp.asarray(random_outputs() * 1e30, np.float32))
    assert np.isnan(jax.jit(jacobian)(jnp.asarray(random_outputs() * 1e30, np.float32))).all()
    assert np.isfinite(jacobian(random_outputs() * 1e30)).all()


NAN = np.array([[1.0], [np.nan], [2.0]])
THREE = np.array([[1.0], [0.0], [2.0]])


@pytest.mark.parametrize(
    ("outputs", "eps", "words"),
    [
        (np.ones(3), 0.0, r"outputs have shape \(3,\), expected \(B, C\)"),
        (np.ones((3, 0)), 0.0, r"outputs have shape \(3, 0\), expected \(B, C\)"),
        (np.ones((3, 1, 1)), 0.0, r"outputs have shape \(3, 1, 1\), expected \(B, C\)"),
        (THREE[:2], 0.0, "batch of 2, .*nothing to learn at eps=0.0: use at least 3 inputs, or eps > 0"),
        (THREE[:1], 0.1, "batch of 1, .*nothing to learn at eps=0.1: use at least 2 inputs$"),
        (
            np.ones((3, 1)),
            0.0,
            "output 0 has no deviation .* constant over the batch .*: leave it out or rescale it, or use",
        ),
        (NAN, 0.1, "NaN or infinite values in outputs, expected finite"),
        (np.full((3, 1), np.inf), 0.0, "NaN or infinite values in outputs, expected finite"),
        (THREE, -0.1, "eps=-0.1, expected a finite number >= 0"),
        (THREE, np.nan, "eps=nan, expected a finite number >= 0"),
    ],
)
def test_outputs_that_cannot_be_normalised(outputs, eps, words):
    theta = np.eye(len(outputs))
    for function in (jacobian, null_space, lambda *args: ntk(theta, *args)):
        with pytest.raises(ValueError, match=words) as caught:
            function(outputs, eps)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theta", "words"),
    [
        (np.eye(4), r"theta has shape \(4, 4\), expected \(3, 3\) or \(3, 3, 1, 1\) for outputs of shape \(3, 1\)"),
        (np.ones((3, 3, 2, 2)), r"theta has shape \(3, 3, 2, 2\), expected"),
        (np.ones((3, 3, 1)), r"theta has shape \(3, 3, 1\), expected"),
        (np.eye(3) * np.nan, "NaN or infinite values in theta, expected finite"),
        (jnp.eye(3, dtype=np.float32), "theta is float32 and outputs are float64, expected one dtype: convert one"),
    ],
)
def test_tangent_kernels_that_do_not_fit(theta, words):
    with pytest.raises(ValueError, match=words) as caught:
        ntk(theta, jnp.asarray(THREE) if isinstance(theta, jax.Array) else THREE)
    assert "\n" not in str(caught.value)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"theta has shape \(3, 3\), expected \(B, B, C, C\)"):
        as_matrix(np.eye(3))
    with pytest.raises(ValueError, match="count=0, expected at least 1"):
        sample_outputs(np.eye(3), 0)
    with pytest.raises(ValueError, match="not positive semi-definite"):
        sample_outputs(np.diag([1.0, -1.0]), 1)
    with pytest.raises(TypeError, match="tracer"):
        jax.jit(lambda k: sample_outputs(k, 1))(jnp.eye(3))


def test_it_is_public():
    import ntk_analysis

    assert ntk_analysis.last_batch_norm is last_batch_norm


# -- evaluation mode: the statistics of a training batch -----------------------------------------------------------


def evaluated(f, p, eps):
    """The outputs behind a last batch normalisation by the statistics of the inputs with a weight."""
    mean = (p @ f)[None, :]
    return (f - mean) / jnp.sqrt(p @ (f - mean) ** 2 + eps)[None, :]


@pytest.mark.parametrize("eps", [0.0, *full(0.1)])
@pytest.mark.parametrize("outputs", [C, *full(None)])
def test_new_points_behind_the_statistics_of_a_training_batch(eps, outputs):
    """Against automatic differentiation of the function itself."""
    f, theta, p = random_outputs(3), random_theta(3, outputs=outputs), np.zeros(len(random_outputs(3)))
    p[:4] = 1 / 4
    derivative = jax.jacobian(lambda f: evaluated(f, jnp.asarray(p), eps))(jnp.asarray(f))  # (B, C, B, C)
    J = np.moveaxis(np.diagonal(derivative, axis1=1, axis2=3), -1, 0)
    assert_allclose(jacobian(f, eps, weights=p), J, atol=1e-12)
    whole = theta if outputs else theta[:, :, None, None] * np.eye(C)
    expected = np.einsum("cij,jkcd,dlk->ilcd", J, whole, J)
    found = ntk(theta, f, eps, weights=p)
    assert_allclose(found, expected, atol=1e-11 * np.max(np.abs(expected)))
    null = null_space(f, eps, weights=p)
    assert_allclose(null.T @ as_matrix(found), 0, atol=1e-11 * np.max(np.abs(expected)))
    assert null.shape[1] == C * (2 if eps == 0 else 1)
    # equal weights are no weights, and the training block is the training batch's own
    assert_allclose(ntk(theta, f, eps, weights=np.full(len(f), 1 / len(f))), ntk(theta, f, eps), atol=1e-12)
    assert_allclose(found[:4, :4], ntk(theta[:4, :4], f[:4], eps), atol=1e-11 * np.max(np.abs(expected)))


@pytest.mark.parametrize(
    ("p", "words"),
    [
        pytest.param([0.5, 0.5, 0, 0, 0], "batch of 2, .*use at least 3 inputs, or eps > 0", id="two"),
        pytest.param([0.5, 0.5, 0.5, 0, 0], "the sum 1.5, expected 1", id="sum"),
        pytest.param([1 / 3] * 3, r"weights have shape \(3,\), expected \(5,\)", id="shape"),
        pytest.param([0, 0, 1 / 3, 1 / 3, 1 / 3], "constant over the batch", id="constant"),
    ],
)
def test_weights_that_are_refused(p, words):
    f = np.array([[1.0], [2.0], [3.0], [3.0], [3.0]])
    with pytest.raises(ValueError, match=words) as caught:
        jacobian(f, weights=np.array(p))
    assert "\n" not in str(caught.value)
