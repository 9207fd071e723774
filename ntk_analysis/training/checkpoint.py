"""A run on disk: what it is, its checkpoints, its metrics; killed at any moment, it goes on with the same bits.

    run.json                     recipe, digests, versions: written first
    metrics.jsonl                a line an epoch, written before the epoch's checkpoint
    checkpoints/N/state/         the state after epoch N: orbax's, leaves by their path
    checkpoints/N/metrics.jsonl  the lines of epochs 1 to N
    checkpoints/N/SHA256SUMS     of these files; orbax has no checksums of its own

A checkpoint appears whole or not at all, and only then does the one before the one before it go. A run goes on from the
last one that is not damaged; what metrics.jsonl has beyond it is cut off, and these epochs are done again.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ntk_analysis.common.checksums import damage, sealed, unsealed, write_sums
from ntk_analysis.common.ctrl_c_waits import ctrl_c_waits
from ntk_analysis.common.files import FULL, append_lines, write_whole
from ntk_analysis.common.lock import LOCK, locked
from ntk_analysis.common.provenance import made_by
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.metrics import Epoch
from ntk_analysis.training.recipe import Recipe

FORMAT = "ntk_analysis training run 2"
SCRATCH = ".writing-"  # prefix of what a kill may leave behind, as in `files.write_together`
LIBRARIES = ("ntk-analysis", "jax", "flax", "optax", "orbax-checkpoint")
KEPT = 2  # number of last checkpoints that are kept


@contextmanager
def run_folder(
    path: Path, recipe: Recipe, dataset: Dataset, *, resume: bool, keep_every: int | None = None
) -> Iterator["RunFolder"]:
    """A context with the folder of one run, which no other process writes to meanwhile.

    Args:
        path: path of the folder, which need not exist yet.
        recipe: recipe of the run.
        dataset: data set that the run is trained on.
        resume: whether to go on with the run that is in the folder.
        keep_every: number of epochs; the checkpoints of its multiples are kept. None: only the last two are.

    Raises:
        FileExistsError: the folder has a run that is not to be resumed, or something else than a run.
        ValueError: the run to be resumed has another recipe or other images, run.json is damaged, or keep_every is
            below 1.
        BlockingIOError: another process trains in this folder.
    """
    if keep_every is not None and keep_every < 1:
        raise ValueError(f"got keep_every={keep_every}: expected at least 1")
    _read(path)  # a folder of something else is refused before a lock is put into it
    with locked(path):
        wanted, found = _description(recipe, dataset), _read(path)
        if found is None:
            write_whole(path / "run.json", lambda file: file.write_text(json.dumps(sealed(wanted), indent=1) + "\n"))
        elif not resume:
            raise FileExistsError(f"{path} holds a run: resume it, or give another folder")
        elif told := _differences(found, wanted):
            raise ValueError(f"{path} holds another run: {'; '.join(told)}; give another folder, nothing was changed")
        yield RunFolder(path, recipe, keep_every)


def read_run(path: Path) -> tuple[Recipe, dict[str, str]]:
    """The recipe of the run in a folder, and the name and digest (sha256) of its data set.

    Raises:
        FileNotFoundError: there is no run.
        FileExistsError, ValueError: the folder has something else, or run.json is damaged.
    """
    found = _read(path)
    if found is None:
        raise FileNotFoundError(f"no run in {path}: give the folder of a run of `train`")
    return Recipe.from_json(json.dumps(found["recipe"])), found["data"]


def read_states(path: Path, like: Tree) -> Iterator[tuple[int, Any]]:
    """Yields epoch and state of each checkpoint that is kept, in the order of training; nothing is changed.

    Args:
        path: folder of a run.
        like: a state of the run; those that are read get its structure and device.

    Raises:
        ValueError: a checkpoint is damaged.
    """
    folder = path / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    for epoch in sorted(int(name) for name in names if name.isdecimal() and name.isascii()):
        if (told := damage(folder / str(epoch))) is not None:
            raise ValueError(f"{folder / str(epoch)} is damaged ({told}): remove it, or resume the run")
        yield epoch, _restored(folder / str(epoch), like)


def _restored(checkpoint: Path, like: Tree) -> Any:
    """The state in a checkpoint, with the structure and device of another one."""
    with ctrl_c_waits(), ocp.StandardCheckpointer() as reader:
        leaves = reader.restore(checkpoint.absolute() / "state", _named(like))  # orbax takes no other
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in _named(like)])


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, while `run_folder` holds its lock.

    Attributes:
        path: path of the folder.
        recipe: recipe of the run.
        keep_every: number of epochs; the checkpoints of its multiples are kept. None: only the last two are.
    """

    path: Path
    recipe: Recipe
    keep_every: int | None

    @property
    def metrics(self) -> Path:
        """Path of the file that has one line for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Path of the folder that has a folder for each checkpoint."""
        return self.path / "checkpoints"

    def restore(self, start: Tree) -> tuple[Any, list[Epoch]]:
        """The state and the epochs of the last checkpoint that is not damaged; `start` and none if there never was one.

        A damaged checkpoint is told in a warning and removed, if there is one before it to go on from.

        Args:
            start: the state before the first epoch; the restored state gets its structure and device.

        Raises:
            ValueError: no checkpoint is intact, or the run went further than this recipe.
        """
        for left in (*self.path.glob(f"{SCRATCH}*"), *self.checkpoints.glob(f"{SCRATCH}*")):
            _remove(left)
        last = max(self._saved(), default=0)
        done = self._intact()
        lines = (self._checkpoint(done) / "metrics.jsonl").read_bytes() if done else b""
        self._write_metrics(lines, last)
        epochs = _epochs(lines, self._checkpoint(done) / "metrics.jsonl")
        if not done:
            return start, epochs
        return _restored(self._checkpoint(done), start), epochs

    def save(self, state: Tree, epoch: Epoch) -> None:
        """Writes the measured epoch and the state after it; both are on the disk when this returns.

        Ctrl-C waits for it.

        Raises:
            OSError: the disk is full; the checkpoints before this one stay.
        """
        try:
            append_lines(self.metrics, [epoch.to_json()])
            self.checkpoints.mkdir(exist_ok=True)
            # threads of orbax would write on behind an exception, into a folder that is being removed by then
            with ctrl_c_waits(), tempfile.TemporaryDirectory(prefix=SCRATCH, dir=self.checkpoints) as scratch:
                self._write(Path(scratch) / "new", state)
                os.replace(Path(scratch) / "new", self._checkpoint(epoch.epoch))
                for old in self._superseded():
                    os.replace(self._checkpoint(old), Path(scratch) / str(old))  # goes with the folder
        except OSError as error:
            if error.errno not in FULL:
                raise
            kept = max(self._saved(), default=0)
            raise OSError(
                error.errno,
                f"no space left for the checkpoint of epoch {epoch.epoch} in {self.path}: "
                f"{f'that of epoch {kept} is kept, ' * (kept > 0)}make space and resume the run",
            ) from error

    def _write(self, folder: Path, state: Any) -> None:
        """Writes a checkpoint into a new folder."""
        folder.mkdir()
        leaves = _named(state)
        _require_space(folder, sum(leaf.nbytes for leaf in leaves.values()))
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder.absolute() / "state", leaves)
        shutil.copyfile(self.metrics, folder / "metrics.jsonl")
        write_sums(folder)

    def _checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / str(epoch)

    def _saved(self) -> list[int]:
        """The epochs that have a checkpoint, in falling order."""
        names = [path.name for path in self.checkpoints.iterdir()] if self.checkpoints.exists() else []
        return sorted((int(name) for name in names if name.isdecimal() and name.isascii()), reverse=True)

    def _superseded(self) -> list[int]:
        """The epochs whose checkpoints are not kept any more."""
        return [epoch for epoch in self._saved()[KEPT:] if self.keep_every is None or epoch % self.keep_every]

    def _intact(self) -> int:
        """The epoch of the last checkpoint that is intact, 0 if there are none; damaged ones behind it are removed."""
        wrong = dict[int, str]()
        for epoch in self._saved():
            if epoch > self.recipe.epochs:
                raise ValueError(f"{self.path} is at epoch {epoch} already: give epochs={epoch} or more")
            if (told := damage(self._checkpoint(epoch))) is None:
                break
            wrong[epoch] = told
        else:
            epoch = 0
        if not wrong:
            return epoch
        damaged = "; ".join(f"{self._checkpoint(number)} is damaged ({told})" for number, told in wrong.items())
        if not epoch:
            raise ValueError(f"no checkpoint is left: {damaged}; delete {self.checkpoints} to begin again at epoch 1")
        warnings.warn(f"{damaged}: going on from epoch {epoch}", stacklevel=2)
        for number in wrong:
            _remove(self._checkpoint(number))
        return epoch

    def _write_metrics(self, lines: bytes, last: int) -> None:
        """Makes metrics.jsonl these lines. A kill may have left one more than checkpoints; anything else is told."""
        found = self.metrics.read_bytes() if self.metrics.exists() else b""
        done = lines.count(b"\n")
        if not found.startswith(lines):
            warnings.warn(f"{self.metrics} is damaged: written anew up to epoch {done}", stacklevel=2)
        elif (epochs := found.count(b"\n")) > last + 1:
            told = f"{self.metrics} goes up to epoch {epochs}, the checkpoints up to {last}: going on from there"
            warnings.warn(told, stacklevel=2)
        write_whole(self.metrics, lambda temporary: temporary.write_bytes(lines))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _epochs(lines: bytes, file: Path) -> list[Epoch]:
    """The epochs of a file's lines; ValueError with the file's name for a line that is none."""
    epochs = []
    for number, line in enumerate(lines.splitlines(), start=1):
        try:
            epochs.append(Epoch.from_json(line.decode()))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    return epochs


