"""The whole tangent kernel of a large network, estimated from random projections of its Jacobian.

With r random directions S (P, r), independent entries of variance 1, J S has a forward-mode derivative in each column,
and J S (J S)^T / r is the kernel on average. Entry (a, b) has the variance (K_aa K_bb + K_ab^2) / r for normal entries
of S, and less for those taken here, which are uniform. The error is measured, too: on columns that are computed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.arrays import whole_number
from ntk_analysis.common.estimates import Estimated
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical.directions import random_direction
from ntk_analysis.empirical.functions import Network
from ntk_analysis.empirical.vector_products import VectorProducts, vector_products
from ntk_analysis.layers.base import Params


@dataclass(frozen=True, eq=False)
class ProjectedKernel:
    """An estimate of the tangent kernel of N inputs with C outputs.

    Attributes:
        estimate: the kernel (N, N, C, C), with the standard error of each entry.
        error: error measured on the columns that were computed: root of the mean square of estimate - kernel, as a
            fraction of that of the kernel.
        expected_error: the same of the standard errors of these entries.
    """

    estimate: Estimated
    error: float
    expected_error: float

    @property
    def values(self) -> Float64[np.ndarray, "N N C C"]:
        """The estimated kernel: positive semi-definite, of rank r at most."""
        return self.estimate.value


def projected_ntk(
    f: Network,
    params: Params,
    x: AnyArray,
    *,
    directions: int = 100,
    exact: int = 4,
    coupled: bool | str = "detect",
    memory: str | int | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> ProjectedKernel:
    """The tangent kernel of all outputs on all inputs, (N, N, C, C), from random projections of the Jacobian.

    A direction costs a forward-mode derivative on all inputs; the kernel is held on the host in float64.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...) floats.
        params: tree of float arrays.
        x: inputs (N, ...).
        directions: number r of directions, >= 2: the error of entries falls like 1 / sqrt(r).
        exact: number of columns that are computed to measure the error, >= 1, at the cost of one NTK-vector product
            each, spread over inputs and outputs.
        coupled: whether an output depends on the other inputs of its batch, as for `empirical_ntk`.
        memory: memory that a derivative may take, as for `vector_products`.
        seed: seed of the directions.
        track: function that draws a progress bar of the directions.

    Raises:
        TypeError, ValueError, MemoryError: `vector_products` raises them; there are fewer than 2 directions.
    """
    if whole_number(directions, "directions") < 2:
        raise ValueError(f"got directions={directions}, expected at least 2: they tell how much chance changes")
    products = vector_products(f, params, x, coupled=coupled, memory=memory)
    columns = np.linspace(0, products.size - 1, min(whole_number(exact, "exact"), products.size)).astype(int)
    projections = np.empty((products.size, directions))
    for number in track(range(directions), "directions"):
        projections[:, number] = products.forward(random_direction(products.params, seed * directions + number))
    kernel = projections @ projections.T / directions
    diagonal = np.diag(kernel)
    error = np.sqrt((np.outer(diagonal, diagonal) + kernel**2) / directions)
    known = np.stack([products(np.eye(1, products.size, column)[0]) for column in columns], axis=1)
    size = np.linalg.norm(known)
    return ProjectedKernel(
        Estimated(_by_inputs(kernel, products), _by_inputs(error, products), directions),
        float(np.linalg.norm(kernel[:, columns] - known) / size),
        float(np.linalg.norm(error[:, columns]) / size),
    )


def _by_inputs(matrix: np.ndarray, products: VectorProducts) -> np.ndarray:
    """A matrix (N C, N C) as (N, N, C, C)."""
    shape = (len(products.x), products.outputs)
    return matrix.reshape(*shape, *shape).swapaxes(1, 2)
