"""The paper's tables and figures about training, trained again: grids, ours beside the printed numbers, the command."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ntk_analysis import cli
from ntk_analysis.training.beside import Beside, as_text, beside
from ntk_analysis.training.memory import TABLE_1
from ntk_analysis.training.published import EXPERIMENTS, Accuracy
from ntk_analysis.training.sweep import Table

COMMAND = ["reproduce", "table2", "--quick", "--seeds", "2"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_grids_are_the_papers(name):
    experiment = EXPERIMENTS[name]
    for model in experiment.models:
        grid = experiment.grid(model, seeds=3)
        assert (grid.recipe.model, grid.recipe.epochs, grid.seeds) == (model, experiment.epochs, (0, 1, 2))
        assert (grid.recipe.batch, grid.recipe.weight_decay) == (128 if model == "resnet50" else 256, 5e-4)
        printed = {key[1:] for key in experiment.printed if key[0] == model}
        runs = {(kind, rate) for kind in grid.normalizations for rate in grid.learning_rates}
        assert runs == printed or not experiment.printed


def test_the_tables_have_the_networks_and_batches_of_the_memory_tables():
    table = EXPERIMENTS["table1"]
    assert table.models == tuple(row.model for row in TABLE_1)
    assert all(table.grid(row.model, 1).recipe.batch == row.batch for row in TABLE_1)


def test_numbers_of_the_paper():
    two, one = EXPERIMENTS["table2"].printed, EXPERIMENTS["table1"].printed
    assert (two["vgg16", "mimic_norm", 0.05].percent, two["vgg16", "batch_norm", 1.0].percent) == (49.53, 3.93)
    assert one["resnet18", "mimic_norm", 0.1] == Accuracy(74.96, 0.14)
    assert (len(two), len(one)) == (28, 14)


def cell(*ours, printed=None):
    return Beside("vgg16", "none", 0.1, ours, printed)


def test_differences_are_in_standard_errors_of_both():
    both = cell(70.0, 72.0, printed=Accuracy(72.0, 0.5))
    assert (both.mean, both.error) == (71.0, 1.0)
    assert both.apart == pytest.approx(-1 / math.hypot(1, 0.5))
    assert cell(70.0, 72.0, printed=Accuracy(72.0)).apart == -1
    assert cell(70.0, printed=Accuracy(72.0, 0.5)).apart is None  # one seed has no error
    assert cell(1.0, 1.0, printed=Accuracy(1.0)).apart is None
    assert cell(70.0, 72.0).apart is None
    text = as_text([both, cell(70.0, printed=Accuracy(72.0, 0.5)), cell(1.0, 3.0)]).splitlines()
    assert text[1].endswith("71.00 +- 1.00   72.00 +- 0.50  -1.00 (-0.9 standard errors)")
    assert text[2].endswith("70.00 (1 seed)  72.00 +- 0.50  -2.00")
    assert text[3].endswith("2.00 +- 1.00")


def test_cells_of_a_table_are_its_best_accuracies():
    grid = EXPERIMENTS["table2"].grid("vgg16", seeds=2, epochs=3)
    accuracy = np.random.default_rng(0).uniform(size=(4, 7, 2, 3))
    found = beside(EXPERIMENTS["table2"], "vgg16", Table(grid, accuracy, accuracy, np.zeros((4, 7, 2)), {}))
    assert [(one.normalization, one.learning_rate) for one in found[:8]][6:] == [("none", 1.0), ("weight_mean", 0.01)]
    assert found[7].ours == tuple(100 * accuracy[1, 0].max(-1))
    assert found[7].printed == Accuracy(34.81)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder and returns its status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_the_plan_trains_nothing(run):
    status, out, _ = run(*COMMAND, "--plan")
    assert status == 0
    assert "vgg16: 16 runs of 2 epochs (none, weight_mean, mimic_norm, batch_norm; rates 0.01, 1; 2 seeds), 0" in out
    assert "16 runs to train, into out/table2" in out
    assert not Path("out").exists()


def test_table_3_is_memory_and_says_why(run):
    status, out, _ = run("reproduce", "table3")
    assert status == 0
    assert "accuracies need ImageNet" in out
    assert "resnet50, batch 256: batch_norm 27083, mimic_norm 22489, fixup 29267; MimicNorm saves 17.0 %" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["table2"], "reproduce needs --data FOLDER"),
        (["table2", "--data", "nowhere"], "no data set 'nowhere'"),
        (["table2", "--quick", "--models", "vgg19"], "got model 'vgg19': Table 2 has vgg16"),
        (["table9"], "Invalid value for"),
    ],
)
def test_bad_arguments_are_one_line(run, arguments, told):
    status, _, errors = run("reproduce", *arguments)
    assert status == 2
    assert told in errors
    assert errors.count("\n") == 1


@pytest.mark.full  # trains in processes of its own
def test_a_killed_reproduction_goes_on(tmp_path):
    """SIGKILL behind the first finished runs; the same command trains the others only, and shows all."""
    command = [sys.executable, "-m", "ntk_analysis.cli", *COMMAND, "--out", str(tmp_path / "t")]
    runs = tmp_path / "t" / "vgg16" / "runs.jsonl"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as killed:
        while not (runs.exists() and runs.read_bytes().count(b"\n") >= 3):
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    kept = runs.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert runs.read_bytes().startswith(kept)
    assert runs.read_bytes().count(b"\n") == 16
    done = kept.count(b"\n")
    assert f"{done} of them done" in again.stdout
    assert f"{16 - done} runs to train" in again.stdout
    assert "vgg16    batch_norm     1" in again.stdout
    assert (tmp_path / "t" / "vgg16" / "learning_rates.png").stat().st_size > 10_000
