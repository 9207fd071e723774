"""A kernel on disk: a chunked Zarr array, a manifest, and a mark for each tile that is finished.

    PATH/manifest.json   what the kernel is of; see `manifest`
    PATH/kernel/         the Zarr array, one chunk a tile, so that no two tiles write to one chunk
    PATH/done/I-J        empty, made after the data of tile (I, J) has reached the disk

A store appears whole, by a rename. A kill at any moment costs the tiles that were under way: without their mark they
are computed again, and give the same bits.
"""

import errno
import json
import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ntk_analysis.common.files import FULL
from ntk_analysis.common.memory import gib
from ntk_analysis.empirical.manifest import NAME, Manifest, changes, differences, read_manifest, stored_plan
from ntk_analysis.empirical.plans import TilePlan
from ntk_analysis.empirical.runs import Sink, Tile

ARRAY, DONE = "kernel", "done"
JOB = "job-"  # prefix of the names of files for the workers of a cluster


@dataclass(frozen=True)
class Stored:
    """A kernel on disk, read when it is indexed; np.asarray reads all of it."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(_zarr(self.path, "r")[index]).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"the kernel in {self.path} is on disk: reading it makes a copy")
        values = self[...]
        return values if dtype is None else values.astype(dtype, copy=False)


@dataclass(frozen=True)
class KernelStore(Sink):
    """A store that tiles are written to; many processes may write to it at one time.

    Attributes:
        path: path of the store.
        plan: plan of its kernel.
    """

    path: Path
    plan: TilePlan

    @property
    def values(self) -> Stored:
        """The kernel; it is NaN where a tile is not finished."""
        return Stored(self.path / ARRAY, self.plan.shape, self.plan.dtype)

    @property
    def todo(self) -> list[Tile]:
        """The tiles that are not finished, row by row."""
        done = {entry.name for entry in os.scandir(self.path / DONE)}
        return [tile for tile in self.plan.tiles if self._mark(*tile).name not in done]

    def is_done(self, i: int, j: int) -> bool:
        """Whether tile (i, j) is finished."""
        return self._mark(i, j).exists()

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Keeps tile (i, j), then marks it as finished.

        Raises:
            OSError: the disk is full; finished tiles stay.
        """
        try:
            self.plan.place(_zarr(self.path / ARRAY, "r+"), i, j, tile)
            for chunk in {(i, j), (j, i)} if self.plan.symmetric else {(i, j)}:
                _reach_disk(self._chunk(*chunk))
            self._mark(i, j).touch()
        except OSError as error:
            if error.errno not in FULL:
                raise
            left = len(self.todo)
            raise OSError(
                error.errno,
                f"no space left for tile ({i}, {j}) of {self.path}: {self.plan.count - left} of {self.plan.count} "
                "tiles are finished and kept, make space and call again",
            ) from error

    def tidy(self) -> None:
        """Removes the files that killed processes left behind, once the kernel is complete."""
        for left in (*self.path.glob(f"{JOB}*"), *(self.path / ARRAY).rglob("*.partial")):
            left.unlink(missing_ok=True)

    def _mark(self, i: int, j: int) -> Path:
        return self.path / DONE / f"{i}-{j}"

    def _chunk(self, i: int, j: int) -> Path:
        return self.path.joinpath(ARRAY, "c", str(i), str(j), *("0" for _ in self.plan.shape[2:]))


def find_store(path: Path) -> KernelStore | None:
    """The store at this path, finished or not; None if there is nothing yet.

    Raises:
        FileExistsError: there is something at the path that is not a store.
    """
    found = read_manifest(path)
    return None if found is None else KernelStore(path, stored_plan(found))


def open_store(path: Path, wanted: Manifest) -> KernelStore:
    """The store of this kernel: a new one, or the existing one, to be continued.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: there is a store of another kernel.
        OSError: the disk has no space for the kernel.
    """
    store = KernelStore(path, stored_plan(wanted))
    found = read_manifest(path)
    if found is None:
        _require_space(path, store.plan, list(store.plan.tiles))
        _create(store, wanted)
        return store
    if told := differences(found, wanted):
        raise ValueError(
            f"store {path} holds another kernel: {'; '.join(told)}: repeat the call that began it, or give another path"
        )
    todo = store.todo
    _require_space(path, store.plan, todo)
    if 0 < len(todo) < store.plan.count and (changed := changes(found, wanted)):
        warnings.warn(
            f"store {path} was begun elsewhere ({', '.join(changed)}): its tiles and the new ones agree to rounding, "
            "not bit for bit",
            stacklevel=2,
        )
    return store


def continued(path: Path, plan: TilePlan, found: Manifest, *, auto: bool, limit: int) -> TilePlan:
    """The plan with the tiles of the store that it continues, and with its method if none was asked for.

    Raises:
        MemoryError: a tile of the store takes more than `limit` bytes.
    """
    begun = stored_plan(found)
    if begun.shape != plan.shape or (begun.method != plan.method and not auto):
        return plan  # another kernel, as the manifest will say
    if begun.memory_bytes > limit:
        raise MemoryError(
            f"a tile of store {path}, {begun.rows} x {begun.columns} inputs, needs {gib(begun.memory_bytes)}, the "
            f"budget is {gib(limit)}: give as much memory as it was begun with, or another path"
        )
    taken = ("rows", "columns", "method", "flops", "memory_bytes")
    return replace(plan, **{name: getattr(begun, name) for name in taken})


def _create(store: KernelStore, wanted: Manifest) -> None:
    import zarr  # takes half a second to import, which kernels in memory do without

    plan, path = store.plan, store.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        (new / DONE).mkdir(parents=True)
        zarr.create_array(
            store=new / ARRAY,
            shape=plan.shape,
            chunks=(plan.rows, plan.columns, *plan.shape[2:]),
            dtype=_on_disk(plan.dtype),
            compressors=None,  # the digits of a kernel are noise
            fill_value=float("nan"),
            config={"write_empty_chunks": True},
        )
        (new / NAME).write_text(json.dumps(wanted, indent=1))
        os.replace(new, path)


def _on_disk(dtype: np.dtype) -> np.dtype:
    """The dtype on disk: float32 for bfloat16, which Zarr does not know (float32 loses nothing); else the same."""
    return dtype if dtype.kind == "f" else np.dtype(np.float32)


def _zarr(path: Path, mode: Any) -> Any:
    import zarr

    return zarr.open_array(store=path, mode=mode)


def _reach_disk(path: Path) -> None:
    """Makes the data reach the disk: a mark must not outlive the data that it stands for, even after a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_space(path: Path, plan: TilePlan, todo: list[Tile]) -> None:
    chunk = plan.rows * plan.columns * math.prod(plan.shape[2:]) * _on_disk(plan.dtype).itemsize
    needed = chunk * sum(2 if plan.symmetric and i != j else 1 for i, j in todo)
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"store {path} needs {gib(needed)} on disk for {len(todo)} tiles, {gib(free)} are free: make space, give "
            "another path, or take layout='trace'",
        )
