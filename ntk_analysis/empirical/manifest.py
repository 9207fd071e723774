"""What a store says about the kernel in it, so that tiles of two different kernels never meet."""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from ntk_analysis.common.checksums import SEAL, unsealed
from ntk_analysis.common.provenance import made_by
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.identity import identity, same_function
from ntk_analysis.empirical.plans import TilePlan
from ntk_analysis.empirical.runs import Job

Manifest: TypeAlias = dict[str, Any]

FORMAT = "ntk_analysis kernel store 4"
NAME = "manifest.json"
ARRAY, DONE = "kernel", "done"  # folders beside it
ARRAYS = ("params", "x1", "x2")
# facts that identify a kernel; the rest of a plan is its cost, and tiles are taken over from the store
FACTS = ("which", "layout", "method", "coupled", "symmetric", "dtype", "n1", "n2", "outputs")


def manifest(job: Job) -> Manifest:
    """Description of the kernel to compute: hashes of parameters and inputs, function, plan, versions and device."""
    return {
        "format": FORMAT,
        "plan": asdict(job.plan) | {"dtype": job.plan.dtype.name},
        "arrays": {name: fingerprint(getattr(job, name)) for name in ARRAYS},
        "f": identity(job),
        "made by": made_by("ntk-analysis", "jax", "numpy", "zarr"),
    }


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
    if (path / ARRAY).is_dir() and (path / DONE).is_dir():
        raise ValueError(
            f"store {path}: {NAME} is missing, damaged, or of another format than {FORMAT!r}: take it from a copy, or "
            "give another path"
        )
    raise FileExistsError(
        f"{path} is not a store ({NAME} of {FORMAT!r} is missing): give a path that does not exist yet; nothing "
        "was changed"
    )


def stored_plan(found: Manifest) -> TilePlan:
    """The plan that a manifest describes."""
    facts = {field.name: found["plan"][field.name] for field in fields(TilePlan)}
    return TilePlan(**facts | {"dtype": np.dtype(facts["dtype"])})


def differences(found: Manifest, wanted: Manifest) -> list[str]:
    """Reasons why the tiles of one kernel cannot continue those of the other; empty if there is none."""
    told = [
        f"{name} is {found['plan'][name]} there and {wanted['plan'][name]} here"
        for name in FACTS
        if found["plan"][name] != wanted["plan"][name]
    ]
    if not told:  # arrays of other shapes differ anyway
        told = [f"{name} has other values" for name in ARRAYS if found["arrays"][name] != wanted["arrays"][name]]
    same_jax = found["made by"]["jax"] == wanted["made by"]["jax"]
    if not told and not same_function(found["f"], wanted["f"], same_jax=same_jax):
        told = [f"f is another function ({found['f']['name']} there, {wanted['f']['name']} here)"]
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
