"""Inner products of matrices of any size, which come some rows at a time and are never held as a whole."""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

Projection: TypeAlias = Literal["none", "centered", "hollow"]
"""What is left of a matrix K: all of it; H K H with H = I - 11'/n; or, of a symmetric K, what its entries beside the
diagonal become when they are projected onto such matrices whose rows and columns sum to 0."""


class InnerProducts(NamedTuple):
    """Inner products of two matrices, each divided by its largest entry: <A, B>, |A| and |B|."""

    product: float
    length1: float
    length2: float


class _Means(NamedTuple):
    """The largest entry of a matrix, and what a projection takes from its rows and columns, divided by it."""

    largest: float
    rows: np.ndarray
    columns: np.ndarray


def inner_products(
    first: Callable[[slice], np.ndarray],
    second: Callable[[slice], np.ndarray],
    slices: list[slice],
    *,
    projection: Projection,
) -> InnerProducts:
    """Inner products of two matrices, which are read twice, row by row.

    Args:
        first: function that reads rows of the first matrix.
        second: function that reads rows of the second one, of the same shape.
        slices: numbers of all rows, in turn.
        projection: what is left of either matrix.
    """
    means = [_means(read, slices, projection) for read in (first, second)]
    product = square1 = square2 = 0.0
    for rows in slices:
        a, b = (_block(read(rows), mean, rows, projection) for read, mean in zip((first, second), means, strict=True))
        product, square1, square2 = product + np.vdot(a, b), square1 + np.vdot(a, a), square2 + np.vdot(b, b)
    return InnerProducts(float(product), float(np.sqrt(square1)), float(np.sqrt(square2)))


def _means(read: Callable[[slice], np.ndarray], slices: list[slice], projection: Projection) -> _Means:
    largest, of_rows = 0.0, []
    columns: np.ndarray | float = 0.0
    for rows in slices:
        values = read(rows).astype(np.float64)
        largest = max(largest, float(np.max(np.abs(values))))
        if projection == "hollow":
            _empty_diagonal(values, rows)
        of_rows.append(values.sum(axis=1))
        columns = columns + values.sum(axis=0)
    sums, unit = np.concatenate(of_rows), largest or 1.0
    shape = np.array([len(sums), np.size(columns)])
    count1, count2 = shape - 2 if projection == "hollow" else shape
    whole = sums.sum() / ((count1 + 1) * count2 if projection == "hollow" else count1 * count2)
    return _Means(unit, sums / count2 / unit, (columns / count1 - whole) / unit)


def _block(values: np.ndarray, means: _Means, rows: slice, projection: Projection) -> np.ndarray:
    block = values.astype(np.float64) / means.largest
    if projection != "none":
        block -= means.rows[rows, None]
        block -= means.columns
    if projection == "hollow":
        _empty_diagonal(block, rows)
    return block


def _empty_diagonal(block: np.ndarray, rows: slice) -> None:
    """Sets to 0 what rows of a square matrix have of its diagonal."""
    np.fill_diagonal(block[:, rows.start :], 0)
