"""Networks that predict: batch norm with the statistics of a training batch, new points behind them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import Kernel, infinite_kernel, networks
from ntk_analysis.data import load_digits
from ntk_analysis.empirical import open_kernel
from ntk_analysis.layers import Activation, BatchNorm, Dense, LayerNorm, Residual, ResidualChain, Serial, normalization
from ntk_analysis.networks.by_depth import kernels_by_depth

from .averages import STANDARD_ERRORS, both, deviation, extrapolated, finite_average, resolution
from .tiers import full

TRAIN, NEW = 7, 2
RELU = Activation("relu")


def inputs():
    return np.random.default_rng(0).standard_normal((TRAIN + NEW, 9)) + 0.3


def of_training_batch(network, **options):
    return infinite_kernel(network, inputs()[:TRAIN], inputs()[TRAIN:], statistics="x1", **options)


@pytest.fixture
def training_statistics(monkeypatch):
    """Finite networks normalise by the mean and variance of the first TRAIN inputs."""

    def standardize(x, axis, eps):
        mean = jnp.mean(x[:TRAIN], axis=axis, keepdims=True)
        return (x - mean) / jnp.sqrt(jnp.mean((x[:TRAIN] - mean) ** 2, axis=axis, keepdims=True) + eps)

    monkeypatch.setattr(normalization, "_standardize", standardize)


# with one hidden layer the average over draws is exact at every width
ONE_LAYER = [
    pytest.param(
        Serial(Dense(8, 1.0, 0.1), BatchNorm(0.1, True, True), RELU, Dense(5, 1.5, 0.1, center=True)),
        id="relu, gamma, beta, biases, centered",
    ),
    *(
        pytest.param(network, id=name, marks=pytest.mark.full)
        for name, network in {
            "relu": Serial(Dense(8), BatchNorm(0.05), RELU, Dense(5, 2.0)),
            "abs": Serial(Dense(8), BatchNorm(0.2, False, True), Activation("abs"), Dense(5)),
            "leaky": Serial(Dense(8), BatchNorm(0.1), Activation("leaky_relu(0.2)"), Dense(5)),
            "identity": Serial(Dense(8), BatchNorm(0.1, True, False), Dense(5, 1.5)),
        }.items()
    ),
]


@pytest.mark.full
@pytest.mark.parametrize("network", ONE_LAYER)
def test_finite_networks_of_one_layer(network, training_statistics):
    mean, error = finite_average(network, inputs(), draws=3_000)
    expected = both(of_training_batch(network))
    assert deviation(expected, mean, error) < STANDARD_ERRORS
    # a wrong theory fails: statistics of all inputs
    assert deviation(both(infinite_kernel(network, inputs())), mean, error) > 2 * STANDARD_ERRORS


def chain(n):
    branch = Serial(BatchNorm(0.2), RELU, Dense(n, 2.0, center=True))
    return Serial(Dense(n), ResidualChain(branch, (1.0, 0.7)), BatchNorm(0.2), RELU, Dense(2))


@pytest.mark.full
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda n: networks.fully_connected(2, n, "batch", eps=0.2, outputs=2), id="2 layers"),
        pytest.param(lambda n: networks.fully_connected(3, n, "batch", eps=0.2, outputs=2), id="3 layers"),
        pytest.param(chain, id="residual chain"),
    ],
)
def test_finite_networks_of_several_layers(make, training_statistics):
    """The average approaches the kernel like 1/width."""
    intercept, error = extrapolated(make, inputs())
    expected = both(of_training_batch(make(4)))
    assert resolution(expected, error) < 0.1
    assert deviation(expected, intercept, error) < STANDARD_ERRORS


def test_second_moments_of_test_points_grow_with_depth():
    """theory.md section 9, 16 training inputs, all orthogonal: test over train by layer, and the rate far up."""
    x = np.sqrt(18) * np.eye(18)
    network = networks.fully_connected(60, 1, "batch")
    ratios = [
        kernel.variance1[-1] / kernel.variance1[0]
        for layer, kernel in kernels_by_depth(network, x[:16], x[16:], statistics="x1")
        if isinstance(layer, BatchNorm)
    ]
    assert ratios[0] == pytest.approx(17 / 13, rel=1e-10)
    np.testing.assert_allclose(
        [ratios[i - 1] for i in (1, 3, 10, 20, 30)], [1.308, 1.905, 12.98, 1380, 2.97e5], rtol=2e-3
    )
    c = -1 / 15
    dual = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
    assert ratios[59] / ratios[58] == pytest.approx(16 / (13 * (1 - dual)), rel=1e-5)
    assert 16 / (13 * (1 - dual)) == pytest.approx(1.7230, abs=5e-5)


def test_blocks():
    """The training block is the training batch's kernel by itself; new points do not see one another."""
    network = ONE_LAYER[0].values[0]
    kernel, x = of_training_batch(network), inputs()
    assert kernel.training == TRAIN
    assert kernel.joint
    assert (kernel.train.ntk.shape, kernel.cross.ntk.shape, kernel.test.ntk.shape) == ((7, 7), (2, 7), (2, 2))
    assert (kernel.train.joint, kernel.cross.joint, kernel.test.joint) == (True, False, True)
    assert kernel.cross.training is None
    np.testing.assert_array_equal(kernel.cross.ntk, kernel.ntk[TRAIN:, :TRAIN])
    alone = infinite_kernel(network, x[:TRAIN])
    np.testing.assert_allclose(both(kernel.train), both(alone), rtol=1e-11)
    assert np.max(np.abs(both(infinite_kernel(network, x)) - both(kernel))) > 0.1
    assert "the first 7 of them training inputs" in repr(kernel)


