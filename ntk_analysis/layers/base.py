"""What a layer is: one object, three views of the same network."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
from numpy.typing import ArrayLike

from ntk_analysis.common.precision import AnyArray
from ntk_analysis.common.pytrees import NumbersAsData, Tree
from ntk_analysis.infinite.kernel import Kernel

Params: TypeAlias = Any
Shape: TypeAlias = tuple[int, ...]
Record: TypeAlias = Callable[[jax.Array], Any]


class Layer(NumbersAsData):
    """A frozen, hashable description of a layer: its finite network and its infinite-width kernel.

    Shapes include the batch axis, as in (-1, 784); its size does not matter. Parameters are drawn from N(0, 1), and the
    gains are in the forward pass (NTK parametrisation); `networks.parametrized` makes other parametrisations of it.

    A layer is a JAX pytree: its numbers (variances, eps, scales, a slope) are data, and all else is structure; see
    `pytrees`. So `infinite_kernel` can be differentiated by them, compiled once for all of their values, and mapped
    over them.

    A layer of one's own is a frozen dataclass: a `SingleLayer`, or a `Layer` if it is made of layers. `check_layer`
    says whether it keeps what is stated here.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # what a base class states of its own computation is not known of another one
        stated = isinstance(cls.couples_batch, bool) and "couples_batch" not in vars(cls)
        if stated and {"compute", "forward", "kernel"} & vars(cls).keys():
            cls.couples_batch = None  # type: ignore[assignment,method-assign]

    @abc.abstractmethod
    def init(self, key: jax.Array, input_shape: Shape) -> tuple[Shape, Params]:
        """Output shape and parameters, in JAX's default float dtype, for inputs of this shape."""

    @abc.abstractmethod
    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        """Output of the finite network, and record(output) of all its layers, nested as the network is; or None."""

    def kernel(self, kernel: Kernel) -> Kernel:
        """Kernel of the outputs, from the kernel of the inputs, at infinite width.

        A layer without one is a finite layer all the same.

        Raises:
            NotImplementedError: this combination has no infinite-width limit, or none that is implemented.
        """
        raise NotImplementedError(
            f"{self} has no infinite-width kernel: monte_carlo_kernel averages over finite networks with it, "
            "empirical_ntk takes one of them"
        )

    @property
    def pairs_positions(self) -> bool:
        """Whether the kernel of images needs all pairs of positions (pooling, batch norm), not equal positions only."""
        return False

    @property
    def ends_positions(self) -> bool:
        """Whether the outputs are vectors, so that what stands behind has no positions to pair."""
        return False

    @property
    def homogeneous(self) -> bool:
        """Whether the units on s x, s > 0, are s times those on x: a kernel of vectors is then one of their angles."""
        return False

    @property
    def ends_in_weights(self) -> bool:
        """Whether the outputs go through weights of this layer's own, so that they are uncorrelated with its inputs.

        A branch of a residual layer must do so: what is added to its input would be correlated with it otherwise.
        """
        return False

    @property
    def couples_batch(self) -> bool | None:
        """Whether the output on an input depends on the other inputs of the batch; None if that is not known.

        Every layer states it. A class of the user's that does not, and computes something of its own, is tried out
        where its finite side is used, and its kernel is computed as a whole.
        """
        return None

    @property
    def masks_inputs(self) -> bool:
        """Whether each input has random masks of its own: its kernel with itself is not that with an equal input."""
        return False

    def most_positions(self, positions: int) -> int:
        """Largest number of positions inside this layer, for inputs of so many: the memory of kernels grows with it."""
        return positions

    @property
    def parts(self) -> tuple["Layer", ...]:
        """The layers that this layer is made of, in the order of their parameters; () for a single layer."""
        return ()

    @property
    def part_keys(self) -> tuple[tuple[int, ...], ...]:
        """Where the parameters of each part stand within this layer's: (2,) is params[2], () is params itself."""
        return ()

    @property
    def stacked(self) -> bool:
        """Whether the parts run several times, with parameters and outputs along one more first axis."""
        return False

    def rebuilt(self, parts: Sequence["Layer"]) -> "Layer":
        """A composition of this kind and with these numbers, of other parts."""
        if parts:
            raise TypeError(f"{self} is not made of layers, got {len(parts)} to make it of")
        return self

    def in_order(self) -> Iterator["Layer"]:
        """The layers one after another, each pass of a `Repeat` by itself; a residual layer counts as one."""
        yield self

    @abc.abstractmethod
    def walk(self, outputs: Tree) -> Iterator[tuple["Layer", Any]]:
        """The single layers in the order of execution, each with its output as recorded by `activations`."""

    def apply(self, params: Params, x: AnyArray) -> jax.Array:
        """Output of the finite network on x, (batch, ...); x takes the dtype of the parameters."""
        return self.forward(params, as_params_dtype(params, x), record=None)[0]

    def activations(self, params: Params, x: AnyArray) -> Tree:
        """Every layer's output, nested as the network is; the outputs of a `Repeat` are stacked along a first axis."""
        return self.forward(params, as_params_dtype(params, x), record=lambda y: y)[1]


class SingleLayer(Layer):
    """A layer that is not made of layers: it has `init`, `compute`, `couples_batch`, and `kernel` if there is one.

    Without `kernel` its networks can be drawn, trained, and their kernels measured and averaged (`empirical_ntk`,
    `monte_carlo_kernel`); `infinite_kernel` refuses them in one line.
    """

    @abc.abstractmethod
    def compute(self, params: Params, x: jax.Array) -> jax.Array:
        """Output of the finite layer."""

    def forward(self, params: Params, x: jax.Array, *, record: Record | None) -> tuple[jax.Array, Any]:
        y = self.compute(params, x)
        return y, (None if record is None else record(y))

    def walk(self, outputs: Tree) -> Iterator[tuple[Layer, Any]]:
        yield self, outputs


def as_params_dtype(params: Params, x: ArrayLike) -> jax.Array:
    """x as a JAX array of the parameters' dtype: a finite network computes in the precision in which it was drawn."""
    leaves = jax.tree.leaves(params)
    return jax.numpy.asarray(x, leaves[0].dtype if leaves else None)


def check_rank(x: AnyArray, layer: object) -> None:
    """Raises ValueError unless x is (batch, features)."""
    if len(x.shape) != 2:
        raise ValueError(
            f"{layer} expects (batch, features), got shape {tuple(x.shape)}: x.reshape(len(x), -1) flattens"
        )


def check_image(shape: Shape, layer: object, dimensions: int | None = 2) -> None:
    """Raises ValueError unless the shape is a batch of sequences (one), images (two) or volumes (three dimensions).

    With None it is any of them.
    """
    if dimensions is None and len(shape) > 2:
        return
    if dimensions is None or len(shape) != dimensions + 2:
        what = {1: "sequences (batch, length, channels)", 3: "volumes (batch, depth, height, width, channels)"}
        expected = what.get(dimensions or 2, "images (batch, height, width, channels)")
        raise ValueError(
            f"{layer} expects {expected}, got {len(shape)} axes: do not flatten them, and give grey ones a channel "
            "with x[..., None]"
        )
