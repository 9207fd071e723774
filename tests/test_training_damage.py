"""Damaged checkpoints are never trained on: a run goes on from the one before, to the bits of the undamaged run."""

import json
import shutil
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from ntk_analysis import data
from ntk_analysis.common.checksums import damage, sealed, unsealed, write_sums
from ntk_analysis.training.dataset import hold_out
from ntk_analysis.training.loop import Trainer, fit
from ntk_analysis.training.recipe import Recipe

from .damages import DAMAGES, flip

RECIPE = Recipe(depth=1, width=16, normalization="none", batch=64, epochs=3)


@pytest.fixture(scope="module")
def trainer():
    return Trainer(RECIPE, hold_out(data.load_digits().subset(200, 0)))


@pytest.fixture(scope="module")
def trained(trainer, tmp_path_factory):
    """A finished run and its folder, which tests copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return fit(trainer, folder=folder), folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[1], tmp_path / "run")


def largest(folder):
    """The largest file of a checkpoint: weights."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(found, expected):
    assert [replace(epoch, seconds=0.0) for epoch in found.epochs] == [
        replace(epoch, seconds=0.0) for epoch in expected.epochs
    ]
    for one, other in zip(*(map(np.asarray, leaves(run)) for run in (found, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


def leaves(run):
    import jax

    return jax.tree.leaves(run.state)


def test_a_flipped_bit_of_weights_costs_one_epoch(trainer, trained, folder):
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "3"]
    flip(largest(folder / "checkpoints" / "3"))
    seen: list[Any] = []
    with pytest.warns(UserWarning, match=r"checkpoints/3 is damaged \(.* has other bytes .*\): going on from epoch 2$"):
        found = fit(trainer, folder=folder, resume=True, each=seen.append)
    assert [epoch.epoch for epoch in seen] == [3]
    assert_same_run(found, trained[0])
    assert damage(folder / "checkpoints" / "3") is None, "it is written again"


def test_without_an_intact_checkpoint_nothing_is_trained_or_changed(trainer, folder):
    for epoch in (2, 3):
        flip(largest(folder / "checkpoints" / str(epoch)))
    before = contents(folder)
    told = (
        r"no checkpoint is left: .*3 is damaged .*; .*2 is damaged .*; delete .*checkpoints to begin again at epoch 1$"
    )
    with pytest.raises(ValueError, match=told):
        fit(trainer, folder=folder, resume=True)
    assert contents(folder) == before


def test_checkpoints_that_are_kept(trainer, trained, tmp_path):
    """The last two, and every N-th; each is read by orbax alone."""
    longer = Trainer(replace(RECIPE, epochs=5), trainer.dataset)
    longer._epoch = trainer._epoch  # one program
    found = fit(longer, folder=tmp_path / "run", keep_every=2)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4", "5"]
    with ocp.StandardCheckpointer() as reader:
        step = [reader.restore(checkpoints / name / "state")["step"] for name in ("2", "5")]
    assert step == [2 * trainer.steps_per_epoch, found.state.step]
    with pytest.raises(ValueError, match="got keep_every=0: expected at least 1"):
        fit(longer, folder=tmp_path / "other", keep_every=0)


def test_a_second_run_in_one_folder_is_refused(trainer, trained, folder):
    """While a run trains; and once it has ended, by whatever way, the folder is free."""
    shutil.rmtree(folder / "checkpoints" / "3")

    def second(epoch):
        with pytest.raises(BlockingIOError, match=r"another process writes to .*: wait until it ends, or give another"):
            fit(trainer, folder=folder, resume=True)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(trainer, folder=folder, resume=True, each=second)
    assert_same_run(fit(trainer, folder=folder, resume=True), trained[0])


# ---- every file, every kind of damage


def of(epoch):
    """Files of a checkpoint by their place in it; random names of orbax by their number."""
    return lambda folder: sorted(path for path in (folder / "checkpoints" / epoch).rglob("*") if path.is_file())


@pytest.mark.full
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_of_any_file_of_a_checkpoint_is_found(name, trainer, trained, folder, tmp_path):
    """Each file in turn: the checkpoint before it is taken, and the result is that of the undamaged run."""
    count = len(of("3")(folder))
    assert count > 10
    for number in range(count):
        copy = shutil.copytree(folder, tmp_path / str(number))
        DAMAGES[name](of("3")(copy)[number])
        with pytest.warns(UserWarning, match="3 is damaged .*: going on from epoch 2") as told:
            found = fit(trainer, folder=copy, resume=True)
        assert len(told) == 1
        assert "\n" not in str(told[0].message)
        assert_same_run(found, trained[0])
        shutil.rmtree(copy)
    print(f"{count} trials: {name}")


@pytest.mark.full
@pytest.mark.parametrize(
    "gone", ["3", "3 a file", "3/state", "3/state/d", "3 and metrics", "all", "folder and metrics"]
)
def test_what_is_missing_is_done_again(gone, trainer, trained, folder):
    checkpoints = folder / "checkpoints"
    if gone in ("all", "folder and metrics"):
        shutil.rmtree(checkpoints)
    else:
        shutil.rmtree(checkpoints / gone.split()[0])
    if "file" in gone:
        (checkpoints / "3").write_text("")
    if "metrics" in gone:
        (folder / "metrics.jsonl").unlink()
    told = {
        "3": None,
        "3 a file": r"3 is damaged \(3 is a file\): going on from epoch 2",
        "3/state": "3 is damaged .* is missing",
        "3/state/d": "3 is damaged .* is missing",
        "3 and metrics": "metrics.jsonl is damaged: written anew up to epoch 2",
        "all": "metrics.jsonl goes up to epoch 3, the checkpoints up to 0: going on from there",
        "folder and metrics": None,
    }[gone]
    with warnings.catch_warnings() if told is None else pytest.warns(UserWarning, match=told):
        found = fit(trainer, folder=folder, resume=True)
    assert_same_run(found, trained[0])


@pytest.mark.full
def test_what_a_kill_leaves_is_removed(trainer, trained, folder):
    (folder / ".writing-def").mkdir()
    left = folder / "checkpoints" / ".writing-abc" / "new"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    assert_same_run(fit(trainer, folder=folder, resume=True), trained[0])
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "3"]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "checkpoints", "metrics.jsonl", "run.json"]


