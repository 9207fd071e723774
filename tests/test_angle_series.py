"""Kernels as functions of one angle, against the recursion through all layers."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.infinite import angle_fit, compute, infinite_kernel
from ntk_analysis.infinite.angle_fit import TOLERANCE, angular_function, fitted, measured_error, relative_error
from ntk_analysis.infinite.distances import NEAR
from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, Flatten, LayerNorm, Residual, Serial
from ntk_analysis.networks import fully_connected, residual

from .tiers import full

NETWORKS = {
    "relu 1": fully_connected(1, 1),
    "relu 50": fully_connected(50, 1),
    "relu 200": fully_connected(200, 1),
    "centered relu 1": fully_connected(1, 1, "weight_mean"),
    "centered relu 10": fully_connected(10, 1, "weight_mean"),
    "centered relu 50": fully_connected(50, 1, "weight_mean"),
    "centered relu 200": fully_connected(200, 1, "weight_mean"),
    "leaky 20": fully_connected(20, 1, activation="leaky_relu(0.2)"),
    "centered leaky 20": fully_connected(20, 1, "weight_mean", "leaky_relu(0.2)"),
    "abs 10": fully_connected(10, 1, activation="abs"),
    "identity 5": fully_connected(5, 1, activation="identity"),
    "residual 10": residual(10, 1),
    "centered residual 10": residual(10, 1, "weight_mean"),
    "activated": Serial(Dense(1, 3.0), Activation("relu"), Dense(1, 0.7), Activation("relu")),
}
IN_FULL = ("centered relu 10", "centered relu 200", "centered leaky 20")


@pytest.fixture(autouse=True, scope="module")
def at_any_size():
    """The path of the angle for the few inputs that tests can afford: programs of this module know no other."""
    fewest, compute.FEWEST_PAIRS = compute.FEWEST_PAIRS, 1
    jax.clear_caches()
    yield fewest
    compute.FEWEST_PAIRS = fewest
    jax.clear_caches()


def hard_inputs(dtype=np.float64):
    """Unequal norms, duplicates, near-duplicates at 1e-3 to 1e-7, antipodal rows and zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 12)) * np.geomspace(0.01, 100, 8)[:, None]
    noise = rng.standard_normal((5, 12))
    near = x[3] + np.geomspace(1e-3, 1e-7, 5)[:, None] * noise
    return np.concatenate([x, x[:2], 3 * x[2:3], near, -x[:2], -2 * x[4:5], np.zeros((2, 12))]).astype(dtype)


def both(network, *inputs):
    fast, slow = infinite_kernel(network, *inputs), infinite_kernel(network, *inputs, exact=True)
    assert fast.approximation_error > 0
    assert slow.approximation_error == 0
    return fast, slow


def assert_alike(fast, slow, tolerance):
    """f and theta of all pairs within `tolerance`, in the norms in which the error is measured."""
    live = np.asarray(slow.variance1 > 0)[:, None] & np.asarray(slow.variance2 > 0)
    d, ours = np.asarray(slow.distance)[live], np.asarray(fast.distance)[live]
    np.testing.assert_allclose(ours, d, rtol=tolerance, atol=tolerance * (d.max() if d.max() > 0.5 else 0))
    unit = np.sqrt(np.asarray(slow.variance1)[:, None] * np.asarray(slow.variance2))[live]
    theta = np.asarray(slow.ntk_scaled, np.float64)[live]
    ours = np.asarray(fast.ntk_scaled, np.float64)[live] * np.exp(float(fast.log_scale) - float(slow.log_scale))
    floor = np.maximum(unit * np.exp(-float(slow.log_scale)), np.finfo(slow.distance.dtype).tiny)
    assert np.max(np.abs(ours - theta) / np.maximum(np.abs(theta), floor)) < tolerance
    assert np.all(np.asarray(fast.ntk_scaled)[~live] == 0)
    for name in ("variance1", "variance2", "mean1", "mean2"):
        np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), rtol=tolerance)
    assert (fast.law, fast.joint, fast.distance.dtype) == (slow.law, slow.joint, slow.distance.dtype)


