"""Kernels propagated in tiles against the same layers on whole arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.infinite import vector_tiles
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.infinite.vector_tiles import propagate_in_tiles
from ntk_analysis.layers import Activation, BatchNorm, Dense, Repeat, Residual, Serial
from ntk_analysis.networks import fully_connected

from .tiers import full

NETWORKS = {
    "erf": fully_connected(3, 8, activation="erf", b_var=0.1),
    "relu": fully_connected(3, 8, b_var=0.1),
    "gelu": fully_connected(2, 8, activation="gelu"),
    "tanh": fully_connected(2, 8, activation="tanh"),
    "centered": fully_connected(3, 8, "weight_mean", b_var=0.3),
    "layer": fully_connected(2, 8, "layer", b_var=0.1),
    "residual": Serial(Dense(8), Repeat(Residual(Serial(Activation("gelu"), Dense(8, 2.0, 0.1)), 0.5), 2)),
}


ERF = {"activation": "erf", "b_var": 0.1}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(vector_tiles, "TILE", 4)


def inputs(seed, n, dtype=np.float64):
    x = np.random.default_rng(seed).standard_normal((n, 5))
    return jnp.asarray(x * (1 + np.arange(n)[:, None] / n), dtype)  # no two of one norm


@functools.partial(jax.jit, static_argnums=(0, 3))
def propagated(network, x1, x2=None, in_tiles=True):
    kernel = input_kernel(x1, x2)
    return propagate_in_tiles(network.kernel, kernel) if in_tiles else network.kernel(kernel)


def assert_same(tiles, whole, roundings):
    """Every field up to so many roundings of its largest entry; the NTK with its scale."""
    assert (tiles.law, tiles.joint) == (whole.law, whole.joint)
    tolerance = roundings * float(np.finfo(whole.distance.dtype).eps)
    for name in ("variance1", "variance2", "mean1", "mean2", "distance"):
        expected = np.asarray(getattr(whole, name))
        found = np.asarray(getattr(tiles, name))
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)), err_msg=name)
    # a sum over layers of the largest error of a pair: over the pairs of a tile, then the largest of the tiles
    assert tiles.relative_error.dtype == whole.relative_error.dtype
    assert 0.5 * whole.relative_error <= tiles.relative_error <= whole.relative_error * (1 + 1e-6)
    rescaled = np.asarray(tiles.ntk_scaled, np.float64) * np.exp(float(tiles.log_scale) - float(whole.log_scale))
    np.testing.assert_allclose(rescaled, whole.ntk_scaled, rtol=0, atol=tolerance * np.max(np.abs(whole.ntk_scaled)))


CASES = [
    *((name, np.float64, 10, None) for name in NETWORKS),
    *((name, np.float64, 9, 6) for name in ("gelu", "centered", "residual")),
    *((name, np.float32, 10, None) for name in ("erf", "relu")),
]
TELLING = [("layer", np.float64, 10, None)]


@pytest.mark.parametrize(
    ("name", "dtype", "n1", "n2"), TELLING + full(*(case for case in CASES if case not in TELLING))
)
def test_the_same_as_whole_arrays(name, dtype, n1, n2):
    network = NETWORKS[name]
    x1, x2 = inputs(0, n1, dtype), None if n2 is None else inputs(1, n2, dtype)
    # XLA fuses differently, which costs a few roundings in each of the layers, up to nine here
    assert_same(propagated(network, x1, x2), propagated(network, x1, x2, False), 200)


@pytest.mark.parametrize(("n1", "n2"), full((3, 9), (1, None), (4, None)))
def test_few_inputs_and_full_tiles(n1, n2):
    x1, x2 = inputs(0, n1), None if n2 is None else inputs(1, n2)
    assert_same(propagated(NETWORKS["relu"], x1, x2), propagated(NETWORKS["relu"], x1, x2, False), 200)


@pytest.mark.parametrize("joint", full(True, False))
def test_tiles_whose_ntk_grows_to_different_scales(joint):
    """Inputs of norms 1 and 1e9: only some tiles leave 2^40, in the first layer."""
    network = fully_connected(2, 8, "weight_mean")
    x = inputs(0, 10) * jnp.where(jnp.arange(10) < 4, 1.0, 1e9)[:, None]
    x2 = None if joint else x[:6]
    tiles, whole = propagated(network, x, x2), propagated(network, x, x2, False)
    assert tiles.log_scale > 0
    scale = np.exp(float(tiles.log_scale) - float(whole.log_scale))
    diagonal = np.sqrt(np.outer(whole.variance1, whole.variance2))
    np.testing.assert_allclose(tiles.ntk_scaled * scale / diagonal, whole.ntk_scaled / diagonal, rtol=1e-12)


@pytest.mark.parametrize("name", full("erf", "relu", "gelu", "residual"))
def test_a_joint_kernel_is_symmetric_and_duplicates_stay_at_distance_zero(name):
    a, b = inputs(0, 2, np.float32)
    x = jnp.stack([a, b, 0 * a, -a, 2 * b, a, b, a, -b, 0 * a])
    kernel = propagated(NETWORKS[name], x)
    for i, j in ((0, 5), (0, 7), (5, 7), (1, 6)):
        assert kernel.distance[i, j] == kernel.distance[j, i] == 0
        np.testing.assert_allclose(kernel.ntk_scaled[i], kernel.ntk_scaled[j], rtol=1e-5)
    assert np.all(np.diag(kernel.distance) == 0)
    np.testing.assert_allclose(kernel.ntk_scaled, kernel.ntk_scaled.T, rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(("arguments", "joint"), [({"normalization": "weight_mean"}, True), (ERF, False)])
def test_gradients(arguments, joint):
    network = fully_connected(1, 8, **arguments)
    x1, x2 = inputs(0, 6), None if joint else inputs(1, 5)

    def total(x1, in_tiles):
        kernel = propagated(network, x1, x2, in_tiles)
        return jnp.sum(kernel.ntk) + jnp.sum(kernel.nngp[:2] ** 2)

    tiles, whole = (jax.jit(jax.grad(total), static_argnums=1)(x1, in_tiles) for in_tiles in (True, False))
    np.testing.assert_allclose(tiles, whole, rtol=0, atol=1e-12 * np.max(np.abs(whole)))


@pytest.mark.full  # the same kernels, transformed
def test_vmap():
    x = jnp.stack([inputs(0, 6), inputs(1, 6)])
    network = fully_connected(1, 8, "weight_mean")
    mapped = jax.vmap(lambda z: propagated(network, z).ntk)(x)
    for values, one in zip(mapped, x, strict=True):
        np.testing.assert_allclose(values, propagated(network, one, None, False).ntk, rtol=1e-12, atol=1e-14)


def equations(jaxpr):
    """Equations of a traced program, those inside scans, conditions and calls included."""
    inner = [value for equation in jaxpr.eqns for value in jax.tree.leaves(list(equation.params.values()))]
    nested = [getattr(value, "jaxpr", value) for value in inner]
    return len(jaxpr.eqns) + sum(equations(value) for value in nested if hasattr(value, "eqns"))


@pytest.mark.parametrize("joint", [True, False])
def test_the_program_does_not_grow_with_the_number_of_inputs(joint):
    def count(n):
        x = jnp.zeros((n, 5))
        return equations(jax.make_jaxpr(lambda z: propagated(NETWORKS["relu"], z, None if joint else z).distance)(x))

    assert count(10) == count(33) > 100  # 3 and 9 tiles a side, both with padding


def refused(network, x):
    jax.eval_shape(lambda x: propagate_in_tiles(network.kernel, input_kernel(x)).distance, x)


def test_what_tiles_cannot_do():
    with pytest.raises(NotImplementedError, match="joint batch"):
        refused(Serial(Dense(8), BatchNorm(), Activation("relu")), inputs(0, 6))
    with pytest.raises(ValueError, match="images of \\(2, 2\\) positions"):
        refused(Dense(8), jnp.ones((3, 2, 2, 1)))
