"""Kernels on a cluster of worker processes: one dies in the middle of a tile, another is killed from outside."""

import importlib
import itertools
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from distributed import LocalCluster

from ntk_analysis.empirical import Cluster, empirical_ntk, plan

WORKERS = 3
OPTIONS = {"layout": "trace", "method": "jacobian", "coupled": False}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


PARAMS, X = {"in": draw(3, 5), "out": draw(5, 2, seed=1)}, draw(20, 3, seed=2)
TILES = 55  # 10 x 10, upper triangle


@dataclass(frozen=True)
class Deadly:
    """A network; the first worker process that finds the file takes it away and dies of it, at its tile."""

    file: str

    def __call__(self, params, x):
        if multiprocessing.parent_process() is not None and os.path.exists(self.file):
            os.unlink(self.file)
            os.kill(os.getpid(), signal.SIGKILL)
        return jnp.tanh(x @ params["in"]) @ params["out"]


MEMORY = plan(Deadly(""), PARAMS, X[:2], X[:2], memory="1GiB", **OPTIONS).memory_bytes  # of a tile of 2 x 2 inputs


LOCAL = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=WORKERS, processes=True, host="127.0.0.1", **LOCAL) as started:
        yield started


@pytest.fixture(scope="module")
def threads():
    """A scheduler and workers that are threads of this process: what takes the others' time is to import JAX."""
    with LocalCluster(n_workers=2, processes=False, **LOCAL) as started:
        yield started


@pytest.mark.full  # spawns a cluster
def test_workers_compute_what_one_process_does(threads, tmp_path):
    on = Cluster(threads)
    assert (on.parallel, on.share) == (2, 2)
    seen: list[Any] = []
    call = {"memory": MEMORY, "store": tmp_path / "k"} | OPTIONS
    found = empirical_ntk(Deadly(""), PARAMS, X, on=on, track=lambda s, _: map(seen.append, s), **call)
    assert len(seen) == TILES
    np.testing.assert_array_equal(found.ntk, empirical_ntk(Deadly(""), PARAMS, X, memory=MEMORY, **OPTIONS).ntk)
    assert sorted(entry.name for entry in (tmp_path / "k").iterdir()) == [".lock", "done", "kernel", "manifest.json"]


@pytest.mark.full
def test_continues_what_one_process_began(cluster, tmp_path):
    def track(steps, description):
        yield from itertools.islice(steps, 20)
        raise InterruptedError

    call = {"memory": MEMORY, "store": tmp_path / "k"} | OPTIONS
    with pytest.raises(InterruptedError):
        empirical_ntk(Deadly(""), PARAMS, X, track=track, **call)
    seen: list[Any] = []
    on = Cluster(cluster.scheduler_address)
    assert 1 <= on.share <= on.parallel <= WORKERS
    found = empirical_ntk(Deadly(""), PARAMS, X, on=on, track=lambda s, _: map(seen.append, s) and s, **call)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(Deadly(""), PARAMS, X, memory=MEMORY, **OPTIONS).ntk)
    assert len(list((tmp_path / "k" / "done").iterdir())) == TILES


@pytest.mark.full
def test_workers_of_ones_own(tmp_path):
    # JAX arrays, float64 by the flag, which workers do not have; a closure, which pickle alone does not take
    params, x = {key: jnp.asarray(value) for key, value in PARAMS.items()}, jnp.asarray(X)
    scale = 2.0
    call = {"layout": "trace", "memory": MEMORY}
    on = Cluster(workers=1)
    assert (on.parallel, on.share) == (1, 1)
    found = empirical_ntk(lambda p, x: scale * Deadly("")(p, x), params, x, store=tmp_path / "k", on=on, **call)
    expected = empirical_ntk(lambda p, x: scale * Deadly("")(p, x), params, x, **call)
    assert found.values.dtype == np.float64
    np.testing.assert_array_equal(found.ntk, expected.ntk)


def one_line(error, message, f, **options):
    with pytest.raises(error, match=message) as caught:
        empirical_ntk(f, PARAMS, X, memory=MEMORY, **OPTIONS | options)
    assert "\n" not in str(caught.value)


def test_errors(threads, tmp_path, monkeypatch):
    f, on = Deadly(""), Cluster(threads)
    lock = threading.Lock()
    one_line(ValueError, "give store=PATH", f, on=on)
    one_line(TypeError, "cannot be sent to workers", lambda p, x: f(p, x) if lock else x, on=on, store=tmp_path / "l")
    monkeypatch.setattr("ntk_analysis.common.cluster.PATIENCE", "1s")
    one_line(ConnectionError, "no workers at scheduler tcp", f, on=Cluster("tcp://127.0.0.1:1"), store=tmp_path / "m")
    for options in ({}, {"workers": 0}, {"scheduler": threads, "workers": 2}):
        with pytest.raises(ValueError, match="number of workers"):
            Cluster(**options)
    from ntk_analysis.stores.cluster import compute_tile

    with pytest.raises(RuntimeError, match="file system of all"):
        compute_tile(str(tmp_path / "nothing"), 0, 0)
    (tmp_path / "job").write_bytes(b"cnowhere\nf\n.")  # the pickle of nowhere.f
    with pytest.raises(RuntimeError, match=r"a worker cannot import the function .*nowhere"):
        compute_tile(str(tmp_path / "job"), 0, 0)


@pytest.mark.full
def test_a_module_that_workers_do_not_have(cluster, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def f(params, x):\n    return x @ params['in'] @ params['out']\n")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = importlib.import_module("only_here").f

    store = tmp_path / "k"
    one_line(
        RuntimeError,
        "a worker cannot import the function.*only_here",
        elsewhere,
        on=Cluster(cluster),
        store=store,
    )
    assert not list(store.glob("job-*"))


@pytest.mark.full
def test_workers_die_and_the_result_is_that_of_one_process(cluster, tmp_path):
    expected = empirical_ntk(Deadly(""), PARAMS, X, memory=MEMORY, **OPTIONS)
    assert expected.plan.count == TILES
    (tmp_path / "deadly").write_text("")
    before = {nanny.pid for nanny in cluster.workers.values()}
    killed = []

    def track(steps, description):
        assert len(steps) == TILES
        for number, step in enumerate(steps):
            if number == TILES // 2:
                victim = next(pid for nanny in cluster.workers.values() if (pid := nanny.pid) in before)
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
            yield step

    store = tmp_path / "k"
    f = Deadly(str(tmp_path / "deadly"))
    found = empirical_ntk(f, PARAMS, X, memory=MEMORY, store=store, on=Cluster(cluster), track=track, **OPTIONS)
    assert killed
    assert not (tmp_path / "deadly").exists(), "a worker died at a tile"
    assert found.plan == expected.plan
    np.testing.assert_array_equal(found.ntk, expected.ntk)
    assert sorted(entry.name for entry in store.iterdir()) == [".lock", "done", "kernel", "manifest.json"]


@pytest.mark.full
def test_a_tile_that_kills_every_worker(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    (tmp_path / "deadly").write_text("")
    one_line(
        RuntimeError,
        "a tile killed several workers.*more memory",
        Deadly(str(tmp_path / "deadly")),
        store=tmp_path / "k",
        on=Cluster(cluster),
    )
