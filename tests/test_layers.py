"""Layers: averages over finite networks against infinite-width kernels, and the finite side by itself."""

import os
import re
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis import layers
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.angle_fit import angular_function
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalSumPool,
    GroupNorm,
    Identity,
    ImageResize,
    Index,
    LastBatchNorm,
    Layer,
    LayerNorm,
    MaxPool,
    Parallel,
    Repeat,
    Residual,
    ResidualChain,
    RMSNorm,
    Serial,
    SumPool,
)
from ntk_analysis.layers.combinators import runs
from ntk_analysis.networks import fully_connected

from .averages import (
    FEATURES,
    STANDARD_ERRORS,
    both,
    deviation,
    extrapolated,
    finite_average,
    images,
    of_one_corner,
    one_batch,
    pairs,
    resolution,
    sequences,
    volumes,
)
from .tiers import full

RELU = Activation("relu")

EXACT = [  # one hidden layer, or linear: the average over draws is the kernel at every width
    ("Dense", Serial(Dense(7, 1.0, 0.3), Dense(5, 1.3, 0.2, center=True)), pairs),
    ("Activation", Serial(Dense(8, 1.0, 0.1), RELU, Dense(5, 1.5, 0.1)), pairs),
    ("Serial", Serial(Serial(Dense(8), Activation("gelu")), Serial(Dense(5, 1.5, center=True))), pairs),
    ("Repeat", Serial(Dense(FEATURES), Repeat(Dense(FEATURES, 0.9, 0.2, center=True), 3)), pairs),
    ("Residual", Serial(Dense(7, 1.0, 0.1), Residual(Serial(RELU, Dense(7, 1.5, 0.2)), 0.5)), pairs),
    ("Residual", Residual(Serial(Dense(8), RELU, Dense(5, 1.5)), 0.7, Dense(5, 1.2, 0.3)), pairs),
    ("ResidualChain", Serial(Dense(7), ResidualChain(Dense(7, 1.5, 0.1), (1.0, 0.7, 0.5)), Dense(5)), pairs),
    ("Parallel", Serial(Parallel(Dense(7, 1.0, 0.1), Serial(Dense(7), RELU), fan="product"), Dense(5, 1.5)), pairs),
    ("BatchNorm", Serial(Dense(8), BatchNorm(0.3, True, True), RELU, Dense(5)), one_batch),
    ("Conv", Serial(Conv(8, (3, 2), (2, 1), "valid"), RELU, Flatten(), Dense(5, 1.5, 0.1)), images),
    ("Flatten", Serial(Flatten(), Dense(8), RELU, Dense(5, 1.5)), images),
    ("AvgPool", Serial(Conv(6, 3), RELU, AvgPool((2, 3), 2), Flatten(), Dense(5)), images),
    ("GlobalAvgPool", Serial(Conv(8, 3, b_var=0.1), RELU, GlobalAvgPool(), Dense(5, 1.5, 0.1)), images),
    *full(
        ("ConvTranspose", Serial(ConvTranspose(6, 3, 2), RELU, Flatten(), Dense(5)), of_one_corner),
        ("ConvLocal", Serial(Conv(4, 2), RELU, ConvLocal(4, 2, 2, b_var=0.1), GlobalAvgPool(), Dense(5)), images),
        ("Identity", Serial(Parallel(Identity(), Dense(FEATURES, 1.5, 0.1)), Dense(5)), pairs),
        ("Parallel", Serial(Parallel(Dense(7), Serial(Dense(7), RELU)), Dense(5, 1.5, center=True)), pairs),
        (
            "Parallel",
            Serial(Parallel(Serial(Dense(7), RELU), Dense(7, 1.3, 0.2), fan="concatenate"), Dense(5, 1.5)),
            pairs,
        ),
        (
            "Parallel",
            Serial(Parallel(Conv(6, 3, b_var=0.1), Serial(Conv(6, 1), RELU), fan="product"), GlobalSumPool(), Dense(5)),
            images,
        ),
        ("Dropout", Serial(Dense(8, 1.0, 0.1), RELU, Dropout(0.4), Dense(5, 1.5, 0.1)), one_batch),
        ("Dropout", Serial(Conv(6, 3), RELU, Dropout(0.3), GlobalAvgPool(), Dense(5)), images),
        (
            "Index",
            Serial(Conv(6, 3), RELU, Index((slice(None, None, 2), 1)), Conv(5, (2,)), Flatten(), Dense(5)),
            images,
        ),
        ("ImageResize", Serial(Conv(6, 3), RELU, ImageResize((2, 6)), Conv(5, 2, 2), Flatten(), Dense(5)), images),
        ("SumPool", Serial(Conv(6, 3), RELU, SumPool((2, 3), 2), Flatten(), Dense(5)), images),
        ("GlobalSumPool", Serial(Conv(8, 3, b_var=0.1), RELU, GlobalSumPool(), Dense(5, 1.5, 0.1)), images),
        ("Dense", Dense(5, 1.3), pairs),
        ("Dense", Dense(5, 1.3, 0.2), pairs),
        ("Repeat", Repeat(Dense(FEATURES, 0.9, 0.2), 3), pairs),
        ("Residual", Serial(Residual(Dense(FEATURES, 1.5), 0.7), Dense(5)), pairs),
        ("Residual", Serial(Dense(7), RELU, Residual(Dense(7, 1.5), 0.7), Dense(5, 2.0, center=True)), pairs),
        ("BatchNorm", Serial(Dense(8, 1.0, 0.1), BatchNorm(), RELU, Dense(5, 1.5, 0.1)), one_batch),
        (
            "BatchNorm",
            Serial(Dense(8), BatchNorm(0.0, True, True), Activation("abs"), Dense(5, center=True)),
            one_batch,
        ),
        ("BatchNorm", Serial(Dense(8), BatchNorm(0.1, False, True), Dense(5, 1.5)), one_batch),
        ("BatchNorm", Serial(Conv(8, 3), BatchNorm(0.2, True, False), RELU, GlobalAvgPool(), Dense(5, 1.5)), images),
        ("Conv", Serial(Conv(8, 3, b_var=0.1), RELU, Flatten(), Dense(5, 1.5)), images),
        (
            "Conv",
            Serial(Conv(6, 3, padding="circular"), Conv(7, 3, 2, "same", w_var=1.5, b_var=0.2), Flatten(), Dense(5)),
            images,
        ),
        ("Conv", Serial(Conv(6, 2, dilation=2), RELU, Flatten(), Dense(5)), images),
        ("Conv", Serial(Conv(4, 3, 2), RELU, Conv(4, (2, 1), padding="valid", groups=2), Flatten(), Dense(3)), images),
        ("Conv", Serial(Conv(6, (3,), 2, b_var=0.1), RELU, Flatten(), Dense(5, 1.5)), sequences),
        ("Conv", Serial(Conv(6, (2, 2, 1), padding="circular"), RELU, GlobalAvgPool(), Dense(5)), volumes),
        (
            "AvgPool",
            Serial(AvgPool((2,), (1,), "same"), Conv(6, (3,)), RELU, AvgPool((2,)), Flatten(), Dense(5)),
            sequences,
        ),
        (
            "ConvTranspose",
            Serial(
                Conv(4, 2),
                RELU,
                ConvTranspose(4, (3, 1), (2, 2), "valid", w_var=1.5, b_var=0.1),
                GlobalAvgPool(),
                Dense(5),
            ),
            images,
        ),
        (
            "ConvTranspose",
            Serial(ConvTranspose(6, (3,), (2,), "circular", b_var=0.1), RELU, GlobalAvgPool(), Dense(5)),
            sequences,
        ),
        ("ConvLocal", Serial(ConvLocal(6, (2,), b_var=0.1), RELU, GlobalAvgPool(), Dense(5)), sequences),
        ("ConvLocal", Serial(ConvLocal(8, 2), BatchNorm(0.2, True, False), RELU, Flatten(), Dense(5)), images),
        ("AvgPool", Serial(AvgPool(2, 1, "same"), Conv(6, 3), RELU, Flatten(), Dense(5)), images),
        ("GlobalAvgPool", Serial(Conv(8, 3), Activation("gelu"), GlobalAvgPool(), Dense(5, center=True)), images),
    ),
]

