"""A table of first and second derivatives of kernels by their inputs against central differences.

Rows: every layer; where inputs are generic, of equal norms, coincident, opposite or multiples of each other; every path
that a kernel takes (all layers at once, tiles, the angle, images). `test_zero_inputs` has inputs of zeros.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.infinite import compute, image_tiles, infinite_kernel, vector_tiles
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    LayerNorm,
    Repeat,
    Residual,
    Serial,
)

FIRST_STEP, SECOND_STEP = 1e-5, 4e-3
FIRST, SECOND = 1e-8, 2e-7  # errors: of quadratures 1e-13 / FIRST_STEP, and 1e-13 / SECOND_STEP^2 or SECOND_STEP^4
CUSP = 2e-3  # SECOND_STEP times a third derivative that jumps, as where a ReLU's NNGP meets a coincidence
ANGLE = 1e-6  # errors of a first difference across a kink between opposite inputs, whose angle has the digits of a root

X = np.array([[0.3, -0.7, 1.1]])
PAIRS = {
    "generic": (X, np.array([[0.9, 0.4, -0.2]])),
    "equal norms": (X, X[:, [1, 2, 0]]),  # to the last bit
    "coincident": (X, X),
    "opposite": (X, -X),
    "multiples": (X, 2 * X),
}


def hidden(activation, bias=0.1, center=False):
    return Serial(Dense(1, 1.0, bias), Activation(activation), Dense(1, 2.0, bias, center=center))


NETWORKS = {
    "linear": Dense(1, 1.0, 0.1),
    "gelu": hidden("gelu"),
    "erf": hidden("erf"),
    "sine": hidden("sine"),
    "tanh": hidden("tanh"),
    "tanh, no bias": hidden("tanh", 0.0),
    "elu": hidden("elu"),
    "relu": hidden("relu"),
    "relu, no bias": hidden("relu", 0.0),
    "abs, no bias": hidden("abs", 0.0),
    "relu6": hidden("relu6"),
    "centered erf": hidden("erf", center=True),
    "centered relu": hidden("relu", center=True),
    "layer norm": Serial(Dense(1, 1.0, 0.1), LayerNorm(0.1), Activation("erf"), Dense(1)),
    "residual": Serial(Dense(1, 1.0, 0.1), Residual(hidden("gelu"), 0.5)),
    "repeat": Serial(Dense(1, 1.0, 0.1), Repeat(Serial(Activation("erf"), Dense(1, 2.0, 0.1)), 2)),
}


def kinked(name, place):
    """Whether the NTK of this network has no second derivative there."""
    if "relu" not in name and "abs" not in name:
        return False
    return place == "coincident" or ("no bias" in name and place in ("opposite", "multiples"))


def differences(function, x):
    """First (outputs, entries) and second (outputs, entries, entries) derivatives of function(x), (outputs,)."""
    axes = np.eye(x.size).reshape(-1, *x.shape)
    first = [(function(x + FIRST_STEP * a) - function(x - FIRST_STEP * a)) / (2 * FIRST_STEP) for a in axes]

    def second(step):
        moved = np.array([[[s * a + t * b for s in (1, -1) for t in (1, -1)] for b in axes] for a in axes]) * step
        values = np.stack([function(x + change) for change in moved.reshape(-1, *x.shape)])
        signs = np.array([1, -1, -1, 1]) / (4 * step**2)
        return np.moveaxis(signs @ values.reshape(x.size, x.size, 4, -1), -1, 0)

    return np.stack(first, -1), (4 * second(SECOND_STEP / 2) - second(SECOND_STEP)) / 3


def slopes(function):
    """function(x) (outputs,) to its first and second derivatives, as `differences` has them, in one program.

    In forward mode, which takes each output for itself.
    """

    @jax.jit
    def both(x):
        def first(x):
            slope = jax.jacfwd(function)(x)
            return slope, slope

        second, slope = jax.jacfwd(first, has_aux=True)(x)
        return slope.reshape(len(slope), -1), second.reshape(len(slope), x.size, x.size)

    return both


@pytest.mark.full
@pytest.mark.parametrize("name", NETWORKS)
def test_of_vectors(name):
    """Of NNGP and NTK between one input and another; NaN where the NTK has no second derivative."""

    @jax.jit
    def function(pair):
        kernel = infinite_kernel(NETWORKS[name], pair[0], pair[1])
        return jnp.stack([kernel.nngp[0, 0], kernel.ntk[0, 0]])

    both = slopes(function)
    for place, pair in PAIRS.items():
        first, second = both(np.stack(pair))
        first_difference, second_difference = differences(function, np.stack(pair))
        kink = kinked(name, place)
        np.testing.assert_allclose(first, first_difference, atol=ANGLE if kink else FIRST, err_msg=place)
        for kernel in range(2):
            if kink and kernel == 1:
                assert np.isnan(second[1]).any(), place
                continue
            cusp = CUSP if kink or (name == "elu" and place == "coincident") else SECOND
            np.testing.assert_allclose(second[kernel], second_difference[kernel], atol=cusp, err_msg=place)


def batch(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 2))


def images(rows, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, 3, 2, 1))


CONV = Conv(1, 2, w_var=1.0, b_var=0.1)
OF_A_BATCH = {
    "relu": (Serial(Dense(1, 1.0, 0.1), Activation("relu"), Dense(1, 2.0)), batch(3)),
    "batch norm": (Serial(Dense(1, 1.0, 0.1), BatchNorm(0.1), Activation("relu"), Dense(1)), batch(4)),
    "flat images": (Serial(CONV, Activation("relu"), Flatten(), Dense(1)), images(2)),
    "pooled images": (Serial(CONV, Activation("relu"), AvgPool((2, 1)), GlobalAvgPool(), Dense(1)), images(2)),
}


def sums(network):
    """x to sums over all pairs of the NNGP and of the NTK, of which no two pairs weigh the same."""

    @jax.jit
    def function(x):
        kernel = infinite_kernel(network, x)
        weights = 1 + jnp.cos(jnp.arange(kernel.ntk.size, dtype=x.dtype)).reshape(kernel.ntk.shape)
        return jnp.stack([jnp.sum(weights * kernel.nngp), jnp.sum(weights * kernel.ntk)])

    return function


@pytest.mark.full
@pytest.mark.parametrize("name", OF_A_BATCH)
def test_of_a_batch_with_itself(name):
    """An input with itself has all derivatives, whatever kinks are beside it."""
    network, x = OF_A_BATCH[name]
    function = sums(network)
    first, second = slopes(function)(x)
    first_difference, second_difference = differences(function, x)
    np.testing.assert_allclose(first, first_difference, atol=1e-8 * np.abs(first).max())
    np.testing.assert_allclose(second, second_difference, atol=1e-5 * np.abs(second).max())


@pytest.mark.full
@pytest.mark.parametrize(("path", "name"), [("tiles", "relu"), ("angle", "no bias"), ("image tiles", "flat images")])
def test_of_other_paths(path, name, monkeypatch):
    """Tiles, filled up with repeated inputs, and the function of the angle have the derivatives of one recursion."""
    no_bias = Serial(Dense(1), Activation("relu"), Dense(1)), batch(3)
    network, x = no_bias if name == "no bias" else OF_A_BATCH[name]
    if path == "image tiles":
        x = images(3)
    expected = slopes(sums(network))(x)
    if path == "tiles":
        monkeypatch.setattr(vector_tiles, "TILE", 2)
        monkeypatch.setattr(compute, "TILE", 2)
    elif path == "angle":
        monkeypatch.setattr(compute, "FEWEST_PAIRS", 1)
    else:
        for module in (compute, image_tiles):
            monkeypatch.setattr(module, "PLACES", 4 * 6)
    jax.clear_caches()  # of programs that took the other path
    found = slopes(sums(network))(x)
    jax.clear_caches()
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.full
def test_two_equal_inputs_of_a_batch_have_no_second_derivative():
    """Beside the diagonal of a batch, in tiles too, a coincidence is one."""
    network, x = OF_A_BATCH["relu"]
    assert np.isnan(slopes(sums(network))(x[[0, 1, 0]])[1]).any()


@pytest.mark.full
def test_a_function_that_jumps_has_none_of_its_nngp_either():
    network = Serial(Dense(1, 1.0, 0.1), Activation(jnp.sign), Dense(1, 2.0, 0.1))
    both = slopes(lambda pair: infinite_kernel(network, pair[0], pair[1]).nngp[0])
    first, second = both(np.stack([X, X]))
    assert np.isfinite(first).all()
    assert np.isnan(second).any()
    assert np.isfinite(both(np.stack(PAIRS["generic"]))[1]).all()


@pytest.mark.full
def test_a_linear_kernel_has_the_derivatives_of_a_product():
    def kernel(x, y):
        return infinite_kernel(NETWORKS["linear"], x, y).nngp[0, 0]

    mixed = jax.jacfwd(jax.grad(kernel), 1)(X, PAIRS["equal norms"][1])
    np.testing.assert_allclose(mixed[0, :, 0], np.eye(3) / 3, atol=1e-14)
