"""Layers made of layers: one after another, one many times, one beside the identity."""

import abc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.pytrees import Number, Tree, has_traced_numbers, is_known
from ntk_analysis.infinite import covariances
from ntk_analysis.infinite.covariances import Covariance
from ntk_analysis.infinite.kernel import Kernel, Law, add_ntk
from ntk_analysis.layers.base import Layer, Params, Record, Shape
from ntk_analysis.layers.weights import drawn_together

FEWEST = 3  # equal blocks that are worth a scan, whose program has two of them
MOST = 10**6  # passes of a Repeat: a depth of a thousand million is a slip, and takes days


class Combinator(Layer):
    """A layer made of layers, which is what they are: what it says of itself follows from its parts."""

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Layer, ...]: ...

    @property
    @abc.abstractmethod
    def part_keys(self) -> tuple[tuple[int, ...], ...]: ...

    @abc.abstractmethod
    def rebuilt(self, parts: Sequence[Layer]) -> Layer: ...

    @property
    def pairs_positions(self) -> bool:
        return any(part.pairs_positions for part in self.parts)

    @property
    def ends_positions(self) -> bool:
        return any(part.ends_positions for part in self.parts)

    @property
    def homogeneous(self) -> bool:
        return all(part.homogeneous for part in self.parts)

    @property
    def masks_inputs(self) -> bool:
        return any(part.masks_inputs for part in self.parts)

    def most_positions(self, positions: int) -> int:
        return max(part.most_positions(positions) for part in self.parts)

    @property
    def couples_batch(self) -> bool | None:
        found = {part.couples_batch for part in self.parts}
        return True if True in found else None if None in found else False


@dataclass(frozen=True, init=False)
class Serial(Combinator):
    """Layers one after another: Serial(Dense(512), Activation("relu"), Dense(1))."""

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("Serial needs at least one layer, got none")
        object.__setattr__(self, "layers", layers)
        check_parts(self)

    @property
    def parts(self) -> tuple[Layer, ...]:
        return self.layers

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        return tuple((index,) for index in range(len(self.layers)))

    @property
    def pairs_positions(self) -> bool:
        images = takewhile(lambda layer: not layer.ends_positions or layer.pairs_positions, self.layers)
        return any(layer.pairs_positions for layer in images)

    @property
    def ends_in_weights(self) -> bool:
        return any(layer.ends_in_weights for layer in self.layers)

    def most_positions(self, positions: int) -> int:
        for layer in self.layers:  # what makes images smaller between them is left out
            positions = layer.most_positions(positions)
        return positions

    def rebuilt(self, parts: Sequence[Layer]) -> "Serial":
        return Serial(*parts)

    def in_order(self) -> Iterator[Layer]:
        for layer in self.layers:
            yield from layer.in_order()

    def __repr__(self) -> str:
        return f"Serial({', '.join(map(repr, self.layers))})"

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        shape, params = input_shape, []
        for layer, layer_key in zip(self.layers, jax.random.split(key, len(self.layers)), strict=True):
            shape, layer_params = layer.init(layer_key, shape)
            params.append(layer_params)
        return shape, tuple(params)

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        outputs = []
        for layer, layer_params in zip(self.layers, params, strict=True):
            x, output = layer.forward(layer_params, x, record=record)
            outputs.append(output)
        return x, (None if record is None else tuple(outputs))

    def kernel(self, kernel: Kernel) -> Kernel:
        for block, times in runs(self.layers):
            kernel = _passed(block, times, kernel)
        return kernel

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        for layer, output in zip(self.layers, outputs, strict=True):
            yield from layer.walk(output)


