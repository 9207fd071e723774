"""The tile of inputs with themselves by half its blocks: the whole tile, exactly symmetric."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.empirical.functions import Side, flattened
from ntk_analysis.empirical.halves import BLOCKS, FEWEST, symmetric_tile
from ntk_analysis.empirical.layerwise import layerwise_method
from ntk_analysis.empirical.layouts import arranged, mirrored
from ntk_analysis.empirical.methods import jacobian_method, outputs_method, products_method
from ntk_analysis.layers import Activation, Dense, LayerNorm, Repeat, Serial
from ntk_analysis.networks import fully_connected

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


@pytest.mark.parametrize("count", [COUNT, 10])
@pytest.mark.parametrize("name", METHODS)
def test_half_of_the_blocks_is_the_whole_tile(name, count):
    network, method_of, coupled = METHODS[name]
    x = jnp.asarray(np.random.default_rng(0).standard_normal((count, 3)))
    params = network.init(jax.random.key(0), x.shape)[1]
    side = Side(x, jnp.arange(count) if coupled else None)
    layouts = ("full", "trace") if count == COUNT else ("diagonal",)

    @jax.jit
    def both(params, side):
        """One program: compiling is what takes time."""
        found = []
        for layout in layouts:
            method = method_of(network, layout)
            features = method.features(params, side)
            whole = arranged(method.contract(params, features, features), layout)
            found.append((whole, symmetric_tile(method, layout, params, side)))
        return found

    for whole, tile in jax.device_get(both(params, side)):
        np.testing.assert_array_equal(tile, mirrored(tile))
        np.testing.assert_allclose(tile, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


def test_the_lower_half_is_not_computed():
    """10 of 16 blocks, and what is common to all."""
    method = layerwise_method(SCANNED, "full")
    x = jnp.zeros((COUNT, 3))
    params = SCANNED.init(jax.random.key(0), x.shape)[1]
    program = str(jax.make_jaxpr(lambda p, s: symmetric_tile(method, "full", p, s))(params, Side(x)))
    assert f"length={BLOCKS * (BLOCKS + 1) // 2}" in program