@pytest.mark.parametrize(
    ("name", "crossed"),
    [
        ("activated", True),
        *full(("abs 10", False), ("abs 10", True), ("activated", False)),
        *full(*((name, crossed) for name in IN_FULL for crossed in (False, True))),
        *(
            pytest.param(name, crossed, marks=pytest.mark.slow)
            for name in NETWORKS
            for crossed in (False, True)
            if name not in ("abs 10", "activated", *IN_FULL)
        ),
    ],
)
def test_float64_kernels_are_those_of_the_recursion(name, crossed):
    """To twice the tolerance of the series, which leaves as much for the recursion's rounding (2e-13 in 200 layers)."""
    x = hard_inputs()
    if name == "abs 10":  # even: theta at pi falls like the angle's 1e-8, which float64 does not hold there
        x = np.delete(x, [16, 17, 18], axis=0)
    fast, slow = both(NETWORKS[name], *((x[:9], x) if crossed else (x,)))
    assert fast.approximation_error <= TOLERANCE["float64"]
    assert_alike(fast, slow, 2 * TOLERANCE["float64"])


@pytest.mark.parametrize(("name", "x64"), full(("relu 50", True), ("centered relu 10", False)))
def test_float32_kernels_with_and_without_x64(name, x64):
    """The recursion rounds 4 eps in each of up to 50 layers (2e-5), chaotic ones grow it; the distances are alike."""
    with jax.enable_x64(x64):
        fast, slow = both(NETWORKS[name], jnp.asarray(hard_inputs(np.float32)))
        assert fast.ntk_scaled.dtype == jnp.float32
        assert_alike(fast, slow, 1e-4)
        assert float(fast.relative_error) > fast.approximation_error


@pytest.mark.full  # as for any kernel in test_kernel.py
def test_numpy_inputs_are_computed_in_float64_with_x64_off():
    with jax.enable_x64(False):
        fast, slow = both(NETWORKS["activated"], hard_inputs())
    assert isinstance(fast.ntk_scaled, np.ndarray)
    assert_alike(fast, slow, 2 * TOLERANCE["float64"])


@pytest.mark.parametrize(
    ("depth", "dtype"),
    [
        *full((200, np.float32), (1000, np.float64)),
        pytest.param(10_000, np.float32, marks=pytest.mark.slow),
    ],
)
def test_chaotic_depths(depth, dtype):
    """Theta(0) = (chi^(L+1) - 1) / (chi - 1), nothing beside it off the diagonal; alone, those pairs keep theirs."""
    network = fully_connected(depth, 1, "weight_mean")
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 30)), dtype)
    kernel = infinite_kernel(network, x)
    chi = 1 / (1 - 1 / math.pi)
    scale = np.mean(np.asarray(x, np.float64) ** 2, axis=1)
    logs = np.log(np.diag(kernel.ntk_scaled).astype(np.float64) / scale) + float(kernel.log_scale)
    expected = (depth + 1) * math.log(chi) - math.log(chi - 1) + math.log1p(-(chi ** -(depth + 1.0)))
    # log_scale itself is a number of this size in this dtype
    np.testing.assert_allclose(logs, expected, rtol=4 * np.finfo(dtype).eps)
    assert np.isfinite(kernel.ntk_scaled).all()
    np.testing.assert_allclose(kernel.distance, 1 - np.eye(5), atol=2 * TOLERANCE[np.dtype(dtype).name])
    cross = infinite_kernel(network, x[:2], x[2:])
    assert float(cross.log_scale) == 0
    np.testing.assert_allclose(cross.distance, 1, atol=2 * TOLERANCE[np.dtype(dtype).name])


@pytest.mark.parametrize("name", full("activated", "relu 50", "centered relu 50"))
def test_tiles_of_a_joint_kernel(name, monkeypatch):
    """20 rows, as in no other test here, in tiles of 7: three by three, the last ones overlapping, mirrored."""
    monkeypatch.setattr("ntk_analysis.infinite.angle_series.TILE", 7)
    fast, slow = both(NETWORKS[name], hard_inputs()[1:])
    assert_alike(fast, slow, 2 * TOLERANCE["float64"])
    for values in (fast.distance, fast.ntk_scaled):
        np.testing.assert_array_equal(values, values.T)


@pytest.mark.parametrize("inputs", [pytest.param((6,), marks=pytest.mark.slow), *full(((3, 6),))])
def test_derivatives_are_those_of_the_recursion(inputs):
    x = hard_inputs()[2:8] / 10
    xs = tuple(jnp.asarray(x[:count]) for count in inputs)
    weights = jnp.asarray(np.random.default_rng(2).standard_normal((inputs[0], inputs[-1])))

    def total(exact, *xs):
        kernel = infinite_kernel(NETWORKS["relu 1"], *xs, exact=exact)
        return jnp.sum(weights * (kernel.nngp + kernel.ntk))

    fast, slow = (jax.jit(jax.grad(lambda *xs, e=exact: total(e, *xs)))(*xs) for exact in (False, True))
    assert np.abs(slow).max() > 0
    np.testing.assert_allclose(fast, slow, rtol=1e-12)


