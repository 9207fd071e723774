"""The command line as a user meets it: real processes, real files."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ntk_analysis import __version__, cli
from ntk_analysis.cli.output import json_text
from ntk_analysis.figures.names import NAMES, WITHOUT

from .tiers import full


@pytest.fixture
def run(monkeypatch, capsys):
    """Calls the command line in this process and returns (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (12, 5, 5), dtype=np.uint8))
    return path


def test_version_and_help(run):
    assert run("--version") == (0, f"ntk-analysis {__version__}\n", "")
    for arguments in (
        ["--help"],
        ["figures", "--help"],
        ["kernel", "--help"],
        ["meanfield", "--help"],
        ["phase", "--help"],
        ["-h"],
        ["check", "-h"],
        [],
    ):
        status, out, _ = run(*arguments)
        assert status == 0
        assert "Usage: ntk-analysis" in out


@pytest.mark.full
def test_the_plan_of_a_kernel_writes_nothing(run, images, tmp_path):
    status, out, _ = run("kernel", images, "--out", tmp_path / "k.npz", "--plan")
    assert status == 0
    assert out.startswith("12 x 12 inputs pair by pair: ")
    assert not (tmp_path / "k.npz").exists()


def test_kernel_with_defaults_alone(run, images, tmp_path):
    status, out, _ = run("kernel", images, "--out", tmp_path / "k.npz")
    assert status == 0
    assert "condition number" in out
    with np.load(tmp_path / "k.npz") as saved:
        record = json.loads(str(saved["record"]))
        assert saved["nngp"].shape == saved["ntk_scaled"].shape == (12, 12)
        assert saved["nngp"].dtype == np.float64
        np.testing.assert_allclose(np.diag(saved["nngp"]), 1, rtol=1e-12)
        eigenvalues = np.linalg.eigvalsh(saved["ntk_scaled"])
        assert record["ntk"]["condition_number"] == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-9)
    assert record["images"] == 12
    read_as_the_page_says(tmp_path, record, eigenvalues)


def read_as_the_page_says(folder, record, eigenvalues):
    """What docs/commands.md tells of kernel.npz, and its lines that read it."""
    page = (Path(__file__).parent.parent / "docs" / "commands.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (folder / "k.npz").rename(folder / "kernel.npz")
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(compile(code, "commands.md", "exec"), names)
        with names["arrays"] as arrays:
            told = {name for name in arrays.files if f"`{name}`" in page}
            assert told >= {
                "nngp",
                "ntk_scaled",
                "nngp_eigenvalues_scaled",
                "ntk_eigenvalues_scaled",
                "log_scale",
                "record",
            }
            np.testing.assert_allclose(arrays["ntk_eigenvalues_scaled"], eigenvalues[::-1], rtol=1e-9, atol=1e-12)
            ntk = arrays["ntk_scaled"] * np.exp(arrays["log_scale"])
    np.testing.assert_allclose(names["kernel"].ntk, ntk, rtol=1e-12)
    assert names["record"] == record


@pytest.mark.full
def test_the_measured_error_of_a_large_batch_is_told(run, images, tmp_path):
    line = ["kernel", images, "--out", tmp_path / "k.json", "--normalization", "batch", "--depth", 1]
    status, out, _ = run(*line, "--batch-norm", "large_batch")
    assert status == 0
    error = json.loads((tmp_path / "k.json").read_text())["approximation_error"]
    assert f"measured error of the kernel: {error:.1g}, relative to its largest entry" in out
    assert 0 < error < 1
    assert "measured error" not in run(*line)[1]
    assert "operations" in run(*line, "--batch-norm", "large_batch", "--plan")[1]


def test_kernel_as_json(run, images, tmp_path):
    out = tmp_path / "deeper" / "k.json"
    status, _, _ = run(
        "kernel", images, "--out", out, "--normalization", "weight-centering", "--depth", 3, "--count", 5
    )
    assert status == 0
    record = json.loads(out.read_text())
    assert record["images"] == 5
    assert len(record["ntk_eigenvalues_scaled"]) == 5


@pytest.mark.full
def test_raw_numbers_are_not_scaled(run, tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 6))
    np.save(tmp_path / "x.npy", x)
    run("kernel", tmp_path / "x.npy", "--out", tmp_path / "k.npz", "--raw", "--activation", "identity", "--depth", 1)
    with np.load(tmp_path / "k.npz") as saved:
        np.testing.assert_allclose(saved["nngp"], x @ x.T / 6, atol=1e-12)


def test_meanfield_prints_the_table(run, tmp_path):
    status, out, _ = run("meanfield", "--normalization", "weight_mean", "--out", tmp_path / "m.json")
    assert status == 0
    assert "1.46694" in out
    assert "chaotic" in out
    record = json.loads((tmp_path / "m.json").read_text())
    assert record["chi_1"] == pytest.approx(1 / (1 - 1 / np.pi), rel=1e-12)
    assert (record["normalization"], record["phase"], record["b_var"]) == ("weight_mean", "chaotic", 0.0)