# means over a layer's own units, or over a fan-in whose entries depend on each other, as the positions of a channel do
# (n/(n - 1) is exact for independent ones only): the average over draws approaches the kernel like 1/width
APPROACHED = [
    ("LayerNorm", lambda n: Serial(Dense(n, 1.0, 0.2), LayerNorm(0.3), Activation("erf"), Dense(2)), pairs),
    ("RMSNorm", lambda n: Serial(Dense(n, 1.0, 0.2), RMSNorm(0.3), RELU, Dense(2)), pairs),
    *full(
        (
            "Dropout",
            lambda n: Serial(Dense(n), Dropout(0.2), Dense(n), RELU, Dropout(0.4), Dense(2, center=True)),
            one_batch,
        ),
        (
            "Dropout",
            lambda n: Serial(Dense(n), RELU, Dropout(0.4), Dense(n), BatchNorm(0.3), RELU, Dense(2)),
            one_batch,
        ),
        ("RMSNorm", lambda n: Serial(Dense(n), RELU, RMSNorm(), Dense(2, 1.5, center=True)), pairs),
        ("GroupNorm", lambda n: Serial(Dense(n), RELU, GroupNorm(0.1, 2), Dense(2, 1.5, center=True)), pairs),
        ("GroupNorm", lambda n: Serial(Conv(n, 2), GroupNorm(0.1, 2), RELU, Flatten(), Dense(2)), images),
        ("LayerNorm", lambda n: Serial(Dense(n, 1.0, 0.2), LayerNorm(), RELU, Dense(2, 1.5)), pairs),
        ("LayerNorm", lambda n: Serial(Dense(n), RELU, LayerNorm(), Dense(n, 1.5), LayerNorm(0.1)), pairs),
        ("Dense", lambda n: Serial(Dense(n), RELU, Dense(2, 2.9, 0.1, standardize=True)), pairs),
        ("Conv", lambda n: Serial(Conv(n), RELU, Conv(4, 3, 2, center=True), Flatten(), Dense(2)), images),
        (
            "ConvTranspose",
            lambda n: Serial(Conv(n, 2), RELU, ConvTranspose(4, 2, 2, center=True), GlobalAvgPool()),
            images,
        ),
        ("ConvLocal", lambda n: Serial(Conv(n, 2), RELU, ConvLocal(4, 2, center=True), Flatten(), Dense(2)), images),
        ("Flatten", lambda n: Serial(Conv(n, 2), RELU, Flatten(), Dense(2, 1.5, center=True)), images),
    ),
    pytest.param(
        "Conv",
        lambda n: Serial(Conv(n, 2), RELU, Conv(3, standardize=True), GlobalAvgPool()),
        images,
        marks=pytest.mark.slow,
    ),
]

