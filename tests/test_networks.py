"""Ready networks: golden values of the theory, and averages over finite networks against their kernels."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import batch_norm, spectrum
from ntk_analysis.activations import NAMED, get
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.layers import Activation, BatchNorm, Dense, Repeat, Serial
from ntk_analysis.networks import NORMALIZATIONS, convolutional, fully_connected, residual

from .averages import (
    FEATURES,
    STANDARD_ERRORS,
    both,
    deviation,
    extrapolated,
    finite_average,
    images,
    one_batch,
    pairs,
    resolution,
)
from .tiers import full

CENTERED = ["none", "weight_mean"]


def inputs_with_correlation(correlation, count):
    """Inputs with |x|^2 = d, all pairs at this correlation."""
    gram = correlation * np.ones((count, count)) + (1 - correlation) * np.eye(count)
    return np.linalg.cholesky(gram) * np.sqrt(count)


@cache
def steps(normalization, activation="relu", w_var=None):
    """The first layer of such a network, and every further activation with the weights behind it, as two programs."""
    first, phi, _, weights = fully_connected(2, 8, normalization, activation, w_var=w_var).layers
    return jax.jit(lambda x: first.kernel(input_kernel(x))), jax.jit(Serial(phi, weights).kernel)


def by_depth(x, deepest, *network):
    """The kernel of such a network at depth 1, 2, ..., `deepest`: one step more than at the depth before."""
    first, step = steps(*network)
    kernel, kernels = first(jnp.asarray(x)), {}
    for depth in range(1, deepest + 1):
        kernels[depth] = kernel = step(kernel)
    return kernels


@pytest.mark.parametrize(
    ("normalization", "depth"),
    full(("none", 1), ("weight_mean", 5), *((n, d) for n in CENTERED for d in (2, 10, 50, 200))),
)
def test_a_network_of_any_depth_is_its_steps(normalization, depth):
    x = inputs_with_correlation(0.3, 10)
    kernel, expected = infinite_kernel(fully_connected(depth, 8, normalization), x), by_depth(x, depth, normalization)
    np.testing.assert_allclose(kernel.nngp, expected[depth].nngp, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(kernel.ntk, expected[depth].ntk, rtol=1e-11, atol=1e-11 * np.max(kernel.ntk))


def test_first_steps_of_the_correlation():
    """theory.md section 2: T_bar(0.6) = 0.5270, and the trajectory from 0.9, up to layer 11."""
    kernel = by_depth(inputs_with_correlation(0.6, 10), 1, "weight_mean")[1]
    assert kernel.nngp[0, 1] == pytest.approx(0.5270, abs=5e-5)
    trajectory = [0.8673, 0.8268, 0.7779, 0.7208, 0.6563, 0.5862, 0.5127, 0.4389, 0.3677, 0.3016, 0.2426]
    kernels = by_depth(inputs_with_correlation(0.9, 10), 11, "weight_mean")
    for depth, expected in enumerate(trajectory, 1):
        assert kernels[depth].nngp[0, 1] == pytest.approx(expected, abs=5e-5)
        np.testing.assert_allclose(np.diag(kernels[depth].nngp), 1, rtol=1e-13)


@pytest.mark.parametrize(("normalization", "chi"), [("weight_mean", 1 / (1 - 1 / np.pi)), ("none", 1.0)])
def test_growth_of_the_ntk_diagonal(normalization, chi):
    """theory.md section 2: Theta' = 1 + chi_1 Theta on the diagonal, chi_1 = 1.466942 centered and 1 straight."""
    assert chi == pytest.approx(1.466942 if normalization == "weight_mean" else 1.0, abs=5e-7)
    for depth, kernel in by_depth(inputs_with_correlation(0.3, 10), 50, normalization).items():
        assert kernel.ntk[0, 0] == pytest.approx(sum(chi**layer for layer in range(depth + 1)), rel=1e-12)


@pytest.mark.parametrize(
    ("normalization", "golden"),
    [
        ("none", {1: 3.683042, 5: 5.574081, 10: 5.782640, 50: 5.043532, 200: 4.574448}),
        ("weight_mean", {1: 1.664473, 5: 1.076572, 10: 1.004055, 50: 1.000000, 200: 1.000000}),
    ],
)
def test_condition_numbers(normalization, golden):
    """theory.md section 2: m = 10 inputs of common correlation 0.1."""
    kernels = by_depth(inputs_with_correlation(0.1, 10), max(golden), normalization)
    for depth, expected in golden.items():
        assert spectrum.condition_number(kernels[depth]) == pytest.approx(expected, abs=6e-7)


