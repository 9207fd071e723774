"""Weight centering while training: a projection behind any optimiser (MimicNorm, 2010.09278, "weight mean").

Each unit's weights lose their own mean over the fan-in, W -> W P with P = I - 11^T/n, after every step. Put last in an
optax chain, `center_weights` changes the update so that the parameters are centred once it is applied:

    optimiser = optax.chain(optax.sgd(0.1, momentum=0.9), center_weights())
    params = center(params)                     # the start is to be centred as well

Whatever stands before it, the result is centred to rounding. Under SGD with momentum, Nesterov's or weight decay that
is the same as training V with W = V P: gradients with respect to V are centred already. Under Adam it is not: it
divides by each entry's own size.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

Path: TypeAlias = tuple[str, ...]
Mask: TypeAlias = Callable[[Path, jax.Array], bool]
"""mask(path, array): whether the array is centred; the path is the keys that lead to it."""

MIN_FAN_IN = 51  # the authors centre a convolution whose fan-in exceeds 50
READ_OUTS = ("head", "readout", "read_out", "classifier", "logits", "output")


def fan_in(weights: Any) -> int:
    """Weights of one unit: every axis but the last; of a depthwise convolution (kh, kw, 1, C) its kh kw."""
    return weights.size // weights.shape[-1] if weights.ndim and weights.shape[-1] else 0


def selected(
    *, min_fan_in: int = MIN_FAN_IN, dense: bool = True, convolutions: bool = True, without: Sequence[str] = READ_OUTS
) -> Mask:
    """A mask by kind of layer, fan-in and name.

    The defaults centre dense layers and convolutions of more than 50 weights a unit, which leaves out 3 x 3 depthwise
    convolutions (9) and a first 3 x 3 convolution of RGB images (27), and leave out the read-out, found by name. The
    paper's text has no such bounds: `selected(min_fan_in=1, without=())`; its authors' code centres no dense layer:
    `selected(dense=False)`.

    Args:
        min_fan_in: smallest fan-in that is centred.
        dense: whether arrays (fan-in, units) are.
        convolutions: whether arrays of more axes, (..., channels, units), are.
        without: keys under which nothing is, wherever in the path they stand.
    """

    def mask(path: Path, weights: jax.Array) -> bool:
        kind = dense if weights.ndim == 2 else convolutions
        return kind and fan_in(weights) >= min_fan_in and not set(path) & set(without)

    return mask


def center(params: Any, mask: Mask | None = None) -> Any:
    """The parameters, the selected weights with each unit's mean over the fan-in subtracted; the others as they are.

    Args:
        params: a tree of arrays, units on the last axis.
        mask: which arrays; None is `selected()`. Arrays of fewer than 2 axes (biases, scales) are never centred.

    Raises:
        ValueError: the mask selects nothing: there is nothing to centre.
    """
    chosen = _chosen(params, mask)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "the mask selects no weights to centre: lower min_fan_in, or give a mask(path, array) of your own"
        )
    return jax.tree.map(lambda leaf, wanted: _centered(leaf) if wanted else leaf, params, chosen)


def center_weights(mask: Mask | None = None) -> optax.GradientTransformationExtraArgs:
    """An optax transformation, to be put last in a chain, behind which the selected weights are centred.

    The projection is of the weights, not of their change: rounding does not add up, and a start that is not centred is
    centred by the first step. Stateless; works under jit and vmap and with any tree, those of Flax NNX included.

    Args:
        mask: as for `center`.

    Raises:
        ValueError: from `init`, the mask selects nothing; from `update`, no parameters are given.
    """

    def init(params: Any) -> optax.EmptyState:
        center(params, mask)
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None, **extra: Any) -> tuple[Any, optax.EmptyState]:
        del extra
        if params is None:
            raise ValueError("center_weights needs the parameters: optimiser.update(grads, state, params)")

        def projected(change: jax.Array, leaf: jax.Array, wanted: bool) -> jax.Array:
            return _centered(leaf + change) - leaf if wanted else change

        return jax.tree.map(projected, updates, params, _chosen(params, mask)), state

    return optax.GradientTransformationExtraArgs(init, update)


def _centered(weights: jax.Array) -> jax.Array:
    return weights - jnp.mean(weights, axis=tuple(range(weights.ndim - 1)), keepdims=True)


def _chosen(params: Any, mask: Mask | None) -> Any:
    """The tree with True where a leaf is to be centred."""
    wanted = mask or selected()
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim >= 2 and bool(wanted(tuple(map(_key, path)), leaf)), params
    )


def _key(entry: Any) -> str:
    return jax.tree_util.keystr((entry,), simple=True)