NO_KERNEL = [
    ("LastBatchNorm", "no kernel of the inputs alone"),
    ("MaxPool", "has no infinite-width kernel: monte_carlo_kernel averages over finite networks"),
]


@pytest.mark.parametrize(("name", "network", "inputs"), EXACT)
def test_conformance_of_the_average_at_one_width(name, network, inputs):
    """One row per layer at least; a new layer without one fails the test below."""
    x = inputs()
    mean, error = finite_average(network, x, draws=10_000 if x.ndim == 2 else 3_000)
    assert deviation(both(infinite_kernel(network, x)), mean, error) < STANDARD_ERRORS


@pytest.mark.parametrize(("name", "make", "inputs"), APPROACHED)
def test_conformance_of_the_average_extrapolated_in_width(name, make, inputs):
    x = inputs()
    intercept, error = extrapolated(make, x)
    expected = both(infinite_kernel(make(4), x))
    assert resolution(expected, error) < 0.1
    assert deviation(expected, intercept, error) < STANDARD_ERRORS


@pytest.mark.parametrize(("name", "reason"), NO_KERNEL)
def test_conformance_of_layers_without_a_kernel(name, reason):
    with pytest.raises(NotImplementedError, match=reason):
        infinite_kernel(Serial(Dense(4), getattr(layers, name)()), pairs())


def test_conformance_table_has_a_row_for_every_layer():
    exported = {name for name, kind in vars(layers).items() if isinstance(kind, type) and issubclass(kind, Layer)}
    assert exported - {"Layer", "SingleLayer"} == {
        getattr(row, "values", row)[0] for row in EXACT + APPROACHED + NO_KERNEL
    }
    with pytest.raises(TypeError, match="abstract"):
        Layer()  # type: ignore[abstract]


def test_centering_the_inputs_layer_is_refused():
    with pytest.raises(NotImplementedError, match="needs an activation before it"):
        infinite_kernel(Dense(5, center=True), np.eye(3))


@pytest.mark.parametrize(
    ("summed", "averaged", "places"), [(SumPool(2), AvgPool(2), 4), (GlobalSumPool(), GlobalAvgPool(), 12)]
)
def test_sums_over_positions_are_means_times_their_number(summed, averaged, places):
    x = jnp.asarray(images())
    np.testing.assert_allclose(summed.apply((), x), places * averaged.apply((), x), rtol=1e-14)
    kernel = input_kernel(x, paired=True)
    ours, mean = (jax.jit(layer.kernel)(kernel) for layer in (summed, averaged))
    np.testing.assert_allclose(ours.nngp, places**2 * mean.nngp, rtol=1e-14)
    np.testing.assert_array_equal(ours.distance, mean.distance)
    np.testing.assert_allclose(ours.mean1, places * mean.mean1, rtol=1e-14)


@pytest.mark.parametrize(
    ("branches", "fan", "told"),
    [
        ((RELU, Identity()), "sum", "all branches but one of a sum must end in a Dense or Conv layer"),
        ((Dense(4), Identity(), LayerNorm()), "sum", r"got LayerNorm\(eps=0.0\), without weights"),
        ((RELU, RELU), "product", "all branches but one of a product must end"),
        ((Dense(4), Serial(Dense(4), BatchNorm())), "sum", "cannot end in a BatchNorm"),
    ],
)
def test_branches_that_are_not_uncorrelated_are_refused(branches, fan, told):
    with pytest.raises(NotImplementedError, match=told):
        infinite_kernel(Serial(Dense(4), Parallel(*branches, fan=fan)), pairs())