@pytest.mark.full
def test_every_checkpoint_that_is_kept_can_be_gone_on_from(trainer, trained, tmp_path):
    """Two of three are damaged: the third is taken, and one line says so."""
    folder = tmp_path / "run"
    fit(trainer, folder=folder, keep_every=1)
    for epoch in ("2", "3"):
        flip(largest(folder / "checkpoints" / epoch))
    with pytest.warns(UserWarning, match=r"3 is damaged .*; .*2 is damaged .*: going on from epoch 1$") as told:
        found = fit(trainer, folder=folder, resume=True)
    assert len(told) == 1
    assert_same_run(found, trained[0])


@pytest.mark.full
def test_any_flipped_byte_of_run_json_is_told_or_harmless(trainer, trained, folder):
    """Every eighth byte of it: the run is refused in one line, or goes on as what it is."""
    path, refused = folder / "run.json", 0
    original = path.read_bytes()
    places = range(0, len(original), 8)
    for place in places:
        path.write_bytes(original[:place] + bytes([original[place] ^ 1]) + original[place + 1 :])
        told = ""
        try:
            assert_same_run(fit(trainer, folder=folder, resume=True), trained[0])
        except ValueError as error:
            told = str(error)
        assert not told or told.endswith("run.json is damaged: take it from a copy, or give another folder")
        refused += bool(told)
    assert refused > len(places) / 2
    print(f"{len(places)} trials: {refused} refused")


# ---- checksums by themselves


def test_sums_are_those_of_sha256sum(tmp_path):
    """SHA-256 of "abc", from FIPS 180-4."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"abc")
    write_sums(tmp_path)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  deep/file\n"
    assert damage(tmp_path) is None
    (tmp_path / "more").write_bytes(b"")
    assert damage(tmp_path) == "more is not in SHA256SUMS"
    (tmp_path / "more").unlink()
    sums = (tmp_path / "SHA256SUMS").read_bytes()
    for changed in (sums[:-1], sums + b"\n", sums[:-1] + b"\v", sums + b"\xff"):
        (tmp_path / "SHA256SUMS").write_bytes(changed)
        assert damage(tmp_path) is not None
    (tmp_path / "SHA256SUMS").write_bytes(b"")
    assert damage(tmp_path) == "deep/file is not in SHA256SUMS"
    (tmp_path / "SHA256SUMS").unlink()
    assert damage(tmp_path) == "SHA256SUMS is missing"


def test_a_record_knows_whether_it_changed():
    record = {"a": [1, 0.1, None], "b": {"c": "é"}}
    written = json.loads(json.dumps(sealed(record)))
    assert list(written) == ["a", "b", "sha256"]
    assert unsealed(written) == unsealed(record) == record
    with pytest.raises(ValueError, match="it has changed since it was written"):
        unsealed(written | {"a": [1, 0.2, None]})