@pytest.mark.full  # every path once more, transformed
def test_vmap_and_jit():
    x = jnp.asarray(hard_inputs()[:6].reshape(2, 3, 12))
    network = NETWORKS["centered relu 10"]
    together = jax.vmap(jax.jit(lambda z: infinite_kernel(network, z).ntk))(x)
    alone = [infinite_kernel(network, z, exact=True).ntk for z in x]
    np.testing.assert_allclose(together, np.stack(alone), rtol=2 * TOLERANCE["float64"])


@pytest.mark.parametrize(
    "network",
    [
        Serial(Dense(1, b_var=0.1), Activation("relu"), Dense(1)),
        Serial(Dense(1), Activation("erf"), Dense(1)),
        Serial(Dense(1), LayerNorm(), Activation("relu"), Dense(1)),
        Serial(Dense(1), BatchNorm(), Activation("relu"), Dense(1)),
        Residual(Serial(Dense(1, b_var=0.1), Activation("relu"), Dense(1))),
    ],
    ids=["bias", "erf", "layer norm", "batch norm", "branch with bias"],
)
def test_networks_that_are_not_homogeneous_take_the_recursion(network):
    assert not network.homogeneous
    assert approximation_error(network, hard_inputs()[:5]) == 0


def approximation_error(network, x):
    """Of the kernel as it would be computed, without computing it."""
    found = []
    jax.eval_shape(lambda x: found.append(infinite_kernel(network, x).approximation_error), x)
    return found[0]


ON_ONE_NORM = {
    "bias": fully_connected(10, 1, b_var=0.1),
    "erf": fully_connected(10, 1, activation="erf", b_var=0.1),
    "centered gelu": fully_connected(5, 1, "weight_mean", "gelu"),
    "layer norm": Serial(Dense(1), LayerNorm(), Activation("relu"), Dense(1)),
}


@pytest.fixture
def at_any_number_on_one_norm(monkeypatch):
    """Inputs of norm 1.7, which is not that of any fit by default."""
    for fewest in ("FEWEST_AT_ONE_NORM", "FEWEST_FOR_A_COMPILED_FIT"):
        monkeypatch.setattr(compute, fewest, 1)
    x = hard_inputs()[:-2]
    return 1.7 * math.sqrt(12) * x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *full(("erf", np.float32), ("centered gelu", np.float64)),
        *(
            pytest.param(name, dtype, marks=pytest.mark.slow)
            for name, dtype in (("bias", np.float32), ("erf", np.float64), ("centered gelu", np.float32))
        ),
    ],
)
def test_any_network_is_a_function_of_the_angle_on_inputs_of_one_norm(name, dtype, at_any_number_on_one_norm):
    x = at_any_number_on_one_norm.astype(dtype)
    fast, slow = both(ON_ONE_NORM[name], x)
    assert fast.approximation_error <= 2 * TOLERANCE[np.dtype(dtype).name]
    assert_alike(fast, slow, 20 * TOLERANCE[np.dtype(dtype).name])


@pytest.mark.full  # refusals of a private function
def test_whose_norms_have_to_be_one(at_any_number_on_one_norm):
    network, x = ON_ONE_NORM["layer norm"], at_any_number_on_one_norm
    fast, slow = both(network, x[:5], x[3:])
    assert_alike(fast, slow, 20 * TOLERANCE["float64"])
    assert infinite_kernel(network, x[:5], 1.0001 * x[3:]).approximation_error == 0
    program = jax.jit(lambda x: infinite_kernel(network, x).approximation_error)
    assert program(x) == 0, "norms are not known under a trace"


@pytest.mark.full
def test_inputs_of_norm_one_share_a_fit_that_needs_no_compilation(monkeypatch):
    """Roundings of |x|^2 = d make no other fit and program; an integrated activation would have to be compiled."""
    monkeypatch.setattr(compute, "FEWEST_AT_ONE_NORM", 1)
    for seed in range(2):
        x = np.random.default_rng(seed).standard_normal((200, 30)).astype(np.float32)
        scaled = jnp.asarray(x * np.float32(math.sqrt(30)) / np.linalg.norm(x, axis=1, keepdims=True))
        assert compute._one_norm(ON_ONE_NORM["erf"], scaled, None) == 1.0
        assert compute._one_norm(fully_connected(1, 1, activation="tanh"), scaled, None) is None


