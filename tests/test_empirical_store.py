"""Kernels on disk and on several devices: resumed after any kill with the same bits; every refusal is one line."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.empirical import Devices, TilePlan, empirical_nngp, empirical_ntk, open_kernel, plan
from ntk_analysis.empirical.layouts import LAYOUTS
from ntk_analysis.networks import fully_connected


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def net(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def other_net(params, x):
    return jnp.sin(x @ params["in"]) @ params["out"]


def stopped_net(params, x):
    return jax.lax.stop_gradient(jnp.tanh(x @ params["in"])) @ params["out"]


def coupled_net(params, x):
    hidden = x @ params["in"]
    return jnp.tanh(hidden - jnp.mean(hidden, 0, keepdims=True)) @ params["out"]


PARAMS = {"in": draw(3, 5), "out": draw(5, 2, seed=1)}
X, Y = draw(11, 3, seed=2), draw(7, 3, seed=3)
OPTIONS = {"outputs": "trace", "method": "jacobian"}
# of a tile of 2 x 2 inputs
MEMORY = plan(net, PARAMS, X[:2], memory="1GiB", **OPTIONS).memory_bytes
SMALL = OPTIONS | {"memory": MEMORY}
TILES = 21  # 6 x 6, upper triangle


class Stop(BaseException):
    """What no code catches, as a kill."""


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


@pytest.mark.parametrize("outputs", LAYOUTS)
def test_store_holds_what_memory_holds(tmp_path, outputs):
    options = SMALL | {"outputs": outputs}
    options["memory"] = plan(coupled_net, PARAMS, X[:2], memory="1GiB", coupled=True, **OPTIONS).memory_bytes * 20
    for number, (f, x2) in enumerate([(net, None), (net, Y), (coupled_net, None)]):
        path = tmp_path / "deep" / str(number)
        for compute, which in ((empirical_ntk, "ntk"), (empirical_nngp, "nngp")):
            given = {key: value for key, value in options.items() if which == "ntk" or key != "method"}
            expected = getattr(compute(f, PARAMS, X, x2, **given), which)
            found = compute(f, PARAMS, X, x2, store=path / which, **given)
            np.testing.assert_array_equal(getattr(found, which), expected)
            np.testing.assert_array_equal(found.values[2:9, 3], expected[2:9, 3])
            np.testing.assert_array_equal(np.asarray(open_kernel(path / which).values), expected)
            assert (found.values.shape, found.values.ndim, len(found.values)) == (expected.shape, expected.ndim, 11)
            assert found.values.dtype == expected.dtype


def test_float32_and_networks_of_layers(tmp_path):
    network = fully_connected(1, 8, outputs=2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), network.init(jax.random.key(0), (1, 3))[1])
    call = {"f": network, "params": params, "x1": X.astype(np.float32), "method": "layerwise"}
    expected = empirical_ntk(**call)
    for _ in range(2):
        found = empirical_ntk(**call, store=tmp_path / "k")
        assert found.values.dtype == np.float32
        np.testing.assert_array_equal(found.ntk, expected.ntk)
        assert np.asarray(found.values, np.float64).dtype == np.float64
        np.testing.assert_array_equal(found.matrix(), expected.matrix())
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
    seen = []
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=lambda s, _: seen.extend(s) or seen, **SMALL)
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
    mark, calls = Path.touch, []

    def kill(path, *arguments, **options):
        if path.parent.name == "done":
            calls.append(path)
            if len(calls) == 4:
                raise Stop
        return mark(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", kill)
    with pytest.raises(Stop):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert len(list((tmp_path / "k" / "done").iterdir())) == 3
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)


KILLED = """
import sys
from test_empirical_store import *

def track(steps, description):
    for step in steps:
        print(step, flush=True)
        yield step