@dataclass(frozen=True)
class Repeat(Combinator):
    """A block that is repeated `times` times, with its own parameters each time, as one scan.

    Compile time and program size do not depend on `times`. The block's output shape must be its input shape.
    """

    block: Layer
    times: int

    def __post_init__(self) -> None:
        check_parts(self)
        whole_number(self.times, "times", MOST)

    stacked = True

    @property
    def parts(self) -> tuple[Layer, ...]:
        return (self.block,)

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        return ((),)

    @property
    def ends_in_weights(self) -> bool:
        return self.block.ends_in_weights

    def rebuilt(self, parts: Sequence[Layer]) -> "Repeat":
        (block,) = parts
        return replace(self, block=block)

    def in_order(self) -> Iterator[Layer]:
        for _ in range(self.times):
            yield from self.block.in_order()

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        output_shape: Shape = ()

        def draw(key: jax.Array) -> Params:  # called for all blocks together
            nonlocal output_shape
            output_shape, params = self.block.init(key, input_shape)
            return params

        params = drawn_together(draw, jax.random.split(key, self.times), self)
        if output_shape != input_shape:
            raise ValueError(
                f"Repeat needs a block that keeps the shape, got {input_shape} -> {output_shape}: put a layer of the "
                "block's width before it"
            )
        return input_shape, params

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        def step(carry: jax.Array, block_params: Params) -> tuple[jax.Array, Any]:
            return self.block.forward(block_params, carry, record=record)

        return jax.lax.scan(step, x, params, length=self.times)

    def kernel(self, kernel: Kernel) -> Kernel:
        # the first pass stands outside: it may change the law (inputs become activations), the others may not
        kernel = self.block.kernel(kernel)
        if self.times == 1:  # a scan of length 0 would trace the block on a law it may refuse
            return kernel

        def step(carry: Kernel, _: None) -> tuple[Kernel, None]:
            return self.block.kernel(carry), None

        return jax.lax.scan(step, kernel, None, length=self.times - 1)[0]

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        for index in range(self.times):
            yield from self.block.walk(jax.tree.map(lambda stacked, i=index: stacked[i], outputs))


@dataclass(frozen=True)
class Residual(Combinator):
    """y = x + scale * branch(x), or shortcut(x) + scale * branch(x).

    At infinite width the branch must end in a Dense or Conv layer: its fresh zero-mean weights make it uncorrelated
    with the rest, so that K' = K + scale^2 K_branch and Theta' = Theta + scale^2 Theta_branch.

    Attributes:
        branch: a layer or a composition of layers.
        scale: factor of the branch; it is a constant, not a parameter.
        shortcut: layer in place of the identity, which a branch that changes the shape needs; None is the identity.
    """

    branch: Layer
    scale: Number = 1.0
    shortcut: Layer | None = None

    def __post_init__(self) -> None:
        check_parts(self)
        _check_scales("Residual", self.scale)

    @property
    def parts(self) -> tuple[Layer, ...]:
        return (self.branch,) if self.shortcut is None else (self.branch, self.shortcut)

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        return ((),) if self.shortcut is None else ((0,), (1,))

    @property
    def ends_in_weights(self) -> bool:
        return self.shortcut is not None and self.shortcut.ends_in_weights

    def rebuilt(self, parts: Sequence[Layer]) -> "Residual":
        branch, *shortcut = parts
        return Residual(branch, self.scale, *shortcut)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        if self.shortcut is None:
            return input_shape, _init_branch(self.branch, key, input_shape, input_shape)
        key, shortcut_key = jax.random.split(key)
        shape, shortcut_params = self.shortcut.init(shortcut_key, input_shape)
        return shape, (_init_branch(self.branch, key, input_shape, shape), shortcut_params)

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        skip, skipped = x, None
        if self.shortcut is not None:
            params, shortcut_params = params
            skip, skipped = self.shortcut.forward(shortcut_params, x, record=record)
        y, outputs = self.branch.forward(params, x, record=record)
        y = skip + self.scale * y
        return y, (None if record is None else (skipped, outputs, record(y)))

    def kernel(self, kernel: Kernel) -> Kernel:
        skip = kernel if self.shortcut is None else self.shortcut.kernel(kernel)
        return _add_branch(skip, self.branch, kernel, self.scale)

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        skipped, inner, output = outputs
        if self.shortcut is not None:
            yield from self.shortcut.walk(skipped)
        yield from self.branch.walk(inner)
        yield self, output


