"""Branches beside each other on the same input: their outputs added, multiplied, or put side by side."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from ntk_analysis.activations.angles import into_range
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.covariances import Covariance
from ntk_analysis.infinite.kernel import Kernel, Law
from ntk_analysis.layers.base import Layer, Params, Record, Shape, SingleLayer
from ntk_analysis.layers.combinators import Combinator, check_parts, check_uncorrelated, joined

Fan: TypeAlias = Literal["sum", "product", "concatenate"]
FANS: tuple[str, ...] = get_args(Fan)


@dataclass(frozen=True)
class Identity(SingleLayer):
    """y = x: a branch that hands its input on."""

    couples_batch = False
    homogeneous = True

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        del key
        return input_shape, ()

    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        del params
        return x

    def kernel(self, kernel: Kernel) -> Kernel:
        return kernel


@dataclass(frozen=True, init=False)
class Parallel(Combinator):
    """Branches on the same input, and one output: Parallel(Serial(...), Identity(), fan="sum").

    With kernels K_i and Theta_i of the branches at infinite width,
        "sum":         K' = sum_i K_i,      Theta' = sum_i Theta_i;
        "product":     K' = prod_i K_i,     Theta' = sum_i Theta_i prod_{j != i} K_j, of each unit with the same unit;
        "concatenate": K' = mean_i K_i,     Theta' = mean_i Theta_i, of units side by side in branches of one width.
    Sum and product need branches that are uncorrelated given the input, so that all but one must end in a Dense or Conv
    layer, whose fresh weights make them so. Behind products and concatenations a layer of weights must come next.

    Attributes:
        branches: layers or compositions of layers, at least two, of one output shape.
        fan: what becomes of their outputs.
    """

    branches: tuple[Layer, ...]
    fan: Fan

    def __init__(self, *branches: Layer, fan: Fan = "sum") -> None:
        if len(branches) < 2:
            raise ValueError(
                f"Parallel needs at least two branches, got {len(branches)}: Identity() hands the input on"
            )
        if fan not in FANS:
            raise ValueError(f"got fan={fan!r}: choose one of {', '.join(FANS)}")
        object.__setattr__(self, "branches", branches)
        object.__setattr__(self, "fan", fan)
        check_parts(self)

    @property
    def parts(self) -> tuple[Layer, ...]:
        return self.branches

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        return tuple((index,) for index in range(len(self.branches)))

    @property
    def homogeneous(self) -> bool:
        return self.fan != "product" and super().homogeneous

    @property
    def ends_in_weights(self) -> bool:
        return all(branch.ends_in_weights for branch in self.branches)

    def rebuilt(self, parts: Sequence[Layer]) -> "Parallel":
        return Parallel(*parts, fan=self.fan)

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.branches))}, fan={self.fan!r})"

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        keys = jax.random.split(key, len(self.branches))
        found = [branch.init(one, input_shape) for branch, one in zip(self.branches, keys, strict=True)]
        shapes, params = zip(*found, strict=True)
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the branches of Parallel must have one output shape, got {', '.join(map(str, shapes))}: change their "
                "widths"
            )
        shape = shapes[0]
        if self.fan == "concatenate":
            shape = (*shape[:-1], shape[-1] * len(shapes))
        return shape, tuple(params)

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        found = [branch.forward(own, x, record=record) for branch, own in zip(self.branches, params, strict=True)]
        outputs, records = zip(*found, strict=True)
        if self.fan == "concatenate":
            y = jnp.concatenate(outputs, axis=-1)
        else:
            y = functools.reduce(jnp.add if self.fan == "sum" else jnp.multiply, outputs)
        return y, (None if record is None else (tuple(records), record(y)))

    def kernel(self, kernel: Kernel) -> Kernel:
        kernels = [branch.kernel(kernel) for branch in self.branches]
        _check(self, kernels)
        if self.fan == "product":
            return functools.reduce(_product, kernels)
        if self.fan == "sum":
            return functools.reduce(_sum, kernels)
        share = 1 / len(kernels)
        return replace(functools.reduce(_sum, [_scaled(one, share) for one in kernels]), law="activated")

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        inner, output = outputs
        for branch, own in zip(self.branches, inner, strict=True):
            yield from branch.walk(own)
        yield self, output


def _check(layer: Parallel, kernels: Sequence[Kernel]) -> None:
    """Raises an error unless the branches' kernels can be joined."""
    shapes = [kernel.distance.shape for kernel in kernels]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"the branches of Parallel must have the same positions, got kernels of {', '.join(map(str, shapes))}: "
            "change their strides and paddings"
        )
    if "batch normalized" in [kernel.law for kernel in kernels]:
        raise NotImplementedError("a branch of Parallel cannot end in a BatchNorm: put a Dense layer behind it")
    if layer.fan == "concatenate":
        return
    others = [
        pair
        for pair in zip(layer.branches, kernels, strict=True)
        if pair[1].law != "gaussian" or not pair[0].ends_in_weights
    ]
    for branch, kernel in others[1:]:  # one may be correlated with the input, if no other one is
        check_uncorrelated(branch, kernel, f"all branches but one of a {layer.fan}")


def _sum(one: Kernel, other: Kernel) -> Kernel:
    """Kernel of the sum of uncorrelated units."""
    law: Law = "gaussian" if one.law == other.law == "gaussian" else "activated"
    return joined(one, other, covariances.add, jnp.add, ntk_scaled=other.ntk_scaled, law=law)


def _product(one: Kernel, other: Kernel) -> Kernel:
    """Kernel of the products of uncorrelated units."""
    left = replace(one, ntk_scaled=one.ntk_scaled * other.covariance.value)
    return joined(
        left, other, _multiplied, jnp.multiply, ntk_scaled=other.ntk_scaled * one.covariance.value, law="activated"
    )


def _multiplied(left: Covariance, right: Covariance) -> Covariance:
    """Product of two covariances; its distance d + e - d e loses no digits where d and e are small."""
    distance = left.distance + right.distance * (1 - left.distance)
    return Covariance(left.variance1 * right.variance1, left.variance2 * right.variance2, into_range(distance))


def _scaled(kernel: Kernel, factor: float) -> Kernel:
    """The kernel times a factor, its means too: the share of some units among many."""
    names = ("variance1", "variance2", "mean1", "mean2", "ntk_scaled")
    return replace(kernel, **{name: factor * getattr(kernel, name) for name in names})
