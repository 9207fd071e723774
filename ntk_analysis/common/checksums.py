"""Damage is found before damaged data is read: SHA-256 of the files of a folder, and of a record in JSON."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
SEAL = "sha256"  # field of a record that has the digest of the other fields


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS, with a line for each file of the folder; all of them are on the disk when this returns.

    The lines are those of the command `sha256sum`, so that `sha256sum --check SHA256SUMS` checks them, too.
    """
    (folder / SUMS).write_bytes(_text(_sums(folder)))
    for path in _files(folder):
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def damage(folder: Path) -> str | None:
    """What is wrong with a folder whose sums were written; None if it has the same files with the same bytes."""
    try:
        text = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except IsADirectoryError:
        return f"{SUMS} is a folder"
    except NotADirectoryError:
        return f"{folder.name} is a file"
    found = _sums(folder)
    if text == _text(found):
        return None
    lines = text.decode(errors="replace").split("\n")
    written = {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
    for name in sorted(written | found):
        if name not in found:
            return f"{name} is missing"
        if name not in written:
            return f"{name} is not in {SUMS}"
        if written[name] != found[name]:
            return f"{name} has other bytes than were written"
    return f"{SUMS} has other bytes than were written"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, which JSON can hold, with its SHA-256 as the last field."""
    return {**record, SEAL: _digest(record)}


def unsealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without its SHA-256; one that never had it passes, as one written by hand.

    Raises:
        ValueError: the SHA-256 is that of another record.
    """
    rest = {name: value for name, value in record.items() if name != SEAL}
    if SEAL in record and record[SEAL] != _digest(rest):
        raise ValueError("it has changed since it was written")
    return rest


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _text(sums: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 by path of each file in the folder but SHA256SUMS."""
    found = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name != SUMS:
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