@pytest.mark.full
def test_json_has_numbers(run, tmp_path):
    """Where the table has words around a number, and where a number is infinite."""
    run("meanfield", "--normalization", "bn", "--batch-size", 16, "--out", tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["batch_size"] == 16
    assert record["condition_number"] == record["chi_1"] / record["e1"]
    assert record["eigenvalues"].keys() == {"correlations", "variances", "scale"}
    run("meanfield", "--activation", "tanh", "--w-var", 2, "--out", tmp_path / "t.json")
    record = json.loads((tmp_path / "t.json").read_text())
    assert [point["stable"] for point in record["fixed_points"]] == [False, True, False]
    assert json.loads(json_text({"a": [np.inf, 1.0], "b": {"c": np.nan}})) == {"a": [None, 1.0], "b": {"c": None}}


def test_meanfield_says_where_no_variance_is_kept(run):
    status, out, _ = run("meanfield", "--w-var", "2.5")
    assert status == 0
    assert "without bound" in out


def test_phase_prints_a_map(run, tmp_path):
    status, out, _ = run("phase", "--w-var", "0.5:3:6", "--b-var", "0:0.5:3", "--out", tmp_path / "p.npz")
    assert status == 0
    assert "ordered" in out
    with np.load(tmp_path / "p.npz") as saved:
        assert saved["chi_1"].shape == (3, 6)


def test_nothing_of_progress_is_in_a_pipe(run, images, tmp_path):
    status, out, err = run("kernel", images, "--out", tmp_path / "k.npz")
    assert (status, err) == (0, "")
    assert "\r" not in out + err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernel", "IMAGES", "--out", "k.npz"], ["kernel of 12 images", "spectrum of the NNGP", "2/3"]),
        (["memory", "mlp", "--normalization", "none"], ["mlp", "2/2"]),
        *full(
            (["diagnose", "examples/phases.py:chaotic", "--count", "4", "--shuffles", "2"], ["shuffled", "3/3"]),
            (["compare", "--count", "3", "--depth", "1"], ["kernels of both libraries"]),
        ),
    ],
    ids=["kernel", "memory", "diagnose", "compare"],
)
def test_a_terminal_shows_progress_and_erases_it(run, images, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(images.parent)
    (images.parent / "examples").symlink_to(Path(__file__).parent.parent / "examples")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    status, out, err = run(*[str(images) if word == "IMAGES" else word for word in arguments])
    assert status == 0, err
    for part in words:
        assert part in err
        assert part not in out or part == "mlp"


BAD = [
    (["figures", "fig9"], "choose from fig2"),
    (["figures", "fig4", "--data", "foo"], "--data has no effect on fig4"),
    (["figures", "table1", "phase_diagram", "--seed", "3"], "--seed has no effect on table1, phase_diagram"),
    (["figures", "same_kernel", "fig6", "--image-centering", "none"], "--image-centering has no effect on"),
    (["figures", "fig4", "--from-data", "x", "--seed", "3"], "--seed has no effect with --from-data"),
    (["figures", "fig2", "--from-data", "x", "--data", "digits"], "--data has no effect with --from-data"),
    (["figures", "fig2", "--from-data", "x", "--full"], "--full has no effect with --from-data"),
    (["kernel", "IMAGES", "--out", "k.npz", "--seed", "3"], "--seed has no effect without --count"),
    (
        ["kernel", "IMAGES", "--out", "k.npz", "--batch-norm", "large_batch"],
        "--batch-norm has no effect with --normalization none",
    ),
    (["meanfield", "--normalization", "bn", "--b-var", "0.1"], "--b-var has no effect with --normalization bn"),
    (["meanfield", "--normalization", "batch", "--w-var", "2"], "--w-var has no effect with --normalization batch"),
    (["meanfield", "--batch-size", "8"], "it goes with 'batch' only"),
    (["phase", "--normalization", "batch"], "batch normalisation has no phase diagram"),
    (["check", "--list", "--report", "x"], "--report has no effect with --list"),
    (["check", "--list", "--seed", "1"], "--seed has no effect with --list"),
    (["train", "--skip-scale", "authors"], "--skip-scale has no effect with --model mlp, which is no ResNet"),
    (
        ["train", "--model", "resnet18", "--skip-scale", "authors"],
        "--skip-scale has no effect with --normalization none",
    ),
    (["train", "--gain", "2"], "--gain has no effect with --normalization none, which centers no weights"),
    (
        ["train", "--model", "vgg11", "--initialization", "published", "--normalization", "bn", "--gain", "3"],
        "--gain has no effect with --normalization batch_norm: with hidden norms",
    ),
    (["sweep", "--gain", "3", "--normalization", "none,bn"], "--gain has no effect with --normalization none,batch"),
    (
        ["sweep", "--paper", "--classifier", "linear"],
        "--classifier has no effect with --model resnet18, which is no VGG",
    ),
    (["train", "--model", "vgg11", "--architecture", "torchvision"], "--architecture has no effect with --model vgg11"),
    (["sweep", "--initialization", "he"], "--initialization has no effect with --model mlp, which has one only"),
    (
        ["train", "--model", "vgg11", "--normalization", "mimic", "--dense"],
        "--dense has no effect with --model vgg11, which has no hidden dense layer",
    ),
    (["train", "--rotation", "15"], "rotation needs augment"),
    (["sweep", "--warmup-start", "1e-4"], "warmup_start needs warmup_epochs"),
    (["sweep", "--decay-at", "two"], "got --decay-at 'two': expected whole numbers with commas"),
    (["train", "--normalization", "bn", "--min-fan-in", "9"], "--min-fan-in has no effect with --normalization batch"),
    (["train", "--running-variance", "biased"], "--running-variance has no effect with --normalization none"),
    (["train", "--decay-factor", "0.5"], "--decay-factor has no effect without --decay-at"),
    (["train", "--depth", "3", "--model", "vgg16"], "vgg16 has its own depth"),
    (["sweep", "--min-fan-in", "9", "--normalization", "none,bn"], "--min-fan-in has no effect with --normalization"),
    (["sweep", "--width", "8"], "mimic_norm: the mask selects no weights to center: lower min_fan_in"),
    (["memory", "--table1", "--batch", "8"], "--batch is for MODEL"),
    (["figures", "fig4", "--data"], "requires an argument"),
    (["figures", "fig2", "--data", "no-such-folder"], "no such file or folder"),
    (["figures", "fig4", "--from-data", "no-such-folder"], "compute the figure first"),
    (["kernel", "absent.npy", "--out", "k.npz"], "absent.npy"),
    (["kernel", "IMAGES", "--out", "k.txt"], "ending in .npz or .json"),
    (["kernel", "IMAGES"], "--out"),
    (["kernel", "IMAGES", "--out", "k.npz", "--eps", "0.1"], "--eps has no effect with --normalization none"),
    (["kernel", "IMAGES", "--out", "/proc/no/k.npz", "--depth", "3"], "--out: nothing can be written into /proc/no"),
    (["phase", "--out", "/proc/no/k.npz"], "--out: nothing can be written into /proc/no"),
    (["figures", "fig4", "--out", "/proc/no"], "--out: nothing can be written into /proc/no"),
    (["kernel", "IMAGES", "--out", "k.npz", "--depth", "0"], "got depth=0, expected 1 to"),
    (["kernel", "IMAGES", "--out", "k.npz", "--depth", "two"], "--depth"),
    (["kernel", "IMAGES", "--out", "k.npz", "--activation", "rleu"], "choose one of relu"),
    (["kernel", "IMAGES", "--out", "k.npz", "--normalization", "bath"], "choose one of none, weight_mean"),
    (["kernel", "IMAGES", "--out", "k.npz", "--normalization", "batch", "--activation", "tanh"], "no one-dimensional"),
    (["kernel", "IMAGES", "--out", "k.npz", "--normalization", "batch", "--eps", "-1"], "eps=-1"),
    (["meanfield", "--normalization", "batch", "--batch-size", "3"], "batch_size"),
    (["kernel", "IMAGES", "--out", "k.npz", "--w-var", "-1"], "w_var=-1"),
    (["kernel", "IMAGES", "--out", "k.npz", "--count", "99"], "99"),
    (["kernel", "IMAGES", "--out", "k.npz", "--raw", "--image-centering", "dataset"], "contradict"),
    (["meanfield", "--b-var", "1"], "b_var=1"),
    (["meanfield", "--w-var", "nan"], "nan"),
    (["phase", "--w-var", "1:2"], "FIRST:LAST:POINTS"),
    (["phase", "--w-var", "3:2:5"], "FIRST:LAST:POINTS"),
    (["nonsense"], "nonsense"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_errors_are_one_line_and_status_2(run, images, monkeypatch, arguments, words):
    monkeypatch.chdir(images.parent)
    status, _, err = run(*[str(images) if word == "IMAGES" else word for word in arguments])
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert [path.name for path in images.parent.iterdir()] == [images.name]


def test_figures_without_data_read_none():
    """The table of settings that a figure does not look at, against what its module calls."""
    folder = Path(__file__).parent.parent / "figures"
    for name in NAMES:
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        reads = re.search(r"load_(inputs|images|dataset)\(", source) is not None
        assert reads == (name not in WITHOUT["data"]), name
        if name in WITHOUT["seed"]:
            assert "config.seed" not in source
            assert not reads


class Mine(Exception):  # noqa: N818
    """An exception of a user's own class."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Mine("first\nsecond"), "Mine: first second; NTK_ANALYSIS_TRACEBACK=1 shows where"),
        (StopIteration(), "StopIteration; NTK_ANALYSIS_TRACEBACK=1 shows where"),
        (KeyError("w"), "KeyError: 'w'; NTK_ANALYSIS_TRACEBACK=1 shows where"),
        (ValueError("got 3"), "got 3"),
        (ValueError(), "ValueError; NTK_ANALYSIS_TRACEBACK=1 shows where"),
    ],
    ids=["own class", "without words", "no refusal of ours", "refusal", "without words of ours"],
)
def test_any_exception_is_one_line(run, monkeypatch, error, words):
    def raising(*_, **__):
        raise error

    monkeypatch.setattr("ntk_analysis.meanfield.analyse", raising)
    assert run("meanfield") == (2, "", f"error: {words}\n")
    monkeypatch.setenv("NTK_ANALYSIS_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run("meanfield")


def test_a_platform_that_is_not_there(run, monkeypatch):
    def unknown(*_, **__):
        raise AssertionError

    monkeypatch.setattr("ntk_analysis.meanfield.analyse", unknown)
    monkeypatch.setattr(jax, "devices", unknown)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    status, _, error = run("meanfield")
    assert (status, error.count("\n")) == (2, 1)
    assert "no device for JAX_PLATFORMS=cuda" in error


def test_the_claims_are_listed(run):
    status, out, _ = run("check", "--list")
    assert status == 0
    assert "\n  thm2 " in out
    assert len(out.splitlines()) > 20


def test_the_images_are_no_place_for_the_result(run, tmp_path):
    for path, out in ((tmp_path / "x.npz", tmp_path / "x.npz"), (tmp_path / "x.npz", tmp_path / "." / "link.npz")):
        np.savez(path, images=np.random.default_rng(0).random((4, 5, 5)))
        before = path.read_bytes()
        if not out.exists():
            out.symlink_to(path)
        status, _, error = run("kernel", path, "--out", out)
        assert (status, error) == (2, f"error: --out {out} is the file that is read: give another one\n")
        assert path.read_bytes() == before


def test_a_failed_write_keeps_the_old_result(run, images, tmp_path, monkeypatch):
    out = tmp_path / "k.npz"
    run("kernel", images, "--out", out)
    before = out.read_bytes()

    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    status, _, err = run("kernel", images, "--out", out)
    assert status == 2
    assert "No space left" in err
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [images.name, "k.npz"]


@pytest.mark.slow
def test_a_killed_figure_leaves_the_old_one_whole(tmp_path):
    """SIGKILL at several moments of a second run: the four files of the first are there, and belong together."""
    command = [sys.executable, "-m", "ntk_analysis.cli", "figures", "fig4", "--out", str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, "--seed", "1"], check=True, capture_output=True, env=environment)
    for delay in (0.5, 2.0, 3.0):
        process = subprocess.Popen(
            [*command, "--seed", "2"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        record = json.loads((tmp_path / "fig4.json").read_text())
        assert record["config"]["seed"] in (1, 2)
        with np.load(tmp_path / "fig4.npz") as arrays:
            assert np.isfinite(arrays["measured_none"]).all()
        assert (tmp_path / "fig4.png").stat().st_size > 1000
        assert (tmp_path / "fig4.svg").read_text().rstrip().endswith("</svg>")


LIGHT = """
import contextlib, io, json, sys
from ntk_analysis import cli
for arguments, status in json.loads(sys.argv[1]):
    sys.argv = ["ntk-analysis", *arguments]
    written = io.StringIO()
    with contextlib.redirect_stdout(written), contextlib.redirect_stderr(written):
        try:
            cli.main()
        except SystemExit as ended:
            assert (ended.code or 0) == status, (arguments, ended.code, written.getvalue())
        else:
            raise AssertionError(arguments)
    heavy = {"jax", "scipy", "matplotlib"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""


def test_help_and_usage_errors_load_nothing_that_computes():
    """In a process of its own: this one has loaded all of it."""
    usage = [
        (["--version"], 0),
        (["--help"], 0),
        (["kernel", "--help"], 0),
        (["diagnose", "--help"], 0),
        (["--no-such-option"], 2),
        (["meanfield", "--no-such-option"], 2),
        (["no-such-command"], 2),
        (["kernel"], 2),
        (["kernel", "images.npy", "--out", "k.npz", "--depth", "two"], 2),
    ]
    done = subprocess.run([sys.executable, "-c", LIGHT, json.dumps(usage)], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
