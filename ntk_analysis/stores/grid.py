"""A kernel of inputs with inputs, cut into tiles, and the arrays that its tiles fill."""

import abc
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

Tile: TypeAlias = tuple[int, int]
Values: TypeAlias = dict[str, np.ndarray]
"""What a tile has of each array of its kernel, by the array's name."""


class Part(NamedTuple):
    """One array of a kernel that is computed by tiles.

    Attributes:
        name: name of the array.
        shape: shape of the whole array.
        chunk: shape of what one tile fills; the last chunks reach beyond the array.
        dtype: dtype of the numbers.
        over: what its first axes are: pairs of inputs, inputs of the rows or of the columns alone, or tiles.
    """

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype
    over: Literal["pairs", "rows", "columns", "tiles"] = "pairs"

    def region(self, chunk: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of the array that the chunk with these numbers fills."""
        places = zip(chunk, self.chunk, self.shape, strict=False)
        return tuple(slice(number * size, min((number + 1) * size, n)) for number, size, n in places)


class Grid(abc.ABC):
    """A kernel (n1, n2, ...) cut into tiles: what the plans of all kinds of kernels are.

    Tile (i, j) holds the rows from i `rows` to (i + 1) `rows`, and likewise the columns. A kernel of inputs with
    themselves needs the tiles i <= j only: `place` writes their mirror images, too.

    Attributes:
        kind: word for the kind of kernel, as in the manifest of a store.
        n1: number of inputs of the rows.
        n2: number of inputs of the columns.
        symmetric: whether the second inputs are the first ones.
        rows: number of inputs in the rows of a tile; the last tile is padded.
        columns: number of inputs in the columns of a tile.
        memory_bytes: the most bytes that one tile takes on the device at one time.
    """

    kind: ClassVar[str]
    n1: int
    n2: int
    symmetric: bool
    rows: int
    columns: int
    memory_bytes: int

    @property
    @abc.abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the kernel."""

    @abc.abstractmethod
    def summary(self) -> str:
        """The plan as one line of text."""

    @property
    def storage_bytes(self) -> int:
        """Bytes of the kernel, which is in the host's memory or on disk."""
        return sum(int(np.prod(part.shape)) * part.dtype.itemsize for part in self.parts)

    @property
    def grid(self) -> tuple[int, int]:
        """Numbers of tiles along rows and columns."""
        return -(-self.n1 // self.rows), -(-self.n2 // self.columns)

    @property
    def count(self) -> int:
        """Number of tiles to compute."""
        down, across = self.grid
        return down * (down + 1) // 2 if self.symmetric else down * across

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles (i, j) to compute, row by row."""
        down, across = self.grid
        return ((i, j) for i in range(down) for j in range(i if self.symmetric else 0, across))

    def slices(self, i: int, j: int) -> tuple[slice, slice]:
        """Rows and columns of the kernel that tile (i, j) fills."""
        row, column = i * self.rows, j * self.columns
        return slice(row, min(row + self.rows, self.n1)), slice(column, min(column + self.columns, self.n2))

    def place(self, kernel: Any, i: int, j: int, tile: np.ndarray) -> None:
        """Writes tile (i, j), and its mirror image where the kernel is symmetric, into an array or a store."""
        rows, columns = self.slices(i, j)
        kernel[rows, columns] = tile
        if self.symmetric and i != j:
            kernel[columns, rows] = mirrored(tile)

    def chunks(self, part: Part, i: int, j: int) -> list[tuple[int, ...]]:
        """The chunks of this array that tile (i, j) fills, no other tile does."""
        if part.over == "rows":
            return [(i,)] if j == (i if self.symmetric else 0) else []
        if part.over == "columns":
            return [(j,)] if i == (j if self.symmetric else 0) else []
        mirror = part.over in ("pairs", "tiles") and self.symmetric and i != j
        return [(i, j), (j, i)] if mirror else [(i, j)]

    def put(self, part: Part, array: Any, tile: Tile, values: np.ndarray) -> None:
        """Writes what a tile has of this array into it, where no other tile writes."""
        if part.over == "pairs":
            self.place(array, *tile, values)
            return
        for chunk in self.chunks(part, *tile):
            array[part.region(chunk)] = values


def padded_rows(index: int, size: int, n: int) -> np.ndarray:
    """Row numbers of a tile's inputs; the last tile repeats the last input, so that it is not compiled anew."""
    return np.minimum(np.arange(index * size, (index + 1) * size), n - 1)


def mirrored(kernel: np.ndarray) -> np.ndarray:
    """The kernel of (x2, x1) from that of (x1, x2): [b, a, d, c] for [a, b, c, d]."""
    return kernel.swapaxes(0, 1).swapaxes(2, 3) if kernel.ndim == 4 else kernel.swapaxes(0, 1)
