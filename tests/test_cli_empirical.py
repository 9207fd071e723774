"""`ntk-analysis empirical`: what is on disk is what Python computes, after any kill; every error is one line."""

import contextlib
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest

from ntk_analysis import cli, data
from ntk_analysis.cli.progress import progress
from ntk_analysis.empirical import EmpiricalKernel, empirical_nngp, empirical_ntk, open_kernel, plan
from ntk_analysis.networks import fully_connected
from ntk_analysis.stores.store import KernelStore

FILE = """
import jax.numpy as jnp
import numpy as np

def draw(*shape):
    return np.random.default_rng(0).standard_normal(shape)

def f(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]

def network():
    return f, {"in": draw(3, 5), "out": draw(5, 2)}, draw(30, 3)

def raises():
    return lambda params, x: params["absent"], {"in": draw(2, 2)}, draw(4, 3)

def nothing():
    return f, {"in": draw(3, 5) * np.nan, "out": draw(5, 2)}, draw(30, 3)
"""
TILES = 465  # 30 x 30 inputs, one a tile, upper triangle


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Calls `ntk-analysis empirical` in this process and returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(FILE)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 2, 3), dtype=np.uint8))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "empirical", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def given():
    """The network of FILE, as Python has it."""
    names: dict[str, Any] = {}
    exec(FILE, names)
    return names["network"]()


def one_input_a_tile():
    f, params, x = given()
    options = {"layout": "trace", "method": "jacobian"}
    return plan(f, params, x[:1], x[:1], memory="1GiB", coupled=False, **options).memory_bytes


SMALL = ("net.py:network", "--method", "jacobian", "--coupled", "no", "--memory", one_input_a_tile())