def _named(tree: Any) -> dict[str, jax.Array]:
    """The leaves by their path, so that other programs can read them without our classes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _require_space(folder: Path, size: int) -> None:
    """Raises OSError if the disk has no space for a checkpoint with so many bytes of numbers.

    Orbax tells of a full disk in hundreds of lines, from threads that go on behind its error.
    """
    size += size // 10 + 2**20  # for its small files
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.write(bytes(size))


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
    if not path.exists() or all(entry.name.startswith((SCRATCH, LOCK)) for entry in path.iterdir()):
        return None
    if not (path / "run.json").is_file():
        raise FileExistsError(f"{path} is not the folder of a run (no run.json): give a path that does not exist yet")
    try:
        found = unsealed(json.loads((path / "run.json").read_bytes()))
        known = found["format"] == FORMAT
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path / 'run.json'} is damaged: take it from a copy, or give another folder") from error
    if not known:
        raise FileExistsError(f"{path / 'run.json'} is of another version or program: give another folder")
    return found


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The fields in which two runs differ; `epochs` does not count."""
    before, now = (asdict(Recipe.from_json(json.dumps(each["recipe"]))) for each in (found, wanted))
    names = [name for name in now if name != "epochs" and before[name] != now[name]]
    told = [f"{name} is {before[name]} there and {now[name]} here" for name in names]
    if found["data"]["sha256"] != wanted["data"]["sha256"]:
        told.append(f"data: other images ({found['data']['name']} there, {wanted['data']['name']} here)")
    return told