def test_bad_branches_are_named():
    with pytest.raises(ValueError, match="at least two branches, got 1"):
        Parallel(Dense(4))
    with pytest.raises(ValueError, match="got fan='max': choose one of sum, product, concatenate"):
        Parallel(Dense(4), Dense(4), fan="max")
    with pytest.raises(ValueError, match=r"one output shape, got \(2, 4\), \(2, 5\)"):
        Parallel(Dense(4), Dense(5)).init(jax.random.key(0), (2, 3))


BLOCKS = {
    "hidden": Serial(Dense(5, 1.8, 0.1), Activation("relu")),
    "centered": Serial(Dense(5), Activation("relu"), Dense(5, 2.9, center=True), Activation("relu")),
    "pre-activation residual": Residual(Serial(Dense(5, 1.1), Activation("erf"), Dense(5, 1.0)), 0.5),
    "nested": Repeat(Serial(Dense(5, 1.5), Activation("gelu")), 2),
}


@pytest.mark.parametrize(
    ("name", "times"),
    [
        *full(*((name, times) for times in (3, 1) for name in BLOCKS)),
    ],
)
def test_repeat_equals_the_unrolled_network(name, times):
    block = BLOCKS[name]
    x = np.random.default_rng(1).standard_normal((4, 5))
    repeated, unrolled = Repeat(block, times), Serial(*[block] * times)
    for field in ("nngp", "ntk", "distance", "mean1", "relative_error"):
        values = getattr(infinite_kernel(repeated, x), field), getattr(infinite_kernel(unrolled, x), field)
        np.testing.assert_allclose(*values, rtol=1e-12, atol=1e-14)
    shape, params = repeated.init(jax.random.key(0), x.shape)
    single = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(times)]
    assert shape == x.shape
    np.testing.assert_allclose(repeated.apply(params, x), unrolled.apply(tuple(single), x), rtol=1e-11, atol=1e-13)
    for ours, theirs in zip(
        repeated.walk(repeated.activations(params, x)), unrolled.walk(unrolled.activations(single, x)), strict=True
    ):
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=1e-14)


def test_repeat_of_a_law_changing_block_once():
    """One pass is one pass: it may end in a law that the block could not start from."""
    x = pairs()
    once = Serial(Dense(5), Repeat(Activation("relu"), 1))
    np.testing.assert_array_equal(
        infinite_kernel(once, x).nngp, infinite_kernel(Serial(Dense(5), Activation("relu")), x).nngp
    )
    with pytest.raises(NotImplementedError, match="put a Dense layer before it"):
        infinite_kernel(Serial(Dense(5), Repeat(Activation("relu"), 2)), x)


def test_repeat_draws_different_parameters():
    _, params = Repeat(Dense(3, 1.0, 0.1), 2).init(jax.random.key(0), (-1, 3))
    assert params["w"].shape == (2, 3, 3)
    assert params["b"].shape == (2, 3)
    assert np.abs(params["w"][0] - params["w"][1]).min() > 0


def test_residual_stays_residual_at_infinite_width():
    """y = x + s W x: K (1 + s^2 w), and the NTK is that of the branch alone."""
    x = pairs()
    kernel = infinite_kernel(Residual(Dense(FEATURES, 1.5), 0.5), x)
    np.testing.assert_allclose(kernel.nngp, x @ x.T / FEATURES * (1 + 0.25 * 1.5), rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, x @ x.T / FEATURES * 0.25 * 1.5, rtol=1e-13)
    assert kernel.law == "inputs"
    with pytest.raises(NotImplementedError, match="needs an activation before it"):
        infinite_kernel(Serial(Residual(Dense(FEATURES, 1.5), 0.5), Dense(4, center=True)), x)
    # Gaussian units that are functions of the skip are correlated with it
    for branch in (Activation("relu"), LayerNorm(), Identity(), Residual(Dense(4))):
        with pytest.raises(NotImplementedError, match="must end in a Dense or Conv layer"):
            infinite_kernel(Serial(Dense(4), Residual(branch)), x)


def test_dense_forward_by_hand():
    x = pairs()
    for center, standardize in ((False, False), (True, False), (False, True)):
        dense = Dense(3, 1.7, 0.4, center=center, standardize=standardize)
        shape, params = dense.init(jax.random.key(0), (-1, FEATURES))
        assert shape == (-1, 3)
        w, n = np.asarray(params["w"]), FEATURES - center
        w = w - w.mean(0) if center or standardize else w
        w = w / w.std(0) if standardize else w
        by_hand = x @ w * np.sqrt(1.7 / n) + np.sqrt(0.4) * np.asarray(params["b"])
        np.testing.assert_allclose(dense.apply(params, x), by_hand, rtol=1e-12)
    assert set(Dense(3).init(jax.random.key(0), (-1, 2))[1]) == {"w"}


