"""Second and mixed derivatives of kernels by their inputs against central differences, where variances are equal.

There two variances that differ within rounding are one number for the values, and still two variables for derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Activation, Dense, Residual, Serial

STEP = 1e-3
TRUNCATION = 2e-6  # STEP^2 times fourth derivatives of order 1; rounding is 1e-16 / STEP^2 = 1e-10
X = jnp.array([[0.3, -0.7, 1.1]])
SHUFFLED = X[:, jnp.array([1, 2, 0])]  # another input with the same norm, to the last bit


def hidden(activation, center=False):
    return Serial(Dense(1, 1.0, 0.1), Activation(activation), Dense(1, 2.0, 0.1, center=center))


NETWORKS = {
    "gelu": hidden("gelu"),
    "erf": hidden("erf"),
    "sine": hidden("sine"),
    "tanh": hidden("tanh"),
    "centred erf": hidden("erf", center=True),
    "residual": Serial(Dense(1, 1.0, 0.1), Residual(hidden("gelu"), 0.5)),
}


def central_differences(function, pair):
    """Second derivatives (6, 6) by both inputs."""
    steps = STEP * np.eye(6).reshape(6, 2, 1, 3)
    return np.array(
        [
            [
                sum(s * t * function(pair + s * steps[i] + t * steps[j]) for s in (1, -1) for t in (1, -1))
                for j in range(6)
            ]
            for i in range(6)
        ]
    ) / (4 * STEP**2)


def second_derivatives_agree(network, others):
    """Of the tangent kernel, which contains the NNGP, at X and each of the other inputs."""

    @jax.jit
    def function(pair):
        return infinite_kernel(network, pair[0], pair[1]).ntk[0, 0]

    hessian = jax.jit(jax.hessian(function))
    for other in others:
        pair = jnp.stack([X, other])
        np.testing.assert_allclose(hessian(pair).reshape(6, 6), central_differences(function, pair), atol=TRUNCATION)


@pytest.mark.full
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_second_derivatives_where_norms_are_equal(network):
    second_derivatives_agree(network, (SHUFFLED, X))


@pytest.mark.full
def test_second_derivatives_of_a_network_with_a_kink():
    """At coincidence a ReLU's tangent kernel has none."""
    second_derivatives_agree(hidden("relu"), (SHUFFLED,))


@pytest.mark.full  # as all of this file
def test_a_linear_kernel_has_the_derivatives_of_a_product():
    def kernel(x, y):
        return infinite_kernel(Dense(1, 1.0, 0.1), x, y).nngp[0, 0]

    mixed = jax.jacfwd(jax.grad(kernel), 1)(X, SHUFFLED)
    np.testing.assert_allclose(mixed[0, :, 0], np.eye(3) / 3, atol=1e-14)
