"""Our empirical kernels against neural-tangents': the same function, parameters and inputs through both."""

import importlib.util

import jax
import numpy as np
import pytest

from ntk_analysis import reference
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.layers import Activation, AvgPool, BatchNorm, Conv, Dense, GlobalAvgPool, Residual, Serial

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed (extra `reference`)"
)

# of the largest entry: sums of a few thousand products in another order, a hundred roundings and more
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
RELU, GAINS = Activation("relu"), {"w_var": 2.0, "b_var": 0.1}
BRANCH = Serial(RELU, Dense(6, **GAINS), Activation("erf"), Dense(6, **GAINS))
NETWORKS = {
    "mlp": (Serial(Dense(8, **GAINS), RELU, Dense(7, **GAINS), Activation("gelu"), Dense(3, **GAINS)), (5,)),
    "cnn": (Serial(Conv(3, **GAINS), RELU, AvgPool(2), Conv(2, w_var=2.0), RELU, GlobalAvgPool(), Dense(3)), (8, 8, 2)),
    "residual": (Serial(Dense(6), Residual(BRANCH, 0.7), Residual(BRANCH, 0.5), RELU, Dense(3)), (5,)),
    "batch norm": (Serial(Dense(6), BatchNorm(0.1, True, True), RELU, Dense(6), BatchNorm(), RELU, Dense(3)), (5,)),
}


def drawn(name, dtype="float64"):
    """Network, parameters off their start (batch norm's too), and two sets of inputs."""
    network, features = NETWORKS[name]
    rng = np.random.default_rng(0)
    params = jax.jit(lambda key: network.init(key, (-1, *features))[1])(jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape), dtype), params)
    x1, x2 = (rng.standard_normal((count, *features)).astype(dtype) for count in (4, 3))
    return network, params, x1, x2


def assert_same(ours, theirs):
    theirs = np.asarray(theirs)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    largest = np.max(np.abs(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE[str(theirs.dtype)] * largest)


@pytest.mark.full  # the peer's own compilation
@pytest.mark.parametrize(
    ("implementation", "layout", "dtype"),
    [("structured", "full", "float32"), ("products", "trace", "float64")],
)
@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "batch norm"])
def test_the_same_kernel_as_neural_tangents(name, implementation, layout, dtype):
    network, params, x, _ = drawn(name, dtype)
    ours = empirical_ntk(network, params, x, layout=layout)
    assert ours.coupled == (name == "batch norm")
    options = {"layout": layout, "implementation": implementation, "coupled": ours.coupled}
    assert_same(ours.ntk, reference.empirical_ntk_fn(network.apply, **options)(params, x))


@pytest.mark.full
@pytest.mark.parametrize(
    ("layout", "method"), [("full", "layerwise"), ("diagonal", "jacobian"), ("trace", "layerwise")]
)
def test_every_layout_on_two_sets_of_inputs(layout, method):
    network, params, x1, x2 = drawn("mlp")
    theirs = reference.empirical_ntk_fn(network.apply, layout=layout)(params, x1, x2)
    assert_same(empirical_ntk(network, params, x1, x2, layout=layout, method=method).ntk, theirs)


@pytest.mark.full
def test_two_coupled_batches():
    network, params, x1, x2 = drawn("batch norm")
    kernel = reference.empirical_ntk_fn(network.apply, implementation="contraction", coupled=True)
    assert_same(empirical_ntk(network, params, x1, x2).ntk, kernel(params, x1, x2))


@pytest.mark.parametrize("wrong", [{"layout": "mean"}, {"implementation": "fast"}])
def test_unknown_options_are_refused(wrong):
    with pytest.raises(ValueError, match="choose one of"):
        reference.empirical_ntk_fn(lambda params, x: x, **wrong)
