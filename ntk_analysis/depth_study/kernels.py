"""Kernels of infinitely wide, fully connected ReLU networks after every number of hidden layers, in one pass.

The layer that reads out a network is the one that leads on to the next hidden layer of a deeper one.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from ntk_analysis import Kernel, kernels_by_depth
from ntk_analysis.layers import Dense
from ntk_analysis.networks import fully_connected


def readouts(normalization: str, depth: int, x: np.ndarray) -> Iterator[Kernel]:
    """Yields the kernels of networks of 1 to `depth` hidden layers, in one pass, for inputs x (m, ...)."""
    network = fully_connected(depth, 1, normalization)
    behind_dense = (kernel for layer, kernel in kernels_by_depth(network, x) if isinstance(layer, Dense))
    return itertools.islice(behind_dense, 1, None)


def tangent_kernels(x: np.ndarray, normalization: str, depths: Iterable[int]) -> Iterator[np.ndarray]:
    """Yields the tangent kernels (m, m) of networks of these numbers of hidden layers, ascending, in one pass."""
    wanted = {int(depth) for depth in depths}
    for depth, kernel in enumerate(readouts(normalization, max(wanted), x), 1):
        if depth in wanted:
            yield kernel.ntk


def unit_diagonal(matrix: np.ndarray) -> np.ndarray:
    """Returns the matrix (m, m) over the mean of its diagonal."""
    scaled: np.ndarray = matrix / np.mean(np.diagonal(matrix))
    return scaled


def kernels(x: np.ndarray, normalization: str, depths: Iterable[int]) -> np.ndarray:
    """Returns NNGP and NTK after these numbers of hidden layers, (depths, 2, m, m), each over its mean diagonal."""
    wanted, found = {int(depth) for depth in depths}, []
    for depth, kernel in enumerate(readouts(normalization, max(wanted), x), 1):
        if depth in wanted:
            found.append([unit_diagonal(np.asarray(part)) for part in (kernel.nngp, kernel.ntk_scaled)])
    return np.array(found)
