"""A sweep is its single runs, bit for bit; killed, it goes on and trains nothing twice."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ntk_analysis import cli, data
from ntk_analysis.training.dataset import hold_out
from ntk_analysis.training.loop import Trainer, fit
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import read_runs
from ntk_analysis.training.runs import train
from ntk_analysis.training.sweep import Grid, sweep

SMALL = Recipe(depth=2, width=16, min_fan_in=2, batch=32, epochs=2)
RATES, SEEDS = (0.01, 0.1), (0, 3)
GRID = Grid(SMALL, RATES, SEEDS, ("mimic_norm",))


@pytest.fixture(scope="module")
def digits():
    return hold_out(data.load_digits().subset(200, 0))


@pytest.fixture(scope="module")
def trainer(digits):
    return Trainer(replace(SMALL, normalization="mimic_norm"), digits)


@pytest.fixture(scope="module")
def swept(digits, tmp_path_factory):
    """A sweep of the grid: its table, its curves as they came, and its folder, which tests copy."""
    curves: list[Any] = []
    folder = tmp_path_factory.mktemp("swept")
    return sweep(GRID, digits, folder=folder, each=curves.append), curves, folder


@pytest.fixture
def folder(swept, tmp_path):
    """A copy of the sweep's folder, to be changed."""
    return shutil.copytree(swept[2], tmp_path / "swept")


def numbers(epochs):
    """Epochs without the time they took."""
    return [replace(epoch, seconds=0.0) for epoch in epochs]


@pytest.mark.full  # trains each of them again
def test_runs_one_after_another_are_single_runs_bit_for_bit(digits, swept):
    found, curves, _ = swept
    assert [(curve.recipe.learning_rate, curve.recipe.seed) for curve in curves] == [
        (rate, seed) for rate in RATES for seed in SEEDS
    ]
    last = curves[-1]
    assert numbers(last.epochs) == numbers(fit(Trainer(last.recipe, digits)).epochs)
    # the table has them in the order of the grid
    for index, curve in enumerate(curves):
        place = (0, *divmod(index, 2))
        assert list(found.train_accuracy[place]) == [epoch.train_accuracy for epoch in curve.epochs]
        assert list(found.test_accuracy[place]) == [epoch.test_accuracy for epoch in curve.epochs]
    assert found.train_accuracy.shape == found.test_accuracy.shape == (1, 2, 2, 2)
    np.testing.assert_array_equal(found.best(epochs=1), found.test_accuracy[..., 0])
    np.testing.assert_array_equal(found.best("train"), found.train_accuracy.max(-1))
    assert not found.diverged_at.any()


@pytest.mark.full  # one after another, bit for bit, is shown by default
def test_runs_at_once_are_single_runs_to_rounding(trainer):
    """Three runs by two: the last group is filled up. Ten steps at rate 0.01 do not amplify roundings by much."""
    recipes = [replace(trainer.recipe, learning_rate=0.01, seed=seed) for seed in (0, 1, 2)]
    (one, two), (three,) = train(trainer, recipes, 2)
    for together, (alone,) in zip((one, two, three), train(trainer, recipes, 1), strict=True):
        assert together.recipe == alone.recipe
        for found, expected in zip(together.epochs, alone.epochs, strict=True):
            # float32 sums in another order, some 10 of them a step, for 10 steps
            np.testing.assert_allclose(found.train_loss, expected.train_loss, rtol=1e-5)
            np.testing.assert_allclose(found.test_loss, expected.test_loss, rtol=1e-5)
            np.testing.assert_allclose(found.last_bn_variance, expected.last_bn_variance, rtol=1e-5)


def test_divergence_is_recorded(digits, tmp_path):
    grid = Grid(replace(SMALL, depth=1), (0.01, 1e30), (0,), ("none",))
    found = sweep(grid, digits, folder=tmp_path)
    np.testing.assert_array_equal(found.diverged_at, [[[0], [1]]])
    assert found.train_accuracy[0, 0].all()
    assert not found.test_accuracy[0, 1, 0, 1:].any()
    seen: list[Any] = []
    again = sweep(grid, digits, folder=tmp_path, each=seen.append)
    assert [len(curve.epochs) for curve in seen] == [2, 1], "a run that diverged is finished"
    np.testing.assert_array_equal(again.test_accuracy, found.test_accuracy)
    at_once = sweep(grid, digits, together=2)
    np.testing.assert_array_equal(at_once.diverged_at, found.diverged_at)


def test_only_what_is_not_there_is_trained(digits, swept, folder, monkeypatch):
    found, _, _ = swept
    lines = (folder / "runs.jsonl").read_text()
    assert lines.count("\n") == 4
    monkeypatch.setattr("ntk_analysis.training.runs.Trainer", None)  # whoever trains now fails
    again = sweep(GRID, digits, folder=folder)
    np.testing.assert_array_equal(again.train_accuracy, found.train_accuracy)
    shorter = sweep(replace(GRID, recipe=replace(SMALL, epochs=1), seeds=(3,)), digits, folder=folder)
    np.testing.assert_array_equal(shorter.test_accuracy, found.test_accuracy[:, :, 1:, :1])
    for other in (replace(GRID, seeds=(4,)), replace(GRID, recipe=replace(SMALL, epochs=3))):
        with pytest.raises(TypeError, match="NoneType"):
            sweep(other, digits, folder=folder)
    with pytest.raises(TypeError, match="NoneType"):
        sweep(GRID, hold_out(data.load_digits().subset(200, 1)), folder=folder)
    assert (folder / "runs.jsonl").read_text() == lines


