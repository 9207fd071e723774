"""What a kernel of images will take is said before it is taken, and said rightly: against XLA's own account."""

import resource
import shlex
import subprocess
import sys

import jax
import numpy as np
import psutil
import pytest

from ntk_analysis.common import memory
from ntk_analysis.infinite import compute, infinite_kernel
from ntk_analysis.infinite.compute import input_kernel
from ntk_analysis.layers import Activation, AvgPool, BatchNorm, Conv, Dense, Flatten, Serial
from ntk_analysis.networks import convolutional, fully_connected, residual

from .tiers import full

FLAT, POOL = convolutional(1, 4, kernel_size=1), convolutional(1, 4, kernel_size=1, readout="pool")


def available(monkeypatch, count):
    monkeypatch.setattr(memory, "available_bytes", lambda: count)


def asked(network, shape, *, crossed=None, dtype=np.float32):
    """Bytes that infinite_kernel asks for."""
    numbers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "require_memory", lambda needed, what, cure: numbers.append(needed))
        x2 = None if crossed is None else jax.ShapeDtypeStruct(crossed, dtype)
        jax.eval_shape(lambda x, y: infinite_kernel(network, x, y).ntk_scaled, jax.ShapeDtypeStruct(shape, dtype), x2)
    (number,) = numbers
    return number


def test_what_is_available_is_a_number_of_this_machine():
    assert 2**20 < memory.available_bytes() < 2**50


def taken_by(program):
    """Bytes of temporaries and results of a lowered program, by XLA's account."""
    account = program.compile().memory_analysis()
    return account.temp_size_in_bytes + account.output_size_in_bytes


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (FLAT, r"the kernel of 3 x 3 images of 4 x 5 at equal positions, needs about .* GiB, 9\.31e-10 GiB are"),
        (POOL, r"the kernel of 3 x 3 images of 4 x 5 at all pairs of positions, for a pooling read-out, needs about"),
    ],
)
def test_too_large_a_kernel_is_refused_before_it_is_computed(monkeypatch, network, words):
    x = np.ones((3, 4, 5, 2))
    needed = asked(network, x.shape, dtype=x.dtype)
    available(monkeypatch, 1)
    monkeypatch.setattr(compute, "propagate", None)  # would raise another error
    with pytest.raises(MemoryError, match=words) as caught:
        infinite_kernel(network, x)
    message = str(caught.value)
    assert "\n" not in message
    assert memory.gib(needed) in message
    assert "use fewer images at a time" in message
    assert ("a flattening read-out" in message) == (network is POOL)
    with pytest.raises(MemoryError, match="of 3 x 2 images"):
        infinite_kernel(network, x, x[:2])
    with pytest.raises(MemoryError, match=words):  # inside a program too, before that is compiled
        jax.jit(lambda z: infinite_kernel(network, z))(x)


def test_the_last_byte_counts(monkeypatch):
    needed = asked(FLAT, (3, 4, 5, 2))
    available(monkeypatch, needed)
    memory.require_memory(needed, "this", "do that")
    with pytest.raises(MemoryError, match=r"this needs about .* do that"):
        memory.require_memory(needed + 1, "this", "do that")


@pytest.mark.full  # extrapolates
def test_how_the_memory_grows():
    """n1 n2 pairs, times positions where equal ones are kept, times their square where all pairs are."""
    shape = (3, 4, 5, 2)
    assert asked(FLAT, (6, *shape[1:])) == 4 * asked(FLAT, shape)
    assert asked(FLAT, shape, dtype=np.float64) == 2 * asked(FLAT, shape)
    assert asked(FLAT, shape, crossed=(5, 4, 5, 2)) * 3 == asked(FLAT, shape) * 5
    assert asked(FLAT, (3, 8, 5, 2)) == 2 * asked(FLAT, shape)
    assert asked(POOL, (3, 8, 5, 2)) == 4 * asked(POOL, shape)
    assert asked(FLAT, (3, 4, 5, 7)) == asked(FLAT, shape)
    between = Serial(Conv(4), AvgPool(2), Flatten(), Dense(1))
    assert asked(between, shape) == asked(POOL, shape)


