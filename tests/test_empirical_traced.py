"""Empirical kernels inside jit, grad and vmap: equal to those outside, with derivatives that are differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import spectrum
from ntk_analysis.empirical import EmpiricalKernel, empirical_nngp, empirical_ntk
from ntk_analysis.networks import fully_connected

from .tiers import full

RNG = np.random.default_rng(0)
X, X2 = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
PARAMS = {"in": RNG.standard_normal((3, 6)), "out": RNG.standard_normal((6, 2))}


def network(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def centered(params, x):
    """A batch whose outputs know of one another."""
    y = network(params, x)
    return y - jnp.mean(y, axis=0, keepdims=True)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("function", "options", "x2"),
    [
        (network, {"coupled": False}, None),
        *full(
            (network, {"coupled": False, "layout": "trace"}, X2),
            (network, {"coupled": False, "layout": "diagonal"}, None),
            (network, {"coupled": False, "method": "products"}, X2),
            (centered, {"coupled": True}, None),
            (centered, {"coupled": True, "layout": "trace"}, X2),
        ),
    ],
)
def test_the_kernel_under_jit_is_the_kernel(function, options, x2):
    expected = empirical_ntk(function, PARAMS, X, x2, **options)
    found = jax.jit(lambda params, x: empirical_ntk(function, params, x, x2, **options))(PARAMS, X)
    assert isinstance(found, EmpiricalKernel)
    assert isinstance(found.values, jax.Array)
    assert (found.layout, found.coupled) == (expected.layout, expected.coupled)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-12, atol=1e-13)
    if x2 is None:
        assert np.array_equal(
            found.ntk, found.ntk.swapaxes(0, 1) if found.ntk.ndim == 3 else found.ntk.transpose(1, 0, 3, 2)
        )
    if options.get("layout", "full") == "full" and x2 is None and function is network:
        np.testing.assert_allclose(spectrum.eigenvalues(found), spectrum.eigenvalues(expected), rtol=1e-9)


def difference(function, tree, along):
    """Derivative of a function along a direction, by central differences of order 4."""
    step = 1e-3
    at = lambda k: float(function(jax.tree.map(lambda a, b: a + k * step * b, tree, along)))  # noqa: E731
    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def test_derivatives_of_its_trace_are_differences():
    along = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape), PARAMS)

    def trace(params):
        kernel = empirical_ntk(network, params, X, layout="trace", coupled=False)
        return jnp.trace(kernel.ntk)

    def outside(params):
        return np.trace(empirical_ntk(network, params, X, layout="trace", coupled=False).ntk)

    slope = jax.jit(jax.grad(trace))(PARAMS)
    found = sum(np.sum(slope[name] * along[name]) for name in PARAMS)
    assert found == pytest.approx(difference(outside, PARAMS, along), rel=1e-8)


@pytest.mark.full
def test_numbers_of_layers_and_a_step_of_natural_gradient():
    made = fully_connected(2, 6, outputs=2)
    params = jax.jit(lambda key: made.init(key, (-1, 3))[1])(jax.random.key(0))

    def size(w_var):
        of_layers = fully_connected(2, 6, outputs=2, w_var=w_var)
        return jnp.sum(empirical_ntk(of_layers, params, X, method="layerwise").ntk ** 2)

    def outside(w_var):
        return np.sum(empirical_ntk(fully_connected(2, 6, outputs=2, w_var=w_var), params, X).ntk ** 2)

    found = jax.jit(jax.vmap(jax.grad(size)))(jnp.array([1.5, 2.0]))
    for w_var, slope in zip((1.5, 2.0), found, strict=True):
        assert slope == pytest.approx(difference(outside, w_var, 1.0), rel=1e-7)

    # J' (J J')^-1 (y - f) moves linearised outputs onto the targets
    y = RNG.standard_normal((5, 2))

    @jax.jit
    def natural(params):
        outputs, pull = jax.vjp(lambda p: network(p, X), params)
        kernel = empirical_ntk(network, params, X, coupled=False).ntk.transpose(0, 2, 1, 3).reshape(10, 10)
        step = jnp.linalg.solve(kernel, (y - outputs).ravel()).reshape(5, 2)
        return outputs + jax.jvp(lambda p: network(p, X), (params,), (pull(step)[0],))[1]

    np.testing.assert_allclose(natural(PARAMS), y, atol=1e-6)
    nngp = jax.jit(lambda params: empirical_nngp(network, params, X, coupled=False))(PARAMS)
    outputs = np.asarray(network(PARAMS, X))
    np.testing.assert_allclose(nngp.nngp, np.einsum("ac,bd->abcd", outputs, outputs), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "coupled='detect' tries the function out, which takes values: .* state coupled=False"),
        ({"coupled": False, "store": "somewhere"}, TypeError, "got store inside a JAX transformation"),
        ({"coupled": False, "memory": "1GiB"}, TypeError, "got memory inside a JAX transformation"),
        ({"coupled": False, "layout": "rows"}, ValueError, "got layout='rows'"),
        ({"coupled": False, "x2": X2[:, :2]}, ValueError, "x2 must have the features of x1"),
        ({"coupled": False, "method": "layerwise"}, ValueError, "'layerwise' needs a network of layers"),
    ],
)
def test_what_a_traced_kernel_cannot_have_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        jax.jit(partial(empirical_ntk, network, x1=X, **options))(PARAMS)
