"""Infinite-width kernels against a NumPy recursion, high precision, and the identities they must satisfy."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import jaxtyping
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis import spectrum
from ntk_analysis.activations import get
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.infinite.kernel import Kernel
from ntk_analysis.layers import Activation, Dense, Repeat, Residual, Serial
from ntk_analysis.networks import fully_connected

from .tiers import full

NETWORKS = {
    "straight": fully_connected(3, 8),
    "centered": fully_connected(3, 8, "weight_mean"),
    "bias": fully_connected(2, 8, "weight_mean", b_var=0.3),
    "gelu": fully_connected(2, 8, activation="gelu", b_var=0.1),
    "residual": Serial(Dense(8), Repeat(Residual(Serial(Activation("relu"), Dense(8, 2.0)), 0.5), 2)),
}
FEW = ["centered", *full(*(name for name in NETWORKS if name != "centered"))]
SHALLOW, SHALLOW_CENTERED = fully_connected(1, 8), fully_connected(1, 8, "weight_mean")


def inputs(seed, n=4, d=5):
    return np.random.default_rng(seed).standard_normal((n, d))


def relu_recursion(x, depth, w_var, b_var, centered):
    """theory.md sections 1 and 2 with matrices K and Theta, in float64 NumPy."""
    k = x @ x.T / x.shape[1] + b_var
    theta = k
    for _ in range(depth):
        q = np.diag(k)
        norms = np.sqrt(np.outer(q, q))
        root = np.sqrt(np.maximum((norms - k) * (norms + k), 0))
        np.fill_diagonal(root, 0)
        step = (np.pi - np.arctan2(root, k)) / (2 * np.pi)
        moment = root / (2 * np.pi) + k * step
        if centered:
            moment = moment - norms / (2 * np.pi)
        k = w_var * moment + b_var
        theta = k + w_var * step * theta
    return k, theta


@pytest.mark.parametrize(
    ("normalization", "depth", "b_var"),
    [
        ("weight_mean", 4, 0.2),
        *full(("none", 4, 0.0), ("none", 4, 0.2), ("weight_mean", 4, 0.0)),
        *full(*((n, *case) for n in ("none", "weight_mean") for case in [(1, 0.0), (1, 0.2), (20, 0.1)])),
    ],
)
def test_relu_recursion_in_numpy(normalization, depth, b_var):
    x1, x2 = inputs(0, 3, 6), 2 * inputs(1, 4, 6)
    centered = normalization == "weight_mean"
    w_var = get("relu").stable_gain(b_var, centered=centered)
    k, theta = relu_recursion(np.concatenate([x1, x2]), depth, w_var, b_var, centered)
    network = fully_connected(depth, 8, normalization, b_var=b_var)
    kernel = infinite_kernel(network, x1, x2)
    np.testing.assert_allclose(kernel.nngp, k[:3, 3:], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(kernel.ntk, theta[:3, 3:], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(kernel.variance1, np.diag(k)[:3], rtol=1e-12)
    np.testing.assert_allclose(kernel.variance2, np.diag(k)[3:], rtol=1e-12)
    np.testing.assert_allclose(infinite_kernel(network, x1).ntk, theta[:3, :3], rtol=1e-11, atol=1e-12)


def test_means_after_an_activation():
    x = inputs(0)
    kernel = infinite_kernel(Serial(Dense(8), Activation("relu")), x)
    np.testing.assert_allclose(kernel.mean1, np.sqrt(np.mean(x**2, axis=1) / (2 * np.pi)), rtol=1e-13)
    assert kernel.law == "activated"
    assert infinite_kernel(Serial(Dense(8)), x).law == "gaussian"


@pytest.mark.parametrize("name", FEW)
@given(seed=st.integers(0, 1000))
def test_symmetric_and_positive(name, seed):
    kernel = infinite_kernel(NETWORKS[name], inputs(seed))
    for which, matrix in (("nngp", kernel.nngp), ("ntk", kernel.ntk_scaled)):
        np.testing.assert_allclose(matrix, matrix.T, rtol=1e-13, atol=1e-15)
        assert kernel.smallest_eigenvalue(which) > -1e-13 * np.max(matrix)
    assert np.all(np.diag(kernel.distance) == 0)


@pytest.mark.parametrize("name", FEW)
@given(seed=st.integers(0, 1000))
def test_permutations_and_blocks(name, seed):
    """One input order is as good as another, and K(x1, x2) is a block of K of both."""
    network = NETWORKS[name]
    x, order = inputs(seed), np.random.default_rng(seed).permutation(4)
    kernel, block = infinite_kernel(network, x), infinite_kernel(network, x[order], x)
    shuffled = infinite_kernel(network, x[order])
    for name in ("nngp", "ntk"):
        whole = getattr(kernel, name)
        np.testing.assert_allclose(getattr(shuffled, name), whole[np.ix_(order, order)], rtol=1e-12, atol=1e-13)
        # a duplicate known as such has distance 0; measured between two sets, 1e-16 in the angle
        np.testing.assert_allclose(getattr(block, name), whole[order], rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("name", ["centered", *full("straight")])
@given(seed=st.integers(0, 1000), exponent=st.floats(-60, 60))
def test_bias_free_relu_kernels_scale(name, seed, exponent):
    factor = 10**exponent
    kernel, scaled = (infinite_kernel(NETWORKS[name], inputs(seed) * c) for c in (1.0, factor))
    for one, other in ((kernel.nngp, scaled.nngp), (kernel.ntk, scaled.ntk)):
        largest = np.max(np.abs(one))
        np.testing.assert_allclose(other / factor / factor, one, rtol=1e-11, atol=1e-13 * largest)


def test_input_kernel_does_not_rescale():
    x = 3 * inputs(0)
    np.testing.assert_allclose(infinite_kernel(Dense(4, 1.7, 0.2), x).nngp, 1.7 * x @ x.T / 5 + 0.2, rtol=1e-13)


def high_precision(x, depth, w_var, b_var, centered):
    """Distance, variance and NTK of two inputs by the textbook recursion in 80 digits, from the floats as given."""
    mp = mpmath.mp
    x = [[mp.mpf(float(value)) for value in row] for row in x]
    d = len(x[0])
    q1, q2, k = (sum(a * b for a, b in zip(*pair, strict=True)) / d + b_var for pair in ([x[0]] * 2, [x[1]] * 2, x))
    theta = k
    for _ in range(depth):
        norm = mp.sqrt(q1 * q2)
        t = mp.acos(k / norm)
        step = (mp.pi - t) / (2 * mp.pi)
        mean = centered / (2 * mp.pi)
        k = w_var * (norm * mp.sin(t) / (2 * mp.pi) + k * step - norm * mean) + b_var
        q1, q2 = (w_var * q * (mp.mpf(1) / 2 - mean) + b_var for q in (q1, q2))
        theta = k + w_var * step * theta
    return float(1 - k / mp.sqrt(q1 * q2)), float(k), float(theta)


NEAR = [
    (dtype, normalization, b_var, depth)
    for dtype in (np.float64, np.float32)
    for normalization, b_var in (("none", 0.0), ("weight_mean", 0.0), ("weight_mean", 0.1))
    for depth in (1, 30)
]
TELLING = [(np.float32, "none", 0.0, 1)]


@pytest.mark.parametrize(
    ("dtype", "normalization", "b_var", "depth"), TELLING + full(*(case for case in NEAR if case not in TELLING))
)
def test_near_duplicates_keep_their_digits(dtype, normalization, b_var, depth):
    """The distance of inputs at small angles, against 80 digits: within the stated error, which is not a fantasy."""
    centered = normalization == "weight_mean"
    w_var = get("relu").stable_gain(b_var, centered=centered)
    network = fully_connected(depth, 8, normalization, w_var=w_var, b_var=b_var)
    a, b = np.linalg.qr(inputs(3, 6, 6))[0][:2] * np.sqrt(6)
    for angle in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        x = np.stack([a, np.cos(angle) * a + np.sin(angle) * b]).astype(dtype)
        if np.all(x[0] == x[1]):
            continue
        with mpmath.workdps(80):
            distance, nngp, ntk = high_precision(x, depth, mpmath.mpf(w_var), mpmath.mpf(b_var), centered)
        kernel = infinite_kernel(network, x)
        stated = float(kernel.relative_error)
        actual = abs(float(kernel.distance[0, 1]) / distance - 1)
        assert actual <= stated
        assert stated <= 1000 * max(actual, float(np.finfo(dtype).eps) / angle)
        tolerance = 50 * depth * float(np.finfo(dtype).eps)
        assert float(kernel.nngp[0, 1]) == pytest.approx(nngp, rel=tolerance)
        assert float(kernel.ntk[0, 1]) == pytest.approx(ntk, rel=tolerance)


EDGES = [(dtype, name) for dtype in (np.float64, np.float32) for name in NETWORKS]
TELLING_EDGES = [(np.float32, "centered")]


def edges(dtype):
    """Two inputs, a duplicate, an antipode, a zero image and a constant one."""
    a, b = inputs(0, 2)
    return np.stack([a, b, a, -a, 0 * a, 0 * a + 2]).astype(dtype)


@pytest.mark.parametrize(
    ("dtype", "name"), TELLING_EDGES + full(*(case for case in EDGES if case not in TELLING_EDGES))
)
def test_duplicates_antipodes_zero_and_constant_images(dtype, name):
    kernel = infinite_kernel(NETWORKS[name], edges(dtype))
    for matrix in (kernel.nngp, kernel.ntk):
        assert np.all(np.isfinite(matrix))
        np.testing.assert_array_equal(np.delete(matrix[0], [0, 2]), np.delete(matrix[2], [0, 2]))
        np.testing.assert_allclose(matrix[0, 2], matrix[0, 0], rtol=4 * np.finfo(dtype).eps)
    assert kernel.distance[0, 2] == 0
    if name in ("straight", "centered"):
        assert np.all(kernel.nngp[4] == 0)
        assert np.all(kernel.ntk[4] == 0)
    assert np.isfinite(kernel.relative_error)


@pytest.mark.parametrize("dtype", [np.float32, *full(np.float64)])
def test_relu_of_antipodes(dtype):
    """relu(z) relu(-z) = 0."""
    kernel = infinite_kernel(SHALLOW, edges(dtype))
    assert kernel.nngp[0, 3] == pytest.approx(0, abs=float(10 * np.finfo(dtype).eps))


def test_log_scale_where_the_ntk_leaves_the_dtype():
    x = inputs(0)
    deep = infinite_kernel(fully_connected(10_000, 8, "weight_mean"), x)
    with pytest.raises(OverflowError, match=r"ntk_scaled.*log_scale"):
        _ = deep.ntk
    chi = 1 / (1 - 1 / np.pi)
    q = np.mean(x**2, axis=1)
    # sum_l chi^l = chi^(L + 1) / (chi - 1) at this depth
    log_ntk = np.log(np.diag(deep.ntk_scaled)) + deep.log_scale
    np.testing.assert_allclose(log_ntk, np.log(q / (chi - 1)) + 10_001 * np.log(chi), rtol=1e-12)
    assert np.all(np.isfinite(deep.ntk_scaled))
    assert spectrum.condition_number(deep) == pytest.approx(q.max() / q.min(), rel=1e-9)


@pytest.mark.full
def test_scaled_ntk_is_the_ntk():
    x, w_var = inputs(0), get("relu").stable_gain(centered=True)
    single = infinite_kernel(fully_connected(300, 8, "weight_mean"), x.astype(np.float32))
    with pytest.raises(OverflowError, match="float32"):
        _ = single.ntk
    rebuilt = np.asarray(single.ntk_scaled, np.float64) * math.exp(float(single.log_scale))
    _, theta = relu_recursion(x, 300, w_var, 0.0, True)
    np.testing.assert_allclose(rebuilt, theta, rtol=2e-3, atol=2e-3 * np.max(theta))
    np.testing.assert_allclose(np.diag(rebuilt), np.diag(theta), rtol=2e-3)
    shallow = infinite_kernel(fully_connected(100, 8, "weight_mean"), x)
    assert shallow.log_scale > 0
    _, theta = relu_recursion(x, 100, w_var, 0.0, True)
    np.testing.assert_allclose(shallow.ntk, theta, rtol=1e-10, atol=1e-12 * np.max(theta))


def equations(jaxpr):
    """Equations of a traced program, those inside scans, conditions and calls included."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(value, "eqns"):
                count += equations(value)
            elif hasattr(value, "jaxpr"):
                count += equations(value.jaxpr)
    return count