@pytest.mark.full  # integrates a function of its own; the same numbers by other ways are in the default tier
def test_weight_centering_is_the_standardised_relu():
    """theory.md section 2: at unit variance, the straight network of (phi - 1/sqrt(2 pi)) / sqrt(1/2 - 1/(2 pi))."""

    def standardised(x):
        return (jax.nn.relu(x) - (2 * math.pi) ** -0.5) / (1 / 2 - 1 / (2 * math.pi)) ** 0.5

    x = inputs_with_correlation(0.4, 10)
    error = get(standardised).quadrature_error(1.0)
    assert error < 1e-9
    straight_by_depth, centered_by_depth = by_depth(x, 6, "none", standardised, 1.0), by_depth(x, 6, "weight_mean")
    for depth, straight in straight_by_depth.items():
        centered = centered_by_depth[depth]
        for one, other in ((straight.nngp, centered.nngp), (straight.ntk, centered.ntk)):
            assert np.max(np.abs(one / other - 1)) < 3.5 * error * (depth + 1)
        assert np.max(np.abs(straight.relative_error)) > error / 2


ONE_LAYER = [(activation, n, b_var) for activation in NAMED for n in CENTERED for b_var in (0.0, 0.2)]
TELLING = [("relu", "weight_mean", 0.2)]


@pytest.mark.parametrize(
    ("activation", "normalization", "b_var"), TELLING + full(*(case for case in ONE_LAYER if case not in TELLING))
)
def test_one_hidden_layer_is_exact_at_every_width(activation, normalization, b_var):
    """The average over draws is the kernel, n/(n - 1) and biases included."""
    network, x = fully_connected(1, 8, normalization, activation, outputs=4, b_var=b_var), pairs()
    mean, error = finite_average(network, x, draws=4_000)
    assert deviation(both(infinite_kernel(network, x)), mean, error) < STANDARD_ERRORS


@pytest.mark.full  # wrong theories
def test_that_the_finite_average_tells_wrong_theories():
    """Width 8: forgetting the means, or n/(n - 1), is many standard errors away."""
    network, x = fully_connected(1, 8, "weight_mean", outputs=4), pairs()
    mean, error = finite_average(network, x, draws=4_000)
    w_var = get("relu").stable_gain(centered=True)
    uncentered = both(infinite_kernel(fully_connected(1, 8, "none", w_var=w_var), x))
    assert min(deviation(uncentered[i], mean[i], error[i]) for i in range(2)) > 2 * STANDARD_ERRORS
    kernel = both(infinite_kernel(network, x))
    assert min(deviation(kernel[i], mean[i] * 7 / 8, error[i] * 7 / 8) for i in range(2)) > STANDARD_ERRORS
    swapped = both(infinite_kernel(fully_connected(1, 8, "weight_mean", "gelu", w_var=w_var), x))
    assert deviation(swapped, mean, error) > STANDARD_ERRORS


DEEP = {
    "straight": (lambda n: fully_connected(3, n, "none", outputs=2), pairs),
    "centered": (lambda n: fully_connected(3, n, "weight_mean", outputs=2, b_var=0.1), pairs),
    "standardized": (lambda n: fully_connected(3, n, "weight_standardization", outputs=2), pairs),
    "batch": (lambda n: fully_connected(3, n, "batch", outputs=2), one_batch),
    "batch with eps": (
        lambda n: fully_connected(3, n, "batch", "leaky_relu(0.2)", outputs=2, b_var=0.1, eps=0.2),
        pairs,
    ),
    "layer": (lambda n: fully_connected(3, n, "layer", outputs=2, b_var=0.1), pairs),
    "layer_post": (lambda n: fully_connected(3, n, "layer_post", outputs=2), pairs),
    "residual": (lambda n: residual(2, n, outputs=2), pairs),
    "centered residual": (lambda n: residual(2, n, "weight_mean", outputs=2, scale=0.5), pairs),
    "batch residual": (lambda n: residual(2, n, "batch", outputs=2, scale="1/sqrt(L)"), one_batch),
    "convolutional": (lambda n: convolutional(2, n, "weight_mean", outputs=2, kernel_size=2), images),
    "pooled": (
        lambda n: convolutional(2, n, "layer", b_var=0.1, kernel_size=2, readout="pool", padding="valid"),
        images,
    ),
}


# each kind of layer is seen in a shallow network of test_layers.py
QUICK = {"centered", "batch", "residual"}


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        pytest.param(*row, id=name, marks=pytest.mark.full if name in QUICK else pytest.mark.slow)
        for name, row in DEEP.items()
    ],
)
def test_deep_networks_approach_their_kernel_like_one_over_width(make, inputs):
    x = inputs()
    intercept, error = extrapolated(make, x)
    expected = both(infinite_kernel(make(8), x))
    assert resolution(expected, error) < 0.1
    assert deviation(expected, intercept, error) < STANDARD_ERRORS