def test_parameters_are_standard_normal():
    """Weights and biases, independent in each repetition; the gains stand in the forward pass."""
    for layer, shape in ((Dense(64, 3.0, 0.5), (-1, 64)), (Conv(64, 3, b_var=0.1), (-1, 4, 4, 64))):
        _, params = Repeat(layer, 2).init(jax.random.key(0), shape)
        for leaf in jax.tree.leaves(params):
            draws = np.asarray(leaf)
            error = 1 / np.sqrt(draws.size)
            assert abs(draws.mean()) < STANDARD_ERRORS * error
            assert abs(draws.std() - 1) < STANDARD_ERRORS * error / np.sqrt(2)
            assert len(np.unique(draws)) == draws.size
    _, params = BatchNorm(0.0, True, True).init(jax.random.key(0), (-1, 3))
    assert {name: value.tolist() for name, value in params.items()} == {"gamma": [1] * 3, "beta": [0] * 3}


@given(shift=st.floats(-100, 100))
def test_centered_weights_do_not_see_a_common_shift(shift):
    x = pairs()
    dense = Dense(4, 2.0, center=True)
    _, params = dense.init(jax.random.key(1), x.shape)
    np.testing.assert_allclose(dense.apply(params, x + shift), dense.apply(params, x), atol=1e-11)
    centered = x - x.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(dense.apply(params, centered), dense.apply(params, x), atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize(("layer", "axis"), [(BatchNorm, 0), (LastBatchNorm, 0), (LayerNorm, 1)])
def test_normalization_standardizes(layer, axis, eps):
    x = np.random.default_rng(0).standard_normal((7, 5)) * 3 + 2
    y = np.asarray(layer(eps).apply((), x))
    variance = x.var(axis=axis)
    np.testing.assert_allclose(y.mean(axis=axis), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=axis), variance / (variance + eps), rtol=1e-12)
    assert layer(eps).init(jax.random.key(0), (-1, 5)) == ((-1, 5), ())