@pytest.mark.parametrize("normalization", ["none", "weight_mean"])
def test_the_program_does_not_grow_with_depth(normalization):
    x = jnp.asarray(inputs(0))

    def counts(depth):
        network = fully_connected(depth, 4, normalization)
        params = jax.eval_shape(lambda key: network.init(key, x.shape)[1], jax.random.key(0))
        kernel = jax.make_jaxpr(lambda z: network.kernel(input_kernel(z)).ntk_scaled)(x)
        apply = jax.make_jaxpr(lambda p: network.apply(p, x))(params)
        record = jax.make_jaxpr(lambda p: network.activations(p, x))(params)
        return [equations(program.jaxpr) for program in (kernel, apply, record)]

    shallow = counts(10)
    assert shallow == counts(1000)
    assert min(shallow) > 5


@pytest.mark.parametrize(
    "network",
    [
        *full(SHALLOW_CENTERED, NETWORKS["centered"]),
        *(pytest.param(NETWORKS[name], marks=pytest.mark.slow) for name in ("bias", "residual")),
    ],
)
def test_gradients_are_right_and_finite_at_the_edges(network):
    """Against differences of second order; finite for duplicates, antipodes, a zero image and a constant one."""
    total_and_gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(infinite_kernel(network, x).ntk)))
    x, direction, step = inputs(0, 6), inputs(7, 6), 1e-5
    assert np.all(np.isfinite(total_and_gradient(edges(np.float64))[1]))
    above, below = (float(total_and_gradient(x + sign * step * direction)[0]) for sign in (1, -1))
    numeric = (above - below) / (2 * step)
    assert np.sum(total_and_gradient(x)[1] * direction) == pytest.approx(numeric, rel=1e-6)


