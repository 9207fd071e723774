"""Averages over finite networks: against a loop by hand, against theories that are known, and what a store keeps."""

import os
import signal
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed import LocalCluster

import ntk_analysis as ntk
from ntk_analysis.empirical import Cluster
from ntk_analysis.layers import Activation, BatchNorm, Dense, Serial
from ntk_analysis.monte_carlo import KernelEstimate, compare, monte_carlo_kernel, monte_carlo_kernels
from ntk_analysis.monte_carlo.ensemble import Sums
from ntk_analysis.monte_carlo.job import added
from ntk_analysis.monte_carlo.widths import extrapolated

from .test_empirical_store import python

X = np.random.default_rng(0).standard_normal((5, 3))
Y = np.random.default_rng(1).standard_normal((4, 3))
DRAWS = 40


def init(key, shape):
    return (shape[0], 2), {"w": jax.random.normal(key, (shape[1], 2))}


def apply(params, x):
    return jnp.sin(x @ params["w"])


def by_hand(draws, x=X, y=Y):
    """NNGP and NTK of each draw, by the derivative of sine."""
    found = []
    for number in range(draws):
        w = np.asarray(init(jax.random.fold_in(jax.random.key(3), number), x.shape)[1]["w"])
        outputs = [np.sin(side @ w) @ np.sin(other @ w).T / 2 for side, other in ((x, y),)]
        slopes = np.cos(x @ w) @ np.cos(y @ w).T / 2 * (x @ y.T)
        found.append([outputs[0], slopes])
    return np.array(found)


@pytest.fixture(scope="module")
def estimates():
    """After 16 draws and after 40, of which 16 are those; the pair is compiled once for the module."""
    return [*monte_carlo_kernels((init, apply), X, Y, draws=(16, DRAWS), seed=3)]


def test_mean_and_standard_error_are_those_of_a_loop(estimates):
    for draws, found in zip((16, DRAWS), estimates, strict=True):
        samples = by_hand(draws)
        assert found.draws == draws
        np.testing.assert_allclose([found.nngp, found.ntk], samples.mean(0), rtol=1e-12)
        errors = samples.std(0, ddof=1) / draws**0.5
        np.testing.assert_allclose([found.nngp_error, found.ntk_error], errors, rtol=1e-10)
    assert estimates[0].shape == (5, 4)
    np.testing.assert_array_equal(np.asarray(estimates[0]), estimates[0].ntk)


def test_draws_are_added_to_those_before(estimates):
    direct = monte_carlo_kernel((init, apply), X, Y, draws=DRAWS, seed=3)
    np.testing.assert_array_equal(direct.ntk, estimates[1].ntk)
    assert "of 40 draws: errors up to" in direct.summary()


def test_sums_of_sums():
    values = np.random.default_rng(0).standard_normal((30, 2)) + 1e6
    parts = [(len(part), Sums(part.mean(0), len(part) * part.var(0))) for part in (values[:7], values[7:])]
    (few, first), (many, second) = parts
    whole = added(few, first, many, second)
    np.testing.assert_allclose(whole.mean, values.mean(0), rtol=1e-15)
    np.testing.assert_allclose(whole.spread, 30 * values.var(0), rtol=1e-8)


def estimate(rng, theory, error, **more):
    """An estimate of normal errors around a theory."""
    noise = np.triu(error * rng.standard_normal((2, *theory.shape)))
    mean, errors = theory + noise + np.triu(noise, 1).swapaxes(1, 2), np.full(theory.shape, error)
    return KernelEstimate(mean[0], mean[1], errors, errors, 10_000, 0, symmetric=True, **more)


def test_a_right_theory_agrees_and_a_wrong_one_does_not():
    rng, truth = np.random.default_rng(0), np.cov(np.random.default_rng(1).standard_normal((6, 20)))
    exact = estimate(rng, truth, 0.0)
    found = [compare(exact, estimate(rng, truth, 0.01)) for _ in range(200)]
    assert sum(one.agrees for one in found) >= 198
    # the level is the probability of the worst of all entries: below 0.05 it is in 1 of 20
    assert sum(one.ntk.probability < 0.05 for one in found) <= 20
    wrong = replace(exact, ntk=exact.ntk * 1.2)
    told = compare(wrong, estimate(rng, truth, 0.01))
    assert (told.nngp.agrees, told.ntk.agrees, told.agrees) == (True, False, False)
    assert "NTK DIFFERS" in told.summary()
    # what would have been seen is about what is seen
    offs = np.geomspace(0.001, 1, 60)
    seen = [not compare(replace(exact, ntk=truth + off), estimate(rng, truth, 0.01)).ntk.agrees for off in offs]
    threshold = found[0].ntk.visible * np.diagonal(truth).min()
    assert 0.2 * threshold < offs[seen.index(True)] < threshold


def test_averages_are_extrapolated_in_width_and_a_curve_is_told():
    rng, truth, widths = np.random.default_rng(0), np.full((3, 3), 2.0), (10, 20, 40)

    def at(power):
        return [estimate(rng, truth + 10 * (10 / width) ** power / 10, 0.01) for width in widths]

    found = extrapolated(widths, at(1))
    assert np.max(np.abs(found.ntk - truth) / found.ntk_error) < 4
    assert found.misfit > 1e-3
    assert not compare(estimate(rng, truth, 0.0), found).caution
    bent = extrapolated(widths, at(4))
    assert bent.misfit < 1e-9
    assert "no line in 1/width" in compare(estimate(rng, truth, 0.0), bent).caution
    assert "one width" in compare(ntk.infinite_kernel(Dense(1), np.eye(3)), at(1)[0]).summary()


