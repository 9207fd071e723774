"""Derivatives of kernels by inputs of zeros and by black pixels against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import data
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.zero_inputs import may_hold_zeros
from ntk_analysis.layers import Activation, AvgPool, Conv, Dense, Flatten, GlobalAvgPool, LayerNorm, Residual, Serial

from .tiers import full

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((3, 2)) * [[3.0], [0.0], [1.0]]  # the second is all zeros
IMAGES = np.where(RNG.random((2, 5, 5, 2)).mean(-1, keepdims=True) < 0.5, 0, RNG.standard_normal((2, 5, 5, 2)))
IMAGES[0, :4, :4] = 0  # a patch of zeros


def behind(first, activation, bias=0.1):
    return Serial(first, Activation(activation), Dense(1, 2.0, bias))


NETWORKS = {
    "linear": (Dense(1), VECTORS),
    "relu": (behind(Dense(1), "relu", 0.0), VECTORS),
    "relu, bias": (behind(Dense(1, 1.0, 0.1), "relu"), VECTORS),
    "abs": (behind(Dense(1), "abs"), VECTORS),
    "erf": (behind(Dense(1), "erf"), VECTORS),
    "gelu": (behind(Dense(1), "gelu"), VECTORS),
    "sine, bias": (behind(Dense(1, 1.0, 0.3), "sine"), VECTORS),
    "tanh": (behind(Dense(1), "tanh"), VECTORS),
    "residual": (Serial(Dense(1), Residual(behind(Dense(1), "erf"), 0.5), Dense(1)), VECTORS),
    "layer norm": (Serial(Dense(1, 1.0, 0.1), LayerNorm(), Activation("erf"), Dense(1)), VECTORS),
    "conv": (Serial(Conv(1, 3), Activation("relu"), Flatten(), Dense(1)), IMAGES),
    "conv, bias": (
        Serial(Conv(1, 3, w_var=1.0, b_var=0.1), Activation("erf"), AvgPool(2), Flatten(), Dense(1)),
        IMAGES,
    ),
    "pooled": (Serial(Conv(1, 3), Activation("relu"), GlobalAvgPool(), Dense(1)), IMAGES),
}
KINKED = {"relu", "abs"}
SHOWN = ["linear"]
TWICE = ["linear", "relu", "relu, bias", "abs", "erf", "tanh"]  # of which second derivatives are looked at


def central(function, x, step=1e-4):
    """First derivatives of functions (2,) by every entry of x: (2, entries)."""
    steps = step * np.eye(x.size).reshape(-1, *x.shape)
    return np.stack([(function(x + s) - function(x - s)) / (2 * step) for s in steps], axis=-1)


def both_kernels(network, y):
    """NNGP and NTK between x and y, summed over pairs with weights, (2,)."""
    weights = np.cos(np.arange(len(y) ** 2)).reshape(len(y), -1)

    @jax.jit
    def sums(x):
        kernel = infinite_kernel(network, x, y)
        return jnp.stack([jnp.sum(weights * kernel.nngp), jnp.sum(weights * kernel.ntk)])

    return sums


@pytest.mark.parametrize("name", [*SHOWN, *full(*(name for name in NETWORKS if name not in SHOWN))])
def test_first_derivatives(name):
    network, x = NETWORKS[name]
    function = both_kernels(network, x[::-1] + 0.3)
    slopes = jax.jit(jax.jacrev(function))(x).reshape(2, -1)
    np.testing.assert_allclose(slopes, central(function, x), rtol=1e-6, atol=2e-7 * np.abs(slopes).max())


@pytest.mark.full
def test_derivatives_of_a_batch_with_itself():
    """Rows that are both zero, on the diagonal and beside it."""
    x = np.concatenate([VECTORS, np.zeros((1, 2))])
    for network in (NETWORKS["relu"][0], NETWORKS["erf"][0]):

        @jax.jit
        def total(x, network=network):
            kernel = infinite_kernel(network, x)
            return jnp.stack([jnp.sum(jnp.sin(kernel.nngp)), jnp.sum(jnp.sin(kernel.ntk))])

        np.testing.assert_allclose(jax.jacfwd(total)(x).reshape(2, -1), central(total, x), atol=2e-7)


@pytest.mark.full
@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives(name):
    """NaN where a kink has none."""
    network, _ = NETWORKS[name]
    y = np.array([[1.0, 0.7]])
    zero = np.zeros((1, 2))

    def function(x):
        kernel = infinite_kernel(network, x, y)
        return jnp.stack([kernel.nngp[0, 0], kernel.ntk[0, 0]])

    found = jax.jit(jax.hessian(function))(zero).reshape(2, -1)
    if name in KINKED:
        assert np.isnan(found).all()
    else:
        slopes = jax.jit(lambda x: jax.jacrev(function)(x).reshape(4))
        np.testing.assert_allclose(
            found.reshape(4, 2), central(slopes, zero, 1e-3), atol=2e-5 * np.abs(found).max() + 1e-6
        )


@pytest.mark.full
def test_images_of_digits_have_the_derivative_of_differences_at_black_pixels():
    images = np.float64(data.load_digits().images[:2]).reshape(2, 8, 8, 1) / 16
    network = NETWORKS["conv, bias"][0]
    function = functools.partial(lambda x, y: infinite_kernel(network, x, y).ntk[0, 0], y=images[1:])
    slopes = jax.jit(jax.grad(function))(images[:1])[0, :, :, 0]
    value = jax.jit(function)
    slopes = np.asarray(slopes)
    rows, columns = np.nonzero(images[0, :, :, 0] == 0)
    for row, column in list(zip(rows, columns, strict=True))[::8]:
        step = np.zeros_like(images[:1])
        step[0, row, column] = 1e-4
        difference = float(value(images[:1] + step) - value(images[:1] - step)) / 2e-4
        assert slopes[row, column] == pytest.approx(difference, abs=1e-8)
    assert np.any(slopes[rows, columns] != 0)


@pytest.mark.full
def test_the_function_of_the_angle_has_them():
    """From 128 x 128 inputs on; derivatives are those of the recursion."""
    x = np.random.default_rng(1).standard_normal((130, 3))
    x[7] = 0
    network = NETWORKS["relu"][0]

    def total(x, exact):
        return jnp.sum(jnp.cos(1 + infinite_kernel(network, x, exact=exact).ntk))

    fast, slow = (jax.jit(jax.grad(total), static_argnums=1)(x, exact) for exact in (False, True))
    np.testing.assert_allclose(fast, slow, rtol=1e-10, atol=1e-10)
    assert np.any(fast[7] != 0)


def test_outside_of_jit_inputs_without_zeros_are_seen_to_have_none():
    seen = []

    def total(x):
        seen.append(may_hold_zeros(x))
        return jnp.sum(x)

    for x in (VECTORS, VECTORS[[0, 2]]):
        jax.grad(total)(x)
    jax.jit(jax.grad(total))(VECTORS[[0, 2]])
    assert seen == [True, False, True]