@dataclass(frozen=True)
class ResidualChain(Combinator):
    """Residual blocks one after another, x + scales[l] * branch_l(x), as one scan: `Repeat` with a scale for each.

    The branches are alike but have their own parameters. MimicNorm scales branch l by 1/sqrt(l).
    """

    branch: Layer
    scales: tuple[Number, ...]

    def __post_init__(self) -> None:
        check_parts(self)
        _check_scales("ResidualChain", *self.scales)

    stacked = True

    @property
    def parts(self) -> tuple[Layer, ...]:
        return (self.branch,)

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        return ((),)

    def rebuilt(self, parts: Sequence[Layer]) -> "ResidualChain":
        (branch,) = parts
        return replace(self, branch=branch)

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        keys = jax.random.split(key, len(self.scales))
        return input_shape, drawn_together(lambda k: _init_branch(self.branch, k, input_shape, input_shape), keys, self)

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        def step(carry: jax.Array, block: tuple[jax.Array, Params]) -> tuple[jax.Array, Any]:
            scale, branch_params = block
            y, outputs = self.branch.forward(branch_params, carry, record=record)
            y = carry + scale * y
            return y, (None if record is None else (None, outputs, record(y)))

        return jax.lax.scan(step, x, (jnp.asarray(self.scales, x.dtype), params))

    def kernel(self, kernel: Kernel) -> Kernel:
        # the first block is outside the scan: it may change the law, as in Repeat
        kernel = _add_branch(kernel, self.branch, kernel, self.scales[0])
        if len(self.scales) == 1:
            return kernel

        def step(carry: Kernel, scale: jax.Array) -> tuple[Kernel, None]:
            return _add_branch(carry, self.branch, carry, scale), None

        return jax.lax.scan(step, kernel, jnp.asarray(self.scales[1:], kernel.distance.dtype))[0]

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        for index, scale in enumerate(self.scales):
            block = jax.tree.map(lambda stacked, i=index: stacked[i], outputs)
            yield from Residual(self.branch, scale).walk(block)


