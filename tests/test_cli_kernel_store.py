"""`ntk-analysis kernel --store`: what is on disk is what Python computes, after Ctrl-C too; every error is one line."""

import sys

import numpy as np
import pytest

from ntk_analysis import cli, data, infinite_kernel, networks, open_kernel
from ntk_analysis.stores import runs
from ntk_analysis.stores.store import KernelStore

SMALL = ("images.npy", "--depth", 1, "--b-var", 0.1, "--memory", 6 * 8 * 4**2)  # tiles of 3 x 3 of 12 images
TILES = 10


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Calls `ntk-analysis kernel` in this process and returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (12, 2, 3), dtype=np.uint8))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "kernel", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_a_kernel_goes_to_disk_and_goes_on_after_ctrl_c(run, monkeypatch):
    write = KernelStore.write
    kept: list[tuple[int, int]] = []

    def interrupted(store, i, j, tile):
        if len(kept) == 3:
            raise KeyboardInterrupt
        write(store, i, j, tile)
        kept.append((i, j))

    with monkeypatch.context() as patch:
        patch.setattr(runs, "WRITERS", 1)
        patch.setattr(KernelStore, "write", interrupted)
        status, out, err = run(*SMALL, "--store", "k")
    assert (status, out) == (130, "")
    assert err.endswith(f"interrupted: 3 of {TILES} tiles are in k; repeat the command to go on\n")
    status, out, err = run(*SMALL, "--store", "k")
    assert status == 0, err
    assert f"{TILES} tiles of 3 x 3" in err
    assert "3 of them finished before" in err
    assert "nngp and ntk (12, 12) float64 pair by pair" in out
    assert "open_kernel('k')" in out
    x = data.preprocess(data.read_images("images.npy").images)
    wanted = infinite_kernel(networks.fully_connected(1, 1, b_var=0.1), x)
    np.testing.assert_allclose(open_kernel("k").ntk, wanted.ntk, rtol=1e-13)
    assert "finished before" in run(*SMALL, "--store", "k")[1]
    status, _, err = run(*SMALL, "--store", "k", "--count", 8)
    assert status == 2
    assert "holds another kernel: n1 is 12 there and 8 here" in err


def test_the_plan_of_a_store_writes_nothing(run, tmp_path):
    status, out, err = run(*SMALL, "--store", "k", "--plan")
    assert status == 0, err
    assert "10 tiles of 3 x 3" in out
    assert "about" in out.splitlines()[0]
    assert out.splitlines()[1:] == ["2.86e-06 GiB on disk", "nothing is in k yet"]
    assert not (tmp_path / "k").exists()


@pytest.mark.full
def test_spectra_of_a_store(run, tmp_path):
    status, out, err = run(*SMALL, "--store", "k", "--out", "k.json")
    assert status == 0, err
    assert "condition number" in out
    assert (tmp_path / "k.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("images.npy",), "give --out FILE for kernel and spectra, or --store DIR"),
        (("images.npy", "--out", "k.npz", "--workers", 2), "--workers is for --store"),
        (("images.npy", "--out", "k.npz", "--memory", "1GiB"), "--memory is for --store"),
        (("images.npy", "--store", "images.npy"), "images.npy is a file"),
        (("images.npy", "--store", "k", "--workers", 2, "--scheduler", "tcp://h:1"), "give one of them"),
    ],
)
def test_what_is_refused(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
