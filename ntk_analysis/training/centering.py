"""Weight centering while training: a projection behind any optimiser (MimicNorm, 2010.09278, "weight mean").

Each unit's weights lose their own mean over the fan-in, W -> W P with P = I - 11^T/n, after every step. Put last in an
optax chain, `center_weights` changes the update so that the parameters are centred once it is applied:

    optimiser = optax.chain(optax.sgd(0.1, momentum=0.9), center_weights())
    params = center(params)                     # the start is to be centred as well

Whatever stands before it, the result is centred to rounding. Under SGD with momentum, Nesterov's or weight decay that
is the same as training V with W = V P: gradients with respect to V are centred already. Under Adam it is not: it
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

from ntk_analysis.precision import AnyArray
from ntk_analysis.training.fan_in import Axes, FanIn, Path, keys, named
from ntk_analysis.training.module_axes import as_axes

Mask: TypeAlias = Callable[[Path, AnyArray], bool]
"""mask(path, array): whether the array is centred; the path is the keys that lead to it. A mask may bring `axes` of its
own, as `selected` does."""

MIN_FAN_IN = 51  # the authors centre a convolution whose fan-in exceeds 50
READ_OUTS = ("head", "readout", "read_out", "classifier", "logits", "output")


@dataclass(frozen=True)
class Selected:
    """The mask of `selected`, which see. Arrays of which the fan-in is not known are wanted, and so named."""

    min_fan_in: int
    dense: bool
    convolutions: bool
    without: frozenset[str]
    axes: Any

    def __call__(self, path: Path, weights: AnyArray) -> bool:
        """Whether the array is to be centred, by the mask's own axes."""
        return self.wants(path, weights, as_axes(self.axes)(path, weights))

    def wants(self, path: Path, weights: AnyArray, fan_in: FanIn | None) -> bool:
        """Whether an array that is read so is to be centred."""
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
    axes: Any = None,
) -> Selected:
    """A mask by kind of layer, fan-in and name.

    The defaults centre dense layers and convolutions of more than 50 weights a unit, which leaves out 3 x 3 depthwise
    convolutions (9) and a first 3 x 3 convolution of RGB images (27), and leave out the read-out, found by name. The
    paper's text has no such bounds: `selected(min_fan_in=1, without=())`; its authors' code centres no dense layer:
    `selected(dense=False)`.

    Args:
        min_fan_in: smallest fan-in that is centred.
        dense: whether dense layers are.
        convolutions: whether convolutions are; of axes that are given, those of several for one array.
        without: keys under which nothing is, wherever in the path they stand.
        axes: as for `center`, which takes them from here where it is given none.
    """
    return Selected(min_fan_in, dense, convolutions, frozenset(without), axes)


def center(params: Any, mask: Mask | None = None, *, axes: Any = None) -> Any:
    """The parameters, the selected weights with each unit's mean over the fan-in subtracted; the others as they are.

    Selected weights of which the fan-in is not known stay as they are, and one warning names them.

    Args:
        params: a tree of arrays.
        mask: which arrays; None is `selected()`. Biases, scales and other arrays of fewer than 2 axes never are.
        axes: which axes of an array are the fan-in of its units. None: all but the last of 2 and 4, dense weights and
            convolutions. For others, as stacked layers, embeddings, attention's projections: a network of layers, a
            module of Flax NNX, or `fan_in_axes(module, x)`; or one's own: (0, 1) for all, a dictionary by the end of
            the path, {"query/kernel": 0, "layers/kernel": (1,), "embedding": ()}, or a function of (path, array). What
            a dictionary does not name is read as for None.

    Raises:
        TypeError: axes of another kind.
        ValueError: the mask selects nothing that can be centred; axes that an array does not have.
    """
    mask, read = _reading(mask, axes)
    leaves, tree = jax.tree.flatten(params)
    chosen = _chosen(params, mask, read)
    centred = [_centered(leaf, over) if over else leaf for leaf, over in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(tree, centred)


def center_weights(mask: Mask | None = None, *, axes: Any = None) -> optax.GradientTransformationExtraArgs:
    """An optax transformation, to be put last in a chain, behind which the selected weights are centred.

    The projection is of the weights, not of their change: rounding does not add up, and a start that is not centred is
    centred by the first step. Stateless; works under jit and vmap and with any tree, those of Flax NNX included. `init`
    names what stays as it is for want of a known fan-in.

    Args:
        mask: as for `center`.
        axes: as for `center`.

    Raises:
        TypeError: axes of another kind.
        ValueError: from `init`, as `center`; from `update`, no parameters are given.
    """

    mask, read = _reading(mask, axes)

    def init(params: Any) -> optax.EmptyState:
        _chosen(params, mask, read)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        if params is None:
            raise ValueError("center_weights needs the parameters: optimiser.update(grads, state, params)")
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
    """The axes over which each leaf is centred, none of what is not; unless told before, names what is not known."""
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
            "the mask selects no weights to centre: lower min_fan_in, or give a mask(path, array) of your own"
            + (f"; {advice}" if unknown else "")
        )
    if unknown and not told:
        warnings.warn(f"not centred, as {advice}", stacklevel=3)
    return [over or () for over in found]


def _wanted(mask: Mask, path: Path, leaf: Any, read: Axes) -> tuple[int, ...] | None:
    """The axes over which an array is centred, () if it is not to be; None if it is and they are not known."""
    if leaf.ndim < 2:
        return ()
    fan_in = read(path, leaf)
    wanted = mask.wants(path, leaf, fan_in) if isinstance(mask, Selected) else mask(path, leaf)
    if not wanted:
        return ()
    return None if fan_in is None else fan_in.axes
