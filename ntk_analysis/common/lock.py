"""One process at a time writes to a folder, by a lock that the system frees when the process ends, killed or not."""

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"  # an empty file that stays in the folder: to remove it while others open it would make two locks
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A context that holds the lock of a folder, which is made if it does not exist.

    A file system that has no locks is told in a warning, and the context goes on without one.

    Args:
        folder: path of the folder.

    Raises:
        BlockingIOError: another process holds the lock, or another context of this process.
        FileExistsError: the folder is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder or a path that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in HELD:
                raise BlockingIOError(
                    f"another process writes to {folder}: wait until it ends, or give another folder"
                ) from None
            if error.errno not in UNKNOWN:
                raise
            warnings.warn(
                f"{folder} is on a file system without locks ({error.strerror}): see to it that one process at a time "
                "writes to it",
                stacklevel=3,  # behind contextlib's frame
            )
        yield
    finally:
        os.close(handle)  # which frees the lock


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
