"""Kernels on several devices: the bits of one, and how long they take there."""

import jax
import numpy as np
import pytest

from ntk_analysis.empirical import Devices, plan
from ntk_analysis.networks import fully_connected

from .test_empirical_store import MEMORY, PARAMS, SMALL, TILES, X, net, python

SHARDED = """
import jax
from tests.test_empirical_store import *

from ntk_analysis.empirical import Devices

assert jax.device_count() == 8
network = fully_connected(2, 8, outputs=2)
params = jax.tree.map(np.asarray, network.init(jax.random.key(0), (1, 3))[1])
x = draw(15, 3)
for f, p, method, layout, x2 in (
    (net, PARAMS, "jacobian", "full", None),
    (net, PARAMS, "products", "trace", Y),
    (coupled_net, PARAMS, "jacobian", "diagonal", None),
    (network, params, "layerwise", "trace", None),
):
    call = {"layout": layout, "method": method, "coupled": f is coupled_net}
    few = plan(f, p, x, x2, parallel=Devices().parallel, **call)  # 4 tiles or more for each device
    several = empirical_ntk(f, p, x, x2, memory=few.memory_bytes, **call)
    single = empirical_ntk(f, p, x, x2, memory=few.memory_bytes, on=Devices((jax.devices()[3],)), **call)
    assert several.plan == single.plan
    assert several.plan.rows == 2
    assert several.plan.count in (32, 36)
    np.testing.assert_array_equal(several.ntk, single.ntk)
"""


@pytest.mark.full
def test_eight_devices_compute_the_bits_of_one():
    with python(SHARDED, flags="--xla_force_host_platform_device_count=8") as process:
        pass
    assert process.returncode == 0


def test_default_device():
    with jax.default_device(jax.devices()[0]):
        assert Devices().devices == jax.devices()[:1]
    assert (Devices().parallel, Devices().share) == (len(jax.devices()),) * 2


def test_time_on_other_devices():
    cut = plan(net, PARAMS, X, **SMALL)
    there = cut.on(4, flops_per_second=1e3)
    assert (there.tiles, there.rounds) == (TILES, 6)
    np.testing.assert_allclose(there.seconds, cut.flops / TILES * 6 / 1e3)
    assert all(said in there.summary() for said in ("21 tiles on 4 devices, 6 for the busiest", "if the storage takes"))
    slow, fast = (cut.on(4, flops_per_second=1e3, writes_per_second=rate) for rate in (1.0, 1e9))
    assert slow.hours * 3600 == 11 * 11 * 8 > fast.seconds == there.seconds
    assert "limited by storage" in slow.summary()
    assert "limited by computing" in fast.summary()
    measured = plan(net, PARAMS, X, measure=True, **SMALL)
    np.testing.assert_allclose(measured.on().seconds, measured.seconds)
    for options, error, message in (
        ({}, ValueError, "measure=True"),
        ({"devices": 0, "flops_per_second": 1.0}, ValueError, "one device or more"),
        ({"memory": MEMORY - 1, "flops_per_second": 1.0}, MemoryError, "cuts smaller ones"),
    ):
        with pytest.raises(error, match=message):
            cut.on(**options)


def test_a_million_images_on_64_gpus():
    network = fully_connected(2, 512, outputs=10)
    shape = jax.ShapeDtypeStruct((1_000_000, 784), np.float32)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (1, 784))[1])
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), params)
    cut = plan(network, params, shape, layout="trace", memory="80GiB", coupled=False, parallel=64, method="layerwise")
    there = cut.on(64, memory="80GiB", flops_per_second=2e13)
    assert there.tiles >= 4 * 64
    assert there.storage_bytes == 4 * 10**12
    # within the idle end of the last round
    assert cut.flops / 64 / 2e13 <= there.seconds <= 1.25 * cut.flops / 64 / 2e13
    assert cut.on(64, flops_per_second=2e13, writes_per_second=1e10).hours == 400 / 3600
