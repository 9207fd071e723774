"""Kernels of infinitely wide, fully connected ReLU networks after every number of hidden layers, in one pass.

The layer that reads out a network is the one that leads on to the next hidden layer of a deeper one.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import SupportsIndex

import numpy as np

from ntk_analysis import Kernel, kernels_by_depth
from ntk_analysis.layers import Dense
from ntk_analysis.networks import fully_connected


def readouts(normalization: str, depth: int, x: np.ndarray, *, training: int | None = None) -> Iterator[Kernel]:
    """Yields the kernels of networks of 1 to `depth` hidden layers, in one pass, for inputs x (m, ...).

    `training` is the number of first inputs from which batch norms take their statistics; None: all, as one batch.
    """
    network = fully_connected(depth, 1, normalization)
    parts = (x,) if training is None else (x[:training], x[training:])
    layers_and_kernels = kernels_by_depth(network, *parts, statistics=None if training is None else "x1")
    behind_dense = (kernel for layer, kernel in layers_and_kernels if isinstance(layer, Dense))
    return itertools.islice(behind_dense, 1, None)


def tangent_kernels(x: np.ndarray, normalization: str, depths: Iterable[SupportsIndex]) -> Iterator[np.ndarray]:
    """Yields the tangent kernels (m, m) of networks of these numbers of hidden layers, ascending, in one pass."""
    wanted = {int(depth) for depth in depths}
    for depth, kernel in enumerate(readouts(normalization, max(wanted), x), 1):
        if depth in wanted:
            yield kernel.ntk


def unit_diagonal(matrix: np.ndarray, training: int | None = None) -> np.ndarray:
    """Returns the matrix (m, m) over the mean of its diagonal, or of the diagonal's first `training` entries."""
    scaled: np.ndarray = matrix / np.mean(np.diagonal(matrix)[:training])
    return scaled


def kernels(
    x: np.ndarray, normalization: str, depths: Iterable[SupportsIndex], *, training: int | None = None
) -> np.ndarray:
    """Returns NNGP and NTK after these numbers of hidden layers, (depths, 2, m, m), each over its mean diagonal.

    With `training`, the first so many inputs give batch norms their statistics, and it is their mean diagonal.
    """
    wanted, found = {int(depth) for depth in depths}, []
    for depth, kernel in enumerate(readouts(normalization, max(wanted), x, training=training), 1):
        if depth in wanted:
            found.append([unit_diagonal(np.asarray(part), training) for part in (kernel.nngp, kernel.ntk_scaled)])
    return np.array(found)
