"""Correlations and tangent kernels of two inputs by depth, on the edge of chaos."""

import functools

import numpy as np

from ..by_depth import common_correlation, infinite_kernels


@functools.cache  # one pass for all theories
def kernels(activation: str, w_var: float, b_var: float, q: float, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns 1 - c, and the NTK of two inputs over that of one, after 1 to `layers` layers; first c is about 0.5."""
    x = np.sqrt(q - b_var) * common_correlation(2, 0.5)
    nngp, ntk = infinite_kernels(x, layers, "none", activation, w_var, b_var)
    return 1 - nngp[:, 0, 1] / nngp[:, 0, 0], ntk[:, 0, 1] / ntk[:, 0, 0]
