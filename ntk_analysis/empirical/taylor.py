"""A network as its Taylor polynomial in the parameters: the first degree is the network that the NTK trains."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ntk_analysis.common.arrays import whole_number
from ntk_analysis.empirical.functions import Network
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

MOST_DEGREES = 32  # the work doubles with each


def linearize(f: Network, params: Params) -> Callable[[Params, Any], jax.Array]:
    """The function g(p, x) = f(params, x) + df/dparams (p - params): the network linearised where it starts.

    Trained by gradient descent on a squared loss it follows the empirical NTK exactly (Lee et al. 2019, 1902.06720).

    Args:
        f: network of layers, or a pure function f(params, x).
        params: parameters about which it is linearised.
    """
    return taylor_expand(f, params, 1)


def taylor_expand(f: Network, params: Params, degree: int) -> Callable[[Params, Any], jax.Array]:
    """The function g(p, x), the Taylor polynomial of f(p, x) in p about `params`, by derivatives along p - params.

    Args:
        f: network of layers, or a pure function f(params, x).
        params: parameters about which it is expanded.
        degree: degree of the polynomial, from 1 to 32; the work doubles with each.

    Raises:
        TypeError, ValueError: the degree is no such number.
    """
    whole_number(degree, "degree", MOST_DEGREES)
    apply = f.apply if isinstance(f, Layer) else f

    def polynomial(new: Params, x: Any) -> jax.Array:
        step = jax.tree.map(jnp.subtract, new, params)

        def along(t: jax.Array) -> jax.Array:
            return apply(jax.tree.map(lambda leaf, change: leaf + t.astype(change.dtype) * change, params, step), x)

        leaves = jax.tree.leaves(step)
        start = jnp.zeros((), jnp.result_type(*leaves))
        derivative: Callable[[jax.Array], jax.Array] = along
        factorial = 1.0
        total = along(start)
        for order in range(1, degree + 1):
            derivative, factorial = _derivative(derivative), factorial * order
            total = total + derivative(start) / factorial
        return total

    return polynomial


def _derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
