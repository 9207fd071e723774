"""The plan of an infinite kernel: what is counted and asked for, before anything is computed."""

import re

import numpy as np
import pytest

from ntk_analysis import infinite, networks
from ntk_analysis.common import memory
from ntk_analysis.infinite import compute, planning

from .tiers import full

BATCH = networks.fully_connected(2, 4, "batch")


def inputs(n, *shape):
    return np.random.default_rng(0).standard_normal((n, *shape))


@pytest.fixture
def nothing_computed(monkeypatch):
    monkeypatch.setattr(planning, "_timed", None)


@pytest.mark.usefixtures("nothing_computed")
@pytest.mark.parametrize(
    ("network", "shape", "way"),
    [
        (networks.fully_connected(2, 4), (20, 6), "pair by pair"),
        (BATCH, (20, 6), "as one joint batch"),
        *full(
            (networks.convolutional(1, 4), (3, 4, 4, 2), "at equal positions"),
            (networks.convolutional(1, 4, readout="pool"), (3, 4, 4, 2), "at all pairs .* pooling read-out"),
            (networks.convolutional(1, 4, "batch"), (3, 4, 4, 2), "at all pairs .* batch normalization"),
            (networks.fully_connected(2, 4), (200, 6), "by their angles"),
        ),
    ],
)
def test_what_it_tells_is_what_is_asked_for(monkeypatch, network, shape, way):
    found = infinite.plan(network, inputs(*shape), measure=False)
    assert found.shape == (shape[0], shape[0])
    assert found.seconds is None
    assert found.fits
    monkeypatch.setattr(compute, "propagate", None)
    monkeypatch.setattr(memory, "available_bytes", lambda: found.memory_bytes - 1)
    with pytest.raises(MemoryError):
        infinite.infinite_kernel(network, inputs(*shape))
    assert re.search(f"inputs {way}", found.summary())


@pytest.mark.usefixtures("nothing_computed")
def test_operations_grow_as_they_should():
    """Pairs by the layer, a batch's eigendecompositions and products by the cube of its size."""
    one, two = (infinite.plan(BATCH, inputs(n, 6), measure=False).flops for n in (100, 200))
    assert 6 < two / one < 8.5
    shallow, deep = (
        infinite.plan(networks.fully_connected(depth, 4, b_var=0.1), inputs(20, 6), measure=False).flops
        for depth in (11, 21)
    )
    one_layer = infinite.plan(networks.fully_connected(1, 4, b_var=0.1), inputs(20, 6), measure=False).flops
    assert deep - one_layer == pytest.approx(2 * (shallow - one_layer), rel=0.01)


def test_the_time_is_that_of_the_whole_at_the_rate_of_a_part(monkeypatch):
    parts = []

    def timed(task):
        parts.append(len(task.x1))
        return 3.0 if len(parts) == 1 else 1.0  # the first call compiles

    monkeypatch.setattr(planning, "_timed", timed)
    x = inputs(64, 6)
    assert infinite.plan(BATCH, x).seconds == 3.0
    monkeypatch.setattr(planning, "FEW", 1e8)
    parts.clear()
    plan = infinite.plan(BATCH, x)
    assert parts[0] == parts[1] < 64
    part = infinite.plan(BATCH, x[: parts[0]], measure=False)
    assert plan.seconds == pytest.approx(2 + plan.flops / part.flops)


def test_its_line():
    plan = infinite.KernelPlan((2, 3), "pair by pair", 1e9, 2**31, 2**30, 12.3)
    assert not plan.fits
    assert plan.summary() == (
        "2 x 3 inputs pair by pair: 1e+09 operations, 2 GiB of 1 GiB available, too few, about 12 s"
    )


def test_arguments_are_refused_as_by_the_kernel():
    with pytest.raises(TypeError, match=r"expected a network of layers|parameter 'network'"):
        infinite.plan(inputs(2, 3), BATCH)
    with pytest.raises(ValueError, match="NaN or infinite values in 1 of 3 inputs"):
        infinite.plan(BATCH, np.where(inputs(3, 2) == inputs(3, 2)[0], np.nan, 1.0))