@pytest.mark.full
def test_one_new_point_at_a_time():
    network = networks.fully_connected(2, 1, "batch", eps=0.1)
    one = infinite_kernel(network, inputs()[:TRAIN], inputs()[TRAIN : TRAIN + 1], statistics="x1")
    np.testing.assert_allclose(both(one.cross), both(of_training_batch(network).cross)[:, :1], rtol=1e-11)


@pytest.mark.parametrize("normalization", ["weight_mean", *full("none", "layer")])
def test_without_batch_norm_it_is_the_kernel_of_the_joined_inputs(normalization):
    network = networks.fully_connected(1, 1, normalization)
    kernel = of_training_batch(network)
    np.testing.assert_array_equal(both(kernel), both(infinite_kernel(network, inputs())))
    assert kernel.training == TRAIN


@pytest.mark.full
def test_without_batch_norm_as_a_function_of_the_angle_and_tile_by_tile():
    x = np.random.default_rng(1).standard_normal((600, 5))
    for network in (networks.fully_connected(2, 1), networks.fully_connected(1, 1, b_var=0.1)):
        kernel = infinite_kernel(network, x[:500], x[500:], statistics="x1")
        np.testing.assert_array_equal(kernel.ntk, infinite_kernel(network, x).ntk)
        assert kernel.test.ntk.shape == (100, 100)


def test_a_saved_kernel_keeps_its_blocks(tmp_path):
    kernel = of_training_batch(networks.fully_connected(1, 1, "weight_mean"))
    kernel.save(tmp_path / "kernel.npz")
    read = open_kernel(tmp_path / "kernel.npz")
    assert isinstance(read, Kernel)
    assert read.training == TRAIN
    np.testing.assert_array_equal(read.cross.ntk, kernel.cross.ntk)


@pytest.mark.full
def test_transformations():
    """In float32, compiled, and differentiated by a new point: against differences."""
    network, x = networks.fully_connected(2, 1, "batch", eps=0.1), inputs()

    def cross(new):
        kernel = infinite_kernel(network, jnp.asarray(x[:TRAIN], new.dtype), new, statistics="x1")
        return jnp.sum(kernel.ntk[TRAIN:, :TRAIN] * jnp.asarray(np.cos(np.arange(TRAIN)), new.dtype)[None, :])

    new = jnp.asarray(x[TRAIN:])
    expected = np.sum(of_training_batch(network).cross.ntk * np.cos(np.arange(TRAIN)))
    value, slope = jax.jit(jax.value_and_grad(cross))(new)
    assert value == pytest.approx(expected, rel=1e-12)
    assert cross(new.astype(jnp.float32)) == pytest.approx(expected, rel=1e-4)
    direction = np.random.default_rng(2).standard_normal(new.shape)
    numeric = (cross(new + 1e-5 * direction) - cross(new - 1e-5 * direction)) / 2e-5
    assert jnp.sum(slope * direction) == pytest.approx(float(numeric), rel=1e-6)