RELU = Serial(Dense(4), Activation("relu"), Dense(1))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "told"),
    [
        ((RELU, X), {"draws": 3}, ValueError, "got draws=3: a standard error needs at least 4"),
        ((apply, X), {"draws": 8}, TypeError, "expected a network of layers, or a pair"),
        ((RELU, X[0, :0]), {"draws": 8}, ValueError, "x1 has shape"),
        ((RELU, X), {"draws": 8, "widths": (8, 4)}, ValueError, "at least two, ascending"),
        ((RELU, X), {"draws": 8, "widths": (4, 8)}, TypeError, "give a function from a width to a network"),
        (((lambda key, shape: 3, apply), X), {"draws": 8}, TypeError, "init must return a pair"),
    ],
)
def test_refusals(arguments, options, error, told):
    with pytest.raises(error, match=told):
        monte_carlo_kernel(*arguments, **options)


def test_refusals_of_growing_draws_come_before_any_draw():
    with pytest.raises(ValueError, match="ascending, as in"):
        monte_carlo_kernels(RELU, X, draws=(20, 10))


def test_refusals_of_comparisons(estimates):
    with pytest.raises(ValueError, match="give the same inputs"):
        compare(ntk.infinite_kernel(Dense(1), np.eye(3)), estimates[0])


@pytest.mark.full
def test_a_kernel_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match=r"mean N.* is nan at inputs"):
        monte_carlo_kernel((init, lambda params, x: jnp.sqrt(x @ params["w"])), X, draws=8, coupled=False)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("batch", marks=pytest.mark.full),
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("none", "weight_mean")),
    ],
)
def test_theories_agree_and_wrong_gains_do_not(kind):
    def network(width, w_var=2.0):
        layers = [Dense(width, b_var=0.1), Activation("relu"), Dense(width, w_var, 0.1, center=kind == "weight_mean")]
        return Serial(*layers, *[BatchNorm(0.1)] * (kind == "batch"), Activation("relu"), Dense(2, 2.0))

    x = np.random.default_rng(0).standard_normal((7, 9)) + 0.3
    found = ntk.monte_carlo_kernel(network, x, draws=3000, widths=(16, 32, 64))
    right = ntk.compare(ntk.infinite_kernel(network(4), x), found)
    assert right.agrees, right
    assert not right.caution
    assert right.ntk.visible < 0.1
    assert not ntk.compare(ntk.infinite_kernel(network(4, 2.3), x), found).agrees


SMALL = {"draws": 40, "seed": 3, "memory": 800}  # bytes: tiles of 3 x 3
STOPPED = """
import os
from tests.test_monte_carlo import *
def track(steps, description):
    for number, step in enumerate(steps):
        yield step
        if number == 1 and "32 draws" in description:
            os.kill(os.getpid(), 9)
monte_carlo_kernel((init, apply), X, store="store", track=track, **SMALL)
"""


@pytest.mark.full
def test_a_store_goes_on_after_a_kill_and_takes_more_draws(tmp_path, monkeypatch):
    wanted = monte_carlo_kernel((init, apply), X, **SMALL)
    with python(STOPPED, cwd=tmp_path) as process:
        process.wait()
    assert process.returncode == -signal.SIGKILL
    store = tmp_path / "store"
    assert sorted(os.listdir(store)) == ["0-16", "16-32"]
    before = {path: path.stat().st_mtime_ns for path in store.rglob("done/*")}
    assert len(before) > 2
    found = monte_carlo_kernel((init, apply), X, store=store, **SMALL)
    for name in ("ntk", "nngp", "ntk_error", "nngp_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    more = monte_carlo_kernel((init, apply), X, store=store, **SMALL | {"draws": 100})
    np.testing.assert_allclose(more.ntk, by_hand(100, X, X).mean(0)[1], rtol=1e-12)
    for change, told in (
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"network": (init, lambda params, x: apply(params, 2 * x))}, "the network is another one"),
        (
            {"network": (lambda key, shape: init(jax.random.fold_in(key, 1), shape), apply)},
            "the network is another one",
        ),
    ):
        arguments = {"network": (init, apply), "x1": X, "store": store} | SMALL | change
        with pytest.raises(ValueError, match=told):
            monte_carlo_kernel(**arguments)


@pytest.mark.full
def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="is not a store of draws"):
        monte_carlo_kernel((init, apply), X, store=tmp_path, **SMALL)


@pytest.mark.full
def test_workers_of_a_cluster_draw_the_same(tmp_path):
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as started:
        found = monte_carlo_kernel((init, apply), X, store=tmp_path / "many", on=Cluster(started), **SMALL)
    wanted = monte_carlo_kernel((init, apply), X, **SMALL)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-13)


SEVERAL = """
from tests.test_monte_carlo import *
from ntk_analysis.empirical import Devices
assert jax.device_count() == 2
several = monte_carlo_kernel((init, apply), X, **SMALL)
single = monte_carlo_kernel((init, apply), X, on=Devices(tuple(jax.devices()[1:])), **SMALL)
np.testing.assert_allclose(several.ntk, single.ntk, rtol=1e-13)
"""


@pytest.mark.full
def test_devices_draw_the_same():
    with python(SEVERAL, flags="--xla_force_host_platform_device_count=2") as process:
        pass
    assert process.returncode == 0
