"""A run that is killed goes on to the bits of the one that was not; runs of different recipes or images never meet."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntk_analysis import cli, data
from ntk_analysis.training.checkpoint import run_folder
from ntk_analysis.training.dataset import hold_out
from ntk_analysis.training.loop import Trainer, fit
from ntk_analysis.training.recipe import Recipe

RECIPE = Recipe(
    depth=2, width=16, min_fan_in=2, normalization="mimic_norm", batch=32, epochs=3, warmup_epochs=1, decay_at=(2,)
)
OPTIONS = "--data images.npz --depth 2 --width 16 --min-fan-in 2 --normalization mimic_norm --batch 32 --warmup 1"
OPTIONS += " --decay-at 2"


@pytest.fixture(scope="module")
def digits():
    return hold_out(data.load_digits().subset(200, 0))


@pytest.fixture(scope="module")
def trainer(digits):
    return Trainer(RECIPE, digits)


@pytest.fixture(scope="module")
def part(digits):
    """For an epoch less, with programs of its own."""
    return Trainer(replace(RECIPE, epochs=2), digits)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Calls `ntk-analysis train` in this process and returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    images = data.load_digits().subset(200, 0)
    np.savez("images.npz", images=images.images, labels=images.labels)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "train", *OPTIONS.split(), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def lines(folder):
    """The metrics of a folder, without the times."""
    found = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in each.items() if name != "seconds"} for each in found]


@pytest.mark.full
def test_a_killed_run_goes_on_to_the_same_bits(run, tmp_path):
    command = [sys.executable, "-m", "ntk_analysis.cli", "train", *OPTIONS.split(), "--epochs", "1000000"]
    process = subprocess.Popen(
        [*command, "--out", "killed"],
        cwd=tmp_path,
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},  # as the tests have it
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    metrics, deadline = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 300
    # the second line stands behind the first checkpoint
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    epochs = metrics.read_bytes().count(b"\n") + 3
    status, out, err = run("--out", "killed", "--epochs", epochs, "--resume")
    assert status == 0, err
    assert "epoch 1/" not in out, "it began again"
    assert run("--out", "whole", "--epochs", epochs)[0] == 0
    assert lines("killed") == lines("whole")
    assert len(lines("whole")) == epochs


@pytest.mark.full  # kills
def test_a_kill_before_the_checkpoint(trainer, part, tmp_path):
    """The line of an epoch without its checkpoint, and half of another, are done again."""
    whole = fit(trainer, folder=tmp_path / "whole")
    fit(part, folder=tmp_path / "part")
    metrics = tmp_path / "part" / "metrics.jsonl"
    written = metrics.read_text()
    metrics.write_text(written + written.splitlines()[0].replace('"epoch": 1', '"epoch": 3') + '\n{"epoch": 4, "lear')
    seen: list[Any] = []
    run = fit(trainer, folder=tmp_path / "part", resume=True, each=seen.append)
    assert [each.epoch for each in seen] == [3]
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    assert [replace(each, seconds=0.0) for each in run.epochs] == [replace(each, seconds=0.0) for each in whole.epochs]
    again = fit(trainer, folder=tmp_path / "part", resume=True, each=seen.append)
    assert (len(seen), again.epochs) == (1, run.epochs), "a finished run is finished"
    with pytest.raises(ValueError, match="is at epoch 3 already: give epochs=3 or more"):
        fit(part, folder=tmp_path / "part", resume=True)
    metrics.write_text("")
    with pytest.warns(UserWarning, match="metrics.jsonl is damaged: written anew up to epoch 3"):
        fit(trainer, folder=tmp_path / "part", resume=True)
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")


def test_other_runs_are_refused(trainer, part, tmp_path):
    fit(part, folder=tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="holds a run: resume it, or give another folder"):
        fit(trainer, folder=tmp_path / "run")
    other = Trainer(replace(RECIPE, learning_rate=0.2, seed=1), trainer.dataset)
    with pytest.raises(ValueError, match=r"learning_rate is 0.1 there and 0.2 here; seed is 0 there and 1 here"):
        fit(other, folder=tmp_path / "run", resume=True)
    images = Trainer(RECIPE, hold_out(data.load_digits().subset(200, 1)))
    with pytest.raises(ValueError, match=r"data: other images \(digits there, digits here\)"):
        fit(images, folder=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        fit(trainer, folder=tmp_path / "file")
    with pytest.raises(FileExistsError, match="is not the folder of a run"):
        fit(trainer, folder=tmp_path)


@pytest.mark.full  # the same through the command line
def test_the_command(run):
    status, out, err = run("--epochs", 2, "--out", "run")
    assert (status, err) == (0, "")
    told = out.splitlines()
    assert told[0].startswith("data     images.npz: 160 images 8 x 8 x 1 to train on, 40 to test on, 10 classes")
    assert told[1] == "network  mlp depth 2 width 16, mimic_norm: 1,482 parameters"  # 65*16 + 17*16 + 17*10
    assert told[2].startswith("steps    2 epochs of 5 = 10 steps of 32 images, sgd, learning rate 0.1")
    assert "for the backward pass" in told[3]
    assert told[4].startswith("epoch 1/2  loss ")
    assert "left" in told[4]
    assert told[-1].startswith("test accuracy ")
    assert told[-1].endswith("; in run")
    status, _, err = run("--epochs", 2, "--out", "run")
    assert (status, err) == (2, "error: run holds a run: resume it, or give another folder\n")


@pytest.mark.full
def test_the_command_tells_of_divergence(run):
    status, out, err = run("--lr", 1e6, "--normalization", "weight_mean")
    assert (status, err) == (0, "")
    assert "DIVERGED in epoch 1: training loss" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume"], "--resume needs --out DIR"),
        (["--keep-every", "2"], "--keep-every needs --out DIR"),
        (["--decay-at", "3,x"], "got --decay-at '3,x': expected whole numbers"),
        (["--momentum", "2"], "got momentum=2.0"),
        (["--data", "nothing"], "no data set 'nothing'"),
        (["--paper", "--batch", "2"], "has its own depth"),
    ],
)
def test_errors_are_one_line(run, arguments, told):
    status, _, err = run(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt; a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.full
@pytest.mark.usefixtures("interruptible")
def test_interrupted_at_any_time_of_a_checkpoint(trainer, digits, tmp_path):
    """Orbax's threads write on behind a KeyboardInterrupt: into a folder that is being removed by then."""
    state, record = trainer.init(0), fit(trainer).epochs[0]
    main = threading.main_thread().ident
    with run_folder(tmp_path / "run", replace(RECIPE, epochs=100), digits, resume=False) as folder:
        folder.save(state, record)
        begun = time.monotonic()
        folder.save(state, replace(record, epoch=2))
        whole, stopped, done = time.monotonic() - begun, 0, 2
        for share in np.linspace(0, 1, 40):
            timer = threading.Timer(share * whole, signal.pthread_kill, (main, signal.SIGINT))
            try:
                timer.start()
                folder.save(state, replace(record, epoch=done + 1))
                timer.join()
            except KeyboardInterrupt:
                stopped += 1
            assert not list(folder.checkpoints.glob(".writing-*"))
            found = len(folder.restore(state)[1])
            assert found in (done, done + 1)
            done = found
    assert stopped > 20