@cache
def standardized_and_gradient(layer):
    def of_cubes(x):
        y = layer.apply((), x)
        return jnp.sum(y**3), y

    return jax.jit(jax.grad(of_cubes, has_aux=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("layer", "axis"), [(BatchNorm, 0), (LayerNorm, 1)])
@pytest.mark.parametrize("constant", [3.0, 0.0, 0.25])
def test_a_constant_channel_becomes_zero(layer, axis, dtype, constant):
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(dtype)
    x[(slice(None), 1) if axis == 0 else 1] = constant
    gradient, standardized = standardized_and_gradient(layer())(x)
    assert np.all(np.asarray(standardized[:, 1] if axis == 0 else standardized[1]) == 0)
    assert np.all(np.isfinite(standardized))
    assert np.all(np.isfinite(gradient))


def test_batch_norm_needs_a_batch():
    for layer in (BatchNorm(), LastBatchNorm(1e-3)):
        with pytest.raises(ValueError, match="at least 2 inputs, got 1"):
            layer.apply((), np.ones((1, 3)))
    assert LayerNorm().apply((), np.arange(3.0)[None]).shape == (1, 3)


def test_last_batch_norm_kernel_names_the_way_out():
    with pytest.raises(NotImplementedError, match=r"last_batch_norm\.ntk"):
        infinite_kernel(Serial(Dense(3), LastBatchNorm()), pairs())


def test_activations_and_walk_are_the_forward_pass():
    x = jnp.asarray(pairs())
    network = Serial(
        Dense(5, 1.0, 0.1),
        Activation("relu"),
        Repeat(Serial(Residual(Dense(5, 1.2), 0.5), BatchNorm(), Activation("tanh")), 2),
        Dense(2),
    )
    _, params = network.init(jax.random.key(0), x.shape)
    first, last = (np.asarray(params[index]["w"]) for index in (0, 3))
    y = np.asarray(x) @ first / np.sqrt(FEATURES) + np.sqrt(0.1) * np.asarray(params[0]["b"])
    by_hand = [y, np.maximum(y, 0)]
    y = by_hand[-1]
    order = [network.layers[0], network.layers[1]]
    repeated = network.layers[2]
    assert isinstance(repeated, Repeat)
    assert isinstance(repeated.block, Serial)
    residual, norm, tanh = repeated.block.layers
    assert isinstance(residual, Residual)
    for w in np.asarray(params[2][0]["w"]):
        branch = y @ w * np.sqrt(1.2 / 5)
        total = y + 0.5 * branch
        normal = (total - total.mean(0)) / total.std(0)
        y = np.tanh(normal)
        by_hand += [branch, total, normal, y]
        order += [residual.branch, residual, norm, tanh]
    by_hand.append(y @ last / np.sqrt(5))
    order.append(network.layers[3])
    walked = list(network.walk(network.activations(params, x)))
    assert [layer for layer, _ in walked] == order
    for (_, output), expected in zip(walked, by_hand, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(walked[-1][1], network.apply(params, x))


def test_layers_are_values():
    make = lambda: fully_connected(3, 16, "weight_mean", b_var=0.1)  # noqa: E731
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != fully_connected(4, 16, "weight_mean", b_var=0.1)
    assert Dense(3) != Dense(3, center=True)
    assert BatchNorm() != LastBatchNorm()  # type: ignore[comparison-overlap]
    assert repr(Serial(Dense(2), Activation("relu"))) == (
        "Serial(Dense(width=2, w_var=1.0, b_var=0.0, center=False, standardize=False, w_rate=1.0, b_rate=1.0), "
        "Activation(function='relu'))"
    )
    assert eval(repr(make()), dict(vars(layers))) == make()
    with pytest.raises(AttributeError):
        make().layers = ()  # type: ignore[misc]


def test_finite_networks_compute_in_the_dtype_of_their_parameters():
    network = fully_connected(1, 8)
    with jax.enable_x64(False):
        _, single = network.init(jax.random.key(0), (-1, FEATURES))
    assert network.apply(single, pairs()).dtype == jnp.float32
    _, double = network.init(jax.random.key(0), (-1, FEATURES))
    assert network.apply(double, pairs().astype(np.float32)).dtype == jnp.float64
    assert network.apply(double, np.ones((2, FEATURES), int)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dense(0), "got width=0, expected at least 1"),
        (lambda: Dense(3, -1.0), "w_var=-1.0"),
        (lambda: Dense(3, 1.0, -0.1), "b_var=-0.1"),
        (lambda: Dense(3, float("nan")), "w_var=nan"),
        (lambda: Dense(3, float("inf")), "w_var=inf"),
        (lambda: BatchNorm(-1.0), "eps=-1.0"),
        (lambda: Index((..., ...)), "at most once"),
        (lambda: Index((0, 0, 0)).init(jax.random.key(0), (-1, 4, 4, 1)), "names 3 axes of positions, got inputs of 2"),
        (lambda: Index((4,)).init(jax.random.key(0), (-1, 4, 4, 1)), "has nothing on axis 0"),
        (lambda: Index((slice(5, 9),)).init(jax.random.key(0), (-1, 4, 4, 1)), "has nothing on axis 0"),
        (lambda: ImageResize((0, 2)), r"got shape=\(0, 2\), expected a number of positions"),
        (lambda: ImageResize((2, 2), "bicubic"), "choose one of linear, nearest, cubic"),
        (lambda: ImageResize((2, 2)).init(jax.random.key(0), (-1, 4, 1)), "expects images"),
        (lambda: Dropout(1.0), "got rate=1.0, expected a probability"),
        (lambda: Dropout(-0.1), "got rate=-0.1"),
        (lambda: Activation("rleu"), "choose one of relu"),
        (lambda: Serial(), "at least one layer"),
        (lambda: Repeat(Dense(3), 0), "got times=0, expected 1 to 1,000,000"),
        (lambda: Dense(3, center=True).init(jax.random.key(0), (-1, 1)), "fan-in of 1"),
        (lambda: Repeat(Dense(3), 2).init(jax.random.key(0), (-1, 4)), "keeps the shape"),
        (lambda: Residual(Dense(3)).init(jax.random.key(0), (-1, 4)), "give Residual a shortcut"),
        (lambda: Dense(3).apply({"w": jnp.ones((4, 3))}, np.ones(4)), "flattens"),
        (lambda: Dense(3).apply({"w": jnp.ones((4, 3))}, np.ones((2, 2, 4))), "flattens"),
        (lambda: BatchNorm().apply((), np.ones((2, 1, 1, 1, 2, 4))), "flattens"),
        (lambda: Conv(0), "got width=0, expected at least 1"),
        (lambda: Conv(3, 0), "kernel_size or window=0"),
        (lambda: Conv(3, (3, 0)), "a tuple"),
        (lambda: Conv(3, 3, 0), "stride=0"),
        (lambda: Conv(3, padding="full"), "choose one of same, valid, circular"),
        (lambda: Conv(3, 5, padding="valid").init(jax.random.key(0), (-1, 4, 4, 1)), "does not fit on an image"),
        (lambda: Conv(3, 9, padding="circular").init(jax.random.key(0), (-1, 3, 3, 1)), "does not fit on an image"),
        (lambda: Conv(3, (3,), (2, 1)), "tuples of one length"),
        (lambda: Conv(3, (1, 1, 1, 1)), "one to three of them"),
        (lambda: Conv(3, dilation=0), "dilation=0"),
        (lambda: Conv(3, 3, padding="valid", dilation=2).init(jax.random.key(0), (-1, 4, 4, 1)), r"of \(5, 5\) does"),
        (lambda: Conv(3, groups=2), "got channels=3 in groups=2"),
        (lambda: Conv(4, groups=2).init(jax.random.key(0), (-1, 4, 4, 3)), "its 2 groups divide, got 3"),
        (
            lambda: Conv(3, (3,)).init(jax.random.key(0), (-1, 4, 4, 1)),
            r"expects sequences \(batch, length, channels\)",
        ),
        (lambda: AvgPool((1, 1, 2)).init(jax.random.key(0), (-1, 4, 4, 1)), "expects volumes"),
        (lambda: Conv(3).init(jax.random.key(0), (-1, 16)), "do not flatten them"),
        (lambda: GlobalAvgPool().init(jax.random.key(0), (-1, 16)), "do not flatten them"),
        (lambda: AvgPool(-1), "kernel_size or window=-1"),
        (lambda: ResidualChain(Dense(3), ()), "a finite number for each block"),
        (lambda: ResidualChain(Dense(3), (1.0, float("nan"))), "a finite number for each block"),
    ],
)
def test_bad_layers_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("padding", ["same", *full("valid", "circular")])
def test_max_pool_by_hand(padding):
    """Of negative numbers, too: zeros of a padding are not the largest."""
    x, pool = jnp.asarray(images()) - 3, MaxPool((2, 3), (2, 1), padding)
    y = pool.apply((), x)
    low = x - jnp.min(x) + 1  # positive: now a zero is the smallest
    by_hand = jnp.max(jnp.stack(pool.moving.parts(low, (1, 2))), 0) + jnp.min(x) - 1
    assert y.shape == pool.init(jax.random.key(0), x.shape)[0]
    np.testing.assert_allclose(y, by_hand, rtol=1e-14)