# the largest arrays are alive together in the middle of a block: deeper networks take no more
ACCOUNTS = {
    "flatten": (convolutional(2, 4, "weight_mean"), (24, 12, 12, 3), None, np.float32),
    "flatten, crossed": (convolutional(2, 4, kernel_size=2, b_var=0.1), (24, 12, 12, 3), (16, 12, 12, 3), np.float64),
    "flatten, residual": (residual(2, 4, "weight_mean", kernel_size=3), (16, 16, 16, 3), None, np.float32),
    "pool": (convolutional(2, 4, kernel_size=2, readout="pool"), (6, 6, 6, 3), None, np.float32),
    "batch norm": (residual(2, 4, "batch", kernel_size=2), (6, 6, 6, 3), None, np.float64),
}


@pytest.mark.parametrize(
    ("network", "shape", "crossed", "dtype"),
    [
        pytest.param(*account, id=name, marks=[pytest.mark.full] * (name != "flatten, crossed"))
        for name, account in ACCOUNTS.items()
    ],
)
def test_the_estimate_is_what_the_compiler_takes(network, shape, crossed, dtype):
    """Not less than it by more than 1.3, nor more than 2.5 times as much."""
    x1 = jax.ShapeDtypeStruct(shape, dtype)
    x2 = None if crossed is None else jax.ShapeDtypeStruct(crossed, dtype)

    def propagate(x, y):
        return network.kernel(input_kernel(x, y, paired=network.pairs_positions))

    taken = taken_by(jax.jit(propagate).lower(x1, x2))
    assert taken / 1.3 < asked(network, shape, crossed=crossed, dtype=dtype) < 2.5 * taken


@pytest.mark.full
def test_of_many_images_only_a_tile_is_held():
    """4,000 images of 16 x 16, which as a whole took a terabyte: the tile, and what is left for each pair."""
    network, shape = convolutional(2, 4), (4000, 16, 16, 3)
    assert asked(network, shape) < 2**30
    x = jax.ShapeDtypeStruct(shape, np.float32)
    taken = taken_by(jax.jit(lambda x: infinite_kernel(network, x)).lower(x))
    assert taken / 1.3 < asked(network, shape) < 4 * taken
    unflattened = Serial(Conv(4), Conv(4, stride=4))
    assert asked(unflattened, shape) > 2 * 16 * 4000**2 * 4
    # signals of 45 positions, of which 300 took 16.4 GiB as a whole
    pooled, signals = convolutional(2, 4, kernel_size=(3, 1), readout="pool"), (300, 45, 1, 2)
    x = jax.ShapeDtypeStruct(signals, np.float64)
    taken = taken_by(jax.jit(lambda x: infinite_kernel(pooled, x)).lower(x))
    assert taken / 1.3 < asked(pooled, signals, dtype=np.float64) < min(4 * taken, 2**26)
    # statistics over the batch are of the whole batch
    normalised = Serial(Conv(4), Flatten(), Dense(4), BatchNorm(), Activation("relu"), Dense(1))
    assert asked(normalised, shape) == 16 * 4000**2 * 256 * 4


# ---- vectors and weights


VECTORS = {
    "by their angles": (fully_connected(2, 4), None, 4),
    "in tiles": (fully_connected(2, 4, activation="tanh"), None, 6),
    "two sets": (fully_connected(2, 4), (700, 3), 6),
    "a batch": (fully_connected(2, 4, "batch"), None, 19),
}


@pytest.mark.parametrize("name", VECTORS)
def test_kernels_of_too_many_vectors_are_refused(name, monkeypatch):
    network, crossed, arrays = VECTORS[name]
    pairs = 1000 * (700 if crossed else 1000)
    assert asked(network, (1000, 3), crossed=crossed) == arrays * pairs * 4
    available(monkeypatch, arrays * pairs * 8 - 1)
    monkeypatch.setattr(compute, "propagate", None)
    x2 = None if crossed is None else np.ones(crossed)
    with pytest.raises(
        MemoryError, match=r"the kernel of 1000 x 1?\d00+ inputs needs .*: use fewer inputs.*, or float32"
    ):
        infinite_kernel(network, np.ones((1000, 3)), x2)


