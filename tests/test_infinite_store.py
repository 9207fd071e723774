"""Infinite kernels on disk: tiles that do not depend on who computes them, resumed after any kill, refused if other."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ntk_analysis import empirical, infinite_kernel, layers, networks, open_kernel
from ntk_analysis.common.checksums import sealed, unsealed
from ntk_analysis.infinite import plan_store, tiling
from ntk_analysis.infinite.compute import task_of
from ntk_analysis.infinite.tiling import job_of

from .test_empirical_store import kept_in
from .tiers import full

NETWORK = networks.fully_connected(1, 1, b_var=0.1)
X, Y = (np.random.default_rng(seed).standard_normal((n, 3)) for seed, n in ((0, 35), (1, 22)))
MEMORY = 6 * 8 * 10**2  # tiles of 9 x 9: 4 x 4, of which the last holds 8
SMALL = {"memory": MEMORY}
ARRAYS = ("distance", "ntk_scaled", "variance1", "variance2", "mean1", "mean2", "log_scale")


class Stop(BaseException):
    """What no code catches, as a kill."""


def stop_after(tiles):
    def track(steps, description):
        for number, step in enumerate(steps):
            if number == tiles:
                raise Stop
            yield step

    return track


def interrupted(path, tiles=4, **options):
    with pytest.raises(Stop):
        infinite_kernel(NETWORK, X, store=path, track=stop_after(tiles), **SMALL | options)


def equal(found, wanted):
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The kernel computed in one go."""
    return infinite_kernel(NETWORK, X, store=tmp_path_factory.mktemp("stores") / "k", **SMALL)[:]


@pytest.mark.parametrize("x2", [Y, *full(None)])
def test_a_store_holds_what_memory_holds(tmp_path, x2):
    found = infinite_kernel(NETWORK, X, x2, store=tmp_path / "deep" / "k", **SMALL)
    wanted = infinite_kernel(NETWORK, X, x2)
    assert found.plan.count == (10 if x2 is None else 12)
    for name in ("nngp", "ntk"):  # a few roundings in each of two layers
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-13, atol=1e-14)
    again = open_kernel(tmp_path / "deep" / "k")
    equal(again[:], found[:])
    assert (again.shape, len(again), again.dtype) == (found.shape, 35, np.float64)
    assert (again[:].law, again[:].joint) == (wanted.law, wanted.joint)
    np.testing.assert_array_equal(np.asarray(again), found.ntk)
    part = again[[30, 2, 11], 4:19]
    np.testing.assert_array_equal(part.nngp, found.nngp[[30, 2, 11], 4:19])
    np.testing.assert_array_equal(part.ntk, found.ntk[[30, 2, 11], 4:19])
    with pytest.raises(TypeError, match=r"one input is a slice, kernel\[3:4\]"):
        again[3]


def test_a_tile_alone_is_the_tile_of_the_whole(whole):
    job = job_of(task_of(NETWORK, X, None, statistics=None, batch_norm="exact", exact=False), memory=MEMORY)
    for i, j in ((3, 3), (0, 3), (1, 2)):
        rows, columns = job.plan.slices(i, j)
        tile = job.tiles()(i, j)
        np.testing.assert_array_equal(tile["distance"], whole.distance[rows, columns])
        np.testing.assert_array_equal(tile["ntk_scaled"], whole.ntk_scaled[rows, columns])
        np.testing.assert_array_equal(tile["variance2"], whole.variance2[columns])


