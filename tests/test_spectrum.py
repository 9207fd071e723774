"""Spectra against closed forms, the golden condition numbers of theory.md section 2, and explicit gradient descent."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ntk_analysis import spectrum
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.spectrum import UnresolvedSpectrumWarning, analyse, training_curve

from .tiers import full

seeds = st.integers(0, 2**32 - 1)
scales = st.floats(-80, 80).map(lambda exponent: 10.0**exponent)


def scaled_kernel(ntk, log_scale=0.0, nngp=None):
    """A `Kernel` of units whose NTK is ntk * exp(log_scale)."""
    nngp = np.eye(len(ntk)) if nngp is None else nngp
    variance, zeros = np.diag(nngp), np.zeros(len(ntk))
    distance = 1 - nngp / np.sqrt(np.outer(variance, variance))
    log_scale, error = (x if isinstance(x, jax.Array) else np.float64(x) for x in (log_scale, 0.0))
    return Kernel(variance, variance, distance, zeros, zeros, ntk, log_scale, error, "gaussian", joint=True)


def with_eigenvalues(eigenvalues, seed=0):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    m = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))
    matrix = q * np.asarray(eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def random_kernel(seed, m=8):
    """A well-conditioned random kernel: eigenvalues within [0.05, 5]."""
    rng = np.random.default_rng(seed)
    return with_eigenvalues(rng.uniform(0.05, 5, size=m), seed)


def equicorrelated(m, diagonal, off):
    return (diagonal - off) * np.eye(m) + off


def relu_ntk(correlation, depth, *, centered):
    """(diagonal, off-diagonal) of the NTK for unit-variance inputs of one common correlation.

    theory.md section 2, K' = w_var (phihat - phihat(0) if centered), Theta' = K' + w_var Step Theta, by scalars.
    """
    w_var = 2 / (1 - 1 / math.pi) if centered else 2.0
    mean_squared = 1 / (2 * math.pi) if centered else 0.0

    def layer(nngp, ntk):
        step = (math.pi - math.acos(min(nngp, 1.0))) / (2 * math.pi)
        dual = math.sqrt(max(1 - nngp**2, 0.0)) / (2 * math.pi) + nngp * step
        nngp = w_var * (dual - mean_squared)
        return nngp, nngp + w_var * step * ntk

    diagonal, off = (1.0, 1.0), (correlation, correlation)
    for _ in range(depth):
        diagonal = (1.0, layer(*diagonal)[1])  # the variance stays 1 exactly; rounding would leave arccos's domain
        off = layer(*off)
    return diagonal[1], off[1]


# theory.md, section 2: m = 10, common correlation 0.1
STRAIGHT = {1: 3.683042, 5: 5.574081, 10: 5.782640, 50: 5.043532, 200: 4.574448}
CENTERED = {1: 1.664473, 5: 1.076572, 10: 1.004055, 50: 1.000000, 200: 1.000000}


@pytest.mark.parametrize(
    ("centered", "depth", "golden"),
    [(False, *item) for item in STRAIGHT.items()] + [(True, *item) for item in CENTERED.items()],
)
def test_condition_number_of_relu_networks(centered, depth, golden):
    kernel = equicorrelated(10, *relu_ntk(0.1, depth, centered=centered))
    assert_allclose(spectrum.condition_number(kernel), golden, atol=5.1e-7, rtol=0)  # printed to 6 decimals


def test_straight_kernel_tends_to_a_quarter():
    m = 10
    distance = [
        abs(spectrum.condition_number(equicorrelated(m, *relu_ntk(0.1, depth, centered=False))) - (m + 3) / 3)
        for depth in (100, 1_000, 10_000)
    ]
    assert distance[0] > distance[1] > distance[2]
    assert distance[2] < 0.02  # the correction is log(L) / L


def test_only_the_straight_kernel_has_an_outlier():
    m = 100
    straight = analyse(equicorrelated(m, *relu_ntk(0.1, 200, centered=False)))
    centered = analyse(equicorrelated(m, *relu_ntk(0.1, 200, centered=True)))
    assert straight.outlier_ratio > m / 4
    assert_allclose(centered.outlier_ratio, 1, atol=1e-12)
    assert_allclose(centered.effective_rank, m, rtol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 10, 50])
def test_equicorrelated_closed_form(m):
    diagonal, off = 3.0, 0.75
    result = analyse(equicorrelated(m, diagonal, off))
    largest, rest = diagonal + (m - 1) * off, diagonal - off
    assert_allclose(result.eigenvalues, [largest] + [rest] * (m - 1), rtol=1e-13)
    assert_allclose(result.outlier_ratio, largest / diagonal, rtol=1e-13)
    assert_allclose(result.condition_number, largest / rest if m > 1 else 1, rtol=1e-13)
    assert_allclose(result.learning_rate, 2 / largest, rtol=1e-13)
    share = np.array([largest] + [rest] * (m - 1)) / (m * diagonal)
    assert_allclose(result.effective_rank, np.prod(share**-share), rtol=1e-12)
    assert result.resolved
    assert not result.condition_number_is_lower_bound


def test_rank_one_and_identity_are_the_extremes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither needs the smallest eigenvalue, so neither warns of it
        assert_allclose(spectrum.outlier_ratio(np.ones((7, 7))), 7, rtol=1e-12)
        assert_allclose(spectrum.effective_rank(np.ones((7, 7))), 1, rtol=1e-12)
        assert_allclose(spectrum.largest_stable_learning_rate(np.ones((7, 7))), 2 / 7, rtol=1e-12)
        assert_allclose(spectrum.largest_stable_learning_rate(np.ones((7, 7)), loss="mean"), 2, rtol=1e-12)
        assert_allclose(spectrum.eigenvalues(np.ones((7, 7))), [7, 0, 0, 0, 0, 0, 0], atol=1e-14)
    assert spectrum.outlier_ratio(np.eye(7, dtype=int)) == 1
    assert_allclose(spectrum.effective_rank(np.eye(7, dtype=int)), 7, rtol=1e-14)


@settings(max_examples=50, deadline=None)
@given(seeds, scales, st.floats(-1e4, 1e4))
def test_scaling_changes_only_the_learning_rate(seed, scale, log_scale):
    kernel = random_kernel(seed)
    plain = analyse(kernel)
    for scaled in (analyse(scale * kernel), analyse(scaled_kernel(scale * kernel, log_scale))):
        assert_allclose(scaled.condition_number, plain.condition_number, rtol=1e-10)
        assert_allclose(scaled.outlier_ratio, plain.outlier_ratio, rtol=1e-12)
        assert_allclose(scaled.effective_rank, plain.effective_rank, rtol=1e-12)
        assert_allclose(scaled.learning_rate_scaled * scale, plain.learning_rate, rtol=1e-12)


@settings(max_examples=50, deadline=None)
@given(seeds, st.integers(1, 12))
def test_order_of_the_inputs_does_not_matter(seed, m):
    kernel = random_kernel(seed, m)
    order = np.random.default_rng(seed).permutation(m)
    one, other = analyse(kernel), analyse(kernel[np.ix_(order, order)])
    assert_allclose(other.eigenvalues, one.eigenvalues, rtol=1e-12)
    assert_allclose(other.condition_number, one.condition_number, rtol=1e-10)
    assert_allclose(other.effective_rank, one.effective_rank, rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(1, 10), st.integers(1, 10))
def test_effective_rank_lies_between_one_and_the_rank(seed, m, rank):
    features = np.random.default_rng(seed).normal(size=(m, rank))
    kernel = features @ features.T
    assert 1 - 1e-12 <= spectrum.effective_rank(kernel) <= min(m, rank) * (1 + 1e-12)
    assert 1 - 1e-12 <= spectrum.outlier_ratio(kernel) <= m * (1 + 1e-12)


@pytest.mark.parametrize("which", ["ntk", "nngp"])
def test_kernel_objects(which):
    kernel = scaled_kernel(np.diag([4.0, 2.0]), math.log(3), nngp=np.diag([5.0, 1.0]))
    result = analyse(kernel, which=which)
    expected = {"ntk": [12, 6], "nngp": [5, 1]}[which]
    assert_allclose(result.eigenvalues, expected)
    assert_allclose([result.largest, result.smallest], expected)
    assert_allclose(result.learning_rate, 2 / expected[0])
    assert_allclose(spectrum.eigenvalues(kernel, which), expected)
    assert_allclose(spectrum.condition_number(kernel, which), expected[0] / expected[1])
    assert_allclose(spectrum.largest_stable_learning_rate(kernel, which, "mean"), 4 / expected[0])


def test_conventions_are_named():
    convention = analyse(np.eye(3), loss="mean").learning_rate_convention
    assert "1/(2 m) sum |f - y|^2 with m = 3" in convention
    assert "NTK parametrisation" in convention
    assert "gradient descent" in convention
    assert "read-out only" in analyse(np.eye(3), which="nngp").learning_rate_convention
    assert (
        "gradient flow"
        in training_curve(np.eye(3), np.ones(3), learning_rate=1, steps=1, gradient_flow=True).convention
    )


@pytest.mark.parametrize("log_scale", [1e4, -1e4])
def test_values_beyond_float64_name_the_scaled_ones(log_scale):
    result = analyse(scaled_kernel(np.diag([4.0, 2.0]), log_scale))
    for name in ("eigenvalues", "largest", "smallest"):
        with pytest.raises(OverflowError, match="eigenvalues_scaled"):
            getattr(result, name)
    with pytest.raises(OverflowError, match="learning_rate_scaled"):
        _ = result.learning_rate
    assert_allclose([result.condition_number, result.learning_rate_scaled], [2, 0.5])
    assert_allclose(result.eigenvalues_scaled, [4, 2])
    assert "exp(" in str(result)


def test_a_large_scale_is_fine_where_the_product_is():
    assert_allclose(
        analyse(scaled_kernel(np.diag([4e-300, 2e-300]), 1000.0)).largest, 4e-300 * np.exp(500) * np.exp(500)
    )


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_float64_whatever_the_flag(flag, convert):
    with jax.enable_x64(flag):
        result = analyse(convert(random_kernel(0)), loss="mean")
        curve = training_curve(convert(np.eye(3)), convert(np.ones(3)), learning_rate=0.5, steps=3)
    assert result.eigenvalues.dtype == curve.loss.dtype == np.float64
    assert result.input_dtype == (np.float32 if convert is jnp.asarray and not flag else np.float64)
    assert_allclose(result.condition_number, analyse(random_kernel(0)).condition_number, rtol=1e-4)


def test_float16_and_bfloat16_know_their_rounding():
    kernel = np.diag([1.0, 0.5, 1e-4])
    assert analyse(jnp.asarray(kernel, jnp.float32)).resolved
    for dtype in (jnp.float16, jnp.bfloat16):
        with pytest.warns(UnresolvedSpectrumWarning, match=np.dtype(dtype).name):
            result = analyse(jnp.asarray(kernel, dtype))
        assert 1 < result.condition_number < 1e4
    with pytest.warns(UnresolvedSpectrumWarning):
        assert analyse(jnp.eye(200, dtype=jnp.bfloat16)).condition_number == 1  # the least that can be said


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@pytest.mark.parametrize("m", [2, 10, *full(100)])
@pytest.mark.parametrize("spread", ["one outlier", "geometric"])
@pytest.mark.parametrize("smallest", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9])
def test_rounding_bounds_what_a_narrow_dtype_lost(dtype, m, spread, smallest):
    known = np.geomspace(1, smallest, m) if spread == "geometric" else np.array([1.0] + [smallest] * (m - 1))
    rounded = with_eigenvalues(known, seed=m).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnresolvedSpectrumWarning)
        result = analyse(rounded)
    # storing loses half an eps an entry, so it can use at most half of the bound
    assert np.max(np.abs(result.eigenvalues - known)) <= 0.51 * result.rounding
    if result.resolved:
        assert_allclose(result.condition_number, 1 / smallest, rtol=result.rounding / result.smallest)
    else:
        assert result.condition_number <= 1 / smallest


def test_float32_arithmetic_stays_within_rounding():
    """A Gram matrix multiplied in float32, not only stored in it: measured 0.06 of the rounding, or less."""
    for seed, m, d in [(0, 10, 50), (1, 50, 200), (2, 200, 1000)]:
        x = np.random.default_rng(seed).normal(size=(m, d)).astype(np.float32)
        exact = analyse(x.astype(np.float64) @ x.astype(np.float64).T)
        narrow = analyse(x @ x.T)
        assert abs(narrow.smallest - exact.smallest) < 0.1 * narrow.rounding
        assert_allclose(narrow.condition_number, exact.condition_number, rtol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
def test_duplicated_inputs_are_unresolved_and_say_so(dtype):
    x = np.random.default_rng(0).normal(size=(20, 40))
    x[7] = x[3]
    kernel = (x @ x.T).astype(dtype)
    name = np.dtype(dtype).name
    with pytest.warns(UnresolvedSpectrumWarning, match=f"below {name} rounding"):
        result = analyse(kernel)
    assert not result.resolved
    assert result.condition_number_is_lower_bound
    assert_allclose(result.condition_number, result.eigenvalues[0] / (2 * result.rounding))
    assert f">= {result.condition_number:.2g} (smallest eigenvalue below {name} rounding)" in str(result)
    with pytest.warns(UnresolvedSpectrumWarning):
        assert spectrum.condition_number(kernel) == result.condition_number


def test_the_eigensolvers_own_error_counts():
    with pytest.warns(UnresolvedSpectrumWarning):
        analyse(np.ones((200, 200)))  # noise of 3 eps * 200, where the entries are exact


def test_a_finer_dtype_is_worth_float64():
    assert analyse(np.eye(3, dtype=np.longdouble)).rounding == analyse(np.eye(3)).rounding


def test_asymmetry_counts_as_entry_error():
    kernel = np.diag([1.0, 0.5, 1e-10])
    assert analyse(kernel).resolved
    kernel[0, 1] += 1e-9
    with pytest.warns(UnresolvedSpectrumWarning):
        assert_allclose(analyse(kernel).rounding, 3 * 0.5e-9, rtol=1e-5)


def test_summary_names_everything():
    text = analyse(np.diag([4.0, 2.0]).astype(np.float32), loss="mean").summary()
    assert text == str(analyse(np.diag([4.0, 2.0]).astype(np.float32), loss="mean"))
    for part in ("NTK of 2 inputs, float32", "condition number   2", "outlier ratio      1.33333", "< 1 (loss 1/(2 m)"):
        assert part in text


NAN = np.array([[1.0, np.nan], [np.nan, 1.0]])


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        (np.ones((2, 3)), ValueError, r"shape \(2, 3\), expected \(m, m\)"),
        (np.ones((2, 3, 2, 2)), ValueError, r"shape \(4, 6\), expected \(m, m\)"),
        (np.ones((0, 0)), ValueError, r"shape \(0, 0\)"),
        (np.zeros((2, 2)), ValueError, "zero everywhere"),
        (NAN, ValueError, r"kernel\[0, 1\] = nan, expected finite"),
        (np.diag([1.0, np.inf]), ValueError, r"kernel\[1, 1\] = inf, expected finite"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), ValueError, "not symmetric: it differs from its transpose by 0.1"),
        (
            np.diag([1.0, -0.1]),
            ValueError,
            r"not positive semi-definite: eigenvalue -0.1, rounding of float64 explains",
        ),
        (-np.eye(2), ValueError, "not positive semi-definite"),
        (np.eye(2) * 1j, TypeError, "complex128, expected real"),
        (np.eye(2) * 1e308, OverflowError, "reach 1e[+]308"),
        (scaled_kernel(np.eye(2), np.nan), ValueError, "log_scale is nan, expected a finite"),
    ],
    ids=str,
)
def test_matrices_without_a_spectrum(kernel, error, message):
    with pytest.raises(error, match=message) as caught:
        analyse(kernel)
    assert "\n" not in str(caught.value)
    with pytest.raises(error, match=message):
        training_curve(kernel, np.ones(2), learning_rate=1.0, steps=1)


@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 1e-4), (np.float64, 1e-9)], ids=str)
def test_asymmetry_that_rounding_explains_is_accepted(dtype, allowed):
    kernel = np.array([[1, 0.5], [0.5 + allowed, 1]], dtype)
    assert_allclose(spectrum.condition_number(kernel), 3, rtol=1e-3)
    assert spectrum.condition_number(kernel) == spectrum.condition_number(kernel.T)
    kernel[0, 1] += 100 * allowed
    with pytest.raises(ValueError, match=f"more than {np.dtype(dtype).name} explains"):
        analyse(kernel)


def test_wrong_names_list_the_right_ones():
    with pytest.raises(ValueError, match="which='NTK' is not a kernel: use 'ntk' or 'nngp'"):
        analyse(np.eye(2), which="NTK")
    with pytest.raises(ValueError, match=r"loss='mse' is not a loss: use 'sum' .* or 'mean'"):
        analyse(np.eye(2), loss="mse")


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
def test_tracers_are_refused(transform):
    scale = jnp.ones(3) if transform is jax.vmap else 1.0
    with pytest.raises(TypeError, match=r"tracer.*concrete arrays: call it outside jit"):
        transform(lambda scale: analyse(scale * jnp.eye(2)).largest)(scale)


def test_concrete_arrays_inside_jit_are_fine():
    kernel = np.diag([4.0, 2.0])
    assert jax.jit(lambda x: x * spectrum.condition_number(kernel))(3.0) == 6


# -- on a part of the space -----------------------------------------------------------------------------------------


def orthonormal(m, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(m, m)))[0]


def written_differently(vectors):
    """The same span: skewed, one of them twice, of wildly different lengths."""
    skewed = vectors @ np.triu(np.ones((vectors.shape[1],) * 2))
    return np.concatenate([skewed, skewed[:, :1]], axis=1) * np.geomspace(1e-200, 1e200, skewed.shape[1] + 1)


@pytest.mark.parametrize("same_span", [np.asarray, jnp.asarray, written_differently], ids=["numpy", "jax", "skewed"])
@pytest.mark.parametrize("left_out", [[0], [7], [0, 3], [0, 1, 2, 4, 5, 6, 7]], ids=str)
def test_leaving_out_modes_leaves_the_other_eigenvalues(left_out, same_span):
    q, known = orthonormal(8), np.geomspace(5, 0.05, 8)
    without, kept = same_span(q[:, left_out]), np.delete(known, left_out)
    kernel = q * known @ q.T
    assert_allclose(spectrum.eigenvalues(kernel, without=without), kept, rtol=1e-12)
    assert_allclose(spectrum.condition_number(kernel, without=without), kept[0] / kept[-1], rtol=1e-12)
    result = analyse(kernel, without=without)
    assert_allclose(result.outlier_ratio, kept[0] / kept.mean(), rtol=1e-12)
    assert_allclose(result.learning_rate, 2 / kept[0], rtol=1e-12)


@given(seeds, st.integers(1, 7))
def test_leaving_out_any_directions_interlaces(seed, k):
    """Cauchy: eigenvalue i on the rest lies between eigenvalues i and i + k of the whole kernel."""
    kernel = random_kernel(seed)
    whole = spectrum.eigenvalues(kernel)
    rest = spectrum.eigenvalues(kernel, without=np.random.default_rng(seed).normal(size=(8, k)))
    assert len(rest) == 8 - k
    assert np.all((rest <= whole[: 8 - k] + 1e-13) & (rest >= whole[k:] - 1e-13))


@pytest.mark.parametrize("m", [2, 10, 50])
def test_without_the_constant_mode_an_equicorrelated_kernel_is_the_identity(m):
    kernel, ones = equicorrelated(m, 3.0, 0.75), np.ones(m)
    assert_allclose(spectrum.condition_number(kernel, without=ones), 1, rtol=1e-13)
    assert_allclose(spectrum.eigenvalues(kernel, without=ones), np.full(m - 1, 2.25), rtol=1e-13)


def test_a_null_space_is_what_makes_a_condition_number():
    center = np.eye(8) - 1 / 8
    kernel = center @ random_kernel(1) @ center
    with pytest.warns(UnresolvedSpectrumWarning):
        spectrum.condition_number(kernel)
    without = analyse(kernel, without=np.ones(8))
    assert without.resolved
    assert_allclose(without.eigenvalues, np.linalg.eigvalsh(kernel)[:0:-1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=str)
@pytest.mark.parametrize("outlier", [1e0, 1e4, 1e8, 1e12])
def test_an_outlier_taken_away_leaves_its_rounding(outlier, dtype):
    q, known = orthonormal(20), np.array([outlier, *np.geomspace(1, 0.1, 19)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnresolvedSpectrumWarning)
        result = analyse((q * known @ q.T).astype(dtype), without=q[:, 0])
    assert np.max(np.abs(result.eigenvalues - known[1:])) <= result.rounding
    assert result.rounding <= 100 * np.finfo(dtype).eps * outlier  # measured 3 to 68 times, for 20 inputs
    assert result.input_dtype == dtype
    assert result.resolved == (dtype == np.float64 or outlier <= 1e4)


def test_what_an_outlier_has_drowned_is_not_analysed():
    q = orthonormal(20)
    known = np.array([1e16, *np.geomspace(1, 0.1, 19)])
    with pytest.raises(ValueError, match="kernel is zero, up to rounding"):
        analyse(q * known @ q.T, without=q[:, 0])


def test_leaving_out_keeps_scale_count_and_convention():
    kernel = scaled_kernel(equicorrelated(4, 3.0, 1.0), 10_000.0, nngp=np.eye(4))
    result = analyse(kernel, loss="mean", without=np.ones(4))
    assert (result.inputs, result.log_scale, len(result.eigenvalues_scaled)) == (4, 10_000.0, 3)
    assert_allclose(result.learning_rate_scaled, 2 * 4 / 2)  # the mean is over 4 examples still
    assert "with m = 4" in result.learning_rate_convention
    assert "NTK of 4 inputs, float64, on 3 dimensions\n" in str(result)
    assert_allclose(spectrum.condition_number(kernel, without=np.ones(4)), 1)
    assert_allclose(spectrum.eigenvalues(kernel, "nngp", without=np.ones(4)), 1)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (np.ones(3), r"without has shape \(3,\), expected \(2,\) or \(2, k\): vectors as columns"),
        (np.ones((1, 2)), r"without has shape \(1, 2\), expected"),
        (np.ones((2, 1, 1)), r"without has shape \(2, 1, 1\), expected"),
        (np.array(1.0), r"without has shape \(\), expected"),
        (np.zeros(2), "without has a vector that is zero, NaN or infinite"),
        (np.array([1.0, np.nan]), "without has a vector that is zero, NaN or infinite"),
        (np.array([[1.0, np.inf], [0.0, 1.0]]), "without has a vector that is zero, NaN or infinite"),
        (np.eye(2), "without spans all 2 dimensions, no eigenvalue is left"),
        (np.array([1, 1]), r"kernel is zero, up to rounding \(.*\), on the 1 dimensions that `without` leaves"),
    ],
    ids=str,
)
def test_vectors_that_cannot_be_left_out(without, message):
    with pytest.raises(ValueError, match=message) as caught:
        analyse(np.ones((2, 2)), without=without)
    assert "\n" not in str(caught.value)


def test_no_vectors_leave_out_nothing():
    kernel = random_kernel(2)
    assert_allclose(spectrum.eigenvalues(kernel, without=np.zeros((8, 0))), spectrum.eigenvalues(kernel), rtol=1e-12)


def test_traced_vectors_are_refused():
    with pytest.raises(TypeError, match="without is a JAX tracer"):
        jax.jit(lambda v: analyse(np.eye(2), without=v).largest)(jnp.ones(2))


# -- training ---------------------------------------------------------------------------------------------------------


def descend(features, targets, initial, learning_rate, steps, loss):
    """Gradient descent on the weights of f = initial + features @ weights, with the gradient written out."""
    weights = np.zeros((features.shape[1], *targets.shape[1:]))
    per_example = len(targets) if loss == "mean" else 1
    losses, residuals = [], []
    for _ in range(steps + 1):
        residual = initial + features @ weights - targets
        residuals.append(residual)
        losses.append(np.sum(residual**2) / (2 * per_example))
        weights = weights - learning_rate * features.T @ residual / per_example
    return np.array(losses), np.array(residuals)


@pytest.mark.parametrize("loss", ["sum", "mean"])
@pytest.mark.parametrize("outputs", [(), (3,)], ids=["one output", "three outputs"])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.9, 1.0, 1.02])
def test_training_curve_is_gradient_descent(loss, outputs, fraction):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(6, 9))
    targets, initial = rng.normal(size=(6, *outputs)), rng.normal(size=(6, *outputs))
    kernel = features @ features.T
    rate = fraction * spectrum.largest_stable_learning_rate(kernel, loss=loss)
    losses, residuals = descend(features, targets, initial, rate, 100, loss)
    curve = training_curve(kernel, targets, learning_rate=rate, steps=100, loss=loss, initial=initial)
    assert curve.stable == (fraction <= 1)
    assert (curve.rates.min() < -1e-12) == (fraction > 1)
    assert_allclose(curve.loss, losses, rtol=1e-10)
    assert_allclose(curve.residuals, residuals, rtol=1e-10, atol=1e-10)
    some = training_curve(kernel, targets, learning_rate=rate, steps=np.array([7, 0]), loss=loss, initial=initial)
    assert_allclose(some.loss, curve.loss[[7, 0]], rtol=1e-12)


def test_modes_diagonalise_the_kernel_in_the_spectrums_order():
    kernel = random_kernel(3)
    curve = training_curve(kernel, np.ones(8), learning_rate=0.01, steps=1)
    assert_allclose(curve.modes.T @ kernel @ curve.modes, np.diag(spectrum.eigenvalues(kernel)), atol=1e-13)
    assert_allclose(curve.rates, -np.log(1 - 0.01 * spectrum.eigenvalues(kernel)), rtol=1e-11)


def test_gradient_flow_is_the_limit_of_small_steps():
    kernel, targets = random_kernel(4), np.random.default_rng(4).normal(size=8)
    flow = training_curve(kernel, targets, learning_rate=1.0, steps=np.array([0, 1, 2]), gradient_flow=True)
    refined = [training_curve(kernel, targets, learning_rate=1 / n, steps=n * flow.steps).loss for n in (1000, 2000)]
    errors = [np.max(np.abs(losses - flow.loss)) for losses in refined]
    assert_allclose(errors[0] / errors[1], 2, rtol=0.01)  # first order
    assert_allclose(2 * refined[1] - refined[0], flow.loss, rtol=1e-4)
    fast = training_curve(kernel, targets, learning_rate=1e9, steps=np.array([0, 1]), gradient_flow=True)
    assert fast.stable
    assert_allclose(fast.loss, [np.sum(targets**2) / 2, 0])
    beyond = training_curve(
        scaled_kernel(np.diag([1.0, 0.0]), 1e4), np.ones(2), learning_rate=1.0, steps=1, gradient_flow=True
    )
    assert_allclose(beyond.loss, [1, 0.5])
    overshooting = training_curve(2 * np.eye(2), np.ones(2), learning_rate=1.0, steps=1, gradient_flow=True)
    assert_allclose(overshooting.residuals[1], -math.exp(-2) * np.ones(2))


def test_slow_modes_keep_their_digits_over_many_steps():
    curve = training_curve(np.diag([1.0, 1e-12]), np.ones(2), learning_rate=1.0, steps=np.array([10**12]))
    assert curve.rates[0] == np.inf  # gone in one step
    assert_allclose(curve.residuals[0], [0, -math.exp(-1 - 0.5e-12)], rtol=1e-12)


def test_null_modes_do_not_move():
    x = np.random.default_rng(0).normal(size=(3, 3))
    x[1] = x[0]
    curve = training_curve(x @ x.T, np.array([1.0, -1.0, 0.0]), learning_rate=1e-3, steps=np.array([0, 10**6]))
    assert_allclose(curve.loss, [1, 1], rtol=1e-9)


def test_negative_rounding_noise_does_not_grow():
    curve = training_curve(np.diag([1.0, -1e-17]), np.ones(2), learning_rate=1.0, steps=np.array([0, 1, 10**18]))
    assert_allclose(curve.loss, [1, 0.5, 0.5])


@pytest.mark.parametrize("loss", ["sum", "mean"])
@pytest.mark.parametrize("log_scale", [0.0, 1.0, 3.3, 7.0, 100.0, -20.0])
def test_the_largest_stable_learning_rate_is_stable(log_scale, loss):
    for m, eigenvalue in [(1, 3.0), (3, 7.0), (7, 10.0)]:
        kernel = scaled_kernel(eigenvalue * np.eye(m), log_scale)
        rate = spectrum.largest_stable_learning_rate(kernel, loss=loss)
        assert training_curve(kernel, np.ones(m), learning_rate=rate, steps=1, loss=loss).stable
        assert not training_curve(kernel, np.ones(m), learning_rate=1.001 * rate, steps=1, loss=loss).stable


def test_divergence_is_reported():
    unstable = training_curve(np.eye(2), np.ones(2), learning_rate=3.0, steps=20)
    assert not unstable.stable
    assert_allclose(unstable.loss, 4.0 ** np.arange(21), rtol=1e-12)
    with pytest.raises(OverflowError, match=r"at step 512, learning_rate [*] eigenvalue is 3 "):
        training_curve(np.eye(2), np.ones(2), learning_rate=3.0, steps=600)
    with pytest.raises(OverflowError, match=r"eigenvalue is inf .* below 2 \* exp\(-10000\)"):
        training_curve(scaled_kernel(np.eye(2), 1e4), np.ones(2), learning_rate=1.0, steps=1)


def test_training_with_a_scaled_kernel_and_jax_arrays():
    plain = training_curve(random_kernel(5), np.ones(8), learning_rate=0.1, steps=5)
    kernel = scaled_kernel(jnp.asarray(random_kernel(5) / 7), jnp.log(7.0))
    scaled = training_curve(kernel, jnp.ones(8), learning_rate=jnp.asarray(0.1), steps=jnp.arange(6))
    assert_allclose(scaled.loss, plain.loss, rtol=1e-12)
    nngp = scaled_kernel(np.eye(8), nngp=random_kernel(5))
    assert_allclose(training_curve(nngp, np.ones(8), learning_rate=0.1, steps=5, which="nngp").loss, plain.loss)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.ones(3)}, r"targets have shape \(3,\), expected \(2,\) or \(2, outputs\)"),
        ({"targets": np.ones((2, 1, 1))}, r"targets have shape \(2, 1, 1\)"),
        ({"targets": np.array([1.0, np.nan])}, "NaN or infinity"),
        ({"initial": np.ones((2, 1))}, r"initial has shape \(2, 1\), expected that of targets, \(2,\)"),
        ({"learning_rate": 0.0}, "learning_rate=0.0, expected a positive"),
        ({"learning_rate": -1}, "learning_rate=-1.0, expected a positive"),
        ({"learning_rate": np.nan}, "learning_rate=nan, expected a positive"),
        ({"steps": -1}, "steps=-1, expected"),
        ({"steps": np.array([0.5])}, "steps=.*integers"),
        ({"steps": np.array([], int)}, "steps=.*integers"),
        ({"loss": "max"}, "use 'sum'"),
        ({"which": "K"}, "use 'ntk' or 'nngp'"),
    ],
    ids=str,
)
def test_training_arguments_that_do_not_fit(change, message):
    arguments = {"targets": np.ones(2), "learning_rate": 0.1, "steps": 1} | change
    with pytest.raises(ValueError, match=message) as caught:
        training_curve(np.eye(2), **arguments)
    assert "\n" not in str(caught.value)
