"""Results reach the disk whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Calls writers[name](path) for files beside their place, then renames them all into `folder`.

    An error or a kill on the way leaves the files that were there before, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        for name, write in writers.items():
            write(Path(scratch) / name)
        for name in writers:
            os.replace(Path(scratch) / name, folder / name)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write_together` for one file."""
    write_together(path.parent, {path.name: write})


def require_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError, before anything is computed, for a result file of a kind that cannot be written."""
    if path.suffix not in suffixes or path.is_dir():
        raise ValueError(f"--out {path}: give a file ending in {' or '.join(suffixes)}")
