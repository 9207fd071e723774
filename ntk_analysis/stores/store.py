"""A kernel on disk: chunked Zarr arrays, a manifest, and a mark for each tile that is finished.

    PATH/manifest.json   what the kernel is of, and its own SHA-256; see `manifest`
    PATH/NAME/           a Zarr array, one chunk a tile, so that no two tiles write to one chunk: of an empirical kernel
                         "kernel"; of an infinite one "distance", "ntk_scaled" and those of single inputs and tiles
    PATH/done/I-J        the checksums of the chunks of tile (I, J), made after their data has reached the disk

A store appears whole, by a rename. A kill at any moment costs the tiles that were under way: without their mark they
are computed again, and give the same bits. Each chunk ends with the CRC-32C of its numbers, so that damage is found
when it is read, and the manifest has the header of each array (zarr.json), so that no number is read in another way.
"""

import errno
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ntk_analysis.common.checksums import sealed
from ntk_analysis.common.files import FULL, write_whole
from ntk_analysis.common.lock import locked
from ntk_analysis.common.memory import gib
from ntk_analysis.common.progress import Track
from ntk_analysis.stores.grid import Grid, Part, Tile, Values
from ntk_analysis.stores.manifest import DONE, NAME, PlanOf, changes, differences, manifest, read_manifest
from ntk_analysis.stores.runs import Job, Runner, Sink

HEADER = "zarr.json"
CHECKSUM_BYTES = 4  # of the CRC-32C behind the numbers of a chunk
JOB = "job-"  # prefix of the names of files for the workers of a cluster
TOLD = 3  # number of damaged files that a message names


@dataclass(frozen=True)
class Stored:
    """An array of a kernel on disk, read when it is indexed; np.asarray reads all of it.

    To read what is damaged, or not finished, raises ValueError.
    """

    store: "KernelStore"
    part: Part

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.part.shape

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the array."""
        return self.part.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.store.read(self.part, index).astype(self.dtype, copy=False)

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
        headers: text of the zarr.json of each array, as it was written.
    """

    path: Path
    plan: Grid
    headers: Mapping[str, str]

    @property
    def arrays(self) -> dict[str, Stored]:
        """The arrays of the kernel, by name."""
        return {part.name: Stored(self, part) for part in self.plan.parts}

    @property
    def todo(self) -> list[Tile]:
        """The tiles that are not finished, row by row."""
        marks = self.path / DONE
        done = {entry.name for entry in os.scandir(marks)} if marks.is_dir() else set()
        return [tile for tile in self.plan.tiles if self._mark(*tile).name not in done]

    def is_done(self, i: int, j: int) -> bool:
        """Whether tile (i, j) is finished."""
        return self._mark(i, j).exists()

    def read(self, part: Part, index: Any) -> np.ndarray:
        """The numbers of an array at an index, in the dtype on disk; raises the errors of `require_whole`."""
        self._require_headers()
        try:
            values = np.asarray(self._zarr(part, "r")[index])
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
        self._require_headers()
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
        arrays = {part.name: self._zarr(part, "r") for part in self.plan.parts} if read and done else {}
        found = ((tile, self._damage(*tile, arrays)) for tile in done)
        return {tile: told for tile, told in found if told}

    def restore(self) -> None:
        """Writes damaged headers of arrays again, and warns about each; makes the folder of marks."""
        for part in self.plan.parts:
            if told := self._header_damage(part):
                warnings.warn(f"store {self.path} is damaged ({told}): it is written again", stacklevel=2)
                header = self.path / part.name / HEADER
                _remove(header)
                write_whole(header, partial(Path.write_text, data=self.headers[part.name]))
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
            for path in (self._mark(*tile), *(path for _, _, path in self._chunks(*tile))):
                _remove(path)

    def write(self, i: int, j: int, tile: Values) -> None:
        """Keeps tile (i, j), then marks it as finished.

        Raises:
            OSError: the disk is full; finished tiles stay.
        """
        try:
            for part in self.plan.parts:
                if self.plan.chunks(part, i, j):
                    self.plan.put(part, self._zarr(part, "r+"), (i, j), tile[part.name])
            for _, _, path in self._chunks(i, j):
                _reach_disk(path)
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
        partial = (left for part in self.plan.parts for left in (self.path / part.name).rglob("*.partial"))
        for left in (*self.path.glob(f"{JOB}*"), *partial):
            left.unlink(missing_ok=True)

    def _mark(self, i: int, j: int) -> Path:
        return self.path / DONE / f"{i}-{j}"

    def _chunks(self, i: int, j: int) -> Iterator[tuple[Part, tuple[int, ...], Path]]:
        """The chunks that tile (i, j) fills, with their arrays and paths."""
        for part in self.plan.parts:
            for chunk in self.plan.chunks(part, i, j):
                rest = ("0",) * (len(part.shape) - len(chunk))
                yield part, chunk, self.path.joinpath(part.name, "c", *map(str, chunk), *rest)

    def _checksums(self, i: int, j: int) -> str:
        """The text of a mark: the checksums at the ends of the tile's chunks."""
        return "".join(f"{_end(path).hex()}\n" for _, _, path in self._chunks(i, j))

    def _damage(self, i: int, j: int, arrays: Mapping[str, Any]) -> str:
        """What is wrong with the data of a finished tile; empty if nothing is. Its bytes are read from the arrays."""
        mark = self._mark(i, j)
        for part, chunk, path in self._chunks(i, j):
            name, size = path.relative_to(self.path).as_posix(), _chunk_bytes(part) + CHECKSUM_BYTES
            if not path.is_file():
                return f"{name} is missing"
            if (found := path.stat().st_size) != size:
                return f"{name} has {found} bytes, expected {size}"
            try:
                if arrays:
                    arrays[part.name][part.region(chunk)]
            except ValueError:  # the checksum
                return f"{name} has other bytes than were written"
        if not mark.is_file() or mark.read_bytes() != self._checksums(i, j).encode():
            return f"{DONE}/{mark.name} has other checksums than the data of its tile"
        return ""

    def _header_damage(self, part: Part) -> str:
        """What is wrong with the header of an array; empty if nothing is."""
        path, name = self.path / part.name / HEADER, f"{part.name}/{HEADER}"
        if not path.is_file():
            return f"{name} is missing"
        return (
            "" if path.read_bytes() == self.headers[part.name].encode() else f"{name} has other bytes than were written"
        )

    def _require_headers(self) -> None:
        for part in self.plan.parts:
            if told := self._header_damage(part):
                raise ValueError(
                    f"store {self.path} is damaged ({told}): repeat the call that began it, which writes it again"
                )

    def _zarr(self, part: Part, mode: Any) -> Any:
        import zarr  # takes half a second to import, which kernels in memory do without

        return zarr.open_array(store=self.path / part.name, mode=mode)


