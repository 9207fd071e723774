"""Inner products of matrices of any size, which come some rows at a time and are never held as a whole."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np

Blocks: TypeAlias = Iterator[np.ndarray]


class InnerProducts(NamedTuple):
    """Inner products of two matrices, each divided by its largest entry: <A, B>, |A| and |B|."""

    product: float
    length1: float
    length2: float


class _Means(NamedTuple):
    """The largest entry of a matrix, and the means of its rows, its columns and of all, divided by it."""

    largest: float
    rows: np.ndarray
    columns: np.ndarray
    whole: float


def inner_products(
    first: Callable[[slice], np.ndarray], second: Callable[[slice], np.ndarray], slices: list[slice], *, centered: bool
) -> InnerProducts:
    """Inner products of two matrices, which are read twice, row by row.

    Args:
        first: function that reads rows of the first matrix.
        second: function that reads rows of the second one, of the same shape.
        slices: numbers of all rows, in turn.
        centered: whether the means of rows and columns are subtracted, as H K H does with H = I - 11'/n.
    """
    means = [_means(read(rows) for rows in slices) for read in (first, second)]
    product = square1 = square2 = 0.0
    for rows in slices:
        a, b = (
            _block(read(rows), mean, rows, centered=centered) for read, mean in zip((first, second), means, strict=True)
        )
        product, square1, square2 = product + np.vdot(a, b), square1 + np.vdot(a, a), square2 + np.vdot(b, b)
    return InnerProducts(float(product), float(np.sqrt(square1)), float(np.sqrt(square2)))


def _means(blocks: Blocks) -> _Means:
    largest, of_rows = 0.0, []
    columns: np.ndarray | float = 0.0
    for block in blocks:
        values = block.astype(np.float64)
        largest = max(largest, float(np.max(np.abs(values))))
        of_rows.append(values.mean(axis=1))
        columns = columns + values.sum(axis=0)
    rows = np.concatenate(of_rows)
    unit = largest or 1.0
    return _Means(unit, rows / unit, np.asarray(columns) / len(rows) / unit, float(rows.mean()) / unit)


def _block(values: np.ndarray, means: _Means, rows: slice, *, centered: bool) -> np.ndarray:
    block = values.astype(np.float64) / means.largest
    if centered:
        block -= means.rows[rows, None]
        block -= means.columns - means.whole
    return block
