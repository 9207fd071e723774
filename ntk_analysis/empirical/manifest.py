"""What a store says about the kernel in it, so that tiles of two different kernels never meet."""

import hashlib
import json
import platform
from dataclasses import asdict, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.empirical.functions import COUPLING_ROWS, flattened
from ntk_analysis.empirical.plans import TilePlan
from ntk_analysis.empirical.runs import Job
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

Manifest: TypeAlias = dict[str, Any]

FORMAT = "ntk_analysis kernel store 1"
NAME = "manifest.json"
ARRAYS = ("params", "x1", "x2")
# what one kernel has one of; the rest of a plan is cost, and tiles are taken over from the store
FACTS = ("which", "outputs", "method", "coupled", "symmetric", "dtype", "n1", "n2", "features")
PROBES = 16  # outputs of the function that are written down


def manifest(job: Job) -> Manifest:
    """What is to be computed: hashes of parameters and inputs, the function, the plan, and with what."""
    return {
        "format": FORMAT,
        "plan": asdict(job.plan) | {"dtype": job.plan.dtype.name},
        "sha256": {name: fingerprint(getattr(job, name)) for name in ARRAYS},
        "f": {"name": _name(job.f), "probe": _probe(job)},
        "made by": {
            **{name: version(name) for name in ("ntk-analysis", "jax", "numpy", "zarr")},
            "python": platform.python_version(),
            "device": jax.local_devices()[0].device_kind,
        },
    }


def read_manifest(path: Path) -> Manifest | None:
    """The manifest of the store at this path; None where there is nothing yet.

    Raises:
        FileExistsError: there is something that is not a store.
    """
    if path.is_file():
        raise FileExistsError(f"store {path} is a file, expected a store or a path that does not exist yet")
    if not path.exists() or not any(path.iterdir()):
        return None
    try:
        found = json.loads((path / NAME).read_text())
        known = found["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise FileExistsError(
            f"{path} is not a store ({NAME} of {FORMAT!r} is missing): give a path that does not exist yet; nothing "
            "was changed"
        )
    return found


def stored_plan(found: Manifest) -> TilePlan:
    """The plan that a manifest tells of."""
    facts = {field.name: found["plan"][field.name] for field in fields(TilePlan)}
    return TilePlan(**facts | {"dtype": np.dtype(facts["dtype"])})


def differences(found: Manifest, wanted: Manifest) -> list[str]:
    """What keeps the tiles of one kernel from continuing those of the other; empty if nothing."""
    told = [
        f"{name} is {found['plan'][name]} there and {wanted['plan'][name]} here"
        for name in FACTS
        if found["plan"][name] != wanted["plan"][name]
    ]
    if not told:  # of other shapes the arrays differ anyway
        told = [f"{name} has other values" for name in ARRAYS if found["sha256"][name] != wanted["sha256"][name]]
    if not told and not _same_function(found["f"], wanted["f"]):
        told = [f"f is another function ({found['f']['name']} there, {wanted['f']['name']} here)"]
    return told


def changes(found: Manifest, wanted: Manifest) -> list[str]:
    """Versions and devices that changed: with other ones, tiles agree to rounding only."""
    before, now = found["made by"], wanted["made by"]
    return [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]


def fingerprint(tree: Any) -> str | None:
    """SHA-256 of all arrays in a tree, with their places, shapes and dtypes; None of nothing."""
    if tree is None:
        return None
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {np.shape(leaf)} {array.dtype.name}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _name(f: Any) -> str:
    if isinstance(f, Layer):
        return repr(f)
    return f"{getattr(f, '__module__', type(f).__module__)}:{getattr(f, '__qualname__', type(f).__qualname__)}"


def _probe(job: Job) -> list[float]:
    """Outputs on a few inputs, and for the tangent kernel the derivative along the parameters.

    A function has no hash, and its name says nothing of what it closes over. Its derivative is looked at because a
    `stop_gradient` changes the kernel and not the outputs.
    """
    y, along = _outputs_and_derivatives(job.f, job.plan.which, job.params, np.asarray(job.x1[:COUPLING_ROWS]))
    return [*np.asarray(y, np.float64).reshape(-1)[:PROBES].tolist(), *map(float, along)]


@partial(jax.jit, static_argnums=(0, 1))
def _outputs_and_derivatives(f: Any, which: str, params: Params, x: Any) -> tuple[jax.Array, list[jax.Array]]:
    """One program: op by op, each would be compiled, which takes seconds for a deep network."""
    if which == "nngp":
        return flattened(f)(params, x), []
    y, pull = jax.vjp(lambda p: flattened(f)(p, x), params)
    gradients = jax.tree.leaves(pull(jnp.ones_like(y))[0])
    return y, [jnp.vdot(g, p) for g, p in zip(gradients, jax.tree.leaves(params), strict=True)]


def _same_function(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    before, now = np.array(found["probe"]), np.array(wanted["probe"])
    # devices and versions round differently; another function differs in the first digits
    size = np.max(np.abs(before[np.isfinite(before)]), initial=0.0)
    same = before.shape == now.shape and np.allclose(before, now, rtol=0, atol=1e-3 * size, equal_nan=True)
    layers = "(" in found["name"] or "(" in wanted["name"]  # networks of ours say all about themselves
    return bool(same) and (not layers or found["name"] == wanted["name"])
