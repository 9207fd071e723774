"""Batch normalisation of images: golden values, a dense recursion in NumPy, vectors, finite networks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import batch_norm, infinite_kernel, networks
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Residual,
    ResidualChain,
    Serial,
)
from ntk_analysis.networks.by_depth import kernels_by_depth

from .averages import STANDARD_ERRORS, both, deviation, extrapolated, finite_average, images, resolution
from .test_convolution import LoopedKernel, close, photos
from .tiers import full

RELU = Activation("relu")


def test_golden_values():
    """theory.md section 10: two circular convolutions, each batch normalised, pooled."""
    x = np.array([[[1, 2], [3, -1]], [[0, 1], [-2, 1]], [[2, 0], [1, 1]]], float)[..., None]
    network = Serial(
        *(Conv(1, 2, padding="circular"), BatchNorm(), RELU),
        *(Conv(1, (2, 1), padding="circular", w_var=2.0), BatchNorm(), RELU),
        *(GlobalAvgPool(), Dense(1, 2.0)),
    )
    by_layer = [kernel for _, kernel in kernels_by_depth(network, x)]
    (first, activated), (result) = (by_layer[0], by_layer[2]), by_layer[-1]
    np.testing.assert_allclose(first.nngp[0, 0, 0, 0].ravel(), [3.75, -0.5, 0.5, 2.5], rtol=1e-12)
    nngp = [0.6838760995, 0.0433265275, 0.1293640251, 0.3986314815]
    np.testing.assert_allclose(activated.nngp[0, 0, 0, 0].ravel(), nngp, rtol=1e-9)
    pushed = [1.1225115345, -0.3515535622, -0.2997420124, 0.1762372011]
    np.testing.assert_allclose(activated.ntk[0, 0, 0, 0].ravel(), pushed, rtol=1e-9)
    np.testing.assert_allclose(result.nngp[0], [0.5825517167, 0.3269528738, 0.2490741296], rtol=1e-9)
    np.testing.assert_allclose(result.ntk[0], [1.5123605913, -0.3795286307, 0.3041739455], rtol=1e-9)
    assert np.trace(result.ntk) == pytest.approx(3.9904313050, rel=1e-9)


class LoopedBatch(LoopedKernel):
    """The recursion of `test_convolution`, with the batch of all images and positions by `batch_norm.propagate`."""

    def __init__(self, x, weights):
        super().__init__(x)
        self.of_images = weights
        self.waits: Any = None

    def normalized(self, function):
        layer, self.waits = self.waits, None
        n, h, w = self.m.shape
        k, t = (pairs.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, -1) for pairs in (self.k, self.t))
        weights = None if self.of_images is None else np.repeat(self.of_images, h * w) / (h * w)
        found = batch_norm.propagate(k, t, function, layer.eps, weights=weights)
        pushed = found.pushed + layer.train_scale * found.nngp + layer.train_shift * found.slope
        shape = (n, h, w, n, h, w)
        self.k, self.t = (a.reshape(shape).transpose(0, 3, 1, 2, 4, 5) for a in (found.nngp, pushed))
        self.m = found.mean.reshape(n, h, w)

    def apply(self, layer):
        match layer:
            case BatchNorm():
                self.waits = layer
            case Activation() if self.waits is not None:
                self.normalized(layer.function)
            case Serial():  # a copy of this kernel runs through a branch
                for inner in layer.layers:
                    self.apply(inner)
            case _:
                if self.waits is not None:
                    self.normalized("identity")
                super().apply(layer)
        return self


BRANCH = Serial(BatchNorm(0.1, True), RELU, Conv(1, 3, center=True))
NETWORKS = {
    "flatten, stride, centered, gamma, beta, bias": Serial(
        Conv(1, (3, 2), (2, 1), b_var=0.1),
        *(BatchNorm(0.1, True, True), RELU),
        Conv(1, 2, center=True, w_var=2.9),
        *(BatchNorm(0.2, False, True), Activation("leaky_relu(0.2)"), Flatten(), Dense(1, 2.0)),
    ),
    "pooled, residual, eps = 0": Serial(
        Conv(1, 2, padding="circular"),
        ResidualChain(Serial(BatchNorm(), RELU, Conv(1, 3, padding="circular", w_var=2.0)), (1.0, 0.7)),
        *(BatchNorm(), RELU, GlobalAvgPool(), Dense(1, 2.0)),
    ),
    "valid, shortcut": Serial(
        Conv(1, (1, 2), padding="valid"),
        Residual(Serial(BRANCH, AvgPool(2)), 0.5, AvgPool(2)),
        *(BatchNorm(), RELU, Flatten(), Dense(1, center=True)),
    ),
    "two normalizations in a row": Serial(
        *(Conv(1, 3), BatchNorm(0.3), Conv(1, 1), BatchNorm(), Activation("abs"), AvgPool((2, 3), 1, "same")),
        *(Conv(1, 2, center=True), RELU, GlobalAvgPool(), Dense(1)),
    ),
}


@pytest.mark.parametrize("training", [None, 7], ids=["joint", "training batch"])
@pytest.mark.parametrize("name", full(*NETWORKS))
def test_against_loops(name, training):
    x = photos(n=9, shape=(4, 3, 2))
    new = {} if training is None else {"x2": x[training:], "statistics": "x1"}
    weights = None if training is None else np.arange(9) < training
    looped = LoopedBatch(x, None if weights is None else weights / weights.sum()).apply(NETWORKS[name])
    kernel = infinite_kernel(NETWORKS[name], x[:training], **new)
    for actual, expected in ((kernel.nngp, looped.k), (kernel.ntk, looped.t)):
        close(actual, expected[:, :, 0, 0, 0, 0], 1e-10)


@pytest.mark.parametrize("statistics", [None, *full("x1")])
def test_images_of_one_position_are_vectors(statistics):
    x = np.random.default_rng(1).standard_normal((9, 1, 1, 4)) + 0.3
    network = networks.convolutional(2, 1, "batch", eps=0.1, kernel_size=1)
    of_vectors = networks.fully_connected(2, 1, "batch", eps=0.1)
    new: dict[str, Any] = {} if statistics is None else {"x2": x[7:], "statistics": "x1"}
    flat = {name: value if isinstance(value, str) else value[:, 0, 0] for name, value in new.items()}
    count = None if statistics is None else 7
    actual, expected = infinite_kernel(network, x[:count], **new), infinite_kernel(of_vectors, x[:count, 0, 0], **flat)
    close(both(actual), both(expected), 1e-14)


@pytest.mark.full
def test_finite_networks_of_one_layer():
    """With one hidden layer the average over draws is exact at every width."""
    x = images()
    network = Serial(
        Conv(6, 2), BatchNorm(0.1, True, True), RELU, AvgPool(2, 1), Flatten(), Dense(4, 1.5, 0.1, center=False)
    )
    mean, error = finite_average(network, x, draws=2_000)
    kernel = infinite_kernel(network, x)
    assert resolution(both(kernel), error) < 0.05
    assert deviation(both(kernel), mean, error) < STANDARD_ERRORS
    # a wrong theory fails: the same network without its normalization
    plain = Serial(*(layer for layer in network.layers if not isinstance(layer, BatchNorm)))
    assert deviation(both(infinite_kernel(plain, x)), mean, error) > 2 * STANDARD_ERRORS


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            lambda n: networks.convolutional(2, n, "batch", eps=0.1, outputs=2), id="2 layers", marks=pytest.mark.slow
        ),
        pytest.param(
            lambda n: networks.residual(2, n, "batch", eps=0.1, outputs=2, kernel_size=2, readout="pool"),
            id="residual",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_finite_networks_of_several_layers(make):
    x = images()[:, :2, 1:3]
    intercept, error = extrapolated(make, x)
    expected = both(infinite_kernel(make(4), x))
    assert resolution(expected, error) < 0.1
    assert deviation(expected, intercept, error) < STANDARD_ERRORS


def test_positions_are_paired_only_where_they_are_needed():
    assert Serial(Conv(1), BatchNorm(), Flatten(), Dense(1)).pairs_positions
    assert Serial(Serial(Conv(1), Flatten()), Dense(1), BatchNorm()).pairs_positions is False


@pytest.mark.parametrize(
    ("shape", "new", "words"),
    [
        ((1, 1, 1, 2), None, "rank 0, but the integral is finite only from rank 3"),
        ((3, 1, 1, 2), None, "rank 2, but the integral is finite only from rank 3"),
        *full(((1, 2, 2, 2), (2, 2, 2, 2), "use at least 6 distinct training positions of all images, or eps > 0")),
    ],
    ids=["one position", "three positions", "few training positions"],
)
def test_batches_too_small_are_one_clear_line(shape, new, words):
    draw = np.random.default_rng(0).standard_normal
    behind = {} if new is None else {"x2": draw(new), "statistics": "x1"}
    with pytest.raises(ValueError, match=words) as caught:
        infinite_kernel(networks.convolutional(1, 4, "batch"), draw(shape), **behind)
    assert "\n" not in str(caught.value)


def test_black_images_are_told_by_their_statistics():
    """A batch whose statistics vanish."""
    with pytest.raises(ValueError, match="use at least 4 distinct positions of all images"):
        infinite_kernel(networks.convolutional(1, 4, "batch"), np.zeros((3, 2, 2, 1)))


@pytest.mark.full
def test_layers_by_hand_say_that_positions_must_be_paired():
    with pytest.raises(ValueError, match="all pairs of positions"):
        BatchNorm().kernel(Conv(1).kernel(input_kernel(jnp.ones((2, 2, 2, 1)))))