@pytest.mark.parametrize("trained", [False, *full(True)])
def test_batch_norm_layers_are_the_recursion(trained):
    """Theory section 3: gain 1 in the first layer, Theta' = w_var (NNGP + PUSH), with trained gamma and beta more."""
    x = one_batch()
    sigma = theta = x @ x.T / x.shape[1]
    for _ in range(3):
        nngp = batch_norm.nngp(sigma)
        beta = (math.pi - np.arccos(np.clip(correlation_about_the_mean(sigma), -1, 1))) / (2 * math.pi)
        theta = 2 * (nngp + batch_norm.push(sigma, theta) + trained * (nngp + beta))
        sigma = 2 * nngp
    hidden = (BatchNorm(train_scale=trained, train_shift=trained), Activation("relu"))
    network = Serial(Dense(1), *hidden, Repeat(Serial(Dense(1, 2.0), *hidden), 2), Dense(1, 2.0))
    assert trained or network == fully_connected(3, 1, "batch")
    kernel = infinite_kernel(network, x)
    np.testing.assert_allclose(kernel.nngp, sigma, rtol=1e-12)
    np.testing.assert_allclose(kernel.ntk, theta, rtol=1e-7 if trained else 1e-11)  # arccos at correlation 1


def correlation_about_the_mean(sigma):
    centered = sigma - sigma.mean(0, keepdims=True) - sigma.mean(1, keepdims=True) + sigma.mean()
    return centered / np.sqrt(np.outer(np.diag(centered), np.diag(centered)))


def test_batch_norm_kernels_of_two_batches_are_refused():
    x = one_batch()
    with pytest.raises(NotImplementedError, match="one joint batch"):
        infinite_kernel(fully_connected(2, 4, "batch"), x, x[:3])
    with pytest.raises(NotImplementedError, match=r"batch_norm\.after_activation"):
        infinite_kernel(Serial(Dense(3), Activation("relu"), BatchNorm(0.1)), x)
    with pytest.raises(NotImplementedError, match="no one-dimensional integral"):
        infinite_kernel(fully_connected(1, 4, "batch", "tanh"), x)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.eye(3), "finite only from rank 3"),
        (np.eye(2)[[0, 1, 0, 1, 0]], "at least 4 distinct inputs"),
        (np.ones((5, 2)), "at least 4 distinct inputs"),
        (np.concatenate([np.eye(5), -np.eye(5), np.zeros((1, 5))]), "none lies at the mean"),
    ],
    ids=["three inputs", "rank one", "all the same", "at the mean"],
)
def test_batches_without_a_tangent_kernel_say_what_would_give_one(x, words):
    with pytest.raises(ValueError, match=words):
        infinite_kernel(fully_connected(1, 4, "batch"), x)


@pytest.mark.parametrize("x", [np.eye(2)[[0, 1, 0, 1, 0]], *full(np.eye(3))], ids=["rank one", "three inputs"])
def test_with_eps_small_batches_have_a_tangent_kernel(x):
    assert np.all(np.isfinite(infinite_kernel(fully_connected(1, 4, "batch", eps=0.1), x).ntk))


