"""Products of a matrix with vectors, kept on disk as they are computed: a computation that was killed finds them again.

    facts.json    what matrix it is
    SHA256.npz    the product with the vector of this digest

The computation is begun again each time, and gives the same vectors up to where it was killed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ntk_analysis.common.checksums import sealed, unsealed
from ntk_analysis.common.files import write_whole
from ntk_analysis.common.lock import LOCK, locked
from ntk_analysis.common.numpy_files import read_arrays

FORMAT = "ntk_analysis products 1"
FACTS = "facts.json"
Product = Callable[[np.ndarray], np.ndarray]


@contextmanager
def kept_products(product: Product, folder: Path, facts: dict[str, Any], rounding: float) -> Iterator[Product]:
    """A context with the product that looks into the folder first, to which no other process writes meanwhile.

    The first product is computed in any case, and must be the one that is there: f itself is not on the disk.

    Args:
        product: function of vectors (m,) that computes the product.
        folder: path of the folder, which need not exist yet.
        facts: all that the matrix depends on but f, for JSON.
        rounding: relative difference of two products that rounding may explain.

    Raises:
        FileExistsError: the folder has something else.
        ValueError: the products in the folder are those of another matrix.
        BlockingIOError: another process computes in this folder.
    """
    wanted = {"format": FORMAT, **facts}
    _check(folder, wanted)
    with locked(folder):
        _check(folder, wanted)
        if not (folder / FACTS).exists():
            write_whole(folder / FACTS, lambda path: path.write_text(json.dumps(sealed(wanted), indent=1) + "\n"))
        first = True

        def kept(v: np.ndarray) -> np.ndarray:
            nonlocal first
            path = folder / f"{hashlib.sha256(v.tobytes()).hexdigest()}.npz"
            found, checked, first = _read(path), first, False
            if found is None:
                computed = product(v)
                write_whole(path, lambda scratch: np.savez(scratch, product=computed))
                return computed
            if checked:
                difference = float(np.linalg.norm(product(v) - found))
                if not difference <= rounding * float(np.linalg.norm(found)):
                    raise ValueError(f"{folder} has products of another function f: give another folder")
            return found

        yield kept


def kept_count(folder: Path) -> int:
    """Number of products in a folder."""
    return len(list(folder.glob("*.npz")))


def _read(path: Path) -> np.ndarray | None:
    """The product in a file; None if there is none, or if it is damaged: a zip file has checksums."""
    try:
        return read_arrays(path)["product"]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _check(folder: Path, wanted: dict[str, Any]) -> None:
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder or a path that does not exist yet")
    if not folder.exists() or all(entry.name.startswith((".writing-", LOCK)) for entry in folder.iterdir()):
        return
    if not (folder / FACTS).is_file():
        raise FileExistsError(f"{folder} has no {FACTS}: give a path that does not exist yet; nothing was changed")
    try:
        found = unsealed(json.loads((folder / FACTS).read_bytes()))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / FACTS} is damaged: give another folder") from error
    if told := [name for name in wanted if found.get(name) != wanted[name]]:
        raise ValueError(f"{folder} has products of another matrix, with other {', '.join(told)}: give another folder")