def test_what_a_kill_leaves_of_a_line_is_cut_off(digits, swept, folder):
    whole, _, _ = swept
    path = folder / "runs.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:2]) + kept[2][:100])
    assert len(read_runs(folder)) == 2
    again = sweep(GRID, digits, folder=folder)
    np.testing.assert_array_equal(again.train_accuracy, whole.train_accuracy)
    assert path.read_text().startswith("".join(kept[:2]))
    assert path.read_text().count("\n") == len(read_runs(folder)) == 4


def changed(*path, to):
    """A change of a line of runs.jsonl, which is a run: the value at a path of it, without its checksum."""

    def change(record):
        del record["sha256"]
        place = record
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return change


WRONG = {
    "accuracy of 365 %": (changed("epochs", 1, "test_accuracy", to=3.65), r"got test_accuracy=3.65 in epoch 2: .*0, 1"),
    "accuracy below 0": (changed("epochs", 0, "train_accuracy", to=-0.1), "got train_accuracy=-0.1 in epoch 1"),
    "accuracy NaN": (changed("epochs", 1, "test_accuracy", to="nan"), "got test_accuracy=nan in epoch 2"),
    "accuracy true": (changed("epochs", 1, "test_accuracy", to=True), "got test_accuracy=True"),
    "accuracy a text": (changed("epochs", 1, "test_accuracy", to="0.5"), "got test_accuracy='0.5'"),
    "accuracy null": (changed("epochs", 1, "test_accuracy", to=None), "got test_accuracy=None"),
    "loss NaN": (changed("epochs", 0, "train_loss", to="nan"), "got train_loss=nan in epoch 1: .*did not diverge"),
    "loss of JavaScript": (changed("epochs", 0, "test_loss", to=float("nan")), "got test_loss=nan in epoch 1"),
    "rate infinite": (changed("epochs", 0, "learning_rate", to="inf"), "got learning_rate=inf"),
    "rate too large": (changed("epochs", 0, "learning_rate", to=10**400), ""),
    "variance a text": (changed("epochs", 0, "last_bn_variance", to="x"), "got last_bn_variance='x'"),
    "variances of texts": (changed("epochs", 0, "last_bn_variance", to=["x"]), "got last_bn_variance='x'"),
    "time negative": (changed("epochs", 0, "seconds", to=-1), "got seconds=-1"),
    "time infinite": (changed("epochs", 0, "seconds", to="inf"), "got seconds=inf"),
    "diverged a text": (changed("epochs", 0, "diverged", to="no"), "diverged='no'"),
    "diverged before the end": (changed("epochs", 0, "diverged", to=True), "it has 2 epochs, its recipe 2"),
    "epoch a fraction": (changed("epochs", 0, "epoch", to=1.0), "got epoch=1.0"),
    "epoch twice": (changed("epochs", 1, "epoch", to=1), "its epochs are not 1, 2, ..."),
    "epochs missing": (changed("epochs", to=[]), "its epochs are not 1, 2, ..."),
    "epochs too few": (changed("recipe", "epochs", to=3), "it has 2 epochs, its recipe 3"),
    "epochs no list": (changed("epochs", to=7), ""),
    "epoch no object": (changed("epochs", 0, to=7), "an epoch has the fields epoch, "),
    "field of an epoch unknown": (changed("epochs", 0, "loss", to=1.0), "an epoch has the fields epoch, "),
    "field of a recipe unknown": (changed("recipe", "colour", to="red"), "not a recipe: got colour"),
    "recipe refused": (changed("recipe", "batch", to=-1), "got batch=-1"),
    "name in a recipe a list": (changed("recipe", "model", to=[]), r"got model=\[\]: expected a str"),
    "choice in a recipe a text": (changed("recipe", "augment", to="no"), "got augment='no': expected a bool"),
    "recipe no object": (changed("recipe", to="x"), "not a recipe: got str"),
    "field unknown": (changed("note", to="x"), "a run has the fields data, epochs, made by, recipe"),
    "data no object": (changed("data", to="x"), ""),
    "data without digest": (changed("data", to={}), ""),
    "digest no digest": (changed("data", "sha256", to="abc"), "got 'abc' as SHA-256 of its data"),
    "versions no object": (changed("made by", to=[]), ""),
    "versions numbers": (changed("made by", to={"jax": 1}), "as versions and devices, expected texts"),
    "checksum of another": (lambda record: record["epochs"][1].update(test_accuracy=0.5), "has changed since"),
}
BROKEN = {
    "text": b"hello",
    "empty": b"",
    "half": b'{"recipe": {',
    "number": b"7",
    "bytes": b"\xff\xfe",
    "deep": b"[" * 10**5,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_sweep_writes_is_told_by_line(name, folder):
    change, told = WRONG[name]
    path = folder / "runs.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[2])
    change(record)
    path.write_text("\n".join([*lines[:2], json.dumps(record), lines[3]]) + "\n")
    with pytest.raises(ValueError, match=f"runs.jsonl: line 3 is no finished run.*{told}") as error:
        read_runs(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_are_told_by_line(name, folder):
    path = folder / "runs.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], BROKEN[name], lines[3]]) + b"\n")
    with pytest.raises(ValueError, match=r"runs.jsonl: line 3 is no finished run"):
        read_runs(folder)


def test_lines_without_checksum_are_read(folder):
    """As those of recorded studies, and lines written by hand."""
    path = folder / "runs.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    before = read_runs(folder)
    for record in records:
        del record["sha256"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_runs(folder) == before


def test_a_second_sweep_is_refused(digits, folder):
    def second(curve):
        with pytest.raises(BlockingIOError, match=r"another process writes to .*: wait until it ends, or give another"):
            sweep(GRID, digits, folder=folder)

    sweep(GRID, digits, folder=folder, each=second)


@pytest.mark.full  # trains again
def test_a_full_disk_keeps_the_runs(digits, swept, folder, monkeypatch):
    path = folder / "runs.jsonl"
    kept = "".join(path.read_text().splitlines(keepends=True)[:2])
    path.write_text(kept)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ntk_analysis.common.files.os.fsync", full)
    with pytest.raises(OSError, match=r"no space left for runs in .*runs.jsonl: those that are there stay") as error:
        sweep(GRID, digits, folder=folder)
    assert error.value.errno == errno.ENOSPC
    assert path.read_text().startswith(kept)


def without_times(path):
    """Lines of a file of runs by recipe, without what differs between two runs of the same."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for run in found:
        del run["sha256"]
        for epoch in run["epochs"]:
            del epoch["seconds"]
    return {json.dumps(run["recipe"], sort_keys=True): run for run in found}, len(found)


COMMAND = "--data images.npz --depth 1 --width 16 --batch 32 --epochs 2 --normalization none"


@pytest.mark.full
def test_a_killed_sweep_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = data.load_digits().subset(200, 0)
    np.savez("images.npz", images=images.images, labels=images.labels)
    command = [sys.executable, "-m", "ntk_analysis.cli", "sweep", *COMMAND.split(), "--seeds", "50"]
    process = subprocess.Popen(
        [*command, "--out", "killed", "--lr", "1e-3:1:2000"],
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},  # as the tests have it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    runs, deadline = tmp_path / "killed" / "runs.jsonl", time.monotonic() + 300
    while not (runs.exists() and runs.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = runs.read_bytes().count(b"\n")
    seeds = str(done + 2)  # all of the first rate's that are there, and two that are not
    assert done < 48, "the machine is faster than this test"
    for folder in ("killed", "whole"):
        arguments = ["sweep", *COMMAND.split(), "--lr", "1e-3", "--seeds", seeds, "--out", folder]
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, capsys.readouterr().err
        out = capsys.readouterr().out
        assert "best test accuracy in the first 2 epochs" in out
        assert "\n0.001" in out
        assert (tmp_path / folder / "epochs.png").exists()
    killed, whole = (without_times(tmp_path / folder / "runs.jsonl") for folder in ("killed", "whole"))
    assert killed == whole
    assert killed[1] == len(killed[0]) == done + 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rates": ()}, "got learning_rates=\\(\\): expected one or more, each once"),
        ({"learning_rates": (0.1, 0.1)}, "each once"),
        ({"learning_rates": (-0.1,)}, "got learning_rate=-0.1"),
        ({"seeds": (-1,)}, "got seed=-1"),
        ({"normalizations": ("none", "groups")}, "unknown normalization 'groups'"),
    ],
)
def test_grids_that_make_no_sense(changes, told):
    with pytest.raises(ValueError, match=told):
        replace(GRID, **changes)


def test_folders_and_numbers_that_make_no_sense(digits, tmp_path):
    with pytest.raises(ValueError, match="got together=0"):
        sweep(GRID, digits, together=0)
    with pytest.raises(ValueError, match="got together=2 for vgg11: runs of convolutions"):
        sweep(replace(GRID, recipe=Recipe(model="vgg11")), digits, together=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file, expected a folder"):
        sweep(GRID, digits, folder=tmp_path / "file")
    (tmp_path / "runs.jsonl").write_text('{"recipe": {}}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl: line 1 is no finished run \(a run has the fields .*; delete it"):
        sweep(GRID, digits, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--lr 1:0.1:3", "got --lr 1:0.1:3: expected FIRST:LAST:POINTS"),
        ("--lr 0:1:3", "expected FIRST:LAST:POINTS"),
        ("--lr fast", "or rates as 0.01,0.1"),
        ("--first 3 --epochs 2", "got --first 3: expected at most --epochs 2"),
        ("--normalization fixup", "fixup is for residual networks"),
    ],
)
def test_options_that_make_no_sense(options, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ntk-analysis", "sweep", *options.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error