empirical_ntk(net, PARAMS, draw(40, 3, seed=2), store=sys.argv[1], track=track, **SMALL)
"""


def python(*arguments, flags="", **options):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}"
    return subprocess.Popen([sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, **options)


def test_killed_with_sigkill(tmp_path):
    x = draw(40, 3, seed=2)
    with python(KILLED, str(tmp_path / "k")) as process:
        for _ in range(8):
            assert process.stdout.readline(), "ended by itself"
        process.send_signal(signal.SIGKILL)  # wherever it is by now
    assert process.returncode == -signal.SIGKILL
    done = len(list((tmp_path / "k" / "done").iterdir()))
    assert 7 <= done < 210
    left = [tmp_path / "k" / "job-1.pickle", tmp_path / "k" / "kernel" / "c" / "0" / "0.1.partial"]
    for path in left:
        path.write_text("what a kill at another moment leaves")
    seen = []
    found = empirical_ntk(net, PARAMS, x, store=tmp_path / "k", track=lambda s, _: seen.extend(s) or seen, **SMALL)
    assert len(seen) == 210 - done
    assert not any(path.exists() for path in left)
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, x, **SMALL).ntk)


OTHER_CALLS = {
    "params": ({"params": PARAMS | {"out": PARAMS["out"] + 1e-15}}, "params has other values"),
    "inputs": ({"x1": X + 1e-15}, "x1 has other values"),
    "fewer inputs": ({"x1": X[:8]}, "n1 is 11 there and 8 here; n2 is 11 there and 8 here"),
    "second inputs": ({"x2": X}, "symmetric is True there and False here"),
    "layout": ({"outputs": "diagonal"}, "outputs is trace there and diagonal here"),
    "method": ({"method": "products"}, "method is jacobian there and products here"),
    "dtype": ({"params": jax.tree.map(np.float32, PARAMS), "x1": X.astype(np.float32)}, "dtype is float64 there and"),
    "function": ({"f": other_net}, r"f is another function \(.*:net there, .*:other_net here\)"),
    "stopped gradient": ({"f": stopped_net}, "f is another function"),
}


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_another_kernel_is_refused(tmp_path, name):
    changed, message = OTHER_CALLS[name]
    done = interrupted(tmp_path / "k")
    before = (tmp_path / "k" / "manifest.json").read_bytes()
    call = {"f": net, "params": PARAMS, "x1": X} | SMALL | {"memory": "1GiB"} | changed
    with pytest.raises(ValueError, match=message) as caught:
        empirical_ntk(**call, store=tmp_path / "k")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "k" / "manifest.json").read_bytes() == before
    assert len(list((tmp_path / "k" / "done").iterdir())) == done


def test_nngp_does_not_continue_an_ntk(tmp_path):
    interrupted(tmp_path / "k")
    with pytest.raises(ValueError, match="which is ntk there and nngp here"):
        empirical_nngp(net, PARAMS, X, store=tmp_path / "k", outputs="trace")


def test_other_versions_are_told(tmp_path):
    interrupted(tmp_path / "k")
    manifest = tmp_path / "k" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"jax": "{jax.__version__}"', '"jax": "0.1"'))
    with pytest.warns(UserWarning, match=r"jax 0\.1 -> .*to rounding"):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)


def test_paths_that_are_no_stores(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("text")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("[1]")
    for name, message in (("file", "is a file"), ("folder", "is not a store"), ("foreign", "is not a store")):
        with pytest.raises(FileExistsError, match=message) as caught:
            empirical_ntk(net, PARAMS, X, store=tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(FileExistsError, match=message):
            open_kernel(tmp_path / name)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "text"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder", "foreign"]
    with pytest.raises(FileNotFoundError, match="no store"):
        open_kernel(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    empirical_ntk(net, PARAMS, X, store=tmp_path / "empty", **OPTIONS)


def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=11 * 11 * 8))  # 12 x 12 with padding
    with pytest.raises(OSError, match=r"needs .* GiB on disk for 21 tiles, .* are free") as caught:
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "k").exists()


def test_disk_full_half_way(tmp_path, monkeypatch):
    place = TilePlan.place

    def full(cut, kernel, i, j, tile):
        if (i, j) == (0, 5):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        place(cut, kernel, i, j, tile)

    with monkeypatch.context() as patch:
        patch.setattr(TilePlan, "place", full)
        with pytest.raises(OSError, match=r"tile \(0, 5\).*5 of 21 tiles are finished and kept") as caught:
            empirical_ntk(net, PARAMS, X, store=tmp_path / "k", **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    seen = []
    found = empirical_ntk(net, PARAMS, X, store=tmp_path / "k", track=lambda s, _: seen.extend(s) or seen, **SMALL)
    assert len(seen) == TILES - 5
    np.testing.assert_array_equal(found.ntk, empirical_ntk(net, PARAMS, X, **SMALL).ntk)


def test_memory_too_small_for_a_tile_leaves_no_store(tmp_path):
    with pytest.raises(MemoryError, match="1 x 1 inputs"):
        empirical_ntk(net, PARAMS, X, store=tmp_path / "k", memory=10)
    assert not (tmp_path / "k").exists()


def test_dtypes_that_zarr_has_no_name_for(tmp_path):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    with pytest.raises(ValueError, match="cannot hold bfloat16"):
        empirical_ntk(net, params, jnp.asarray(X, jnp.bfloat16), store=tmp_path / "k")
    assert not list(tmp_path.iterdir())


SHARDED = """
import jax
from test_empirical_store import *