def test_resumes_with_the_same_bits(tmp_path, whole):
    interrupted(tmp_path / "k")
    with pytest.raises(ValueError, match="6 of 10 tiles of store"):
        open_kernel(tmp_path / "k")
    seen: list[Any] = []
    # with other memory the tiles of the store are kept, where they fit
    found = infinite_kernel(NETWORK, X, store=tmp_path / "k", track=kept_in(seen))
    assert len(seen) == 6
    equal(found[:], whole)
    infinite_kernel(NETWORK, X, store=tmp_path / "k", track=stop_after(0), **SMALL)  # nothing left to do
    with pytest.raises(MemoryError, match=r"9 x 9 inputs, needs .* the budget is"):
        infinite_kernel(NETWORK, X, store=tmp_path / "k", memory=MEMORY // 2)


def test_damage_is_told_and_computed_again(tmp_path, whole):
    path = tmp_path / "k"
    infinite_kernel(NETWORK, X, store=path, **SMALL)
    for name in ("ntk_scaled/c/1/2", "variance1/c/2", "scales/c/0/3/0"):
        file = path / name
        content = bytearray(file.read_bytes())
        content[3] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} has other bytes than were written"):
            open_kernel(path)
        with pytest.warns(UserWarning, match=rf"{name} .*: 1 of 10 tiles are computed again$"):
            equal(infinite_kernel(NETWORK, X, store=path, **SMALL)[:], whole)


@pytest.mark.full
def test_scales_of_tiles_are_brought_together(tmp_path):
    """A chaotic network's NTK leaves float32's range of squares for near pairs only: tiles have scales of their own."""
    network = networks.fully_connected(40, 1, activation="erf", w_var=8.0)
    x = np.random.default_rng(2).standard_normal((12, 3)).astype(np.float32)
    x[1] = x[0] * np.float32(1 + 1e-6)
    found = infinite_kernel(network, x, store=tmp_path / "k", memory=6 * 4 * 4**2)
    logs = np.asarray(found.store.arrays["scales"])[:, :, 0]
    assert len(np.unique(logs)) > 1
    wanted = infinite_kernel(network, x)
    near = float(wanted.log_scale) - float(found.log_scale)
    np.testing.assert_allclose(found.ntk_scaled, np.asarray(wanted.ntk_scaled) * np.exp(near), rtol=1e-3, atol=1e-30)


@pytest.mark.full
def test_a_joint_batch_is_one_tile_and_says_so(tmp_path):
    network = networks.fully_connected(1, 1, "batch")
    plan = plan_store(network, X, measure=False, memory="1GiB", parallel=4)
    assert "as one joint batch: one tile, which cannot be cut" in plan.summary()
    found = infinite_kernel(network, X, store=tmp_path / "k")
    equal(found[:], infinite_kernel(network, X))
    joined = infinite_kernel(network, X[:20], X[20:], statistics="x1", store=tmp_path / "joined")
    np.testing.assert_array_equal(joined.cross.ntk, infinite_kernel(network, X[:20], X[20:], statistics="x1").cross.ntk)
    with pytest.raises(MemoryError, match="it is not cut: use fewer inputs"):
        infinite_kernel(network, X, store=tmp_path / "small", **SMALL)
    assert not (tmp_path / "small").exists()


