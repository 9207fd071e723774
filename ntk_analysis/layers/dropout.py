"""Dropout: units that are left out at random."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.pytrees import Number, is_known
from ntk_analysis.infinite.kernel import Kernel, rounding
from ntk_analysis.layers.base import Layer, Params, Shape, SingleLayer

LOST_BITS = 9  # of a float32, that differ between programs which compute it from the same numbers


@dataclass(frozen=True)
class Dropout(SingleLayer):
    """y = x / (1 - rate) with probability 1 - rate, else 0, for each unit, position and input by itself.

    Srivastava et al. 2014. At infinite width the masks leave the covariance and the tangent kernel of two inputs, or
    two positions, as they are, and divide those of an input with itself by 1 - rate (Schoenholz et al. 2017, section
    5). Two inputs that are equal have masks of their own in the kernel; only the diagonal of a batch with itself is
    that of an input with itself. The layer takes Gaussian pre-activations or activations; behind it comes a layer of
    weights.

    A finite network must be a function of its parameters and of each input. So the parameter `masks` is a number from
    which, and from the input itself, the masks are drawn: inputs that differ have masks of their own, whatever batch
    they stand in, and equal ones have equal masks. `with_new_masks` draws the number anew, as before each step of
    training.

    Attributes:
        rate: probability to leave a unit out, 0 <= rate < 1.
        training: whether units are left out; if not, y = x.
    """

    rate: Number = 0.5
    training: bool = True

    couples_batch = False

    def __post_init__(self) -> None:
        if not is_known(self.rate):
            return
        if isinstance(self.rate, bool) or not isinstance(self.rate, int | float | np.number | jax.Array | np.ndarray):
            raise TypeError(f"got rate={self.rate!r}, expected a number, the probability to leave a unit out")
        if not 0 <= self.rate < 1:
            raise ValueError(f"got rate={self.rate}, expected a probability to leave a unit out, 0 <= rate < 1")

    @property
    def masks_inputs(self) -> bool:
        return self.training

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        return input_shape, {"masks": jax.random.normal(key)}

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        if not self.training:
            return x
        start = jax.random.fold_in(jax.random.key(0), _bits(params["masks"]))
        keys = jax.vmap(lambda bits: jax.random.fold_in(start, bits))(_fingerprints(x))
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(kept, x / (1 - self.rate), 0)

    def kernel(self, kernel: Kernel) -> Kernel:
        if not self.training:
            return kernel
        if kernel.law == "inputs":
            raise NotImplementedError(
                f"{self} stands on the inputs, whose features are no infinite number of units: put a Dense layer "
                "before it"
            )
        kept = 1 - self.rate

        def apart(distance: jax.Array, itself: jax.Array) -> jax.Array:
            return jnp.where(itself, distance, self.rate + kept * distance)

        within = {}
        if kernel.paired:
            places = int(np.prod(kernel.positions))
            same = jnp.eye(places, dtype=bool).reshape(1, *kernel.positions * 2)
            within = {f"within{i}": apart(of.distance, same) for i, of in enumerate(kernel.within, 1)}
        return replace(
            kernel,
            variance1=kernel.variance1 / kept,
            variance2=kernel.variance2 / kept,
            distance=apart(kernel.distance, kernel.itself),
            ntk_scaled=jnp.where(kernel.itself, kernel.ntk_scaled / kept, kernel.ntk_scaled),
            relative_error=kernel.relative_error + 4 * rounding(kernel),
            before=None,
            law="activated",
            **within,  # type: ignore[arg-type]
        )


def with_new_masks(network: Layer, params: Params, key: jax.Array) -> Params:
    """The parameters of a network with other masks in its `Dropout` layers; all else stays.

    Args:
        network: network.
        params: its parameters.
        key: key of JAX.
    """
    if isinstance(network, Dropout):
        masks = params["masks"]
        return {"masks": jax.random.normal(key, masks.shape, masks.dtype)}
    for place, (part, where) in enumerate(zip(network.parts, network.part_keys, strict=True)):
        params = _replaced(
            params, where, lambda own, i=place, of=part: with_new_masks(of, own, jax.random.fold_in(key, i))
        )
    return params


def _replaced(params: Params, where: Sequence[Any], change: Any) -> Params:
    """The parameters with change(those at this place)."""
    if not where:
        return change(params)
    first, *rest = where
    if isinstance(params, dict):
        return params | {first: _replaced(params[first], rest, change)}
    values = [_replaced(own, rest, change) if i == first else own for i, own in enumerate(params)]
    return type(params)(values)


def _fingerprints(x: jax.Array) -> jax.Array:
    """A number (n,) of 32 bits for each input, the same in all programs but for one of some thousands in float32."""
    flat = jax.lax.stop_gradient(x).reshape(len(x), -1)
    directions = jnp.cos(2**0.5 * jnp.arange(1, flat.shape[1] + 1, dtype=x.dtype))
    bits = _bits(jnp.matmul(flat, directions, precision="highest"))
    return bits >> LOST_BITS if x.dtype.itemsize <= 4 else bits


def _bits(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(jax.lax.stop_gradient(values).astype(jnp.float32), jnp.uint32)
