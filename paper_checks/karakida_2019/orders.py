"""Order parameters of the tangent kernel of inputs that are orthogonal: kappa_1 on the diagonal, kappa_2 beside it."""

import functools
import math

import numpy as np

from ntk_analysis import infinite_kernel
from ntk_analysis.networks import fully_connected

from ..by_depth import square_inputs

W_VAR, B_VAR, LAYERS = 2.0, 0.1, 3
"""ReLU's variances in the paper's figures, and the number of hidden layers."""


def order_parameters() -> tuple[float, float]:
    """Returns kappa_1 and kappa_2: sums over layers, by the closed forms of ReLU."""
    q, c, one, two = 1.0 + B_VAR, B_VAR, 1.0 + B_VAR, B_VAR
    for _ in range(LAYERS):
        angle = math.acos(c / q)
        dual = q * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
        one, two = W_VAR / 2 * (q + one) + B_VAR, W_VAR * (dual + (math.pi - angle) / (2 * math.pi) * two) + B_VAR
        q, c = W_VAR * q / 2 + B_VAR, W_VAR * dual + B_VAR
    return one, two


@functools.cache
def kernel(inputs: int) -> np.ndarray:
    """Returns the library's NTK of orthogonal inputs of variance 1."""
    network = fully_connected(LAYERS, 1, "none", "relu", w_var=W_VAR, b_var=B_VAR)
    return np.asarray(infinite_kernel(network, square_inputs(np.eye(inputs))).ntk)
