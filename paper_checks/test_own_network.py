"""Checks of a user's own network, on networks of which the answers are known."""

import json
import sys
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

from ntk_analysis import cli
from ntk_analysis.diagnosis import load_network
from ntk_analysis.paper_checks.contract import Outcome, Setting, Verdict
from ntk_analysis.paper_checks.judge import attempt
from ntk_analysis.paper_checks.mimicnorm.own_network.centering import check as check_centering
from ntk_analysis.paper_checks.mimicnorm.own_network.decorrelation import cosines, mean_off_diagonal
from ntk_analysis.paper_checks.papers import network_checks
from ntk_analysis.paper_checks.subject import Subject, subject_of
from ntk_analysis.training.module_axes import axes_of

ROOT = Path(__file__).parents[1]
FILE = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from ntk_analysis.layers import Activation, BatchNorm, Dense, Repeat, Serial
from ntk_analysis.networks import from_linen, fully_connected

def inputs():
    x = np.random.default_rng(0).standard_normal((40, 6)) + 1
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))

def made(network, dtype="float32"):
    x = inputs()
    with jax.enable_x64(False):
        params = network.init(jax.random.key(0), x.shape)[1]
    return network, jax.tree.map(lambda w: np.asarray(w, dtype), params), x.astype(dtype)

def straight():
    return made(fully_connected(20, 64, outputs=2))

def last_batch_norm():
    return made(fully_connected(2, 64, outputs=2, last_batch_norm=True, eps=0.0), "float64")

def hidden_batch_norm():
    return made(Serial(Dense(64), BatchNorm(), Activation("relu"), Dense(2)), "float64")

def centered_weights():
    f, params, x = made(fully_connected(1, 64, outputs=2), "float64")
    params = jax.tree.map(lambda w: w - w.mean(0) if np.ndim(w) > 1 else w, params)
    return f.apply, params, x

def repeated():
    return made(Serial(Dense(8), Repeat(Serial(Activation("relu"), Dense(8, 2.0, 0.1)), 3), Dense(2)), "float64")

def flax():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.DenseGeneral((4, 2))(x)
            x = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(nn.relu(x).reshape(len(x), 8))
            return nn.Dense(2)(x)

    x = jnp.asarray(inputs(), jnp.float32)
    return from_linen(Net(), Net().init(jax.random.key(0), x, train=False), x)

def scalars():
    f = lambda params, x: jnp.tanh(x * params["a"][None] + params["b"][None])
    return f, {"a": np.ones(6), "b": np.zeros(6)}, inputs()