def digits(train):
    """Digits as in theory.md section 9: training inputs, their targets, 64 test inputs."""
    found = load_digits()
    x = np.asarray(found.images, np.float64).reshape(len(found.images), -1)
    x = x - x.mean(axis=0)
    x *= 8 / np.linalg.norm(x, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(x))
    targets = np.eye(10)[found.labels[order[:train]]] - 0.1
    return x[order[:train]], targets, x[order[train : train + 64]]


@pytest.mark.full
@pytest.mark.parametrize(
    ("train", "depth", "golden"),
    [
        *((16, 1, 0.19), (16, 3, 0.60), (16, 5, 0.91), (16, 10, 1.13)),
        *((64, 1, 0.026), (64, 3, 0.08), (64, 5, 0.18), (64, 10, 1.35)),
    ],
)
def test_training_and_test_inputs_as_one_batch_are_another_kernel(train, depth, golden):
    """Predictions of the NTK differ by this part of theirs, in the 2-norm."""
    x1, targets, x2 = digits(train)
    network = networks.fully_connected(depth, 1, "batch", w_var=2.0, eps=1e-3)
    kernel = infinite_kernel(network, x1, x2, statistics="x1")
    joint = infinite_kernel(network, np.concatenate([x1, x2]))
    ours, cut = (
        cross.ntk @ np.linalg.solve(own.ntk, targets)
        for cross, own in ((kernel.cross, kernel.train), (joint[train:, :train], joint[:train, :train]))
    )
    found = np.linalg.norm(ours - cut) / np.linalg.norm(ours)
    assert found == pytest.approx(golden, abs=0.005 if golden > 0.05 else 0.0005)


BATCH = networks.fully_connected(1, 1, "batch")


@pytest.mark.parametrize(
    ("network", "x1", "x2", "statistics", "words"),
    [
        pytest.param(BATCH, inputs(), None, "x1", "statistics='x1' needs new points x2, got none", id="no x2"),
        pytest.param(BATCH, inputs(), inputs(), "x2", "statistics='x2', expected 'x1'|Type-check error", id="x2"),
        pytest.param(
            BATCH, inputs(), inputs()[:, :3], "x1", "x2 must have the features|Type-check error", id="features"
        ),
        pytest.param(BATCH, inputs()[:1], inputs()[1:], "x1", "at least 2 inputs, got 1", id="one"),
        pytest.param(BATCH, inputs()[:3], inputs()[3:], "x1", "3 samples with a weight have .*eps > 0", id="three"),
        pytest.param(BATCH, inputs()[:5], inputs()[5:], "x1", "statistics of 5 training inputs .*rank >= 5.*6", id="5"),
        pytest.param(
            *(BATCH, np.repeat(inputs()[:2], 4, axis=0), inputs()[:2] + 1, "x1", "6 distinct training"),
            id="copies",
            marks=pytest.mark.full,
        ),
    ],
)
def test_what_is_refused(network, x1, x2, statistics, words):
    with pytest.raises(Exception, match=words) as caught:
        infinite_kernel(network, x1, x2, statistics=statistics)
    assert "Type-check" in str(caught.value) or "\n" not in str(caught.value)


def test_a_kernel_without_a_training_batch_has_no_blocks():
    kernel = infinite_kernel(networks.fully_connected(1, 1, "weight_mean"), inputs())
    for block in ("train", "cross", "test"):
        with pytest.raises(AttributeError, match='statistics="x1"'):
            getattr(kernel, block)


@pytest.mark.full
def test_a_residual_layer_and_layer_norm_beside_batch_norm(training_statistics):
    """Layer norm has no statistics over the batch, and keeps its own."""
    network = Serial(
        Dense(8), BatchNorm(0.1), RELU, Dense(6), Residual(Serial(RELU, Dense(6))), LayerNorm(0.1), Dense(2)
    )
    kernel = of_training_batch(network)
    np.testing.assert_allclose(both(kernel.train), both(infinite_kernel(network, inputs()[:TRAIN])), rtol=1e-10)
