"""Weight centering while training: a projection behind any optimizer (MimicNorm, 2010.09278, "weight mean").

Each unit's weights lose their own mean over the fan-in, W -> W P with P = I - 11^T/n, after every step. Put last in an
optax chain, `center_weights` changes the update so that the parameters are centered once it is applied:

    optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), center_weights())
    params = center(params)                     # the start is to be centered as well

Whatever stands before it, the result is centered to rounding. Under SGD with momentum, Nesterov's or weight decay that
is the same as training V with W = V P: gradients with respect to V are centered already. Under Adam it is not: it
divides by each entry's own size.

The fan-in of dense weights and convolutions is read off their shapes; of stacked layers, attention and others it comes
from the module, `center_weights(axes=fan_in_axes(model, x))`, or is stated.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import optax

from ntk_analysis.common.precision import AnyArray
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.training.fan_in import Axes, FanIn, Path, StatedAxes, keys, named
from ntk_analysis.training.module_axes import as_axes

Mask: TypeAlias = Callable[[Path, AnyArray], bool]
"""Function mask(path, array) that tells whether the array is centered; the path is the keys that lead to it. A mask may
have its own `axes`, as that of `selected` does."""

MIN_FAN_IN = 51  # the authors center a convolution whose fan-in exceeds 50
READ_OUTS = ("head", "readout", "read_out", "classifier", "logits", "output")


@dataclass(frozen=True)
class Selected:
    """The mask that `selected` returns. It selects arrays of unknown fan-in, too, so that a warning names them."""

    min_fan_in: int
    dense: bool
    convolutions: bool
    without: frozenset[str]
    axes: Any

    def __call__(self, path: Path, weights: AnyArray) -> bool:
        """Whether the array is to be centered, its fan-in being read by the mask's own axes."""
        return self.wants(path, weights, as_axes(self.axes)(path, weights))

    def wants(self, path: Path, weights: AnyArray, fan_in: FanIn | None) -> bool:
        """Whether an array with this fan-in is to be centered."""
        if set(path) & self.without:
            return False
        if fan_in is None:
            return True
        kind = self.convolutions if fan_in.convolution else self.dense
        return kind and bool(fan_in.axes) and fan_in.size(weights) >= self.min_fan_in


def selected(
    *,
    min_fan_in: int = MIN_FAN_IN,
    dense: bool = True,
    convolutions: bool = True,
    without: Sequence[str] = READ_OUTS,
    axes: StatedAxes = None,
) -> Selected:
    """A mask that selects weights by kind of layer, fan-in and name.

    The defaults center dense layers and convolutions of more than 50 weights a unit. This leaves out 3 x 3 depthwise
    convolutions (9) and a first 3 x 3 convolution of RGB images (27). The read-out, found by name, is left out as well.
    The paper's text has no such bounds: `selected(min_fan_in=1, without=())`. Its authors' code centers no dense layer:
    `selected(dense=False)`.

    Args:
        min_fan_in: smallest fan-in of a layer that is centered.
        dense: whether dense layers are centered.
        convolutions: whether convolutions are centered. With given axes, an array with several fan-in axes is a
            convolution.
        without: keys under which nothing is centered, wherever they stand in the path.
        axes: fan-in axes, as for `center`, which takes them from here if it is given none itself.
    """
    return Selected(min_fan_in, dense, convolutions, frozenset(without), axes)


