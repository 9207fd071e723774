"""Random directions in parameter space, the same in every process and with every version of NumPy."""

import math

import jax
import numpy as np

from ntk_analysis.common.pytrees import Tree


def random_direction(tree: Tree, seed: int = 0) -> Tree:
    """A tree of NumPy arrays like this one, entries uniform of mean 0 and variance 1, each leaf with its own stream.

    No entry is 0, whatever the leaf holds: a derivative along the direction sees every parameter, also one that is
    zero.
    """
    leaves, structure = jax.tree.flatten(tree)
    drawn = [_uniform((seed, number), leaf.shape).astype(leaf.dtype) for number, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def _uniform(key: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    # raw bits: NumPy keeps their stream for good, but not the stream of its distributions
    bits = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    between = (bits.astype(np.float64) + 0.5) * 2.0**-52 - 1
    return (between * math.sqrt(3)).reshape(shape)
