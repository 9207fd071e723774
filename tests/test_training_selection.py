"""ReLU and max pooling of the trained networks: the values and derivatives of JAX's own, ties included; little kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.training.memory import kept_bytes
from ntk_analysis.training.models.selection import max_pool, relu

from .tiers import full

WAYS = {"2 x 2": (2, 0, False), "3 x 3, padded": (3, 1, False), "3 x 3, incomplete": (3, 0, True)}


def reduced(x, size, padding, ceil):
    """XLA's own pooling, whose gradient is its select-and-scatter."""
    ends = [padding + (ceil and (length + 2 * padding - size) % 2) for length in x.shape[1:3]]
    pads = [(0, 0), *((padding, end) for end in ends), (0, 0)]
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, 2, 2, 1), pads)


@pytest.fixture(scope="module")
def images():
    """Images in which most squares have their maximum several times, of whole numbers: sums have no rounding."""
    return jnp.asarray(np.random.default_rng(0).integers(-1, 2, (3, 6, 8, 2)), jnp.float32)


@pytest.mark.parametrize("way", ["3 x 3, padded", *full("2 x 2", "3 x 3, incomplete")])
def test_pooling_is_that_of_xla(way, images):
    def ours(x):
        return max_pool(x, *WAYS[way])

    y, pull = jax.vjp(ours, images)
    expected, their_pull = jax.vjp(lambda x: reduced(x, *WAYS[way]), images)
    np.testing.assert_array_equal(y, expected)
    cotangent = jnp.asarray(np.random.default_rng(1).integers(1, 9, y.shape), y.dtype)
    (back,) = pull(cotangent)
    np.testing.assert_array_equal(back, *their_pull(cotangent))
    # forward mode is the transpose of reverse mode, and vmap goes through both
    tangent = jnp.asarray(np.random.default_rng(2).integers(1, 9, images.shape), y.dtype)
    forward = jax.jvp(ours, (images,), (tangent,))[1]
    assert jnp.vdot(forward, cotangent) == jnp.vdot(tangent, back)
    lanes = jax.vmap(jax.grad(lambda x: jnp.vdot(ours(x), cotangent)))(images[None])
    np.testing.assert_array_equal(lanes[0], back)


def test_a_nan_anywhere_in_a_square_is_its_maximum():
    places = jnp.where(jnp.eye(4, dtype=bool), jnp.nan, jnp.arange(4, dtype=jnp.float32)).reshape(4, 2, 2, 1)
    assert jnp.isnan(max_pool(places, 2)).all()


def test_relu_is_that_of_jax():
    x = jnp.asarray([-jnp.inf, -2.0, -0.0, 0.0, 1e-30, 3.0, jnp.inf, jnp.nan], jnp.float32)
    tangent = jnp.arange(1.0, 9.0, dtype=jnp.float32)
    for found, expected in zip(jax.jvp(relu, (x,), (tangent,)), jax.jvp(jax.nn.relu, (x,), (tangent,)), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jax.vjp(relu, x)[1](tangent)[0], jax.vjp(jax.nn.relu, x)[1](tangent)[0])
    assert jax.grad(jax.grad(lambda x: relu(x) ** 3))(jnp.float32(2)) == 12


def test_they_keep_an_array_that_is_kept_anyway_and_one_byte_an_output():
    x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.float32)
    w = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.float32)

    def kept(function):
        return sum(kept_bytes(lambda w, x: (jnp.sum(function(w, x)), None), w, x).values())

    assert kept(lambda w, x: x * relu(jnp.sin(w))) - kept(lambda w, x: x * jnp.sin(w)) == 4 * 512
    assert kept(lambda w, x: max_pool(w + x, 2)) == 512 // 4


def test_no_gradient_of_a_network_is_changed_by_pooling_before_the_relu(images):
    """A positive maximum of the squares is that of their positive parts; any other one has derivative 0 both ways."""
    for way in ((2,), (3, 1)):
        y, pull = jax.vjp(lambda x, way=way: relu(max_pool(x, *way)), images)
        other, their_pull = jax.vjp(lambda x, way=way: max_pool(relu(x), *way), images)
        np.testing.assert_array_equal(y, other)
        np.testing.assert_array_equal(pull(y + 1)[0], their_pull(y + 1)[0])
