"""Gaussian weights and biases, straight, centered or standardised: what dense layers and convolutions share."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.angles import safe_divide, safe_sqrt
from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.memory import require_memory
from ntk_analysis.common.precision import HeldArray, is_traced
from ntk_analysis.common.pytrees import Number, is_known
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.kernel import Kernel, add_ntk, map_covariance, rounding
from ntk_analysis.layers.base import Params

COPIES = 2  # arrays of the weights' size that are alive at once: random bits, and what is made of them


class Weights(NamedTuple):
    """Gains of a linear layer and its operation on each unit's weights; see `Dense` for the fields."""

    w_var: Number
    b_var: Number
    center: bool
    standardize: bool
    w_rate: Number = 1.0
    b_rate: Number = 1.0

    @property
    def centered(self) -> bool:
        """Whether each unit's weights have sum 0."""
        return self.center or self.standardize

    def init(self, key: jax.Array, shape: tuple[int, ...], layer: object) -> dict[str, jax.Array]:
        """Weights of this shape, with units on the last axis, and biases unless it is known that b_var = 0."""
        fan_in = math.prod(shape[:-1])
        if self.centered and fan_in < 2:
            raise ValueError(f"{layer} cannot be centered over a fan-in of {fan_in}: one weight minus its mean is zero")
        check_room(key, math.prod(shape), layer)
        w_key, b_key = jax.random.split(key)
        params = {"w": _over_root(jax.random.normal(w_key, shape), self.w_rate)}
        if not is_known(self.b_var) or self.b_var > 0:
            params["b"] = _over_root(jax.random.normal(b_key, shape[-1:]), self.b_rate)
        return params

    def unit(self, params: Params) -> HeldArray:
        """The weights with variance 1 at initialisation, which they are over the root of their rate."""
        return _times_root(params["w"], self.w_rate)

    def bias(self, params: Params) -> HeldArray:
        """The biases (units,) that are added to the outputs; of a layer that has them."""
        return _times_root(self.b_var**0.5 * params["b"], self.b_rate)

    def deviation(self, params: Params) -> jax.Array:
        """Standard deviation (units,) of each unit's weights; 0, with derivatives 0, if all its weights are equal.

        It is not the rounding of their mean, which would be standardised to 1: the unit is dead, its outputs are the
        bias.
        """
        w = self.unit(params).reshape(-1, params["w"].shape[-1])
        equal = jnp.max(w, 0, keepdims=True) == jnp.min(w, 0, keepdims=True)
        centered = jnp.where(equal, 0, w - jnp.mean(w, 0, keepdims=True))
        return safe_sqrt(jnp.mean(centered**2, 0))

    def apply(self, params: Params, product: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Outputs sqrt(w_var / fan-in) product(weights) + sqrt(b_var) biases."""
        w = self.unit(params)
        check_weights(w.shape[-1], self)  # of a network that a step of its numbers made
        fan_in, axes = w.size // w.shape[-1], tuple(range(w.ndim - 1))
        if self.centered:
            w = w - jnp.mean(w, axes, keepdims=True)
        if self.standardize:
            w = safe_divide(w, self.deviation(params).reshape((1,) * len(axes) + (-1,)), 0.0)
        elif self.center:
            fan_in -= 1
        y = product(w) * (self.w_var / fan_in) ** 0.5
        if "b" not in params:
            return y
        return y + self.bias(params).reshape((1,) * (y.ndim - 1) + (-1,))

    def kernel(self, kernel: Kernel, layer: object) -> Kernel:
        """Kernel behind the weights, whose fan-in is the units of `kernel`: K' and Theta' of `Dense`."""
        if self.centered and kernel.law == "inputs":
            raise NotImplementedError(
                f"{layer} stands on the inputs: weight centering needs an activation before it. Leave the first layer "
                "straight (center=False), or subtract the mean of each input's features yourself"
            )

        def propagate(covariance: covariances.Covariance, mean1: jax.Array, mean2: jax.Array) -> covariances.Covariance:
            if self.centered:
                covariance = covariances.subtract_means(covariance, mean1, mean2)
            return covariances.add_constant(covariance, self.b_var, self.w_var)

        propagated = map_covariance(
            kernel,
            propagate,
            mean1=jnp.zeros_like(kernel.mean1),
            mean2=jnp.zeros_like(kernel.mean2),
            ntk_scaled=self.w_var * kernel.ntk_scaled,
            relative_error=kernel.relative_error + 4 * rounding(kernel),
            law="gaussian",
        )
        return add_ntk(propagated, self.own_ntk(propagated.covariance.value))

    def own_ntk(self, nngp: jax.Array) -> jax.Array:
        """The part of the NTK that comes from this layer's own parameters, given the NNGP kernel of its outputs."""
        if is_known(self.w_rate) and is_known(self.b_rate) and self.w_rate == self.b_rate:
            return nngp if self.w_rate == 1 else self.w_rate * nngp
        return self.w_rate * (nngp - self.b_var) + self.b_rate * self.b_var


def _over_root(normal: jax.Array, rate: Number) -> jax.Array:
    return normal if is_known(rate) and rate == 1 else normal / rate**0.5


def _times_root(values: HeldArray, rate: Number) -> HeldArray:
    return values if is_known(rate) and rate == 1 else values * rate**0.5


def check_room(key: jax.Array, count: int, layer: object) -> None:
    """Raises MemoryError if so many weights cannot be drawn; inside transformations it is not known where they are."""
    if not is_traced(key):
        needed = COPIES * count * jnp.zeros(()).dtype.itemsize
        require_memory(needed, f"to draw {count:,} weights of {layer}", "use a smaller width or depth")


def drawn_together(draw: Callable[[jax.Array], Params], keys: jax.Array, layer: object) -> Params:
    """The parameters of each key, drawn at once."""
    drawn = jax.eval_shape(jax.vmap(draw), keys)
    check_room(keys, sum(leaf.size for leaf in jax.tree.leaves(drawn)), layer)
    return jax.vmap(draw)(keys)


def check_weights(width: int, weights: Weights) -> None:
    """Raises TypeError or ValueError for a width that is no number of units, and variances or rates that are none."""
    whole_number(width, "width")
    for name in ("w_rate", "b_rate"):
        value = getattr(weights, name)
        if is_known(value) and not 0 < value < float("inf"):
            raise ValueError(f"got {name}={value}, expected a finite factor > 0 of the learning rate")
    for name in ("w_var", "b_var"):
        value = getattr(weights, name)
        if not is_known(value):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float | np.number | jax.Array | np.ndarray):
            raise TypeError(f"got {name}={value!r}, expected a number, the variance")
        if not 0 <= value < float("inf"):
            raise ValueError(f"got {name}={value}, expected a finite variance >= 0")
