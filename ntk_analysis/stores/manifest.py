"""What a store says about the kernel in it, so that tiles of two different kernels never meet."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from ntk_analysis.common.checksums import SEAL, unsealed
from ntk_analysis.common.provenance import made_by
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.stores.grid import Grid
from ntk_analysis.stores.runs import Job

Manifest: TypeAlias = dict[str, Any]

PlanOf: TypeAlias = Callable[[Manifest], Grid]
"""The plan that a manifest describes, by a function that knows its kind of kernel."""

FORMAT = "ntk_analysis kernel store 4"
NAME = "manifest.json"
DONE = "done"  # folder beside it
ORIGINAL = "empirical"  # kind of the kernels whose stores say none


def manifest(job: Job) -> Manifest:
    """Description of the kernel to compute: hashes of its arrays, function, plan, versions and device."""
    record = {name: value.name if isinstance(value, np.dtype) else value for name, value in vars(job.plan).items()}
    return {
        "format": FORMAT,
        "kind": job.plan.kind,
        "plan": record,
        "arrays": {name: fingerprint(array) for name, array in job.arrays.items()},
        "f": job.identity(),
        "made by": made_by("ntk-analysis", "jax", "numpy", "zarr") | job.made_by,
    }


def kind_of(found: Manifest) -> str:
    """The kind of kernel that a manifest describes."""
    return str(found.get("kind", ORIGINAL))


def fields_of(found: Manifest, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of the plan that a manifest describes; the dtype as one."""
    facts = {name: found["plan"][name] for name in names}
    return facts | {"dtype": np.dtype(facts["dtype"])}


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the store at this path; None if there is nothing yet.

    Raises:
        FileExistsError: there is something at the path that is not a store.
        ValueError: it is a store, and its manifest is damaged.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"store {path} is a file, expected a store or a path that does not exist yet")
    if not path.exists() or not any(path.iterdir()):
        return None
    try:
        found = json.loads((path / NAME).read_text())
        if SEAL in found and found["format"] == FORMAT:
            return unsealed(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if (path / DONE).is_dir() and any((path / entry).is_dir() for entry in path.iterdir() if entry.name != DONE):
        raise ValueError(
            f"store {path}: {NAME} is missing, damaged, or of another format than {FORMAT!r}: take it from a copy, or "
            "give another path"
        )
    raise FileExistsError(
        f"{path} is not a store ({NAME} of {FORMAT!r} is missing): give a path that does not exist yet; nothing "
        "was changed"
    )


def differences(found: Manifest, wanted: Manifest, job: Job) -> list[str]:
    """Reasons why the tiles of one kernel cannot continue those of the other, a job's; empty if there is none."""
    if kind_of(found) != kind_of(wanted):
        return [f"the kernel is {kind_of(found)} there and {kind_of(wanted)} here"]
    told = [
        f"{name} is {found['plan'][name]} there and {wanted['plan'][name]} here"
        for name in job.facts
        if found["plan"][name] != wanted["plan"][name]
    ]
    if not told:  # arrays of other shapes differ anyway
        told = [f"{name} has other values" for name in job.arrays if found["arrays"][name] != wanted["arrays"][name]]
    same_jax = found["made by"]["jax"] == wanted["made by"]["jax"]
    if not told and (other := job.difference(found["f"], wanted["f"], same_jax=same_jax)):
        told = [other]
    return told


def changes(found: Manifest, wanted: Manifest) -> list[str]:
    """Versions and devices that changed; with other ones, tiles agree to rounding only."""
    before, now = found["made by"], wanted["made by"]
    return [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]


def fingerprint(tree: Tree) -> str | None:
    """SHA-256 of all arrays in a tree, with their places, shapes and dtypes; None for None."""
    if tree is None:
        return None
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {array.dtype.name}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