GIVEN: dict[str, Any] = {"network": NETWORK, "x1": X}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "network": (
        {"network": networks.fully_connected(1, 1, b_var=0.2)},
        r"the network is .*b_var=0\.1.* there and .*0\.2",
    ),
    "inputs": ({"x1": X + 1e-15}, "x1 has other values"),
    "fewer inputs": ({"x1": X[:20]}, "n1 is 35 there and 20 here"),
    "second inputs": ({"x2": X}, "symmetric is True there and False here"),
    "dtype": ({"x1": X.astype(np.float32)}, "dtype is float64 there and float32 here"),
    "statistics": ({"x1": X[:30], "x2": X[30:], "statistics": "x1"}, "training is None there and 30 here"),
    "exact": ({"exact": True}, "exact is False there and True here"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kernel_is_refused(tmp_path, name):
    changed, message = OTHERS[name]
    interrupted(tmp_path / "k")
    before = {path: path.read_bytes() for path in (tmp_path / "k").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=message) as caught:
        infinite_kernel(**GIVEN | changed, store=tmp_path / "k", **SMALL)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.full
def test_a_function_in_the_network_is_known_by_its_values(tmp_path):
    def network(slope):
        return layers.Serial(layers.Dense(1), layers.Activation(lambda x: x * slope), layers.Dense(1))

    infinite_kernel(network(2.0), X, store=tmp_path / "k")
    infinite_kernel(network(2.0), X, store=tmp_path / "k", track=stop_after(0))
    with pytest.raises(ValueError, match="a function in the network has other values"):
        infinite_kernel(network(2.1), X, store=tmp_path / "k")


def test_what_no_store_can_be_made_of(tmp_path):
    (tmp_path / "file").write_text("text")
    images = np.ones((2, 3, 3, 1))
    for error, message, call in (
        (FileExistsError, "is a file", {"store": tmp_path / "file"}),
        (OSError, r"k cannot be made \(File exists\): give another path", {"store": tmp_path / "file" / "k"}),
        (ValueError, "give store=PATH, or leave them out", {"on": empirical.Devices()}),
        (ValueError, "give store=PATH, or leave them out", SMALL),
        (
            NotImplementedError,
            "ends at 3 x 3 positions",
            {"network": layers.Conv(1), "x1": images, "store": tmp_path / "k"},
        ),
    ):
        with pytest.raises(error, match=message) as caught:
            infinite_kernel(**{"network": NETWORK, "x1": X} | call)
        assert "\n" not in str(caught.value)
    infinite_kernel(NETWORK, X, store=tmp_path / "infinite", **SMALL)
    with pytest.raises(ValueError, match="the kernel is infinite there and empirical here"):
        empirical.empirical_nngp(lambda p, x: x @ p, np.ones((3, 1)), X, store=tmp_path / "infinite")


def test_the_plan_counts_all_tiles():
    plan = plan_store(NETWORK, X, memory=MEMORY)
    assert (plan.count, plan.rows, plan.columns) == (10, 9, 9)
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert plan.storage_bytes == 2 * 35 * 35 * 8 + 4 * 35 * 8 + 16 * 3 * 8
    one = plan_store(NETWORK, X, measure=False)
    # 10 tiles of 9 x 9 in the place of 35 x 35 pairs, and what single inputs take
    assert 0.6 < plan.flops / one.flops < 0.8
    assert plan_store(NETWORK, X, measure=False, parallel=3).count >= 12


KILLED = """
import sys
from tests.test_infinite_store import *

def track(steps, description):
    for step in steps:
        print(step, flush=True)
        yield step

infinite_kernel(NETWORK, X, store=sys.argv[1], track=track, memory=6 * 8 * 4**2)
"""


def python(*arguments, flags=""):
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    folder = Path(__file__).parent.parent
    return subprocess.Popen([sys.executable, "-c", *arguments], env=environment, stdout=subprocess.PIPE, cwd=folder)


@pytest.mark.full
def test_killed_with_sigkill(tmp_path):
    with python(KILLED, str(tmp_path / "k")) as process:
        for _ in range(8):
            assert process.stdout.readline(), "ended by itself"
        process.send_signal(signal.SIGKILL)  # wherever it is by now
    assert process.returncode == -signal.SIGKILL
    done = len(list((tmp_path / "k" / "done").iterdir()))
    assert 5 <= done < 78  # the sixth and the seventh may be on their way to the disk
    seen: list[Any] = []
    call = {"memory": 6 * 8 * 4**2}
    found = infinite_kernel(NETWORK, X, store=tmp_path / "k", track=kept_in(seen), **call)
    assert len(seen) == 78 - done
    equal(found[:], infinite_kernel(NETWORK, X, store=tmp_path / "other", **call)[:])


SHARDED = """
import jax
from tests.test_infinite_store import *

from ntk_analysis.empirical import Devices

path = Path(sys.argv[1])
assert jax.device_count() == 4
images = np.random.default_rng(0).standard_normal((9, 3, 3, 2))
relu, pool = networks.fully_connected(2, 1), networks.convolutional(1, 1, readout="pool")
wide = np.random.default_rng(0).standard_normal((300, 3)).astype(np.float32)
cases = ("a", NETWORK, X, None), ("b", NETWORK, X, Y), ("c", relu, wide, None), ("d", pool, images, None)
for name, network, x1, x2 in cases:
    several = infinite_kernel(network, x1, x2, store=path / f"{name}4")
    assert several.plan.count >= 16
    alone = {"memory": several.plan.memory_bytes, "on": Devices((jax.devices()[3],))}
    single = infinite_kernel(network, x1, x2, store=path / f"{name}1", **alone)
    assert single.plan.rows == several.plan.rows
    equal(several[:], single[:])
tiling.MANY = 6
blocks = infinite_kernel(NETWORK, X, store=path / "blocks4")
assert blocks.plan.block[0] < blocks.plan.rows
alone = {"memory": blocks.plan.memory_bytes, "on": Devices((jax.devices()[3],))}
single = infinite_kernel(NETWORK, X, store=path / "blocks1", **alone)
equal(blocks[:], single[:])
"""


@pytest.mark.full
def test_four_devices_compute_the_bits_of_one(tmp_path):
    with python(SHARDED, str(tmp_path), flags="--xla_force_host_platform_device_count=4") as process:
        pass
    assert process.returncode == 0


@pytest.fixture
def few_tiles(monkeypatch):
    """At most four tiles: each has several blocks."""
    monkeypatch.setattr(tiling, "MANY", 4)


@pytest.mark.usefixtures("few_tiles")
@pytest.mark.parametrize("x2", [None, *full(Y)])
def test_tiles_of_several_blocks(tmp_path, whole, x2):
    """As many bits as tiles of one block have; what is computed at one time fits the memory, and files are few."""
    found = infinite_kernel(NETWORK, X, x2, store=tmp_path / "k", **SMALL)
    wanted = whole if x2 is None else infinite_kernel(NETWORK, X, x2)
    assert "3 tiles of 18 x 18, 9 x 9 at a time" in found.summary() or x2 is not None
    assert found.plan.count < 10
    if x2 is None:
        equal(found[:], wanted)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-13, atol=1e-15)  # two roundings of the largest entries
    interrupted(tmp_path / "i", tiles=2, x2=x2)
    seen: list[Any] = []
    equal(infinite_kernel(NETWORK, X, x2, store=tmp_path / "i", track=kept_in(seen))[:], found[:])
    assert len(seen) == found.plan.count - 2
    again = open_kernel(tmp_path / "i")
    assert again.plan.block == found.plan.block


def test_a_manifest_from_before_there_were_blocks(tmp_path, whole):
    infinite_kernel(NETWORK, X, store=tmp_path / "k", **SMALL)
    file = tmp_path / "k" / "manifest.json"
    found = unsealed(json.loads(file.read_text()))
    del found["plan"]["block_rows"], found["plan"]["block_columns"]
    file.write_text(json.dumps(sealed(found)))
    equal(open_kernel(tmp_path / "k")[:], whole)
    infinite_kernel(NETWORK, X, store=tmp_path / "k", track=stop_after(0), **SMALL)


def test_the_plan_of_pooled_images_has_few_files():
    """At all pairs of positions a few images fill the memory, and thousands of such squares are one tile."""
    images = np.broadcast_to(np.float32(0.5), (400, 8, 8, 1))
    plan = plan_store(networks.convolutional(1, 1, readout="pool"), images, measure=False, memory="2MiB")
    assert plan.memory_bytes <= 2**21
    assert plan.block == (2, 2)
    assert plan.rows == plan.columns == 6  # with 4 x 4 there would be 5,050
    assert "2278 tiles of 6 x 6, 2 x 2 at a time" in plan.summary()