def test_statistics_over_a_batch_are_no_function_of_the_angle(at_any_number_on_one_norm):
    x = at_any_number_on_one_norm[:8]
    assert infinite_kernel(fully_connected(1, 1, "batch"), x).approximation_error == 0


def test_images_take_the_recursion():
    network = Serial(Conv(1, 3), Activation("relu"), Flatten(), Dense(1))
    x = np.random.default_rng(3).standard_normal((2, 3, 3, 1)).astype(np.float32)
    assert approximation_error(network, x) == 0


def test_few_inputs_take_the_recursion_and_many_the_angle(at_any_size, monkeypatch):
    monkeypatch.setattr(compute, "FEWEST_PAIRS", at_any_size)
    x = np.random.default_rng(4).standard_normal((128, 5)).astype(np.float32)
    network = NETWORKS["relu 50"]
    assert approximation_error(network, x[:127]) == 0
    assert 0 < approximation_error(network, x) <= TOLERANCE["float32"]

    def loops(exact):
        program = str(jax.make_jaxpr(lambda z: infinite_kernel(network, z, exact=exact).ntk_scaled)(x))
        return set(map(int, re.findall(r"length=(\d+)", program)))

    layers = set(range(45, 51))  # a loop over most of the 50 layers; others run over 128 rows or over tiles
    assert loops(exact=True) & layers
    assert not loops(exact=False) & layers


@pytest.mark.parametrize("name", full("relu 50", "centered relu 50"))
def test_the_measured_error_bounds_that_of_any_pair(name):
    """With a degree too low for rounding to matter: measured at 501 angles it is within 2 per cent of the largest."""
    with jax.enable_x64(True):
        found = fitted(NETWORKS[name], "float64")
        assert found is not None
        function, checks = found
        assert measured_error(function, checks, "float64") < TOLERANCE["float64"]
        poor = replace(function, far=function.far[:, :9])
        error = measured_error(poor, checks, "float64")
        assert error > 100 * TOLERANCE["float64"]
        angles = np.random.default_rng(5).uniform(math.acos(1 - NEAR), math.pi, 2000)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) * math.sqrt(2)
        slow = infinite_kernel(NETWORKS[name], np.array([[math.sqrt(2), 0]]), circle, exact=True)
        f, ntk = jax.jit(poor)(slow_distances(circle), jnp.zeros(()))
    wide = angles > 1
    worst = 0.0
    for found, exact, floor in ((f, slow.distance, 0), (ntk, slow.ntk, slow.variance1[0])):
        size = np.where(wide, np.abs(exact[0][wide]).max(), np.abs(exact[0]))
        worst = max(worst, np.max(np.abs(found[0] - exact[0]) / np.maximum(size, floor)))
    assert 0.5 * error < worst < 1.02 * error


@pytest.mark.parametrize("name", full("relu 1", "centered relu 10", "abs 10", "centered residual 10"))
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_error_measured_in_numpy_bounds_that_of_the_program(name, dtype):
    """XLA evaluates the kernels, and rounds otherwise than NumPy."""
    function = angular_function(NETWORKS[name], dtype)
    assert function is not None
    with jax.enable_x64(True):
        found = fitted(NETWORKS[name], dtype, function.widest)
        assert found is not None
        checks = [values.folded(function.widest) if far else values for far, values in enumerate(found[1])]
        parts = replace(function, log_near=np.zeros_like(function.log_near)).below_near, function.from_near_on
        logs = np.tile(function.log_near[:-1], 4), np.asarray(function.log_far)
        for part, values, log in zip(parts, checks, logs, strict=True):
            distance = jnp.asarray(values.distance, dtype)
            in_units_of = jnp.asarray(log if part == function.from_near_on else 0.0, dtype)
            f, ntk = (np.asarray(value, np.float64) for value in jax.jit(part)(distance, in_units_of))
            unit = np.exp(values.log_scale - log)
            assert relative_error(f, values.f, values.distance) < function.error
            assert relative_error(ntk, values.ntk * unit, values.distance, values.smallest * unit) < function.error


def slow_distances(circle):
    return jax.jit(compute.input_kernel)(jnp.asarray([[math.sqrt(2), 0]]), jnp.asarray(circle)).distance


def test_where_no_series_reaches_the_tolerance_the_recursion_is_taken(monkeypatch):
    monkeypatch.setattr(angle_fit, "DEGREES", (8,))
    angular_function.cache_clear()
    error = approximation_error(NETWORKS["leaky 20"], hard_inputs())
    angular_function.cache_clear()
    assert error == 0