def center(params: Tree, mask: Mask | None = None, *, axes: StatedAxes = None) -> Tree:
    """The parameters, with each unit's mean over the fan-in subtracted from the selected weights; the others unchanged.

    Selected weights whose fan-in is not known stay as they are, and one warning names them.

    Args:
        params: tree of arrays.
        mask: function of (path, array) that selects arrays; None is `selected()`. Biases, scales and other arrays of
            fewer than 2 axes are never centered.
        axes: the axes of an array that are the fan-in of its units. None: all but the last of arrays with 2 or 4 axes,
            which are dense weights and convolutions. For other arrays, such as stacked layers, embeddings or
            attention's projections, give a network of layers, a module of Flax NNX, or `fan_in_axes(module, x)`. Or
            state the axes: (0, 1) for all arrays; a dictionary by the end of the path, {"query/kernel": 0,
            "layers/kernel": (1,), "embedding": ()}; or a function of (path, array). Arrays that a dictionary does not
            name are read as for None.

    Raises:
        TypeError: axes is none of these.
        ValueError: the mask selects nothing that can be centered, or axes has one that an array does not have.
    """
    mask, read = _reading(mask, axes)
    leaves, tree = jax.tree.flatten(params)
    chosen = _chosen(params, mask, read)
    centered = [_centered(leaf, over) if over else leaf for leaf, over in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(tree, centered)


def center_weights(mask: Mask | None = None, *, axes: StatedAxes = None) -> optax.GradientTransformationExtraArgs:
    """An optax transformation that keeps the selected weights centered; put it last in a chain.

    It projects the weights, not their change: rounding does not add up, and a start that is not centered is centered by
    the first step. It has no state and works under jit and vmap and with any tree, those of Flax NNX included. `init`
    warns of weights that stay as they are because their fan-in is not known.

    Args:
        mask: function of (path, array) that selects arrays, as for `center`.
        axes: fan-in axes, as for `center`.

    Raises:
        TypeError: axes is of another kind than `center` takes.
        ValueError: `init` raises it as `center` does; `update` raises it if no parameters are given.
    """

    mask, read = _reading(mask, axes)

    def init(params: Any) -> optax.EmptyState:
        _chosen(params, mask, read)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        if params is None:
            raise ValueError("center_weights needs the parameters: optimizer.update(grads, state, params)")
        changes, tree = jax.tree.flatten(updates)
        weights = jax.tree.leaves(params)
        chosen = _chosen(params, mask, read, told=True)
        projected = [
            _centered(leaf + change, over) - leaf if over else change
            for change, leaf, over in zip(changes, weights, chosen, strict=True)
        ]
        return jax.tree.unflatten(tree, projected), state

    return optax.GradientTransformationExtraArgs(init, update)


def _centered(weights: AnyArray, axes: tuple[int, ...]) -> AnyArray:
    return weights - weights.mean(axis=axes, keepdims=True)  # NumPy stays NumPy, float64 too


def _reading(mask: Mask | None, axes: Any) -> tuple[Mask, Axes]:
    mask = selected() if mask is None else mask
    return mask, as_axes(getattr(mask, "axes", None) if axes is None else axes)


def _chosen(params: Any, mask: Mask, read: Axes, *, told: bool = False) -> list[tuple[int, ...]]:
    """Axes over which each leaf is centered, () for none; warns of leaves whose fan-in is not known, unless `told`."""
    leaves = [(keys(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    found = [_wanted(mask, path, leaf, read) for path, leaf in leaves]
    unknown = [
        f"{'/'.join(named(path))} {tuple(leaf.shape)}"
        for (path, leaf), over in zip(leaves, found, strict=True)
        if over is None
    ]
    advice = f"the fan-in of {', '.join(unknown)} is not known: give axes=, as fan_in_axes(model, x)"
    if not any(found):
        raise ValueError(
            "the mask selects no weights to center: lower min_fan_in, or give a mask(path, array) of your own"
            + (f"; {advice}" if unknown else "")
        )
    if unknown and not told:
        warnings.warn(f"not centered, as {advice}", stacklevel=3)
    return [over or () for over in found]


def _wanted(mask: Mask, path: Path, leaf: Any, read: Axes) -> tuple[int, ...] | None:
    """The axes over which an array is centered; () if it is not to be centered, None if its fan-in is not known."""
    if leaf.ndim < 2:
        return ()
    fan_in = read(path, leaf)
    wanted = mask.wants(path, leaf, fan_in) if isinstance(mask, Selected) else mask(path, leaf)
    if not wanted:
        return ()
    return None if fan_in is None else fan_in.axes