MOVED = {
    "rows": (Index((slice(2, None, -1), slice(1, 3))), (3, 2)),
    "one column": (Index((..., -1)), (3,)),
    "one pixel": (Index((1, 0)), ()),
    "smaller": (ImageResize((2, 3)), (2, 3)),
    "nearest": (ImageResize((5, -1), "nearest"), (5, 4)),
    "larger": (ImageResize((-1, 6)), (3, 6)),
    "not smoothed": (ImageResize((2, 2), antialias=False), (2, 2)),
}


@pytest.mark.parametrize("name", full(*sorted(MOVED)))
def test_layers_on_positions_move_both_kernels_as_they_move_images(name):
    """They are linear: the kernel of the inputs, moved, is that of the inputs that are moved."""
    layer, positions = MOVED[name]
    x = jnp.asarray(images())
    y = layer.apply((), x)
    assert y.shape == layer.init(jax.random.key(0), x.shape)[0] == (3, *positions, 2)
    start = input_kernel(x, paired=True)
    wanted = input_kernel(y, paired=bool(positions)).nngp
    found = layer.kernel(replace(start, ntk_scaled=start.nngp))
    for kernel in (found.nngp, found.ntk):
        np.testing.assert_allclose(kernel, wanted, rtol=0, atol=1e-13)
    assert found.paired == bool(positions)
    if isinstance(layer, Index):
        of_equal = layer.kernel(input_kernel(x))
        np.testing.assert_array_equal(of_equal.nngp, input_kernel(y).nngp)
    if isinstance(layer, ImageResize):
        np.testing.assert_allclose(y, jax.image.resize(x, y.shape, layer.method, layer.antialias), rtol=0, atol=1e-14)
        with pytest.raises(NotImplementedError, match="has negative weights"):
            replace(layer, method="cubic").kernel(start)


def test_dropout_masks_each_input_by_itself():
    """A share of 1 - rate is kept, divided by it; masks depend on the input and on the number, not on the batch."""
    x, layer = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (40, 50))), Dropout(0.3)
    x = x.at[1].set(x[0])
    shape, params = layer.init(jax.random.key(0), x.shape)
    y = np.asarray(layer.apply(params, x))
    kept = y != 0
    assert shape == x.shape
    np.testing.assert_allclose(y[kept], (np.asarray(x) / 0.7)[kept], rtol=1e-14)
    assert abs(kept.mean() - 0.7) < STANDARD_ERRORS * np.sqrt(0.21 / kept.size)
    assert len(np.unique(kept, axis=0)) == 39  # one is there twice
    np.testing.assert_array_equal(layer.apply(params, x[3:5]), y[3:5])
    np.testing.assert_array_equal(Dropout(0.3, training=False).apply(params, x), x)
    others = np.asarray(layer.apply(layers.with_new_masks(layer, params, jax.random.key(1)), x)) != 0
    assert abs(np.corrcoef(kept[2:].ravel(), others[2:].ravel())[0, 1]) < 0.15