@pytest.mark.parametrize("network", full(SHALLOW_CENTERED, NETWORKS["centered"], NETWORKS["gelu"]))
def test_jit_and_vmap(network):
    x = jnp.asarray(inputs(0))
    expected = infinite_kernel(network, x)
    jitted = jax.jit(lambda z: infinite_kernel(network, z))(x)
    assert isinstance(jitted, Kernel)
    np.testing.assert_allclose(jitted.ntk, expected.ntk, rtol=1e-13, atol=1e-15)
    mapped = jax.vmap(lambda z: infinite_kernel(network, z).ntk)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(mapped[0], expected.ntk, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(mapped[1], infinite_kernel(network, 2 * x).ntk, rtol=1e-12, atol=1e-14)


def test_dtypes_with_the_flag_off():
    x, network = inputs(0), SHALLOW_CENTERED
    expected = infinite_kernel(network, x)
    with jax.enable_x64(False):
        kernel = infinite_kernel(network, x, x[:2])
        for value in (kernel.nngp, kernel.ntk, kernel.ntk_scaled, kernel.distance, kernel.variance1):
            assert isinstance(value, np.ndarray)
            assert value.dtype == np.float64
        assert isinstance(kernel.log_scale, np.float64)
        single = infinite_kernel(network, jnp.asarray(x))
        for value in jax.tree.leaves(single):
            assert isinstance(value, jax.Array)
            assert value.dtype == jnp.float32
        assert infinite_kernel(network, x.astype(np.float32)).ntk.dtype == np.float32
        assert jax.jit(lambda z: infinite_kernel(network, z).ntk)(x).dtype == jnp.float32
    np.testing.assert_allclose(single.ntk, expected.ntk, rtol=1e-5, atol=1e-5 * np.max(expected.ntk))


def test_kernels_of_one_input():
    x = inputs(0, 1)
    kernel = infinite_kernel(SHALLOW, x)
    assert kernel.nngp == pytest.approx(np.mean(x**2), rel=1e-13)
    assert kernel.smallest_eigenvalue() == pytest.approx(2 * np.mean(x**2), rel=1e-13)
    with pytest.raises(ValueError, match="square kernel"):
        infinite_kernel(SHALLOW, x, inputs(1)).smallest_eigenvalue()


@pytest.mark.parametrize("dtype", [np.float32, *full(np.float64)])
def test_a_variance_beyond_the_dtype_is_an_error(dtype):
    with pytest.raises(OverflowError, match="gain or inputs are too large"):
        infinite_kernel(fully_connected(2000, 8, w_var=4.0), inputs(0).astype(dtype))


def test_a_second_input_beyond_the_dtype_is_an_error():
    x = inputs(0).astype(np.float32)
    with pytest.raises(OverflowError, match="float32's range"):
        infinite_kernel(SHALLOW, x, x * np.float32(1e25))


@pytest.mark.parametrize("joint", [True, *full(False)])
def test_an_ntk_beyond_the_dtype_is_an_error(joint):
    """Its variances, 1e34, still fit, and so do 2^40 of the scaled NTK."""
    x = np.array([[1, 1], [1, -1], [2, 1]], np.float32)
    steep = Serial(Dense(1, 1e11), Activation("erf"), Dense(1, 1e34))
    with pytest.raises(ValueError, match=r"scaled NTK of this network is nan at inputs \(0, 0\), .*float32's range"):
        infinite_kernel(steep, x, None if joint else x[:1])


@pytest.mark.parametrize(
    ("bad", "field"),
    [(np.nan, "distance"), (np.inf, "ntk_scaled"), *full((np.inf, "distance"), (np.nan, "ntk_scaled"))],
)
def test_kernels_that_are_not_finite(bad, field):
    """Whatever made them so: a layer of the user's, which hands on such numbers."""

    @dataclass(frozen=True)
    class Broken(Dense):
        def kernel(self, kernel):
            values = getattr(kernel, field)
            return replace(kernel, **{field: values.at[1, 2].set(bad)})

    with pytest.raises(ValueError, match=rf"of this network is {bad} at inputs \(1, 2\), expected finite numbers"):
        infinite_kernel(Broken(1), inputs(0))
    traced = jax.jit(lambda x: getattr(infinite_kernel(Broken(1), x), field))(inputs(0))
    assert not np.isfinite(traced[1, 2]), "under a trace nothing can be raised"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite(bad):
    x = inputs(0)
    x[2, 1] = bad
    with pytest.raises(ValueError, match="x1 has NaN or infinite values in 1 of 4 inputs, first in row 2"):
        infinite_kernel(NETWORKS["straight"], x)
    with pytest.raises(ValueError, match="x2 has NaN"):
        infinite_kernel(NETWORKS["straight"], inputs(0), x)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_inputs(shape):
    with pytest.raises(ValueError, match="holds no inputs"):
        infinite_kernel(NETWORKS["straight"], np.zeros(shape))


def test_wrong_shapes_without_the_shape_checks_of_the_tests(monkeypatch):
    """Here the annotations would be checked before the library's own words."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    ok, single = np.ones((2, 4)), np.ones((2, 4), np.float32)
    for inputs, words in (
        (
            [np.ones(4)],
            r"x1 must have shape \(inputs, features\) or \(inputs, \*positions, channels\) with one to three",
        ),
        ([np.ones((2, 1, 1, 1, 1, 4))], r"x\.reshape\(len\(x\), -1\)"),
        ([np.ones((2, 3, 4))], r"expects vectors, got images of \(3,\) positions: put Flatten"),
        ([ok, np.ones(4)], "x2 must have shape"),
        ([ok, np.ones((2, 3))], r"got \(3,\) float"),
        ([ok, single], "float32 against"),
    ):
        with pytest.raises(ValueError, match=words):
            infinite_kernel(Dense(3), *inputs)


X = np.random.default_rng(0).standard_normal((4, 8))


@pytest.mark.parametrize(
    ("network", "x", "words"),
    [
        (fully_connected(1, 8), 1e-160 * X, r"^x1\[0\] has no number above .*e-160, and float64"),
        *full(
            (fully_connected(1, 8), np.float32(2e-19) * X.astype(np.float32), r"^x1\[0\] has no number .* and float32"),
            (fully_connected(1302, 8, activation="gelu", w_var=2.0), X, "variance of x1.0. is 0, which float64"),
            (fully_connected(1100, 8, w_var=0.5), X, "variance of x1.0. is 0, which float64 does not resolve"),
        ),
    ],
)
def test_what_underflows_is_refused(network, x, words):
    with pytest.raises(ValueError, match=words) as refusal:
        infinite_kernel(network, x)
    assert "\n" not in str(refusal.value)


def test_variances_of_0_are_right_where_a_layer_multiplies_by_0():
    kernel = infinite_kernel(fully_connected(1, 8, w_var=0.0), X)
    assert np.all(kernel.nngp == 0)
