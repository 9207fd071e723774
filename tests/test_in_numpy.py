"""Programs of JAX that NumPy computes, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.common.in_numpy import in_numpy
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.angle_fit import angular_function
from ntk_analysis.networks import fully_connected

X = np.random.default_rng(0).standard_normal((3, 4))


@jax.jit
def of_all_kinds(x):
    """Steps with settings, a function in the function, constants, a loop, and a step that no result needs."""
    unused = jnp.sin(x)  # which NumPy is not asked for
    del unused
    rows = jnp.concatenate if x.ndim > 2 else jnp.maximum

    def step(carry, weight):
        total, count = carry
        return (total * weight + jax.jit(jnp.sqrt)(jnp.abs(x)), count + 1), None

    (total, count), _ = jax.lax.scan(step, (jnp.zeros_like(x), jnp.zeros((), jnp.int64)), jnp.array([0.5, -2.0, 3.0]))
    largest = jnp.max(total, axis=1)
    return {
        "kept": jnp.where(x > 0, total, x**2),
        "rows": rows(x, largest[:, None] * jnp.ones((1, 4))),
        "narrow": x[1:, ::2].astype(jnp.float32),
        "infinite": jnp.exp(-jnp.log(x - x)),
        "count": count,
        "constant": jnp.full((2,), 7.0),
    }


def test_numpy_computes_what_jax_computes():
    computed = in_numpy(of_all_kinds, X, most=100)
    assert computed is not None
    found, expected = computed(X), of_all_kinds(X)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(found[name], np.ndarray)
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(found[name], value, rtol=4 * np.finfo(np.float64).eps)


def test_programs_that_numpy_does_not_compute():
    """Of another step, and of more steps than are allowed: a loop's count as often as it passes."""
    assert in_numpy(jnp.sin, X, most=100) is None
    assert in_numpy(lambda x: jax.lax.scan(lambda c, _: (c, c), x, None, length=2), X, most=100) is None

    def loop(x):
        return jax.lax.fori_loop(0, 10, lambda _, total: 2 * total + 1, x)

    assert in_numpy(loop, X, most=19) is None
    computed = in_numpy(loop, X, most=40)
    assert computed is not None
    np.testing.assert_array_equal(computed(X), 1024 * X + 1023)


def test_the_fit_of_a_kernel_compiles_nothing(caplog):
    network = fully_connected(3, 1)
    angular_function.cache_clear()
    with jax.log_compiles():
        found = angular_function(network, "float32")
    assert found is not None
    assert found.error < 2e-6
    assert "XLA compilation" not in caplog.text


@pytest.mark.full  # a program of its own
def test_a_first_kernel_compiles_one_program(caplog):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((130, 5)), jnp.float32)
    network = fully_connected(3, 1)
    angular_function.cache_clear()
    with jax.log_compiles():
        kernel = infinite_kernel(network, x)
    assert kernel.approximation_error > 0
    assert caplog.text.count("Finished XLA compilation") == 1
