"""The GPU check without a GPU: what it refuses, and that its measurements run in small sizes."""

import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ntk_analysis.common.lock import locked

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The script as a module, with a lock of its own and without cards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = importlib.import_module("gpu")
    monkeypatch.setattr(script, "computing", list)
    monkeypatch.setattr(script, "card", dict)
    return script


def run(gpu, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
    return gpu.main()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: PART"),
        (["speed"], "invalid choice: 'speed'"),
        (["memory", "--dtype", "float16"], "invalid choice: 'float16'"),
    ],
)
def test_arguments_that_make_no_sense(arguments, told, gpu, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(gpu, monkeypatch, *arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_a_card_that_is_taken_is_refused(gpu, monkeypatch, capsys, tmp_path):
    with locked(tmp_path / "ntk-analysis-gpu"):
        assert run(gpu, monkeypatch, "memory", "--small") == 2
    assert "another benchmarks/gpu.py measures on this machine" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "computing", lambda: ["process 7, python"])
    assert run(gpu, monkeypatch, "memory", "--small") == 2
    assert "got a card with process 7, python on it" in capsys.readouterr().err


def test_results_are_appended_and_what_has_no_time_is_told(gpu, monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "gpu.json"
    monkeypatch.setattr(gpu, "inside", lambda part, unit, seconds: {"part": part} | unit)
    assert run(gpu, monkeypatch, "sweeps", "--small", "--only", "turn", "--out", out) == 0
    monkeypatch.setattr(gpu, "LIMIT", 0.0)
    assert run(gpu, monkeypatch, "sweeps", "--small", "--out", out) == 0
    first, second = json.loads(out.read_text())
    assert first["results"]["in turn"]["way"] == "in turn"
    assert first["results"].keys() == {"in turn"}
    assert second["results"]["at once"] == {"not measured": "the 0 s of sweeps are over"}
    assert "sweeps, in turn: " in capsys.readouterr().out
    assert run(gpu, monkeypatch, "memory", "--only", "alexnet", "--out", out) == 2
    assert "got --only 'alexnet': memory has no measurement of this name" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["tests", "throughput", "memory", "kernels", "sweeps"])
def test_every_part_has_its_measurements(part, gpu):
    module = importlib.import_module(gpu.PARTS[part])
    for small in (False, True):
        assert module.units(small, "bfloat16")


@pytest.mark.full  # processes that compile
def test_small_sizes_on_this_device(tmp_path):
    out = tmp_path / "gpu.json"
    for part, only in {"tests": "", "kernels": "straight", "memory": "mimic", "throughput": "mimic"}.items():
        call = [sys.executable, FOLDER / "gpu.py", part, "--small", "--only", only, "--out", out]
        subprocess.run(call, check=True, capture_output=True)
    entries = json.loads(out.read_text())
    found = {entry["part"]: next(iter(entry["results"].values())) for entry in entries}
    assert found["tests"]["counts"] == {"passed": 1}
    assert not found["tests"]["failed"]
    assert found["kernels"]["over_product"] > 0
    assert 0 < found["memory"]["temporaries_mib"] < 10
    assert found["throughput"]["images_per_s"] > 0
    assert all(entry["card"] and entry["jax"] and entry["date"] for entry in entries)
