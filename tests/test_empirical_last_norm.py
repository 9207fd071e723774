"""Networks that only a last batch norm couples: their kernels from those without it, against the dense Jacobian."""

from dataclasses import replace

import numpy as np
import pytest

from ntk_analysis.empirical import Tiles, empirical_ntk, plan
from ntk_analysis.empirical.layouts import LAYOUTS
from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, Flatten, LastBatchNorm, LayerNorm, Serial
from ntk_analysis.networks import fully_connected

from .test_empirical import assert_close, dense, drawn, in_layout
from .tiers import full

RELU = Activation("relu")
NETWORKS = {
    "last": (Serial(Dense(6), RELU, Dense(5, center=True, b_var=0.1), RELU, Dense(3), LastBatchNorm(0.1)), (4,)),
    "batch": (Serial(Dense(6), LayerNorm(), RELU, Dense(3), BatchNorm()), (4,)),
    "images": (Serial(Conv(2), RELU, Flatten(), Dense(3), LastBatchNorm()), (3, 3, 2)),
}


EVERY = [(name, layout) for name in NETWORKS for layout in LAYOUTS]
TELLING = [("last", "full"), ("last", "diagonal")]


@pytest.mark.parametrize(("name", "layout"), [*TELLING, *full(*(each for each in EVERY if each not in TELLING))])
def test_it_is_the_kernel_of_the_dense_jacobian(name, layout):
    network, shape = NETWORKS[name]
    params, x, _ = drawn(network, shape, 7)
    found = empirical_ntk(network, params, x, layout=layout, method="last_norm")
    assert (found.coupled, found.method) == (True, "last_norm")
    assert_close(found.ntk, in_layout(dense(network.apply, params, x), layout))


@pytest.mark.full  # one batch, whole, is shown by default
def test_two_batches_and_tiles():
    network, shape = NETWORKS["last"]
    params, x, _ = drawn(network, shape, 7)
    other = x[::-1] + 1  # as many, so that one program prepares both
    found = empirical_ntk(network, params, x, other, layout="full", method="last_norm").ntk
    assert_close(found, dense(network.apply, params, x, other))
    whole = empirical_ntk(network, params, x, layout="trace", method="last_norm")
    cut = replace(whole.plan, rows=3, columns=3)  # which saves no memory: a budget would not ask for it
    tiled, tiles = np.empty(cut.shape), Tiles(network, params, x, None, plan=cut)
    for i, j in cut.tiles:
        cut.place(tiled, i, j, tiles(i, j))
    assert_close(tiled, whole.ntk)
    np.testing.assert_array_equal(tiled, tiled.T)


def test_auto_takes_it_where_it_can():
    network = Serial(Dense(64), RELU, Dense(5), LastBatchNorm())
    params, x, _ = drawn(network, (8,), 20)
    assert plan(network, params, x, layout="trace").method == "last_norm"
    hidden = fully_connected(1, 16, "batch", outputs=5)
    params, x, _ = drawn(hidden, (8,), 20)
    assert plan(hidden, params, x, layout="trace").method != "last_norm"


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (fully_connected(1, 4, "batch", outputs=2), {}, "needs a Serial of layers that treat each input by itself"),
        (Serial(Dense(4), BatchNorm(train_scale=True)), {}, "a batch norm without parameters: use 'layerwise'"),
        (Serial(Dense(4), LastBatchNorm()), {"coupled": False}, "leave coupled to 'detect'"),
    ],
)
def test_refusals(network, options, message):
    params, x, _ = drawn(network, (3,), 5)
    with pytest.raises(NotImplementedError, match=message) as caught:
        empirical_ntk(network, params, x, method="last_norm", **options)
    assert "\n" not in str(caught.value)