@pytest.mark.parametrize("name", full(*VECTORS))
def test_what_is_asked_for_vectors_is_what_the_program_takes(name):
    """By XLA's account of its temporaries and results, with the rest of one tile."""
    network, crossed, arrays = VECTORS[name]
    shapes = [None if shape is None else jax.ShapeDtypeStruct(shape, np.float32) for shape in ((2000, 3), crossed)]
    norm = 1.0 if arrays == 4 else None
    taken = taken_by(compute.propagate.lower(network, False, norm, False, None, None, (), *shapes))
    kernel = 4 * 2000 * (700 if crossed else 2000)
    tile = 150 * 500**2 * 4
    assert 0.6 * arrays * kernel < taken < arrays * kernel + tile


DRAWN = {
    "dense": (Dense(10**5), (1, 10**5)),
    "hidden layers": (fully_connected(3, 10**5), (1, 3)),
    "residual": (residual(2, 10**5), (1, 3)),
    "convolution": (Conv(10**5, 3), (1, 8, 8, 10**4)),
}


@pytest.mark.parametrize("name", DRAWN)
def test_networks_that_do_not_fit_are_not_drawn(name, monkeypatch):
    network, shape = DRAWN[name]
    available(monkeypatch, 2**36)
    with pytest.raises(
        MemoryError, match=r"to draw [1-9][0-9]?(,000){3} weights of .* needs about .* GiB, 64 GiB are available: use a"
    ):
        network.init(jax.random.key(0), shape)
    drawn = jax.eval_shape(lambda: network.init(jax.random.key(0), shape)[1])  # a description takes nothing
    assert sum(leaf.size for leaf in jax.tree.leaves(drawn)) >= 9 * 10**9


# ---- how much there is


def group(folder, limit, use, cache, version):
    """The files of a control group."""
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, use), strict=True):
        (folder / name).write_text(f"{value}\n")
    cached = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 7\n{cached} {cache}\n")


@pytest.mark.parametrize("version", [1, 2], ids=["version 1", "version 2"])
def test_limits_of_control_groups(version, tmp_path):
    """Of the group itself and of those above; files in the cache are given up."""
    mounted = tmp_path / "cgroup"
    root = mounted / "memory" if version == 1 else mounted
    (tmp_path / "own").write_text("3:cpu:/other\n0::/a/b\n" if version == 2 else "9:name=systemd:/\n4:memory:/a/b\n")
    group(root / "a" / "b", "max" if version == 2 else 2**63 - 4096, 100, 0, version)
    group(root / "a", 1000, 400, 50, version)
    found = list(memory._left_in_groups(tmp_path / "own", mounted))
    assert min(found) == 1000 - 400 + 50
    (tmp_path / "own").write_text("0::/seen/from/outside\n4:memory:/seen/from/outside\n")
    group(root, 300, 100, 0, version)
    assert list(memory._left_in_groups(tmp_path / "own", mounted)) == [200]
    assert list(memory._left_in_groups(tmp_path / "nothing", mounted)) == []


def test_the_limit_of_the_address_space(monkeypatch):
    before = memory.host_bytes()
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (taken + 2**20, 2**62))
    assert 0 <= memory.host_bytes() <= 2**21 < before
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1))
    assert memory.host_bytes() == 0


LIMITED = {
    "kernel": "kernel images.npy --out k.npz",
    "batch": "kernel images.npy --out k.npz --normalization batch --eps 1",
    "empirical": "empirical --images images.npy --count 3 --width 100000 --depth 2 --store k",
    "train": "train --width 100000",
    "sweep": "sweep --width 100000 --out k",
}


@pytest.mark.full
@pytest.mark.parametrize("name", LIMITED)
def test_a_limit_is_told_in_one_line(name, tmp_path):
    """Of the address space of a real process: XLA would end it by a signal."""
    np.save(tmp_path / "images.npy", np.ones((60_000, 4), np.uint8))
    command = f"ulimit -v 16000000; exec {shlex.quote(sys.executable)} -m ntk_analysis {LIMITED[name]}"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith("error: ")
    assert "GiB are available: use " in ended.stderr
