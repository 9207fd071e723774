"""A sweep on worker processes, which die in the middle of runs: every run is there once, with the bits of a plain one.

Its workers are started once: what takes their time is to import JAX. Without deaths, threads of this process do.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Any

import dask
import numpy as np
import pytest
from distributed import LocalCluster

from ntk_analysis import cli, data
from ntk_analysis.common.cluster import Workers, results
from ntk_analysis.training.dataset import hold_out, load_dataset
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import read_runs
from ntk_analysis.training.runs import groups
from ntk_analysis.training.sweep import Grid, sweep

from .tiers import full

SMALL = Recipe(depth=1, width=16, batch=32, epochs=2)
GRID = Grid(SMALL, (0.01, 0.1), (0, 1, 3), ("none", "last_bn"))
RUNS = 12


@pytest.fixture(scope="module")
def digits():
    return hold_out(data.load_digits().subset(200, 0))


@pytest.fixture(scope="module")
def cluster():
    options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(n_workers=2, processes=True, silence_logs="CRITICAL", **options) as started:
        yield started


@pytest.fixture(scope="module")
def threads():
    options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "silence_logs": "CRITICAL"}
    with LocalCluster(n_workers=2, processes=False, **options) as started:
        yield started


@pytest.fixture(scope="module")
def plain(digits):
    """The curves of a sweep in this process, and its table."""
    curves: list[Any] = []
    return curves, sweep(GRID, digits, each=curves.append)


def numbers(curves):
    """Runs without the time they took, by recipe."""
    found = {curve.recipe: [replace(epoch, seconds=0.0) for epoch in curve.epochs] for curve in curves}
    assert len(found) == len(curves), "a run was told twice"
    return found


def die_at(run):
    """Runs on a worker, which then kills itself in the middle of the run that it is given as so manieth."""
    from ntk_analysis.training import runs

    begun, trained = [], runs.one

    def one(trainer, recipe):
        begun.append(recipe)
        if len(begun) == run:
            os.kill(os.getpid(), signal.SIGKILL)
        return trained(trainer, recipe)

    runs.one = one


def trainers():
    """Runs on a worker: how many trainers it has made since it began."""
    from ntk_analysis.training import runs

    return runs._trainer.cache_info().misses


@pytest.mark.full  # spawns a cluster
def test_workers_train_what_one_process_does(threads, digits, tmp_path):
    grid = replace(GRID, normalizations=("last_bn",), learning_rates=(0.01,))
    expected = sweep(grid, digits)
    told: list[Any] = []
    found = sweep(grid, digits, folder=tmp_path, each=told.append, cluster=Workers(threads))
    assert numbers(list(read_runs(tmp_path).values())) == numbers(told)
    for name in ("train_accuracy", "test_accuracy", "diverged_at"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.made_by == expected.made_by


@pytest.mark.parametrize("deaths", full(1, 2))  # 2: nobody has the images any more
def test_interrupted_and_with_workers_that_die_it_is_the_plain_sweep(deaths, cluster, plain, digits, tmp_path):
    curves, expected = plain
    on = Workers(cluster.scheduler_address)

    def interrupt(curve):
        told.append(curve)
        if len(told) == 3:
            raise InterruptedError

    told: list[Any] = []
    # a threshold of Dask's warnings that these images are above: that they are sent is meant
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "10kB"}), pytest.raises(InterruptedError):
        sweep(GRID, digits, folder=tmp_path, each=interrupt, cluster=on)
    path = tmp_path / "runs.jsonl"
    before = path.read_text()
    assert before.count("\n") == 3, "finished runs are kept"

    with on.client() as client:
        client.wait_for_workers(2)
        processes, made = client.run(os.getpid), client.run(trainers)
        first, second = processes
        client.run(die_at, 2, workers=[first])
    told = []

    def kill(curve):
        told.append(curve)
        if deaths == 2 and len(told) == 3 + 4:  # found and trained, of nine that are to be trained
            os.kill(processes[second], signal.SIGKILL)

    found = sweep(GRID, digits, folder=tmp_path, each=kill, cluster=on)
    with on.client() as client:
        after = client.run(trainers)
    assert len(set(processes) - set(after)) == deaths, "they died"
    assert max(after[worker] - made.get(worker, 0) for worker in after) <= 2, "one trainer for a normalisation"
    # equal, and each once: in what was told, in the file and in the table
    assert numbers(told) == numbers(curves)
    assert path.read_text().startswith(before)
    assert path.read_text().count("\n") == RUNS
    assert numbers(list(read_runs(tmp_path).values())) == numbers(curves)
    for name in ("train_accuracy", "test_accuracy", "diverged_at"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.made_by == expected.made_by


def test_groups():
    recipes = [replace(SMALL, seed=seed) for seed in range(7)]
    assert [len(group) for group in groups(recipes, 3)] == [3, 3, 1]
    assert [len(group) for group in groups(recipes, 4)] == [4, 3]
    assert [len(group) for group in groups(recipes, 9)] == [7]
    assert [recipe for group in groups(recipes, 2) for recipe in group] == recipes


def test_a_worker_says_what_is_wrong_with_a_recipe(threads, digits):
    grid = replace(GRID, recipe=replace(SMALL, batch=1000))
    with pytest.raises(ValueError, match=r"got batch=1000: .* has 160 images to train on"):
        sweep(grid, digits, cluster=Workers(threads))


def test_a_scheduler_that_ends():
    options = {"dashboard_address": "127.0.0.1:0", "silence_logs": "CRITICAL"}
    with LocalCluster(n_workers=1, processes=False, **options) as ends, Workers(ends.scheduler_address).client() as on:
        found = results(on, time.sleep, [(0.0,), (1.0,)], "run", remedy="rest")
        next(found)
        ends.close()
        with pytest.raises(ConnectionError, match="the scheduler is gone: repeat with one that runs"):
            next(found)


COMMAND = "sweep --data images.npz --depth 1 --width 16 --batch 32 --epochs 2 --normalization none --lr 0.01 --seeds 3"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A command: its status and its errors."""
    monkeypatch.chdir(tmp_path)
    images = data.load_digits().subset(200, 0)
    np.savez("images.npz", images=images.images, labels=images.labels)

    def command(*options):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *COMMAND.split(), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capsys.readouterr().err

    return command