def runs(layers: Sequence[Layer]) -> list[tuple[tuple[Layer, ...], int]]:
    """Layers as blocks with the number of times that each stands there one after another.

    At each place the block is taken that, repeated, goes farthest, and of those the shortest one. Layers whose numbers
    are traced are not compared.
    """
    left, found = list(layers), list[tuple[tuple[Layer, ...], int]]()
    while left:
        best, best_times = left[:1], 1
        for length in range(1, len(left) // FEWEST + 1):
            block, times = left[:length], 1
            if has_traced_numbers(block):
                break
            while left[times * length : (times + 1) * length] == block:
                times += 1
            if times >= FEWEST and times * length > len(best) * best_times:
                best, best_times = block, times
        found.append((tuple(best), best_times))
        left = left[len(best) * best_times :]
    return found


def _passed(block: tuple[Layer, ...], times: int, kernel: Kernel) -> Kernel:
    """The kernel behind a block that stands there `times` times: one scan from its second pass on, if shapes stay."""

    def once(kernel: Kernel) -> Kernel:
        for layer in block:
            kernel = layer.kernel(kernel)
        return kernel

    kernel = once(kernel)
    if times < FEWEST:
        return kernel
    if _keeps_shapes(once, kernel):
        return jax.lax.scan(lambda carry, _: (once(carry), None), kernel, None, length=times - 1)[0]
    for _ in range(times - 1):
        kernel = once(kernel)
    return kernel


def _keeps_shapes(function: Callable[[Kernel], Kernel], kernel: Kernel) -> bool:
    """Whether the kernel has the same arrays and the same structure behind a function."""
    before, structure = jax.tree.flatten(kernel)
    found: Any = structure

    def leaves(kernel: Kernel) -> list[jax.Array]:
        nonlocal found
        after, found = jax.tree.flatten(function(kernel))
        return after

    after = jax.eval_shape(leaves, kernel)
    return found == structure and all(
        (one.shape, one.dtype) == (other.shape, other.dtype) for one, other in zip(before, after, strict=True)
    )


def check_parts(whole: Combinator) -> None:
    """Raises TypeError unless all parts are layers."""
    for part in whole.parts:
        if not isinstance(part, Layer):
            raise TypeError(f"{type(whole).__name__} is made of layers, got {part!r}")


def _check_scales(layer: str, *scales: Any) -> None:
    known = [scale for scale in scales if is_known(scale)]
    if not scales or not all(isinstance(s, int | float | np.number | jax.Array) and math.isfinite(s) for s in known):
        raise ValueError(f"{layer} needs a finite number for each block, got scales={scales!r}")


def _init_branch(branch: Layer, key: jax.Array, input_shape: Shape, expected: Shape) -> Params:
    shape, params = branch.init(key, input_shape)
    if shape != expected:
        cure = "" if expected != input_shape else ", or give Residual a shortcut of the branch's shape"
        raise ValueError(f"a residual branch must have the shape of the skip {expected}, got {shape}: change it{cure}")
    return params


def check_uncorrelated(layer: Layer, kernel: Kernel, what: str) -> None:
    """Raises NotImplementedError unless a branch, whose kernel this is, is uncorrelated with what stands beside it."""
    if kernel.law != "gaussian" or not layer.ends_in_weights:
        got = "got outputs that are" if kernel.law != "gaussian" else f"got {layer}, without weights, whose outputs are"
        raise NotImplementedError(
            f"{what} must end in a Dense or Conv layer, {got} {kernel.law}: only then are branches uncorrelated at "
            "infinite width"
        )


def _add_branch(skip: Kernel, layer: Layer, kernel: Kernel, scale: Number | jax.Array) -> Kernel:
    """Kernel of skip + scale * layer(inputs of this kernel), which are uncorrelated."""
    branch = layer.kernel(kernel)
    check_uncorrelated(layer, branch, "a residual branch")
    shapes = skip.distance.shape, branch.distance.shape
    if shapes[0] != shapes[1]:
        raise ValueError(f"a residual branch must have the positions of the skip, got {shapes[1]} against {shapes[0]}")
    square = scale**2

    def add(left: Covariance, right: Covariance) -> Covariance:
        return covariances.add(left, right, square)

    law: Law = "activated" if skip.law == "batch normalized" else skip.law
    return joined(skip, branch, add, lambda skipped, _: skipped, ntk_scaled=square * branch.ntk_scaled, law=law)


def joined(
    one: Kernel,
    other: Kernel,
    join: Callable[[Covariance, Covariance], Covariance],
    means: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    ntk_scaled: jax.Array,
    law: Law,
) -> Kernel:
    """Kernel of what two branches on the same inputs make together.

    Args:
        one: kernel of one branch; its NTK has the scale that it has in the result.
        other: kernel of the other branch.
        join: function of both covariances.
        means: function of both means across channels.
        ntk_scaled: what is added to the NTK of `one`, in the scale of `other`, of shape (n1, n2, *pairs).
        law: law of the units.
    """
    total = join(one.covariance, other.covariance)
    own1 = join(*(Covariance(k.variance1, k.variance1, jnp.zeros_like(k.variance1)) for k in (one, other)))
    own2 = join(*(Covariance(k.variance2, k.variance2, jnp.zeros_like(k.variance2)) for k in (one, other)))
    within1, within2 = one.within1, one.within2
    if one.paired:
        (left1, left2), (right1, right2) = one.within, other.within
        within1, within2 = join(left1, right1).distance, join(left2, right2).distance
    summed = replace(
        one,
        variance1=own1.variance1,
        variance2=own2.variance1,
        distance=total.distance,
        mean1=means(one.mean1, other.mean1),
        mean2=means(one.mean2, other.mean2),
        within1=within1,
        within2=within2,
        before=None,
        law=law,
        relative_error=jnp.maximum(one.relative_error, other.relative_error),
    )
    return add_ntk(summed, ntk_scaled, other.log_scale)
