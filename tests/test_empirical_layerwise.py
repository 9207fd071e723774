"""The layer-wise kernel of our own networks against the dense Jacobian: every normalisation, layer and composition."""

import jax
import numpy as np
import pytest

from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Layer,
    Repeat,
    Residual,
    Serial,
)
from ntk_analysis.networks import NORMALIZATIONS, convolutional, fully_connected, residual

from .test_empirical import assert_close, dense, drawn, in_layout
from .tiers import full

VECTORS, IMAGES = (5,), (4, 4, 2)
WIDE = {"w_var": 1.3, "b_var": 0.1}
NETWORKS = {
    **{f"mlp, {name}": (fully_connected(2, 6, name, outputs=3, b_var=0.1), VECTORS) for name in NORMALIZATIONS},
    "last batch norm": (fully_connected(2, 6, outputs=3, last_batch_norm=True), VECTORS),
    "affine batch norm": (Serial(Dense(6), BatchNorm(0.1, True, True), Activation("tanh"), Dense(2, **WIDE)), VECTORS),
    "cnn, flatten": (convolutional(2, 3, "weight_mean", outputs=2, b_var=0.1), IMAGES),
    "cnn, pool": (convolutional(2, 3, "weight_standardization", outputs=2, readout="pool", b_var=0.1), IMAGES),
    "cnn, layer norm": (convolutional(2, 3, "layer", outputs=2, padding="circular"), IMAGES),
    "cnn, batch norm": (convolutional(2, 2, "batch", outputs=2, readout="pool"), IMAGES),
    "cnn, few positions": (  # Grams of all pairs of positions are cheaper than gradients here
        Serial(AvgPool(2), Conv(8, 3, (2, 1), center=True, **WIDE), Activation("relu"), GlobalAvgPool(), Dense(2)),
        IMAGES,
    ),
    "cnn, strides": (Serial(Conv(3, (3, 2), (2, 1), "valid", **WIDE), Activation("erf"), Flatten(), Dense(2)), IMAGES),
    "dropout": (Serial(Dense(6, **WIDE), Activation("tanh"), Dropout(0.4), Dense(2, **WIDE)), VECTORS),
    "cnn, groups": (Serial(Conv(4, 2, groups=2, dilation=2, **WIDE), Flatten(), Dense(2)), IMAGES),
    "sequences": (Serial(Conv(3, (3,), dilation=2, center=True, **WIDE), Flatten(), Dense(2)), IMAGES[1:]),
    "residual": (residual(2, 6, "weight_mean", outputs=2), VECTORS),
    "residual, images": (residual(2, 3, outputs=2, kernel_size=3, readout="pool"), IMAGES),
    "shortcut": (Residual(Serial(Dense(4), Activation("relu"), Dense(3, **WIDE)), 0.7, Dense(3, **WIDE)), VECTORS),
    "nested scans": (Serial(Repeat(Repeat(Serial(Dense(5, **WIDE), Activation("tanh")), 2), 2), Dense(2)), VECTORS),
}


# a trace contracts vectors, Grams, gradients, scans and batches in its own way: a network for each
TRACED = ("mlp, weight_standardization", "mlp, batch", "cnn, pool", "cnn, few positions", "nested scans")
EVERY = [(name, "full") for name in NETWORKS] + [(name, "trace") for name in TRACED]
EVERY += [(name, "diagonal") for name in NETWORKS]
# compiling takes seconds; the others are combinations of what these show
TELLING = [
    ("mlp, batch", "trace"),
    ("affine batch norm", "diagonal"),
    ("cnn, few positions", "diagonal"),
    ("residual", "diagonal"),
    ("nested scans", "full"),
]


@pytest.mark.parametrize(("name", "layout"), [*TELLING, *full(*(each for each in EVERY if each not in TELLING))])
def test_layerwise_is_the_dense_jacobian(name, layout):
    """Full kernels and traces of a batch with itself, diagonals of two."""
    network, features = NETWORKS[name]
    params, x1, x2 = drawn(network, features)
    x2 = x2 if layout == "diagonal" else None
    found = empirical_ntk(network, params, x1, x2, layout=layout, method="layerwise")
    assert found.method == "layerwise"
    assert found.coupled == ("batch" in name)
    assert_close(found.ntk, in_layout(dense(network.apply, params, x1, x2), layout))


@pytest.mark.full
@pytest.mark.parametrize("method", ["jacobian", "products"])
@pytest.mark.parametrize("name", ["mlp, weight_mean", "mlp, batch", "cnn, pool"])
def test_other_methods_take_networks_too(name, method):
    network, features = NETWORKS[name]
    params, x, _ = drawn(network, features)
    assert_close(empirical_ntk(network, params, x, method=method).ntk, dense(network.apply, params, x))


def test_batch_larger_than_the_fan_in_takes_the_other_order():
    network = fully_connected(1, 3, "batch", outputs=2)
    params, x, _ = drawn(network, (2,), 9)
    assert_close(empirical_ntk(network, params, x, method="layerwise").ntk, dense(network.apply, params, x))


@pytest.mark.full  # a wide network
def test_auto_is_layerwise_for_wide_networks_and_tiles_agree():
    network = fully_connected(2, 32, "weight_mean", outputs=3)
    params, x, _ = drawn(network, VECTORS, 10)
    whole = empirical_ntk(network, params, x, layout="trace")
    assert whole.method == "layerwise"
    # the parameters alone do not fit into less: activations of 10 inputs come on top
    tiled = empirical_ntk(network, params, x, layout="trace", memory=whole.memory_bytes * 3 // 4, method="layerwise")
    assert tiled.plan.rows < 10
    assert_close(tiled.ntk, whole.ntk)
    np.testing.assert_array_equal(tiled.ntk, tiled.ntk.T)


class Twice(Layer):
    """A composition that the method does not know."""

    def __init__(self, inside):
        self.inside = inside

    def init(self, key, input_shape):
        return self.inside.init(key, input_shape)

    def forward(self, params, x, *, record):
        y, outputs = self.inside.forward(params, x, record=record)
        return 2 * y, outputs

    def kernel(self, kernel):
        raise NotImplementedError

    def walk(self, outputs):
        return self.inside.walk(outputs)


def test_unknown_composition_falls_back_to_other_methods():
    network = Twice(Dense(3))
    params, x, _ = drawn(network, VECTORS)
    found = empirical_ntk(network, params, x)
    assert found.method in ("jacobian", "products")
    assert_close(found.ntk, dense(network.apply, params, x))
    with pytest.raises(NotImplementedError, match="Twice"):
        empirical_ntk(network, params, x, method="layerwise")


@pytest.mark.full  # dtypes of all methods are in test_empirical.py
def test_float32_stays_float32():
    network, features = NETWORKS["mlp, weight_standardization"]
    params, x, _ = drawn(network, features)
    found = empirical_ntk(network, jax.tree.map(np.float32, params), np.float32(x), method="layerwise")
    assert found.ntk.dtype == np.float32
    exact = dense(network.apply, params, x)
    np.testing.assert_allclose(found.ntk, exact, rtol=0, atol=1e-5 * np.max(np.abs(exact)))  # 100 roundings
