"""Kernels on disk: the bits of those in memory, resumed after any kill."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.empirical import EmpiricalKernel, TilePlan, empirical_nngp, empirical_ntk, open_kernel, plan
from ntk_analysis.networks import fully_connected
from ntk_analysis.stores import runs

from .test_empirical import drawn
from .tiers import full


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def coupled_net(params, x):
    hidden = x @ params["in"]
    return jnp.tanh(hidden - jnp.mean(hidden, 0, keepdims=True)) @ params["out"]


PARAMS = {"in": draw(3, 5), "out": draw(5, 2, seed=1)}
X, Y = draw(11, 3, seed=2), draw(7, 3, seed=3)
OPTIONS = {"layout": "trace", "method": "jacobian"}
# of a tile of 2 x 2 inputs
MEMORY = plan(net, PARAMS, X[:2], X[:2], memory="1GiB", **OPTIONS).memory_bytes
SMALL = OPTIONS | {"memory": MEMORY}
TILES = 21  # 6 x 6, upper triangle


class Stop(BaseException):
    """What no code catches, as a kill."""


def kept_in(seen):
    """Keeps the steps that are told, before the first one is done."""

    def track(steps, description):
        seen.extend(steps)
        return seen

    return track


def stop_after(tiles):
    def track(steps, description):
        for number, step in enumerate(steps):
            if number == tiles:
                raise Stop
            yield step

    return track


def interrupted(path, tiles=5, **options):
    with pytest.raises(Stop):
        empirical_ntk(net, PARAMS, X, store=path, track=stop_after(tiles), **SMALL | options)
    return len(list((path / "done").iterdir()))


def test_a_second_process_is_refused_while_the_first_computes(tmp_path):
    def second(steps, description):
        with pytest.raises(BlockingIOError, match=r"another process writes to .*k: wait until it ends"):
            empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
        return steps

    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=second, **SMALL)
    assert np.isfinite(np.asarray(found.values)).all()


@pytest.mark.parametrize("layout", ["full", *full("diagonal", "trace")])
def test_store_holds_what_memory_holds(tmp_path, layout):
    options = SMALL | {"layout": layout}
    options["memory"] = (
        plan(coupled_net, PARAMS, X[:2], X[:2], memory="1GiB", coupled=True, **OPTIONS).memory_bytes * 20
    )
    for number, (f, x2) in enumerate([(net, None), (net, Y), (coupled_net, None)]):
        path = tmp_path / "deep" / str(number)
        for compute, which in ((empirical_ntk, "ntk"), (empirical_nngp, "nngp")):
            given = {key: value for key, value in options.items() if which == "ntk" or key != "method"}
            expected = getattr(compute(f, PARAMS, X, x2, **given), which)
            found = compute(f, PARAMS, X, x2, store=path / which, **given)
            np.testing.assert_array_equal(getattr(found, which), expected)
            np.testing.assert_array_equal(found.values[2:9, 3], expected[2:9, 3])
            stored = open_kernel(path / which)
            assert isinstance(stored, EmpiricalKernel)
            np.testing.assert_array_equal(np.asarray(stored.values), expected)
            assert (found.values.shape, found.values.ndim, len(found.values)) == (expected.shape, expected.ndim, 11)
            assert found.values.dtype == expected.dtype


def test_float32_and_networks_of_layers(tmp_path):
    network = fully_connected(1, 8, outputs=2)
    params = jax.tree.map(np.float32, drawn(network, (3,))[0])
    call = {"f": network, "params": params, "x1": X.astype(np.float32), "method": "layerwise"}
    expected = empirical_ntk(**call)
    for _ in range(2):
        found = empirical_ntk(**call, store=tmp_path / "k")
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.ntk, expected.ntk)
        assert np.asarray(found.values, np.float64).dtype == np.float64
        np.testing.assert_array_equal(found.ntk, expected.ntk)
    wider = fully_connected(1, 8, w_var=2.5, outputs=2)
    with pytest.raises(ValueError, match="f is another function"):
        empirical_ntk(**call | {"f": wider}, store=tmp_path / "k")


def test_resumes_with_the_same_bits(tmp_path):
    expected = empirical_ntk(net, PARAMS, X, **SMALL)
    assert expected.plan.count == TILES
    assert interrupted(tmp_path / "k") == 5
    assert interrupted(tmp_path / "k") == 10, "continues, does not begin anew"
    with pytest.raises(ValueError, match="11 of 21 tiles"):
        open_kernel(tmp_path / "k")
    seen: list[Any] = []
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=kept_in(seen), **SMALL)
    assert len(seen) == TILES - 10
    np.testing.assert_array_equal(found.ntk, expected.ntk)
    empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=stop_after(0), **SMALL)  # nothing left to do


def test_tiles_of_the_store_are_kept_where_they_fit(tmp_path):
    interrupted(tmp_path / "k")
    for memory in ("1GiB", None):
        found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **OPTIONS | {"memory": memory, "method": "auto"})
        assert (found.plan.rows, found.method) == (2, "jacobian")
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)
    with pytest.raises(MemoryError, match=r"2 x 2 inputs, needs .* the budget is"):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL | {"memory": MEMORY - 1})


def test_killed_between_data_and_mark(tmp_path, monkeypatch):
    """The data of a tile without a mark is written again."""
    monkeypatch.setattr(runs, "WRITERS", 1)
    mark, calls = Path.write_text, []

    def kill(path, *arguments, **options):
        if path.parent.name == "done":
            calls.append(path)
            if len(calls) == 4:
                raise Stop
        return mark(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", kill)
    with pytest.raises(Stop):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert len(list((tmp_path / "k" / "done").iterdir())) == 3
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)


KILLED = """
import sys
from tests.test_empirical_store import *

def track(steps, description):
    for step in steps:
        print(step, flush=True)
        yield step

empirical_ntk(net, PARAMS, draw(40, 3, seed=2), store=sys.argv[1], track=track, **SMALL)
"""


def python(*arguments, flags="", **options):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}"
    return subprocess.Popen([sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, **options)


@pytest.mark.full
def test_killed_with_sigkill(tmp_path):
    x = draw(40, 3, seed=2)
    with python(KILLED, str(tmp_path / "k")) as process:
        for _ in range(8):
            assert process.stdout.readline(), "ended by itself"
        process.send_signal(signal.SIGKILL)  # wherever it is by now
    assert process.returncode == -signal.SIGKILL
    done = len(list((tmp_path / "k" / "done").iterdir()))
    assert 5 <= done < 210  # the sixth and the seventh may be on their way to the disk
    left = [tmp_path / "k" / "job-1.pickle", tmp_path / "k" / "kernel" / "c" / "0" / "0.1.partial"]
    for path in left:
        path.write_text("what a kill at another moment leaves")
    seen: list[Any] = []
    found = empirical_ntk(net, PARAMS, x, store=tmp_path / "k", track=kept_in(seen), **SMALL)
    assert len(seen) == 210 - done
    assert not any(path.exists() for path in left)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, x, **SMALL).ntk)


def test_disk_full_half_way(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "WRITERS", 1)
    place = TilePlan.place

    def disk_full(cut, kernel, i, j, tile):
        if (i, j) == (0, 5):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        place(cut, kernel, i, j, tile)

    with monkeypatch.context() as patch:
        patch.setattr(TilePlan, "place", disk_full)
        with pytest.raises(OSError, match=r"tile \(0, 5\).*5 of 21 tiles are finished and kept") as caught:
            empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    seen: list[Any] = []
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=kept_in(seen), **SMALL)
    assert len(seen) == TILES - 5
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)
