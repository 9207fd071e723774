"""What a kernel of images will take is said before it is taken, and said rightly: against XLA's own account."""

import jax
import numpy as np
import pytest

from ntk_analysis.common import memory
from ntk_analysis.infinite import compute
from ntk_analysis.infinite.compute import infinite_kernel, input_kernel
from ntk_analysis.layers import Activation, AvgPool, BatchNorm, Conv, Dense, Flatten, Serial
from ntk_analysis.networks import convolutional, fully_connected, residual

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
    monkeypatch.setattr(compute, "_propagate", None)  # would raise another error
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


def test_vectors_are_not_asked_for(monkeypatch):
    available(monkeypatch, 0)
    assert infinite_kernel(fully_connected(1, 4), np.ones((2, 3))).ntk.shape == (2, 2)


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

    account = jax.jit(propagate).lower(x1, x2).compile().memory_analysis()
    taken = account.temp_size_in_bytes + account.output_size_in_bytes
    assert taken / 1.3 < asked(network, shape, crossed=crossed, dtype=dtype) < 2.5 * taken


@pytest.mark.full
def test_of_many_images_only_a_tile_is_held():
    """4,000 images of 16 x 16, which as a whole took a terabyte: the tile, and what is left for each pair."""
    network, shape = convolutional(2, 4), (4000, 16, 16, 3)
    assert asked(network, shape) < 2**30
    x = jax.ShapeDtypeStruct(shape, np.float32)
    account = jax.jit(lambda x: infinite_kernel(network, x)).lower(x).compile().memory_analysis()
    taken = account.temp_size_in_bytes + account.output_size_in_bytes
    assert taken / 1.3 < asked(network, shape) < 4 * taken
    unflattened = Serial(Conv(4), Conv(4, stride=4))
    assert asked(unflattened, shape) > 2 * 16 * 4000**2 * 4
    # statistics over the batch are of the whole batch
    normalised = Serial(Conv(4), Flatten(), Dense(4), BatchNorm(), Activation("relu"), Dense(1))
    assert asked(normalised, shape) == 16 * 4000**2 * 256 * 4
