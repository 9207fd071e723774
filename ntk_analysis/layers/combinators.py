"""Layers made of layers: one after another, one many times, one beside the identity."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ntk_analysis import gram
from ntk_analysis.kernel import Kernel, add_ntk, with_covariance
from ntk_analysis.layers.base import Layer, Params, Shape


@dataclass(frozen=True, init=False)
class Serial(Layer):
    """Layers one after another: Serial(Dense(512), Activation("relu"), Dense(1))."""

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("Serial needs at least one layer, got none")
        for layer in layers:
            if not isinstance(layer, Layer):
                raise TypeError(f"Serial is made of layers, got {layer!r}")
        object.__setattr__(self, "layers", layers)

    def __repr__(self) -> str:
        return f"Serial({', '.join(map(repr, self.layers))})"

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        shape, params = input_shape, []
        for layer, layer_key in zip(self.layers, jax.random.split(key, len(self.layers)), strict=True):
            shape, layer_params = layer.init(layer_key, shape)
            params.append(layer_params)
        return shape, tuple(params)

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        outputs = []
        for layer, layer_params in zip(self.layers, params, strict=True):
            x, output = layer.forward(layer_params, x, record=record)
            outputs.append(output)
        return x, (tuple(outputs) if record else None)

    def kernel(self, kernel: Kernel) -> Kernel:
        for layer in self.layers:
            kernel = layer.kernel(kernel)
        return kernel

    def walk(self, outputs: Any) -> Iterator[tuple[Layer, jax.Array]]:
        for layer, output in zip(self.layers, outputs, strict=True):
            yield from layer.walk(output)


@dataclass(frozen=True)
class Repeat(Layer):
    """The same block `times` times with parameters of its own each time, as one scan.

    Compile time and program size do not depend on `times`. The block's output shape must be its input shape.
    """

    block: Layer
    times: int

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"Repeat needs times >= 1, got {self.times}")

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        output_shape, _ = self.block.init(key, input_shape)
        if output_shape != input_shape:
            raise ValueError(
                f"Repeat needs a block that keeps the shape, got {input_shape} -> {output_shape}: put a layer of the "
                "block's width before it"
            )
        params = jax.vmap(lambda k: self.block.init(k, input_shape)[1])(jax.random.split(key, self.times))
        return input_shape, params

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
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

    def walk(self, outputs: Any) -> Iterator[tuple[Layer, jax.Array]]:
        for index in range(self.times):
            yield from self.block.walk(jax.tree.map(lambda stacked, i=index: stacked[i], outputs))


@dataclass(frozen=True)
class Residual(Layer):
    """y = x + scale * branch(x).

    At infinite width the branch must end in a Dense layer: its fresh zero-mean weights make branch and skip
    uncorrelated, so that K' = K + scale^2 K_branch and Theta' = Theta + scale^2 Theta_branch.
    """

    branch: Layer
    scale: float = 1.0

    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        output_shape, params = self.branch.init(key, input_shape)
        if output_shape != input_shape:
            raise ValueError(f"Residual needs a branch that keeps the shape, got {input_shape} -> {output_shape}")
        return input_shape, params

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        y, outputs = self.branch.forward(params, x, record=record)
        y = x + self.scale * y
        return y, ((outputs, y) if record else None)

    def kernel(self, kernel: Kernel) -> Kernel:
        branch = self.branch.kernel(kernel)
        if branch.law != "gaussian":
            raise NotImplementedError(
                f"Residual needs a branch that ends in a Dense layer, got outputs that are {branch.law}: only then "
                "are branch and skip uncorrelated at infinite width"
            )
        covariance = gram.add(kernel.covariance, gram.scale(branch.covariance, self.scale**2))
        total = with_covariance(
            kernel,
            covariance,
            law="gaussian" if kernel.law == "gaussian" else "activated",
            relative_error=jnp.maximum(kernel.relative_error, branch.relative_error),
        )
        return add_ntk(total, self.scale**2 * branch.ntk_scaled, branch.log_scale)

    def walk(self, outputs: Any) -> Iterator[tuple[Layer, jax.Array]]:
        inner, output = outputs
        yield from self.branch.walk(inner)
        yield self, output
