"""The matrices that are multiplied with vectors by way of the tangent kernel: itself, Fisher's and Gauss-Newton's."""

import numpy as np

from ntk_analysis.empirical.vector_products import VectorProducts
from ntk_analysis.spectrum.kept_products import Product

LOSSES = {
    "ntk": "1/2 sum |f - y|^2 over inputs and outputs",
    "fisher": "1/2 sum |f - y|^2 over outputs, mean over inputs",
    "gauss_newton": "cross-entropy, mean over inputs, without the curvature of f",
}
"""The matrices, and the loss that gradient descent lowers below a rate of 2 / (largest eigenvalue), linearised."""


def weighted(products: VectorProducts, matrix: str) -> Product:
    """The product with the matrix of this name, a function of vectors (m,)."""
    if matrix == "ntk":
        return products
    n, shape = len(products.x), (len(products.x), products.outputs)
    if matrix == "fisher":
        return lambda v: products(v) / n
    values = products.values()
    p = np.exp(values - values.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    root = np.sqrt(p)

    def product(v: np.ndarray) -> np.ndarray:
        rows = v.reshape(shape)
        pushed = products((root * rows - p * np.sum(root * rows, axis=1, keepdims=True)).reshape(-1)).reshape(shape)
        return (root * pushed - root * np.sum(p * pushed, axis=1, keepdims=True)).reshape(-1) / n

    return product
