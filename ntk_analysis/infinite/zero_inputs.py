"""Derivatives of kernels by inputs that hold zeros: black images, black pixels, padding.

A kernel is held as variances q and cosine distances, of which those of an input of zeros have no derivative, though
K = sqrt(q1 q2) (1 - distance) has one: that of x.y/d is y/d. So derivatives are taken beside the zeros, at x + s and at
x - s for a small s that is not 0 where x is, and averaged. What comes out is the derivative where there is one, to the
square of s; where the kernel has a kink, as that of ReLU networks without biases, it is the symmetric derivative, that
of central differences. A second derivative is NaN there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ntk_analysis.activations.angles import no_derivative, safe_sqrt
from ntk_analysis.infinite.kernel import Kernel

Numbers: TypeAlias = tuple[jax.Array, ...]
KernelOf: TypeAlias = Callable[[Numbers, jax.Array, jax.Array | None], Kernel]

# step |s| in units of the largest entry: second derivatives are good to a rounding over it, first ones to its square
SHIFT = {"float64": 1e-7, "float32": 1e-6}


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Structure:
    """The structure of a kernel without its arrays."""

    tree: Any


def may_hold_zeros(*arrays: jax.Array | None) -> bool:
    """Whether a vector, or an image's pixel, is all zeros, as far as that can be seen: not within jit or vmap."""
    try:
        return any(bool(jnp.any(_black(array))) for array in arrays if array is not None)
    except jax.errors.ConcretizationTypeError:
        return True


def with_derivatives_at_zeros(kernel_of: KernelOf, numbers: Numbers, x1: jax.Array, x2: jax.Array | None) -> Kernel:
    """kernel_of(numbers, x1, x2), with derivatives by inputs that are right at zeros, too.

    A network's traced `numbers` are an argument of their own, for what has derivatives of its own must not close over
    them. Where a pair's variance is 0, the derivative of `distance` by inputs is minus that of the covariance, for
    `Kernel.nngp`.
    """

    def arrays_at(numbers: Numbers, x1: jax.Array, x2: jax.Array | None) -> tuple[list[jax.Array], _Structure]:
        leaves, tree = jax.tree.flatten(kernel_of(numbers, x1, x2))
        return leaves, _Structure(tree)

    arrays = jax.custom_jvp(arrays_at)

    def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
        numbers, *inputs = primals
        input_tangents = [None if x is None else _instantiated(t, x) for t, x in zip(tangents[1:], inputs, strict=True)]
        shifts = [_beside_zeros(x, side) for side, x in enumerate(inputs)]
        any_zero = jnp.any(jnp.stack([jnp.any(shift != 0) for shift in shifts if shift is not None]))

        def with_covariance(x1: jax.Array, x2: jax.Array | None) -> tuple[list[jax.Array], _Structure, jax.Array]:
            leaves, structure = arrays_at(numbers, x1, x2)
            return leaves, structure, _kernel(leaves, structure).covariance.value

        def at(sign: jax.Array) -> tuple[Any, Any]:
            moved = [x if shift is None else x + sign * shift for x, shift in zip(inputs, shifts, strict=True)]
            return jax.jvp(with_covariance, tuple(moved), tuple(input_tangents))

        def side(_: None, sign: jax.Array) -> tuple[None, Any]:
            # without zeros there is no other side
            return None, jax.lax.cond((sign > 0) | any_zero, lambda: at(sign), lambda: (nothing, nothing))

        leaves, structure = arrays(*primals)
        kernel = _kernel(leaves, structure)
        covariance = jax.lax.stop_gradient(kernel.covariance.value)
        nothing = jax.tree.map(jnp.zeros_like, (leaves, structure, covariance))
        _, (values, slopes) = jax.lax.scan(side, None, jnp.array([1, -1], x1.dtype))
        right, left = (_kernel([leaf[i] for leaf in values[0]], structure) for i in range(2))
        without = _root(jax.lax.stop_gradient(kernel)) == 0
        found = _kernel([jnp.where(any_zero, x.sum(0) / 2, x[0]) for x in slopes[0]], structure)
        by_covariance = -slopes[2].sum(0) / 2
        total = sum((jnp.sum(x) for x in inputs if x is not None), jnp.zeros((), x1.dtype))
        root, step = _root(right), SHIFT[x1.dtype.name]
        bent_distance = jnp.where(
            without,
            _bent(covariance, values[2][0], values[2][1], root),
            _bent(kernel.distance, right.distance, left.distance, step),
        )
        size = jnp.where(without, root, step * jnp.max(jnp.abs(kernel.ntk_scaled)))
        bent_ntk = _bent(kernel.ntk_scaled, right.ntk_scaled, left.ntk_scaled, size)
        found = replace(
            found,
            distance=jnp.where(without, by_covariance, found.distance) * no_derivative(total, any_zero & bent_distance),
            ntk_scaled=found.ntk_scaled * no_derivative(total, any_zero & bent_ntk),
        )
        moving = jax.tree.leaves(found)
        # by numbers at the inputs themselves, and by no number that stays: a derivative that is NaN times 0 is NaN
        moved = {i: t for i, t in enumerate(tangents[0]) if not isinstance(t, SymbolicZero)}
        if moved:

            def at_numbers(changed: dict[int, jax.Array]) -> list[jax.Array]:
                return arrays_at(tuple(changed.get(i, number) for i, number in enumerate(numbers)), *inputs)[0]

            by_numbers = jax.jvp(at_numbers, ({i: numbers[i] for i in moved},), (moved,))[1]
            moving = [jnp.add(*pair) for pair in zip(moving, by_numbers, strict=True)]
        return (leaves, structure), (moving, structure)

    arrays.defjvp(jvp, symbolic_zeros=True)
    return _kernel(*arrays(numbers, x1, x2))


def _instantiated(tangent: Any, x: jax.Array) -> jax.Array:
    return jnp.zeros_like(x) if isinstance(tangent, SymbolicZero) else tangent


def _kernel(leaves: list[jax.Array], structure: _Structure) -> Kernel:
    kernel: Kernel = jax.tree.unflatten(structure.tree, leaves)
    return kernel


def _beside_zeros(x: jax.Array | None, side: int) -> jax.Array | None:
    """Small numbers where a vector, or an image's pixel, is all zeros, else 0; each input has its own numbers."""
    if x is None:
        return None
    largest = jnp.max(jnp.abs(x))
    size = SHIFT[x.dtype.name] * jnp.where(largest > 0, largest, 1)
    numbers = jnp.arange(1, math.prod(x.shape[1:]) + 1, dtype=x.dtype).reshape(x.shape[1:])
    direction = jnp.cos(numbers * math.sqrt(2 + side))  # no two of them are alike, none is 0
    return jax.lax.stop_gradient(jnp.where(_black(x), size * direction, 0))


def _black(x: jax.Array) -> jax.Array:
    return jnp.all(x == 0, axis=-1, keepdims=True)


def _root(kernel: Kernel) -> jax.Array:
    """Root sqrt(q1 q2) of all pairs, the largest covariance possible."""
    covariance = kernel.covariance
    return safe_sqrt(covariance.variance1) * safe_sqrt(covariance.variance2)


def _bent(middle: jax.Array, right: jax.Array, left: jax.Array, size: jax.Array | float) -> jax.Array:
    """Whether a function has a kink between these values: it leaves the middle to both sides by about `size`."""
    turned = jnp.abs((right - middle) + (left - middle))
    steps = jnp.abs(right - middle) + jnp.abs(left - middle)
    return (turned > steps / 100) & (turned > size / 100)