@pytest.mark.full
def test_command_with_runs_at_once(cluster, run, tmp_path):
    assert run("--scheduler", cluster.scheduler_address, "--together", "2", "--out", "kept") == (0, "")
    assert (tmp_path / "kept" / "epochs.png").exists()
    grid = Grid(SMALL, (0.01,), (0, 1, 2), ("none",))
    curves: list[Any] = []
    sweep(grid, load_dataset("images.npz"), together=2, each=curves.append)
    assert numbers(list(read_runs(tmp_path / "kept").values())) == numbers(curves)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--workers 2 --scheduler tcp://127.0.0.1:1", "give one of them"),
        ("--scheduler host", "got --scheduler 'host', expected an address such as tcp://host:8786"),
        ("--scheduler tcp://127.0.0.1:1", "no workers at scheduler tcp://127.0.0.1:1: "),
        ("--workers 0", "--workers"),
    ],
)
def test_workers_that_are_not_there(options, told, run, monkeypatch):
    monkeypatch.setattr("ntk_analysis.common.cluster.PATIENCE", "1s")
    status, err = run(*options.split())
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.full
def test_a_run_that_kills_every_worker(cluster, digits, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    on = Workers(cluster)
    with on.client() as client:
        client.run(die_at, 1)
    with pytest.raises(RuntimeError, match=r"a run killed several workers.*give a lower together= or a smaller batch"):
        sweep(replace(GRID, normalizations=("none",)), digits, cluster=on)