@pytest.mark.full
@pytest.mark.parametrize("depth", [2, 5])
def test_layer_norm_behind_a_relu_has_the_correlations_of_weight_centering(depth):
    """Both see (phi - E phi) only: T_bar, at every depth; layer norm also undoes the gain."""
    x = pairs()
    layer = infinite_kernel(fully_connected(depth, 1, "layer_post"), x)
    weight = infinite_kernel(fully_connected(depth, 1, "weight_mean"), x)
    np.testing.assert_allclose(layer.distance, weight.distance, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(layer.variance1, 1.0, rtol=1e-12)  # the read-out's gain
    unit = inputs_with_correlation(0.4, 4)
    before = infinite_kernel(fully_connected(depth, 1, "layer"), unit)
    np.testing.assert_allclose(before.ntk, infinite_kernel(fully_connected(depth, 1), unit).ntk, rtol=1e-12)


@pytest.mark.parametrize(
    ("normalization", "activation"),
    [
        ("layer_post", "relu"),
        *full(
            ("layer_post", "gelu"), ("layer_post", "tanh"), ("layer", "gelu"), ("none", "gelu"), ("weight_mean", "relu")
        ),
    ],
)
@pytest.mark.parametrize("b_var", [0.3, *full(0.0, 0.9)])
def test_the_default_gain_keeps_the_variance_at_one(normalization, activation, b_var):
    x = inputs_with_correlation(0.4, 4) * (1 - b_var) ** 0.5
    if normalization == "layer_post":
        x = x * np.array([[3.0], [0.1], [1.0], [30.0]])  # whatever comes in
    kernel = infinite_kernel(fully_connected(3, 1, normalization, activation, b_var=b_var), x)
    np.testing.assert_allclose(kernel.variance1, 1.0, rtol=1e-9)


def test_a_bias_that_leaves_no_room_for_weights_is_refused():
    for normalization in ("layer_post", "none"):
        with pytest.raises(ValueError, match=r"b_var=1\.0 leaves no room"):
            fully_connected(2, 1, normalization, b_var=1.0)


WHERE = {
    "batch": ["Dense", "BatchNorm", "Activation"],
    "layer": ["Dense", "LayerNorm", "Activation"],
    "layer_post": ["Dense", "Activation", "LayerNorm"],
}


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("depth", [1, *full(3)])
def test_every_normalization_has_a_finite_network(normalization, depth):
    network = fully_connected(depth, 8, normalization, outputs=3, last_batch_norm=True)
    shape, params = network.init(jax.random.key(0), (-1, FEATURES))
    y = np.asarray(network.apply(params, np.random.default_rng(0).standard_normal((5, FEATURES))))
    assert shape == (-1, 3)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-13)
    np.testing.assert_allclose(y.var(axis=0), 1, rtol=1e-12)
    walked = network.walk(network.activations(params, np.eye(5, FEATURES)))
    hidden = WHERE.get(normalization, ["Dense", "Activation"])
    assert [type(layer).__name__ for layer, _ in walked] == hidden * depth + ["Dense", "LastBatchNorm"]


def test_which_layers_are_centered():
    """No activation stands before the first layer; the read-out is centered unless it is told not to."""
    first, *_, readout = fully_connected(2, 4, "weight_mean").layers
    assert isinstance(first, Dense)
    assert isinstance(readout, Dense)
    assert not first.center
    assert readout.center
    assert first.w_var == 1.0
    assert readout.w_var == pytest.approx(2 / (1 - 1 / np.pi))
    *_, readout = fully_connected(2, 4, "weight_mean", center_readout=False).layers
    assert isinstance(readout, Dense)
    assert not readout.center
    x = pairs()
    kept = infinite_kernel(fully_connected(1, 4, "weight_mean", center_readout=False, w_var=1.5), x)
    straight = infinite_kernel(fully_connected(1, 4, "none", w_var=1.5), x)
    np.testing.assert_array_equal(kept.ntk, straight.ntk)


def test_kernels_that_do_not_exist_say_so():
    with pytest.raises(NotImplementedError, match=r"last_batch_norm\.ntk"):
        infinite_kernel(fully_connected(2, 4, last_batch_norm=True), pairs())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 0}, "got depth=0"),
        ({"width": 0}, "got width=0"),
        ({"outputs": 0}, "got width=0"),
        (
            {"normalization": "groups"},
            "choose one of none, weight_mean, weight_standardization, batch, layer, layer_post",
        ),
        ({"eps": -1.0, "normalization": "batch"}, "eps=-1.0"),
        ({"activation": "rleu"}, "choose one of relu, leaky_relu"),
        ({"w_var": -1.0}, "w_var=-1.0"),
        ({"b_var": -0.1}, "b_var=-0.1"),
        ({"b_var": 1.0}, "b_var=1.0 leaves no room"),
        ({"b_var": 2.0}, "b_var=2.0 leaves no room"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        fully_connected(**({"depth": 2, "width": 4} | arguments))


def test_a_large_bias_is_legal_with_a_given_gain():
    kernel = infinite_kernel(fully_connected(1, 4, b_var=2.0, w_var=0.5), pairs())
    assert np.all(np.isfinite(kernel.ntk))


def test_centering_over_one_unit_is_an_error():
    with pytest.raises(ValueError, match="fan-in of 1"):
        fully_connected(1, 1, "weight_mean").init(jax.random.key(0), (-1, 3))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: convolutional(0, 4), "got depth=0"),
        (lambda: convolutional(1, 4, padding="full"), "choose one of same, valid, circular"),
        (lambda: convolutional(1, 4, readout="max"), "choose one of flatten, pool"),
        (lambda: residual(0, 4), "got blocks=0"),
        (lambda: residual(2, 4, scale="1/l"), r"give a number or one of 1/sqrt\(l\), 1/sqrt\(L\)"),
        (lambda: residual(2, 4, scale=math.nan), "a finite number for each block"),
    ],
)
def test_bad_images_networks_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
