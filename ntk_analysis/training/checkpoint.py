"""A run on disk: what it is, its checkpoints, its metrics; killed at any moment, it goes on with the same bits.

    run.json       recipe, digests, versions: written first
    metrics.jsonl  a line an epoch, written before the epoch's checkpoint
    checkpoints/   orbax's, by epoch; each appears whole or not at all, and only then is the one before it deleted

So there is never a checkpoint without its lines. Lines without their checkpoint are cut off when a run is resumed, and
their epochs done again.
"""

import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ntk_analysis.common.files import write_whole
from ntk_analysis.common.provenance import made_by
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.metrics import Epoch, append, truncate
from ntk_analysis.training.recipe import Recipe

FORMAT = "ntk_analysis training run 1"
SCRATCH = ".writing-"  # prefix of the temporary files of `files.write_whole`
LIBRARIES = ("ntk-analysis", "jax", "flax", "optax", "orbax-checkpoint")


class RunFolder:
    """The folder of one run.

    Args:
        path: path of the folder, which need not exist yet.
        recipe: recipe of the run.
        dataset: data set that the run is trained on.
        resume: whether to go on with the run that is in the folder.

    Raises:
        FileExistsError: the folder has a run that is not to be resumed, or something else than a run.
        ValueError: the run to be resumed has another recipe or other images, or went further than this recipe.
    """

    def __init__(self, path: Path, recipe: Recipe, dataset: Dataset, *, resume: bool) -> None:
        self.path = path.absolute()  # orbax takes absolute paths only
        self.recipe = recipe
        wanted = _description(recipe, dataset)
        found = _read(path)
        if found is None:
            write_whole(path / "run.json", lambda file: file.write_text(json.dumps(wanted, indent=1) + "\n"))
        elif not resume:
            raise FileExistsError(f"{path} holds a run: resume it, or give another folder")
        elif told := _differences(found, wanted):
            raise ValueError(f"{path} holds another run: {'; '.join(told)}; give another folder, nothing was changed")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.path / "checkpoints", options=options)

    @property
    def metrics(self) -> Path:
        """Path of the file that has one line for each epoch."""
        return self.path / "metrics.jsonl"

    def restore(self, start: Any) -> tuple[Any, list[Epoch]]:
        """The state and the epochs of the last checkpoint; if there is none, `start` and no epochs.

        Args:
            start: the state before the first epoch; the restored state gets its structure and device.
        """
        done = self._manager.latest_step() or 0
        if done > self.recipe.epochs:
            raise ValueError(f"{self.path} is at epoch {done} already: give epochs={done} or more")
        epochs = truncate(self.metrics, done)
        if not done:
            return start, epochs
        leaves = self._manager.restore(done, args=ocp.args.StandardRestore(_named(start)))
        return jax.tree.unflatten(jax.tree.structure(start), [leaves[name] for name in _named(start)]), epochs

    def save(self, state: Any, epoch: Epoch) -> None:
        """Writes the measured epoch and the state after it; both are on the disk when this returns."""
        append(self.metrics, epoch)
        self._manager.save(epoch.epoch, args=ocp.args.StandardSave(_named(state)), force=True)


def _named(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path, so that other programs can read them without our classes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _description(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "recipe": json.loads(recipe.to_json()),
        "digest": recipe.digest,
        "data": {"name": dataset.name, "sha256": dataset.digest},
        "made by": made_by(*LIBRARIES),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """The contents of run.json; None if there is no folder, or an empty one (a kill may leave a partial run.json)."""
    if path.is_file():
        raise FileExistsError(f"{path} is a file, expected a folder or a path that does not exist yet")
    if not path.exists() or all(entry.name.startswith(SCRATCH) for entry in path.iterdir()):
        return None
    try:
        found = json.loads((path / "run.json").read_text())
        known = found["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise FileExistsError(f"{path} is not the folder of a run (no run.json): give a path that does not exist yet")
    return found


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields in which two runs differ; `epochs` does not count."""
    told = []
    if found["digest"] != wanted["digest"]:
        before, now = found["recipe"], wanted["recipe"]
        names = [name for name in before | now if name != "epochs" and before.get(name) != now.get(name)]
        told += [f"{name} is {before.get(name)} there and {now.get(name)} here" for name in names]
    if found["data"]["sha256"] != wanted["data"]["sha256"]:
        told.append(f"data: other images ({found['data']['name']} there, {wanted['data']['name']} here)")
    return told
