"""Fully connected ReLU networks."""

import jax
from flax import nnx

from ntk_analysis.training.models.layers import Layers
from ntk_analysis.training.models.selection import relu


class MLP(nnx.Module):
    """An MLP on flattened inputs: `depth` hidden layers, each dense, norm and ReLU, and a read-out.

    Args:
        layers: makes the layers.
        classes: number of logits.
        depth: number of hidden layers, at least 1.
        width: number of units of each hidden layer.
        inputs: number of features of an input, 32 * 32 * 3 for CIFAR.

    Raises:
        ValueError: depth is below 1.
    """

    def __init__(self, layers: Layers, classes: int, *, depth: int = 5, width: int = 512, inputs: int = 3072) -> None:
        if depth < 1:
            raise ValueError(f"got depth={depth}: expected at least 1 hidden layer")
        self.first = layers.dense(inputs, width, first=True)
        self.hidden = nnx.List([layers.dense(width, width) for _ in range(depth - 1)])
        self.norms = nnx.List([layers.norm(width) for _ in range(depth)])
        self.head = layers.head(width, classes)
        self.last = layers.last(classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (batch, classes) of inputs (batch, ...)."""
        x = x.reshape(len(x), -1)
        if x.shape[-1] != self.first.in_features:
            raise ValueError(
                f"got inputs of {x.shape[-1]} features, expected {self.first.in_features}: build with inputs="
            )
        for dense, norm in zip([self.first, *self.hidden], self.norms, strict=True):
            x = relu(norm(dense(x)))
        return self.last(self.head(x))
