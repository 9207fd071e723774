"""Eigenvalues of a network's NTK on the unit sphere in three dimensions, by Legendre polynomials."""

import functools

import numpy as np
from scipy import special

from ntk_analysis import infinite_kernel
from ntk_analysis.networks import fully_connected

NODES = 1200


@functools.cache
def eigenvalues(layers: int, b_var: float, largest: int) -> np.ndarray:
    """Returns mu_0 to mu_largest of the NTK of a ReLU network with this number of hidden layers.

    mu_k is half of the integral of the kernel, as a function of the cosine, times the Legendre polynomial P_k; the
    integral is taken over the angle, in which the kernel has no root at its ends.
    """
    nodes, weights = special.roots_legendre(NODES)
    angle = (nodes + 1) * np.pi / 2
    points = np.stack([np.cos(angle), np.sin(angle), np.zeros(NODES)], axis=1) * np.sqrt(3)
    network = fully_connected(layers, 1, "none", "relu", w_var=2.0, b_var=b_var)
    kernel = infinite_kernel(network, np.sqrt(3) * np.eye(3)[:1], points).ntk[0]
    measure = np.asarray(kernel, np.float64) * weights * np.sin(angle) * np.pi / 4
    return np.array([measure @ special.eval_legendre(k, np.cos(angle)) for k in range(largest + 1)])