@pytest.mark.full
def test_new_masks_are_drawn_for_each_layer_and_pass():
    block = Serial(Dense(4), Dropout(0.5))
    network = Serial(Dense(4), Repeat(block, 3), Residual(Serial(Dropout(0.2), Dense(4))), Parallel(block, Dense(4)))
    _, params = network.init(jax.random.key(0), (-1, 4))
    new = layers.with_new_masks(network, params, jax.random.key(1))
    flat, fresh = (jax.tree_util.tree_leaves_with_path(tree) for tree in (params, new))
    masks = []
    for (path, leaf), (_, other) in zip(flat, fresh, strict=True):
        changed = path[-1].key == "masks"
        assert np.all((np.asarray(leaf) != np.asarray(other)) == changed)
        if changed:
            masks += np.ravel(other).tolist()
    assert len(set(masks)) == 5


@pytest.mark.full
def test_dropout_changes_an_input_with_itself_only():
    x = pairs()
    dense = Serial(Dense(8, 1.0, 0.1), RELU)
    kernel, dropped = infinite_kernel(dense, x), infinite_kernel(Serial(dense, Dropout(0.2)), x)
    other = infinite_kernel(Serial(dense, Dropout(0.2)), x, x[:2])
    factor = 1 + 0.25 * np.eye(4)
    for field in ("nngp", "ntk"):
        np.testing.assert_allclose(getattr(dropped, field), getattr(kernel, field) * factor, rtol=1e-12)
        np.testing.assert_allclose(getattr(other, field), getattr(kernel, field)[:, :2], rtol=1e-12)
    np.testing.assert_array_equal(dropped.mean1, kernel.mean1)
    assert dropped.law == "activated"
    assert angular_function(Serial(dense, Dropout(0.2)), "float64") is None
    with pytest.raises(NotImplementedError, match="put a Dense layer before it"):
        infinite_kernel(Dropout(), x)


def test_groups_need_units_of_one_law():
    with pytest.raises(NotImplementedError, match="begin with a Conv without groups"):
        infinite_kernel(Serial(Conv(2, groups=2), Flatten()), images())


def test_an_activation_needs_gaussian_units():
    for network in (Activation("relu"), Serial(Dense(3), Activation("relu"), Activation("relu"))):
        with pytest.raises(NotImplementedError, match="put a Dense layer before it"):
            infinite_kernel(network, pairs())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fully_connected(2.5, 16), "got depth=2.5, expected a whole number"),
        (lambda: fully_connected("3", 16), "got depth='3', expected a whole number"),
        (lambda: fully_connected(3, True), "got width=True, expected a whole number"),
        (lambda: fully_connected(3, 16, w_var="2"), "got w_var='2', expected a number"),
        (lambda: Dense(3, 1j), "got w_var=1j, expected a number"),
        (lambda: Dense(3, b_var=True), "got b_var=True, expected a number"),
        (lambda: Index((0.5,)), "got 0.5 in an Index"),
        (lambda: Dropout("0.5"), "got rate='0.5', expected a number"),
        (lambda: Repeat(3, 3), "Repeat is made of layers, got 3"),
        (lambda: Residual(Dense), "Residual is made of layers, got <class"),
        (lambda: ResidualChain("relu", (1.0,)), "ResidualChain is made of layers, got 'relu'"),
    ],
)
def test_what_is_no_number_and_no_layer_is_refused(make, words):
    ours = (
        None if os.environ.get("CHECK_ANNOTATIONS") else f"^{re.escape(words)}[^\n]*$"
    )  # else annotations refuse first
    with pytest.raises(TypeError, match=ours):
        make()


def test_depths_beyond_a_million_are_slips():
    with pytest.raises(ValueError, match="got depth=1000000000, expected 1 to 1,000,000"):
        fully_connected(10**9, 16)


def test_runs_of_equal_layers_are_scanned():
    """What is written out has the kernel of `Repeat`; blocks that change the shape are passed one by one."""
    dense, relu = Dense(8, 1.5, 0.1), Activation("relu")
    blocks = runs((Dense(4), *(dense, relu) * 4, Dense(1)))
    assert blocks == [((Dense(4),), 1), ((dense, relu), 4), ((Dense(1),), 1)]
    assert runs((relu, dense, relu, dense, Dense(1))) == [
        ((layer,), 1) for layer in (relu, dense, relu, dense, Dense(1))
    ]
    x = np.random.default_rng(0).standard_normal((3, 5))
    written, repeated = Serial(*(dense, relu, LayerNorm()) * 4), Repeat(Serial(dense, relu, LayerNorm()), 4)
    found, wanted = infinite_kernel(written, x), infinite_kernel(repeated, x)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-13)


@pytest.mark.full
def test_runs_of_layers_that_make_images_smaller():
    conv, relu, pool = Conv(4, (3, 3), b_var=0.1), Activation("relu"), AvgPool((2, 2), (2, 2))
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 2))
    apart = [Serial(conv, relu, pool) for _ in range(2)]
    found = infinite_kernel(Serial(*(conv, relu, pool) * 3, Flatten(), Dense(1)), x)
    wanted = infinite_kernel(Serial(*apart, Serial(conv, relu, pool, Flatten(), Dense(1))), x)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-13)
