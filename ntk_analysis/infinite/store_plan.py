"""What an infinite kernel in a store takes, before it is computed: its tiles, bytes, operations and time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np

from ntk_analysis.common.memory import gib
from ntk_analysis.stores.grid import Grid, Part, Values
from ntk_analysis.stores.manifest import Manifest, fields_of

PAIRS = ("distance", "ntk_scaled")  # arrays of a kernel over pairs of inputs
OF_FIRST, OF_SECOND = ("variance1", "mean1"), ("variance2", "mean2")
SCALES = "scales"  # array of what a tile has one number of
OF_TILES = ("log_scale", "relative_error", "approximation_error")


@dataclass(frozen=True)
class StorePlan(Grid):
    """The cut of an infinite-width kernel (n1, n2) into tiles, and their cost.

    A kernel whose layers couple the batch, as batch normalisation does, is one tile: it can be kept, but neither be
    interrupted nor spread.

    Attributes:
        n1: number of inputs of the rows.
        n2: number of inputs of the columns.
        symmetric: whether the second inputs are the first ones.
        dtype: dtype of the kernel.
        way: how it is computed: by the angles of vectors, pair by pair, as one joint batch, at which positions.
        law: law of the units, as in `Kernel`.
        training: number of training inputs, as in `Kernel`.
        coupled: whether the layers couple the batch.
        rows: number of inputs in the rows of a tile; the last tile is padded.
        columns: number of inputs in the columns of a tile.
        flops: number of operations of all tiles, counted in their programs.
        memory_bytes: the most bytes that one tile takes at one time.
        budget_bytes: bytes that one tile may take.
        seconds: estimated time from one measured tile, with its compilation and without writing; None if nothing was
            measured.
        block_rows: number of inputs in the rows of a block, several of which make a tile: they are computed one after
            another; None: a tile is computed at once.
        block_columns: number of inputs in the columns of a block, or None.
    """

    kind = "infinite"

    n1: int
    n2: int
    symmetric: bool
    dtype: np.dtype
    way: str
    law: str
    training: int | None
    coupled: bool
    rows: int
    columns: int
    flops: float
    memory_bytes: int
    budget_bytes: int
    seconds: float | None = None
    block_rows: int | None = None
    block_columns: int | None = None

    @classmethod
    def of(cls, found: Manifest) -> "StorePlan":
        """The plan that the manifest of a store describes; stores from before there were blocks say nothing of them."""
        return cls(**fields_of(found, tuple(field.name for field in fields(cls) if field.name in found["plan"])))

    @property
    def block(self) -> tuple[int, int]:
        """Numbers of inputs in the rows and columns of what is computed at one time."""
        return self.block_rows or self.rows, self.block_columns or self.columns

    def blocks(self, i: int, j: int) -> list[tuple[slice, slice]]:
        """Rows and columns of the blocks of tile (i, j); where it is symmetric, of those on and above its diagonal."""
        sides = [
            [slice(start, min(start + size, side.stop)) for start in range(side.start, side.stop, size)]
            for side, size in zip(self.slices(i, j), self.block, strict=True)
        ]
        below = self.symmetric and i == j
        return [(rows, columns) for rows, columns in product(*sides) if not (below and columns.start < rows.start)]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the kernel."""
        return self.n1, self.n2

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays of the kernel: those of `Kernel`, and the numbers of each tile."""
        pairs = [Part(name, self.shape, (self.rows, self.columns), self.dtype) for name in PAIRS]
        first = [Part(name, (self.n1,), (self.rows,), self.dtype, "rows") for name in OF_FIRST]
        second = [Part(name, (self.n2,), (self.columns,), self.dtype, "columns") for name in OF_SECOND]
        scales = Part(SCALES, (*self.grid, len(OF_TILES)), (1, 1, len(OF_TILES)), np.dtype(np.float64), "tiles")
        return (*pairs, *first, *second, scales)

    def summary(self) -> str:
        """The plan as one line of text."""
        tiles = f"{self.count} tiles of {self.rows} x {self.columns}" if self.count > 1 else "one tile"
        tiles += f", {self.block[0]} x {self.block[1]} at a time" * (self.block != (self.rows, self.columns))
        one = ", which cannot be cut" if self.coupled else ""
        time = "" if self.seconds is None else f", about {self.seconds:.2g} s"
        return (
            f"nngp and ntk {self.shape} {self.dtype} {self.way}: {tiles}{one}, {self.flops:.3g} operations, "
            f"{gib(self.memory_bytes)} of the {gib(self.budget_bytes)} allowed{time}"
        )


def values_of(kernel: Any, rows: int, columns: int) -> dict[str, np.ndarray]:
    """The arrays of a tile that a store keeps, of a kernel whose first inputs these are; the others are padding."""
    found = {name: np.asarray(getattr(kernel, name))[:rows, :columns] for name in PAIRS}
    found |= {name: np.asarray(getattr(kernel, name))[:rows] for name in OF_FIRST}
    found |= {name: np.asarray(getattr(kernel, name))[:columns] for name in OF_SECOND}
    return found | {SCALES: np.array([[[float(getattr(kernel, name)) for name in OF_TILES]]])}


def joined(blocks: Sequence[Values], places: Sequence[tuple[slice, slice]]) -> Values:
    """The arrays of a tile, of those of its blocks, which stand at these rows and columns; the NTK at one scale."""
    if len(blocks) == 1:
        return blocks[0]
    rows, columns = (max(place[side].stop for place in places) for side in range(2))
    scales = np.max([block[SCALES] for block in blocks], axis=0)
    log_scale = OF_TILES.index("log_scale")
    found = {name: np.zeros((rows, columns), blocks[0][name].dtype) for name in PAIRS}
    found |= {name: np.zeros(rows, blocks[0][name].dtype) for name in OF_FIRST}
    found |= {name: np.zeros(columns, blocks[0][name].dtype) for name in OF_SECOND}
    for block, (down, across) in zip(blocks, places, strict=True):
        factor = np.exp(block[SCALES] - scales)[0, 0, log_scale].astype(block["ntk_scaled"].dtype)
        found["distance"][down, across] = block["distance"]
        found["ntk_scaled"][down, across] = block["ntk_scaled"] * factor
        for names, at in ((OF_FIRST, down), (OF_SECOND, across)):
            for name in names:
                found[name][at] = block[name]
    return found | {SCALES: scales}
