"""A kernel on disk: a chunked Zarr array, a manifest, and a mark for each tile that is finished.

    PATH/manifest.json   what the kernel is of, and its own SHA-256; see `manifest`
    PATH/kernel/         the Zarr array, one chunk a tile, so that no two tiles write to one chunk
    PATH/done/I-J        the checksums of the chunks of tile (I, J), made after their data has reached the disk

A store appears whole, by a rename. A kill at any moment costs the tiles that were under way: without their mark they
are computed again, and give the same bits. Each chunk ends with the CRC-32C of its numbers, so that damage is found
when it is read, and the manifest has the header of the array (zarr.json), so that no number is read in another way.
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

from ntk_analysis.common.checksums import sealed
from ntk_analysis.common.files import FULL, write_whole
from ntk_analysis.common.memory import gib
from ntk_analysis.empirical.manifest import (
    ARRAY,
    DONE,
    NAME,
    Manifest,
    changes,
    differences,
    read_manifest,
    stored_plan,
)
from ntk_analysis.empirical.plans import TilePlan
from ntk_analysis.empirical.runs import Sink, Tile

HEADER = "zarr.json"
CHECKSUM_BYTES = 4  # of the CRC-32C behind the numbers of a chunk
JOB = "job-"  # prefix of the names of files for the workers of a cluster
TOLD = 3  # number of damaged files that a message names


@dataclass(frozen=True)
class Stored:
    """A kernel on disk, read when it is indexed; np.asarray reads all of it.

    To read what is damaged, or not finished, raises ValueError.
    """

    store: "KernelStore"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return self.store.plan.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the kernel."""
        return self.store.plan.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.store.read(index).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"the kernel in {self.store.path} is on disk: reading it makes a copy")
        values = self[...]
        return values if dtype is None else values.astype(dtype, copy=False)


@dataclass(frozen=True)
class KernelStore(Sink):
    """A store that tiles are written to; many processes may write to it at one time.

    Attributes:
        path: path of the store.
        plan: plan of its kernel.
        header: text of the array's zarr.json, as it was written.
    """

    path: Path
    plan: TilePlan
    header: str

    @property
    def values(self) -> Stored:
        """The kernel."""
        return Stored(self)

    @property
    def todo(self) -> list[Tile]:
        """The tiles that are not finished, row by row."""
        marks = self.path / DONE
        done = {entry.name for entry in os.scandir(marks)} if marks.is_dir() else set()
        return [tile for tile in self.plan.tiles if self._mark(*tile).name not in done]

    def is_done(self, i: int, j: int) -> bool:
        """Whether tile (i, j) is finished."""
        return self._mark(i, j).exists()

    def read(self, index: Any) -> np.ndarray:
        """The numbers at an index, in the dtype on disk; raises the errors of `require_whole`."""
        self._require_header()
        try:
            values = np.asarray(_zarr(self.path / ARRAY, "r")[index])
        except ValueError:  # a checksum, or the index
            self.require_whole()
            raise
        if np.isnan(values).any():  # Zarr reads a chunk that is missing as NaN, and no tile has one
            self.require_whole()
        return values

    def require_whole(self, *, read: bool = True) -> None:
        """Checks that all tiles are there, and with `read` reads them to check their bytes, too.

        Raises:
            ValueError: tiles are not computed yet, or a file is missing or damaged; the first ones are named.
        """
        self._require_header()
        if left := len(self.todo):
            raise ValueError(
                f"{left} of {self.plan.count} tiles of store {self.path} are not computed yet: repeat the call that "
                "began it"
            )
        if damaged := self.damaged(read=read):
            raise ValueError(
                f"store {self.path} is damaged ({_listed(damaged)}): repeat the call that began it, which computes "
                "what is damaged again"
            )

    def damaged(self, *, read: bool = True) -> dict[Tile, str]:
        """The finished tiles whose data is missing or has other bytes than were written, with what is wrong.

        Args:
            read: whether to read the data; else only files and their sizes are looked at.
        """
        done = sorted(set(self.plan.tiles) - set(self.todo))
        array = _zarr(self.path / ARRAY, "r") if read and done else None
        found = ((tile, self._damage(*tile, array)) for tile in done)
        return {tile: told for tile, told in found if told}

    def restore(self) -> None:
        """Writes the header of the array again, and warns about it, if it is damaged; makes the folder of marks."""
        if told := self._header_damage():
            warnings.warn(f"store {self.path} is damaged ({told}): it is written again", stacklevel=2)
            _remove(self.path / ARRAY / HEADER)
            write_whole(self.path / ARRAY / HEADER, lambda new: new.write_text(self.header))
        (self.path / DONE).mkdir(exist_ok=True)

    def forget(self, damaged: dict[Tile, str]) -> None:
        """Removes the marks and data of these tiles, so that they are computed again, and warns about it."""
        if not damaged:
            return
        warnings.warn(
            f"store {self.path} is damaged ({_listed(damaged)}): {len(damaged)} of {self.plan.count} tiles are "
            "computed again",
            stacklevel=2,
        )
        for tile in damaged:
            for path in (self._mark(*tile), *(self._chunk(*chunk) for chunk in self._chunks(*tile))):
                _remove(path)

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Keeps tile (i, j), then marks it as finished.

        Raises:
            OSError: the disk is full; finished tiles stay.
        """
        try:
            self.plan.place(_zarr(self.path / ARRAY, "r+"), i, j, tile)
            for chunk in self._chunks(i, j):
                _reach_disk(self._chunk(*chunk))
            self._mark(i, j).write_text(self._checksums(i, j))
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

    def _chunks(self, i: int, j: int) -> list[Tile]:
        """The chunks that tile (i, j) fills: its own, and its mirror image where the kernel is symmetric."""
        return [(i, j), (j, i)] if self.plan.symmetric and i != j else [(i, j)]

    def _chunk(self, i: int, j: int) -> Path:
        return self.path.joinpath(ARRAY, "c", str(i), str(j), *("0" for _ in self.plan.shape[2:]))

    def _checksums(self, i: int, j: int) -> str:
        """The text of a mark: the checksums at the ends of the tile's chunks."""
        return "".join(f"{_end(self._chunk(*chunk)).hex()}\n" for chunk in self._chunks(i, j))

    def _damage(self, i: int, j: int, array: Any) -> str:
        """What is wrong with the data of a finished tile; empty if nothing is. Its bytes are read from the array."""
        size, mark = _chunk_bytes(self.plan) + CHECKSUM_BYTES, self._mark(i, j)
        for row, column in self._chunks(i, j):
            path = self._chunk(row, column)
            name = path.relative_to(self.path)
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != size:
                return f"{name} has {found} bytes, expected {size}"
            try:
                if array is not None:
                    array[self.plan.slices(row, column)]
            except ValueError:  # the checksum
                return f"{name} has other bytes than were written"
        if not mark.is_file() or mark.read_bytes() != self._checksums(i, j).encode():
            return f"{DONE}/{mark.name} has other checksums than the data of its tile"
        return ""

    def _header_damage(self) -> str:
        """What is wrong with the header of the array; empty if nothing is."""
        path = self.path / ARRAY / HEADER
        if not path.is_file():
            return f"{ARRAY}/{HEADER} is missing"
        return (
            "" if path.read_bytes() == self.header.encode() else f"{ARRAY}/{HEADER} has other bytes than were written"
        )

    def _require_header(self) -> None:
        if told := self._header_damage():
            raise ValueError(
                f"store {self.path} is damaged ({told}): repeat the call that began it, which writes it again"
            )


