"""What a layer is: one object, three views of the same network."""

import abc
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax

from ntk_analysis.common.precision import AnyArray
from ntk_analysis.infinite.kernel import Kernel

Params: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]


class Layer(abc.ABC):
    """A frozen, hashable description of a layer: its finite network and its infinite-width kernel.

    Shapes include the batch axis, as in (-1, 784); its size does not matter. Parameters are drawn from N(0, 1), and the
    gains are in the forward pass (NTK parametrisation).
    """

    @abc.abstractmethod
    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        """Output shape and parameters, in JAX's default float dtype, for inputs of this shape."""

    @abc.abstractmethod
    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        """Output of the finite network, and the outputs of all its layers if `record` (else None)."""

    @abc.abstractmethod
    def kernel(self, kernel: Kernel) -> Kernel:
        """Kernel of the outputs, from the kernel of the inputs, at infinite width.

        Raises:
            NotImplementedError: this combination has no infinite-width limit, or none that is implemented.
        """

    @property
    def pairs_positions(self) -> bool:
        """Whether the kernel of images needs all pairs of positions (average pooling), not equal positions only."""
        return False

    @property
    def homogeneous(self) -> bool:
        """Whether the units on s x, s > 0, are s times those on x: a kernel of vectors is then one of their angles."""
        return False

    @abc.abstractmethod
    def walk(self, outputs: Any) -> Iterator[tuple["Layer", jax.Array]]:
        """The single layers in the order of execution, each with its output as recorded by `activations`."""

    def apply(self, params: Params, x: AnyArray) -> jax.Array:
        """Output of the finite network on x, (batch, ...); x takes the dtype of the parameters."""
        return self.forward(params, as_params_dtype(params, x), record=False)[0]

    def activations(self, params: Params, x: AnyArray) -> Any:
        """Every layer's output, nested as the network is; the outputs of a `Repeat` are stacked along a first axis."""
        return self.forward(params, as_params_dtype(params, x), record=True)[1]


class SingleLayer(Layer):
    """A layer that is not made of layers."""

    @abc.abstractmethod
    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        """Output of the finite layer."""

    def forward(self, params: Params, x: jax.Array, *, record: bool) -> tuple[jax.Array, Any]:
        y = self.compute(params, x)
        return y, (y if record else None)

    def walk(self, outputs: jax.Array) -> Iterator[tuple[Layer, jax.Array]]:
        yield self, outputs


def as_params_dtype(params: Params, x: Any) -> jax.Array:
    """x as a JAX array of the parameters' dtype: a finite network computes in the precision in which it was drawn."""
    leaves = jax.tree.leaves(params)
    return jax.numpy.asarray(x, leaves[0].dtype if leaves else None)


def check_rank(x: Any, layer: object) -> None:
    """Raises ValueError unless x is (batch, features)."""
    if len(x.shape) != 2:
        raise ValueError(
            f"{layer} expects (batch, features), got shape {tuple(x.shape)}: x.reshape(len(x), -1) flattens"
        )


def check_image(shape: Shape, layer: object) -> None:
    """Raises ValueError unless the shape is (batch, height, width, channels)."""
    if len(shape) != 4:
        raise ValueError(
            f"{layer} expects images (batch, height, width, channels), got {len(shape)} axes: do not flatten them, and "
            "give grey ones a channel with x[..., None]"
        )
