"""Activations by their dual: within the stated errors of the closed forms, in networks, and what they cannot do."""

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis import activations
from ntk_analysis.activations import by_dual, exponential_normalized
from ntk_analysis.layers import Activation, Dense, Serial

X = np.random.default_rng(0).standard_normal((5, 4))
X[4], X[2] = X[3], -X[1]
DISTANCES = np.array([0, 1e-14, 1e-8, 1e-3, 0.3, 0.9, 1.0, 1.0001, 1.5, 1.999, 2.0])


def erf_formula(covariance, q1, q2):
    return 2 / jnp.pi * jnp.arcsin(2 * covariance / jnp.sqrt((1 + 2 * q1) * (1 + 2 * q2)))


def relu_formula(covariance, q1, q2):
    scale = jnp.sqrt(q1 * q2)
    rho = jnp.clip(covariance / scale, -1, 1)
    return scale * (jnp.sqrt(jnp.maximum(1 - rho**2, 0)) + (jnp.pi - jnp.arccos(rho)) * rho) / (2 * jnp.pi)


def relu_slope(covariance, q1, q2):
    return 1 - jnp.arccos(jnp.clip(covariance / jnp.sqrt(q1 * q2), -1, 1)) / jnp.pi


GIVEN = {
    "erf": by_dual(erf_formula, jnp.tanh),
    "relu": by_dual(relu_formula, slope=lambda *at: relu_slope(*at) / 2),
}


@pytest.mark.parametrize(
    ("name", "other"),
    [("relu", 1.3), ("relu", 2.0), *(pytest.param("erf", q, marks=pytest.mark.full) for q in (1.3, 1.3000001, 2.0))],
)
def test_duals_are_within_their_errors(name, other):
    for which in ("dual", "derivative_dual"):
        found = getattr(GIVEN[name], which).moment(1.3, other, DISTANCES)
        known = getattr(activations.get(name), which).moment(1.3, other, DISTANCES)
        scale = np.sqrt(float(known.value[0]) * float(getattr(GIVEN[name], which).second_moment(other)))
        np.testing.assert_array_less(np.abs(found.value - known.value), (found.error + 1e-15) * scale)
        allowed = found.distance_error + known.distance_error + 4e-15 * known.distance + 1e-30
        np.testing.assert_array_less(np.abs(found.distance - known.distance), allowed)


@pytest.mark.full
@pytest.mark.parametrize("name", GIVEN)
def test_networks_have_the_kernels_of_the_closed_forms(name):
    """Duplicates and opposite inputs included; behind centered weights the mean is needed, too."""

    def network(phi):
        hidden = (Dense(8, 1.5, 0.1), Activation(phi), Dense(8, 1.2, 0.2, center=True), Activation(phi))
        return Serial(*hidden, Dense(1))

    found, wanted = (ntk.infinite_kernel(network(phi), X) for phi in (GIVEN[name], name))
    np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-13)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-8)  # the formula's arc cosine near 1


def test_the_normalised_exponential():
    kernel = ntk.infinite_kernel(Serial(Dense(8), Activation(exponential_normalized(0.7, -1.0))), X)
    q, products = np.sum(X**2, axis=1) / 4, X @ X.T / 4
    scale = np.sqrt(np.outer(q, q))
    np.testing.assert_allclose(kernel.nngp, scale * np.exp(0.7 * (products / scale - 1)), rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, 0.7 * np.exp(0.7 * (products / scale - 1)) * products, rtol=1e-12)


def test_finite_networks_need_the_function():
    network = Serial(Dense(8), Activation(exponential_normalized()))
    with pytest.raises(NotImplementedError, match="known by its dual alone"):
        network.apply(({"w": jnp.ones((4, 8))}, ()), X)
    assert (GIVEN["erf"].name, GIVEN["relu"].name) == ("tanh", "relu_formula")
    assert GIVEN["erf"](jnp.zeros(2)).tolist() == [0, 0]