def find_store(path: Path) -> KernelStore | None:
    """The store at this path, finished or not; None if there is nothing yet.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: the manifest of the store is damaged.
    """
    found = read_manifest(path)
    return None if found is None else KernelStore(path, stored_plan(found), found[ARRAY])


def open_store(path: Path, wanted: Manifest) -> KernelStore:
    """The store of this kernel: a new one, or the existing one, to be continued.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: there is a store of another kernel, or one whose manifest is damaged.
        OSError: the disk has no space for the kernel.
        BlockingIOError: another process has made a store there at this moment.
    """
    found = read_manifest(path)
    if found is None:
        plan = stored_plan(wanted)
        _require_space(path, plan, list(plan.tiles))
        return _created(path, plan, wanted)
    if told := differences(found, wanted):
        raise ValueError(
            f"store {path} holds another kernel: {'; '.join(told)}: repeat the call that began it, or give another path"
        )
    store = KernelStore(path, stored_plan(found), found[ARRAY])
    store.restore()
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


def _created(path: Path, plan: TilePlan, wanted: Manifest) -> KernelStore:
    import zarr  # takes half a second to import, which kernels in memory do without
    from zarr.codecs import Crc32cCodec

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        (new / DONE).mkdir(parents=True)
        zarr.create_array(
            store=new / ARRAY,
            shape=plan.shape,
            chunks=(plan.rows, plan.columns, *plan.shape[2:]),
            dtype=_on_disk(plan.dtype),
            compressors=(Crc32cCodec(),),  # nothing is compressed: the digits of a kernel are noise
            fill_value=float("nan"),
            config={"write_empty_chunks": True},
        )
        header = (new / ARRAY / HEADER).read_text()
        (new / NAME).write_text(json.dumps(sealed(wanted | {ARRAY: header}), indent=1))
        try:
            os.replace(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise BlockingIOError(
                f"another process writes to {path}: wait until it ends, or give another folder"
            ) from None
    return KernelStore(path, plan, header)


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


def _remove(path: Path) -> None:
    """Removes what stands in the place of a file, if anything does."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _end(path: Path) -> bytes:
    """The checksum at the end of a chunk."""
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, os.SEEK_END)
        return file.read()


def _chunk_bytes(plan: TilePlan) -> int:
    """Number of bytes of the numbers of a chunk."""
    return plan.rows * plan.columns * math.prod(plan.shape[2:]) * _on_disk(plan.dtype).itemsize


def _listed(damaged: dict[Tile, str]) -> str:
    """The first of what is wrong, as text."""
    told = list(damaged.values())
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(told[:TOLD]) + more


def _require_space(path: Path, plan: TilePlan, todo: list[Tile]) -> None:
    needed = _chunk_bytes(plan) * sum(2 if plan.symmetric and i != j else 1 for i, j in todo)
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"store {path} needs {gib(needed)} on disk for {len(todo)} tiles, {gib(free)} are free: make space, give "
            "another path, or take layout='trace'",
        )
