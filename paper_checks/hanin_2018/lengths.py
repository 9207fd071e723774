"""Squared lengths behind drawn ReLU networks at the critical weight variance."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from ..draws import Average, average

AT_ONCE = 1000


@functools.cache
def squares_of_lengths(widths: Sequence[int], draws: int, seed: int) -> Average:
    """Returns |h|^4, where E|h|^2 = 1: the squared mean square of a layer, behind hidden layers of these widths."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws // AT_ONCE):
        h = np.ones((AT_ONCE, widths[0]), np.float32)
        for before, after in itertools.pairwise(widths):
            weights = rng.standard_normal((AT_ONCE, before, after), np.float32)
            h = np.maximum(np.einsum("di,dij->dj", h, weights), 0) * np.float32(np.sqrt(2 / before))
        found.append(np.mean(np.float64(h) ** 2, axis=1) ** 2)
    return average(np.concatenate(found))
