"""The tile of inputs with themselves by half its blocks: the whole tile, exactly symmetric."""

import jax
import numpy as np
import pytest

from ntk_analysis.empirical.functions import Side, flattened
from ntk_analysis.empirical.halves import BLOCKS, FEWEST, symmetric_tile
from ntk_analysis.empirical.layerwise import layerwise_method
from ntk_analysis.empirical.layouts import arranged
from ntk_analysis.empirical.methods import jacobian_method, outputs_method, products_method
from ntk_analysis.layers import Activation, Dense, LayerNorm, Repeat, Serial
from ntk_analysis.networks import fully_connected
from ntk_analysis.stores.grid import mirrored

from .test_empirical import drawn
from .tiers import full

SCANNED = Serial(Dense(4), Repeat(Serial(LayerNorm(), Activation("relu"), Dense(4, b_var=0.1)), 2), Dense(3))
NORMALISED = fully_connected(2, 4, "batch", outputs=3)
COUNT = BLOCKS * FEWEST + 3
METHODS = {
    "scans": (SCANNED, layerwise_method, False),
    "a coupled batch": (NORMALISED, layerwise_method, True),
    "jacobian": (SCANNED, lambda network, layout: jacobian_method(flattened(network), layout), False),
    "outputs": (SCANNED, lambda network, layout: outputs_method(flattened(network), layout), False),
    "in no parts": (SCANNED, lambda network, layout: products_method(flattened(network), layout), False),
}


EVERY = [(name, COUNT, layout) for name in METHODS for layout in ("full", "trace")]
EVERY += [(name, 10, "diagonal") for name in METHODS]
TELLING = [
    ("a coupled batch", COUNT, "trace"),
    ("jacobian", 10, "diagonal"),
    ("in no parts", COUNT, "full"),
]


@pytest.mark.parametrize(
    ("name", "count", "layout"), [*TELLING, *full(*(each for each in EVERY if each not in TELLING))]
)
def test_half_of_the_blocks_is_the_whole_tile(name, count, layout):
    network, method_of, coupled = METHODS[name]
    params, x, _ = drawn(network, (3,), count)
    side = Side(x, np.arange(count) if coupled else None)
    method = method_of(network, layout)

    @jax.jit
    def both(params, side):
        """One program: compiling is what takes time."""
        prepared = method.prepare(params, side)
        whole = arranged(method.contract(params, prepared, prepared), layout)
        return whole, symmetric_tile(method, layout, params, side)

    whole, tile = jax.device_get(both(params, side))
    np.testing.assert_array_equal(tile, mirrored(tile))
    np.testing.assert_allclose(tile, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


def test_the_lower_half_is_not_computed():
    """10 of 16 blocks, and what is common to all."""
    method = layerwise_method(SCANNED, "full")
    params, x, _ = drawn(SCANNED, (3,), COUNT)
    program = str(jax.make_jaxpr(lambda p, s: symmetric_tile(method, "full", p, s))(params, Side(x)))
    assert f"length={BLOCKS * (BLOCKS + 1) // 2}" in program