assert jax.device_count() == 8
network = fully_connected(2, 8, outputs=2)
params = jax.tree.map(np.asarray, network.init(jax.random.key(0), (1, 3))[1])
x = draw(15, 3)
for f, p, method, outputs, x2 in (
    (net, PARAMS, "jacobian", "full", None),
    (net, PARAMS, "products", "trace", Y),
    (coupled_net, PARAMS, "jacobian", "diagonal", None),
    (network, params, "layerwise", "trace", None),
):
    call = {"outputs": outputs, "method": method, "coupled": f is coupled_net}
    few = plan(f, p, x, x2, parallel=Devices().parallel, **call)  # 4 tiles or more for each device
    several = empirical_ntk(f, p, x, x2, memory=few.memory_bytes, **call)
    single = empirical_ntk(f, p, x, x2, memory=few.memory_bytes, on=Devices((jax.devices()[3],)), **call)
    assert several.plan == single.plan
    assert several.plan.rows == 2
    assert several.plan.count in (32, 36)
    np.testing.assert_array_equal(several.ntk, single.ntk)
"""


def test_eight_devices_compute_the_bits_of_one():
    with python(SHARDED, flags="--xla_force_host_platform_device_count=8") as process:
        pass
    assert process.returncode == 0


def test_default_device():
    with jax.default_device(jax.devices()[0]):
        assert Devices().devices == jax.devices()[:1]
    assert (Devices().parallel, Devices().share) == (len(jax.devices()),) * 2


def test_time_on_other_devices():
    cut = plan(net, PARAMS, X, **SMALL)
    there = cut.on(4, flops_per_second=1e3)
    assert (there.tiles, there.rounds) == (TILES, 6)
    np.testing.assert_allclose(there.seconds, cut.flops / TILES * 6 / 1e3)
    assert all(said in there.summary() for said in ("21 tiles on 4 devices, 6 for the busiest", "if the storage takes"))
    slow, fast = (cut.on(4, flops_per_second=1e3, writes_per_second=rate) for rate in (1.0, 1e9))
    assert slow.hours * 3600 == 11 * 11 * 8 > fast.seconds == there.seconds
    assert "limited by storage" in slow.summary()
    assert "limited by computing" in fast.summary()
    measured = plan(net, PARAMS, X, measure=True, **SMALL)
    np.testing.assert_allclose(measured.on().seconds, measured.seconds)
    for options, error, message in (
        ({}, ValueError, "measure=True"),
        ({"devices": 0, "flops_per_second": 1.0}, ValueError, "one device or more"),
        ({"memory": MEMORY - 1, "flops_per_second": 1.0}, MemoryError, "cuts smaller ones"),
    ):
        with pytest.raises(error, match=message):
            cut.on(**options)


def test_a_million_images_on_64_gpus():
    network = fully_connected(5, 512, outputs=10)
    shape = jax.ShapeDtypeStruct((1_000_000, 784), np.float32)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (1, 784))[1])
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), params)
    cut = plan(network, params, shape, outputs="trace", memory="80GiB", coupled=False, parallel=64)
    there = cut.on(64, memory="80GiB", flops_per_second=2e13)
    assert there.tiles >= 4 * 64
    assert there.storage_bytes == 4 * 10**12
    # within the idle end of the last round
    assert cut.flops / 64 / 2e13 <= there.seconds <= 1.25 * cut.flops / 64 / 2e13
    assert cut.on(64, flops_per_second=2e13, writes_per_second=1e10).hours == 400 / 3600