def test_a_drawn_network(run):
    """The arguments reach the library; float64 is the same network, of which float32 is a rounding."""
    network: tuple[str | float, ...]
    network = ("--depth", 1, "--width", 8, "--classes", 3, "--activation", "tanh", "--normalization", "weight_mean")
    network += ("--w-var", 1.5, "--b-var", 0.1, "--seed", 5, "--count", 9, "--images", "images.npy")
    network += ("--method", "jacobian")  # whose plan alone is traced, not that of each method
    for name, options in (("float32", ()), ("float64", ("--float64",))):
        status, out, err = run(*network, "--store", name, "--layout", "full", *options)
        assert status == 0, err
        assert f"ntk (9, 9, 3, 3) {name} (full)" in out
        assert f"open_kernel('{name}')" in out
        assert "tiles of" in err
    made = fully_connected(1, 8, "weight_mean", "tanh", outputs=3, w_var=1.5, b_var=0.1)
    with jax.enable_x64(False):
        params = made.init(jax.random.key(5), (9, 6))[1]
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = data.preprocess(data.read_images("images.npy").subset(9, 5).images)
    expected = empirical_ntk(made, params, x, method="jacobian").ntk
    exact = open_kernel("float64").ntk
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-13 * np.abs(expected).max())
    # inputs, weights' products and sums in float32: tens of roundings of the largest entries
    np.testing.assert_allclose(open_kernel("float32").ntk, exact, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_given_network(run):
    f, params, x = given()
    chosen = x[np.random.default_rng(1).choice(30, size=7, replace=False)]
    for kernel, compute in (("ntk", empirical_ntk), ("nngp", empirical_nngp)):
        call = ("net.py:network", "--kernel", kernel, "--layout", "diagonal", "--count", 7, "--seed", 1)
        status, out, err = run(*call, "--store", kernel)
        assert status == 0, err
        assert f"{kernel} (7, 7, 2) float64 (diagonal)" in out
        expected = compute(f, params, chosen, layout="diagonal").values
        stored = open_kernel(kernel)
        assert isinstance(stored, EmpiricalKernel)
        np.testing.assert_allclose(stored.values, expected, rtol=1e-12, atol=1e-12)
    assert "finished before" in run(*call, "--store", "nngp")[1]
    status, _, err = run(*call, "--store", "nngp", "--count", 8)
    assert status == 2
    assert "holds another kernel: n1 is 7 there and 8 here" in err


@pytest.mark.full
def test_a_killed_command_goes_on_to_the_same_bits(run, tmp_path):
    command = [sys.executable, "-m", "ntk_analysis.cli", "empirical", *map(str, SMALL), "--store", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    done, deadline = tmp_path / "killed" / "done", time.monotonic() + 300
    while not (done.exists() and any(done.iterdir())):
        assert process.poll() is None, "the command ended before it wrote a tile"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list(done.iterdir()))
    assert 1 <= finished < TILES
    _, out, _ = run("net.py:network", "--plan", "--store", "killed", "--coupled", "no")
    assert f"{finished} of {TILES} tiles are in killed" in out
    status, _, err = run(*SMALL, "--store", "killed")
    assert status == 0, err
    assert f"{TILES} tiles of 1 x 1" in err
    assert f"{finished} of them finished before" in err
    assert run(*SMALL, "--store", "whole")[0] == 0
    np.testing.assert_array_equal(open_kernel("killed").ntk, open_kernel("whole").ntk)


def test_ctrl_c(run, monkeypatch):
    write = KernelStore.write
    kept: list[Any] = []

    def interrupted(store, i, j, tile):
        if len(kept) >= 3:  # several write at one time
            raise KeyboardInterrupt
        write(store, i, j, tile)
        kept.append((i, j))

    monkeypatch.setattr(KernelStore, "write", interrupted)
    status, out, err = run(*SMALL, "--store", "k")
    assert (status, out) == (130, "")
    assert err.endswith(f"interrupted: {len(kept)} of {TILES} tiles are in k; repeat the command to go on\n")


@pytest.mark.slow
def test_workers_get_the_file_of_the_network(run):
    assert run("net.py:network", "--store", "one")[0] == 0
    status, _, err = run("net.py:network", "--store", "many", "--workers", 1)
    assert status == 0, err
    assert err.count("\n") == 1, "the plan, and nothing of Dask's"
    f, params, x = given()
    expected = empirical_ntk(f, params, x, layout="trace").ntk
    for name in ("one", "many"):  # whose tiles may differ
        np.testing.assert_allclose(open_kernel(name).ntk, expected, rtol=1e-12, atol=1e-12)


def test_plans(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    status, out, err = run("net.py:network", "--plan", "--workers", 2)
    assert status == 0, err
    assert "about" in out.splitlines()[0]
    far = (
        "net.py:network",
        "--plan",
        "--layout",
        "trace",
        "--for-inputs",
        100_000,
        "--on-devices",
        64,
        "--memory",
        "1GiB",
    )
    status, out, err = run(*far, "--flops-per-second", "1e6", "--writes-per-second", "1e4")
    assert status == 0, err
    # float64: 8e10 bytes at 1e4 a second are 2222 hours
    assert "ntk (100000, 100000) float64 (trace)" in out
    assert "about 2.22e+03 h at 1e+06 FLOP/s each, limited by storage; 74.5 GiB on disk" in out
    status, out, err = run("net.py:network", "--plan", "--for-inputs", 60)
    assert status == 0, err
    assert "on 1 devices" in out
    assert sorted(tmp_path.iterdir()) == before


BAD = [
    ("--store k", "one of the two"),
    ("net.py:network --images images.npy --store k", "one of the two"),
    ("net.py:network", "give --store DIR"),
    ("net.py:network --store net.py", "net.py is a file"),
    ("net.py:network --store .", "is not a store"),
    ("net.py:network --store k --depth 3", "--depth is for --images"),
    ("net.py:network --store k --seed 3", "--seed has no effect on MODULE:FUNCTION without --count"),
    ("net.py:network --plan --for-inputs 99 --workers 2", "--workers has no effect beside the options of a plan"),
    ("net.py:network --store k --on-devices 3", "--on-devices is for --plan"),
    ("net.py:network --store k --kernel nngp --method products", "--method is for the tangent kernel"),
    ("net.py:network --store k --workers 2 --scheduler tcp://127.0.0.1:1", "give one of them"),
    ("net.py:network --store k --scheduler host", "tcp://host:8786"),
    ("net.py:network --store k --workers 0", "--workers"),
    ("net.py:network --store k --count -1", "ask for 1 to 30"),
    ("net.py:network --store k --memory 10", "needs"),
    ("net.py:network --store k --memory much", "'4GiB'"),
    ("net.py:network --store k --layout all", "'all' is not one of 'full', 'diagonal', 'trace'"),
    ("net.py:network --store k --method magic", "choose one of auto, jacobian"),
    ("net.py:network --store k --method layerwise", "network of layers"),
    ("net.py:network --store k --kernel nkt", "--kernel"),
    ("net.py:network --plan --on-devices 2 --flops-per-second -1", "flops_per_second=-1"),
    ("net.py:network --plan --flops-per-second 1e9 --writes-per-second nan", "writes_per_second=nan"),
    ("net.py:absent --store k", "no function 'absent'"),
    ("net.py:raises --store k", "raised KeyError"),
    ("net.py:nothing --store k", "NaN"),
    ("absent.py:network --store k", "no such file"),
    ("--images absent.npy --store k", "absent.npy"),
    ("--images images.npy --store k --width 0", "width"),
    ("--images images.npy --store k --depth 0", "got depth=0, expected 1 to"),
    ("--images images.npy --store k --classes 0", "0"),
    ("--images images.npy --store k --count 99", "ask for 1 to 12"),
    ("--images images.npy --store k --activation rleu", "choose one of relu"),
    ("--images images.npy --store k --raw --image-centering dataset", "contradict"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[arguments for arguments, _ in BAD])
def test_errors_are_one_line_and_status_2(run, tmp_path, arguments, words):
    status, out, err = run(*arguments.split())
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "k").exists()


def test_a_bar_begins_at_what_was_done(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with contextlib.suppress(InterruptedError), progress() as track:
        for step in track(range(3), "tiles", done=40):
            if step == 1:
                raise InterruptedError
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "41/43" in shown.err
