"""Networks that only a last batch norm couples: their kernels from those without it, against the dense Jacobian."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.empirical import Tiles, empirical_ntk
from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, Flatten, LastBatchNorm, LayerNorm, Serial
from ntk_analysis.networks import fully_connected

RELU = Activation("relu")
NETWORKS = {
    "last": (Serial(Dense(6), RELU, Dense(5, center=True, b_var=0.1), RELU, Dense(3), LastBatchNorm(0.1)), (4,)),
    "batch": (Serial(Dense(6), LayerNorm(), RELU, Dense(3), BatchNorm()), (4,)),
    "images": (Serial(Conv(2), RELU, Flatten(), Dense(3), LastBatchNorm()), (3, 3, 2)),
}


def drawn(name, count=7):
    network, shape = NETWORKS[name]
    x = np.random.default_rng(0).standard_normal((count, *shape))
    return network, network.init(jax.random.key(1), x.shape)[1], x


def dense(network, params, x1, x2):
    @jax.jit
    def rows(x):
        leaves = jax.tree.leaves(jax.jacrev(lambda p: network.apply(p, x))(params))
        return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], 2)

    return np.einsum("ack,bdk->abcd", rows(x1), rows(x2))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_kernel_of_the_dense_jacobian(name):
    network, params, x = drawn(name)
    full = dense(network, params, x, x)
    for outputs, axes in (("full", "abcd"), ("diagonal", "abc"), ("trace", "ab")):
        found = empirical_ntk(network, params, x, outputs=outputs, method="last_norm")
        assert (found.coupled, found.method) == (True, "last_norm")
        expected = np.einsum(f"{'abcd' if outputs == 'full' else 'abcc'}->{axes}", full)
        np.testing.assert_allclose(found.ntk, expected, rtol=0, atol=1e-12 * np.abs(full).max())


def test_two_batches_and_tiles():
    network, params, x = drawn("last")
    found = empirical_ntk(network, params, x, x[:4] + 1, outputs="full", method="last_norm").ntk
    expected = dense(network, params, x, x[:4] + 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    whole = empirical_ntk(network, params, x, outputs="trace", method="last_norm")
    cut = replace(whole.plan, rows=3, columns=3)  # which saves no memory: a budget would not ask for it
    tiled, tiles = np.empty(cut.shape), Tiles(network, params, x, None, cut)
    for i, j in cut.tiles:
        cut.place(tiled, i, j, tiles(i, j))
    np.testing.assert_allclose(tiled, whole.ntk, rtol=0, atol=1e-12 * np.abs(whole.ntk).max())
    np.testing.assert_array_equal(tiled, tiled.T)


def test_auto_takes_it_where_it_can():
    network = Serial(Dense(64), RELU, Dense(64), RELU, Dense(5), LastBatchNorm())
    x = np.random.default_rng(0).standard_normal((20, 8))
    params = network.init(jax.random.key(0), x.shape)[1]
    assert empirical_ntk(network, params, x, outputs="trace").method == "last_norm"
    hidden = fully_connected(2, 16, "batch", outputs=5)
    params = hidden.init(jax.random.key(0), x.shape)[1]
    assert empirical_ntk(hidden, params, x, outputs="trace").method != "last_norm"


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (fully_connected(1, 4, "batch", outputs=2), {}, "needs a Serial of layers that treat each input by itself"),
        (Serial(Dense(4), BatchNorm(train_scale=True)), {}, "a batch norm without parameters: use 'layerwise'"),
        (Serial(Dense(4), LastBatchNorm()), {"coupled": False}, "leave coupled to 'detect'"),
    ],
)
def test_refusals(network, options, message):
    x = np.random.default_rng(0).standard_normal((5, 3))
    params = network.init(jax.random.key(0), x.shape)[1]
    with pytest.raises(NotImplementedError, match=message) as caught:
        empirical_ntk(network, params, x, method="last_norm", **options)
    assert "\n" not in str(caught.value)