"""


def inputs():
    """Forty points of mean square 1, pairs of them alike by about 0.5."""
    x = np.random.default_rng(0).standard_normal((40, 6)) + 1
    return x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """judged(network, check): each network is measured once, each check of it is run once."""
    file = tmp_path_factory.mktemp("nets") / "nets.py"
    file.write_text(FILE)
    subject = cache(lambda name: subject_of(f"{file}:{name}", Setting()))

    @cache
    def of_network(name, check):
        paper, module = network_checks()[check].paper, network_checks()[check].load()
        return attempt(paper, module.CLAIM, lambda: module.check(Setting(), subject(name)))

    return of_network


@pytest.mark.parametrize(
    ("name", "check", "verdict"),
    [
        # 20 layers: all outputs alike
        pytest.param("straight", "decorrelation", Verdict.FAILS, marks=pytest.mark.full),
        pytest.param("straight", "scaling", Verdict.FAILS, marks=pytest.mark.full),  # homogeneous: doubling doubles
        pytest.param("last_batch_norm", "scaling", Verdict.HOLDS, marks=pytest.mark.full),  # no biases: every array
        ("hidden_batch_norm", "scaling", Verdict.CONDITIONS),  # the array before the norm, not the one behind
        # of plain gradient descent, which is all that it says: Adam is an edge
        pytest.param("hidden_batch_norm", "centering", Verdict.HOLDS, marks=pytest.mark.full),
        ("scalars", "scaling", Verdict.OPEN),
        ("scalars", "centering", Verdict.OPEN),
        pytest.param("scalars", "conditioning", Verdict.OPEN, marks=pytest.mark.full),
        ("scalars", "phase", Verdict.OPEN),
    ],
)
def test_verdict(judged, name, check, verdict):
    found = judged(name, check)
    assert found.error == ""
    assert found.verdict is verdict, found.evidence.rows
    assert found.as_recorded
    assert (found.evidence.open != "") == (verdict is Verdict.OPEN)


@pytest.mark.full  # a network of 20 layers, for the names alone
def test_scaling_names_the_arrays(judged):
    (note,) = judged("hidden_batch_norm", "scaling").evidence.notes
    assert note == "Scale invariant: 0.w. Not: 3.w."
    doubled = [row for row in judged("straight", "scaling").evidence.rows if "doubled" in row.quantity]
    np.testing.assert_allclose(doubled[0].measured, 1, rtol=1e-5)  # degree 1 in the first layer's weights
    np.testing.assert_allclose(doubled[1].measured, 2.0**19 - 1, rtol=1e-4)  # 19 layers in one array


@pytest.mark.full  # the verdict of the same network is shown by default
def test_centering_finds_where_the_three_ways_part(judged):
    rows = judged("hidden_batch_norm", "centering").evidence.rows
    held = {
        (row.condition.partition(",")[0], "own" in row.condition): row.outcome is Outcome.CONFIRMED
        for row in rows
        if "distance" in row.quantity
    }
    assert held[("gradient descent", False)]
    assert held[("momentum 0.9", False)]
    assert not held[("Adam", False)]
    assert not held[("gradient descent", True)]
    assert not any(row.outcome is Outcome.CONFIRMED for row in rows if "mean of a unit" in row.quantity)


@pytest.mark.full  # one more network
def test_centered_weights_are_seen(judged):
    rows = judged("centered_weights", "centering").evidence.rows
    assert all(row.outcome is Outcome.CONFIRMED for row in rows if "mean of a unit" in row.quantity)
    assert all(row.outcome is Outcome.CONFIRMED for row in rows if "own start" in row.condition)


@pytest.mark.full  # a network of 20 layers
def test_layers_of_a_straight_network_grow_alike(judged):
    rows = judged("straight", "decorrelation").evidence.rows
    layers = [row for row in rows if row.condition.startswith("activation")]
    assert layers[-1].condition == "activation 20 of 20"
    assert layers[0].outcome is not Outcome.REFUTED
    assert layers[-1].outcome is Outcome.REFUTED
    assert np.all(np.diff([row.measured for row in layers]) > 0)


def test_the_fan_in_comes_from_the_modules(tmp_path):
    """Of stacked layers, of attention's in-projection, and as stated of PyTorch's weights; rows are of units' means."""
    file = tmp_path / "nets.py"
    file.write_text(FILE)
    expected = {"repeated": {"0.w": 0, "1.1.w": 1, "2.w": 0}, "flax": {"DenseGeneral_0.kernel": 0, "Dense_0.kernel": 0}}
    for name, axes in expected.items():
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            network, params, x = load_network(f"{file}:{name}")
            subject = Subject(network, network, params, x, None, axes_of(network, x))
            read = {name: fan_in.axes for name, fan_in in subject.fan_ins.items() if fan_in.axes}
        assert read == {name: (axis,) for name, axis in axes.items()}
    network, params, x = load_network(f"{ROOT}/examples/pytorch_weights.py:network")
    subject = Subject(network, network, params, x, None, axes_of(network, x))
    assert set(subject.fan_ins.values()) == {None}
    told = check_centering(Setting(), subject)
    assert "fan-in above 1" in told.open
    assert told.notes[0].startswith("Left as they are, as their fan-in is not known: 0.weight (128, 64), 2.weight")
    subject = subject._replace(axes=axes_of(network, x, {"weight": (1,)}))
    assert {fan_in.axes for fan_in in subject.fan_ins.values()} == {(1,)}
    assert subject.longest_sum == 128


@pytest.mark.full  # three networks measured
@pytest.mark.parametrize("name", ["repeated", "flax"])
def test_centering_of_stacked_layers(judged, name):
    rows = judged(name, "centering").evidence.rows
    held = [row.outcome is Outcome.CONFIRMED for row in rows if row.condition == "gradient descent, centered start"]
    assert held == [True, True]
    assert sum("mean of a unit" in row.quantity for row in rows) == (3 if name == "repeated" else 2)


def test_jackknife_of_a_mean_over_pairs():
    """Against leaving every input out by hand."""
    matrix = cosines(inputs()[:12])
    off = ~np.eye(12, dtype=bool)
    mean, error = mean_off_diagonal(matrix)
    kept = [np.delete(np.arange(12), i) for i in range(12)]
    means = np.array([matrix[np.ix_(k, k)][~np.eye(11, dtype=bool)].mean() for k in kept])
    np.testing.assert_allclose(mean, matrix[off].mean(), rtol=1e-12)
    np.testing.assert_allclose(error, np.sqrt(11 / 12 * np.sum((means - means.mean()) ** 2)), rtol=1e-10)


def test_the_command_reports_a_network(tmp_path, monkeypatch, capsys):
    target = f"{ROOT}/examples/hand_written.py:network"
    arguments = ["check", "--network", target, "--only", "phase", "--only", "scaling", "--report", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["ntk-analysis", *arguments])
    with jax.enable_x64(False), pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code or 0) == 0, capsys.readouterr().err
    records = json.loads((tmp_path / "claims.json").read_text())
    assert [one["id"] for one in records] == ["phase", "scaling"]
    assert {one["run"]["network"] for one in records} == {target}
    assert records[1]["verdict"] == "does not hold"
    assert "Scale invariant: none. Not: 0, 1, 2." in records[1]["notes"]


def test_axes_of_the_command(monkeypatch, capsys):
    for arguments, told in (
        (["--network", "x.py:f", "--axes", "weight"], "got --axes weight: expected the end of a path and axes"),
        (["--network", "x.py:f", "--axes", "weight=one"], "got --axes weight=one: expected"),
        (["--axes", "weight=1"], "--axes states the fan-in of a network's arrays: give --network too"),
    ):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "check", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_an_unknown_check_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ntk-analysis", "check", "--network", "x.py:f", "--only", "eq4"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "choose from decorrelation, phase, conditioning, scaling, centering" in capsys.readouterr().err
