"""Results reach the disk whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the errors of a full disk: no space, no quota, a limit on the size of files."""


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Calls writers[name](path) for files beside their final place, then renames all of them into `folder`.

    After an error or a kill on the way, the files that were there before are still there, and whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        for name, write in writers.items():
            write(Path(scratch) / name)
        for name in writers:
            os.replace(Path(scratch) / name, folder / name)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes one file by `write_together`."""
    write_together(path.parent, {path.name: write})


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Adds lines to a file; they are on the disk when this returns. An incomplete last line, left by a kill, goes."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(line + "\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def require_result(path: Path, suffixes: tuple[str, ...], inputs: Sequence[Path | None] = ()) -> None:
    """Checks a path for a result, to be called before computing.

    Args:
        path: path of the result file.
        suffixes: endings that can be written.
        inputs: files that are read, which no result replaces.

    Raises:
        ValueError: the path has another suffix, is a folder, or is one of the inputs.
        OSError: no file can be written there.
    """
    if path.suffix not in suffixes or path.is_dir():
        raise ValueError(f"--out {path}: give a file ending in {' or '.join(suffixes)}")
    if path.exists() and any(given is not None and given.exists() and path.samefile(given) for given in inputs):
        raise ValueError(f"--out {path} is the file that is read: give another one")
    require_folder(path.parent)


def require_folder(folder: Path) -> None:
    """Checks that files can be written into a folder, or into the nearest one above it that exists.

    Raises:
        OSError: they cannot.
    """
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        told = f"--out: nothing can be written into {folder} ({error.strerror}): give another place"
        raise OSError(told) from error