def find_store(path: Path, plan_of: PlanOf) -> KernelStore | None:
    """The store at this path, finished or not; None if there is nothing yet.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: the manifest of the store is damaged.
    """
    found = read_manifest(path)
    return None if found is None else _store(path, plan_of(found), found)


def computed(job: Job, path: Path, on: Runner, track: Track) -> KernelStore:
    """The store of this kernel, finished: what is missing or damaged is computed. Raises the errors of `open_store`."""
    kept = open_store(path, job)
    if (damaged := kept.damaged()) or kept.todo:
        with locked(path):  # another process would compute the same tiles, and tidy away the files of this one
            kept.forget(damaged)
            on.run(job, kept.todo, kept, track)
            kept.tidy()
    return kept


def open_store(path: Path, job: Job) -> KernelStore:
    """The store of this kernel, whose tiles are cut as the job's: a new one, or the existing one, to be continued.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: there is a store of another kernel, or one whose manifest is damaged.
        OSError: the disk has no space for the kernel.
        BlockingIOError: another process has made a store there at this moment.
    """
    found, wanted = read_manifest(path), manifest(job)
    if found is None:
        _require_space(path, job.plan, list(job.plan.tiles))
        return _created(path, job.plan, wanted)
    if told := differences(found, wanted, job):
        raise ValueError(
            f"store {path} holds another kernel: {'; '.join(told)}: repeat the call that began it, or give another path"
        )
    store = _store(path, job.plan, found)
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


def require_room(path: Path, begun: Grid, limit: int) -> None:
    """Raises MemoryError if a tile of the store that is to be continued takes more than `limit` bytes."""
    if begun.memory_bytes > limit:
        raise MemoryError(
            f"a tile of store {path}, {begun.rows} x {begun.columns} inputs, needs {gib(begun.memory_bytes)}, the "
            f"budget is {gib(limit)}: give as much memory as it was begun with, or another path"
        )


def _store(path: Path, plan: Grid, found: Mapping[str, Any]) -> KernelStore:
    return KernelStore(path, plan, {part.name: found[part.name] for part in plan.parts})


def _created(path: Path, plan: Grid, wanted: Mapping[str, Any]) -> KernelStore:
    import zarr
    from zarr.codecs import Crc32cCodec

    _make_folder(path)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        new = Path(scratch) / path.name
        (new / DONE).mkdir(parents=True)
        for part in plan.parts:
            zarr.create_array(
                store=new / part.name,
                shape=part.shape,
                chunks=part.chunk,
                dtype=_on_disk(part.dtype),
                compressors=(Crc32cCodec(),),  # nothing is compressed: the digits of a kernel are noise
                fill_value=float("nan"),
                config={"write_empty_chunks": True},
            )
        headers = {part.name: (new / part.name / HEADER).read_text() for part in plan.parts}
        (new / NAME).write_text(json.dumps(sealed({**wanted, **headers}), indent=1))
        try:
            os.replace(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise BlockingIOError(
                f"another process writes to {path}: wait until it ends, or give another folder"
            ) from None
    return KernelStore(path, plan, headers)


def _make_folder(path: Path) -> None:
    """Makes the folder in which the store will stand."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        told = f"store {path} cannot be made ({error.strerror}): give another path"
        raise OSError(error.errno, told) from error


def _on_disk(dtype: np.dtype) -> np.dtype:
    """The dtype on disk: float32 for bfloat16, which Zarr does not know (float32 loses nothing); else the same."""
    return dtype if dtype.kind == "f" else np.dtype(np.float32)


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


def _chunk_bytes(part: Part) -> int:
    """Number of bytes of the numbers of a chunk."""
    return math.prod(part.chunk) * _on_disk(part.dtype).itemsize


def _listed(damaged: dict[Tile, str]) -> str:
    """The first of what is wrong, as text."""
    told = list(damaged.values())
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return "; ".join(told[:TOLD]) + more


def _require_space(path: Path, plan: Grid, todo: list[Tile]) -> None:
    needed = sum(_chunk_bytes(part) * len(plan.chunks(part, *tile)) for tile in todo for part in plan.parts)
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"store {path} needs {gib(needed)} on disk for {len(todo)} tiles, {gib(free)} are free: make space, give "
            "another path, or take layout='trace'",
        )
