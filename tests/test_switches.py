"""Kinks and jumps as the program of a function tells them, where measurement alone would step over them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from ntk_analysis.activations import get
from ntk_analysis.activations.panels import panels
from ntk_analysis.activations.switches import switches

from .tiers import full


def spike(x):
    return jnp.where(jnp.abs(3 * x - 1) < 1e-5, 1e3, x)


CASES: dict[str, tuple[Callable[..., Any], list[float]]] = {
    "a comparison with a derived number": (lambda x: jnp.where(x**2 > 2, x, 0.0), [-(2**0.5), 2**0.5]),
    "within a jitted function": (jax.nn.hard_swish, [-3, 3]),
    "a spike at no constant of the program": (spike, [1 / 3 - 1e-5 / 3, 1 / 3, 1 / 3 + 1e-5 / 3]),
    "a smooth number that dips": (lambda x: jnp.where((3 * x - 1) ** 2 < 1e-10, 5.0, x), [0.33333, 1 / 3 + 1e-5 / 3]),
    "a hat": (lambda x: jnp.maximum(x, 1 - 1e5 * jnp.abs(x - 0.7)), [0.7 - 0.3 / 99999, 0.7, 0.7 + 0.3 / 100001]),
    "a number of its exponential": (lambda x: jnp.where(jnp.exp(x) > 3, x, 0.0), [np.log(3)]),
    "clamped": (lambda x: jax.lax.clamp(-0.3, x, 0.2), [-0.3, 0.2]),
    "with a derivative of its own": (lambda x: jax.nn.relu(x - 0.1), [0.1]),
    "recomputed": (jax.checkpoint(lambda x: jnp.maximum(x, 0.1)), [0.1]),
    "no choice": (jnp.tanh, []),
}
DEFAULT = ["within a jitted function", "a spike at no constant of the program", "no choice"]


@pytest.mark.parametrize("name", [*DEFAULT, *full(*(name for name in CASES if name not in DEFAULT))])
def test_switches_of_a_program(name):
    function, expected = CASES[name]
    with jax.enable_x64(True):
        found = switches(function, 100.0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_narrow_spike_counts():
    """A spike of width 7e-6 and height 1,000 makes two thirds of E[f^2], and no sampled point lies in it."""
    low, high = 1 / 3 - 1e-5 / 3, 1 / 3 + 1e-5 / 3
    found = panels(spike)
    assert found.jumps
    np.testing.assert_allclose(found.kinks, [low, high], rtol=1e-12)
    phi = get(spike)
    for q in (0.5, 2.0):
        inside = norm.cdf(high / q**0.5) - norm.cdf(low / q**0.5)
        square = q + (1e6 - 1 / 9) * inside
        assert float(phi.dual(np.float64(q), np.float64(q), np.float64(1.0))) == pytest.approx(square, rel=1e-10)
        assert float(phi.quadrature_error(np.float64(q))) < 1e-8


def test_a_square_wave_has_no_end():
    with jax.enable_x64(True):
        found = switches(lambda x: jnp.sign(jnp.sin(x)), 1e3)
    assert len(found) <= 64
    np.testing.assert_allclose(np.sin(found), 0, atol=1e-12)
