"""What training does, checkpoint by checkpoint: against dense matrices, autodiff and closed forms, and from a run."""

import json
import re
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import cli
from ntk_analysis.alignment import centered_alignment, kernel_distance
from ntk_analysis.diagnosis import Checkpoint, diagnose_along
from ntk_analysis.diagnosis.along_training import scale_invariant
from ntk_analysis.empirical.vector_products import vector_products
from ntk_analysis.training import Recipe, Trainer, along_states, diagnose_run, epoch_key, fit, load_dataset
from ntk_analysis.training.along import hidden_inputs

from .test_empirical import PARAMS, coupled, dense, draw, in_layout

X = draw(7, 3, seed=3)
LATER = {"in": PARAMS["in"] * 2, "b": PARAMS["b"] + 0.5, "out": PARAMS["out"] - 0.2}
TIMES = [Checkpoint(0, PARAMS, 0.1), Checkpoint(3, LATER, 0.01)]


@pytest.fixture(scope="module")
def found():
    options = {"momentum": 0.9, "labels": np.array([0, 1, 2, 0, 1, 2, 3]), "coupled": True}
    return diagnose_along(coupled, TIMES, X, loss="squared", **options)


def test_each_time_is_measured_as_by_hand(found):
    start, later = (in_layout(dense(coupled, params, X), "trace") for _, params, _ in TIMES)
    np.testing.assert_allclose(found.distance, [0, kernel_distance(start, later)], atol=1e-12)
    np.testing.assert_allclose(found.alignment, [1, centered_alignment(start, later)], atol=1e-12)
    for sharpness, error, (_, params, _) in zip(found.sharpness, found.sharpness_error, TIMES, strict=True):
        jacobian = np.concatenate(
            [np.reshape(leaf, (28, -1)) for leaf in jax.tree.leaves(jax.jacrev(lambda p: coupled(p, X))(params))],
            axis=1,
        )
        true = np.linalg.eigvalsh(jacobian @ jacobian.T / 7)[-1]
        assert abs(sharpness - true) <= error + 1e-12 * true
    np.testing.assert_allclose(found.edge, found.sharpness * [0.1, 0.01] / 3.8)
    outputs = np.asarray(coupled(LATER, X))
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    np.testing.assert_allclose(found.correlation[1], np.mean((unit @ unit.T)[np.triu_indices(7, 1)]), rtol=1e-6)


def test_weights_before_a_batch_norm_are_scale_invariant(found):
    """Only those: the norm has no eps here, and the effective rate falls with |w|^2, which is four times as large."""
    assert found.invariant == ("in",)
    size = np.sum(PARAMS["in"] ** 2)
    np.testing.assert_allclose(found.effective_rates, [0.1 / size, 0.01 / (4 * size)])


def test_the_table_has_a_line_for_each_time(found):
    lines = found.summary().splitlines()
    assert len(lines) == 3
    assert re.split(r" {2,}", lines[0].strip())[-3:] == ["of the edge", "effective rate", "correlation"]
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["epochs"] == [0, 3]
    assert len(record["correlation"]) == 2


def test_what_is_missing_is_told():
    with pytest.raises(ValueError, match="got no checkpoint, expected at least one"):
        diagnose_along(coupled, [], X)
    with pytest.raises(ValueError, match="got loss='hinge': choose one of cross_entropy, squared"):
        diagnose_along(coupled, TIMES, X, loss="hinge")


@pytest.mark.full
def test_sharpness_is_that_of_the_loss_where_it_is_fitted():
    """At targets that are the outputs, the Gauss-Newton matrix of the squared loss is its Hessian."""
    from jax.flatten_util import ravel_pytree

    flat, back = ravel_pytree(jax.tree.map(jnp.asarray, PARAMS))
    targets = coupled(PARAMS, X)
    hessian = jax.hessian(lambda p: jnp.sum((coupled(back(p), X) - targets) ** 2) / 14)(flat)
    found = diagnose_along(coupled, TIMES[:1], X, loss="squared", coupled=True)
    assert found.sharpness[0] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-6)
    assert found.target_alignment is None


@pytest.mark.full
def test_without_a_norm_no_array_is_scale_invariant():
    def f(params, x):
        return jnp.tanh(x @ params["in"] + params["b"][None]) @ params["out"]

    products = vector_products(f, PARAMS, X, coupled=False)
    assert scale_invariant(products) == ()
    found = diagnose_along(f, TIMES, X, activations=lambda params, x: [x, 0 * x], coupled=False)
    assert found.effective_rates is None
    assert found.correlation.shape == (2, 2)
    assert np.isnan(found.correlation[:, 1]).all()
    assert found.record()["correlation"][0][1] is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs, all of whose checkpoints are kept."""
    folder = tmp_path_factory.mktemp("run") / "mimic"
    recipe = Recipe(depth=2, width=8, normalization="mimic_norm", min_fan_in=2, batch=64, epochs=3, learning_rate=0.05)
    trainer = Trainer(recipe, load_dataset("digits"))
    return folder, trainer, fit(trainer, folder=folder, keep_every=1)


@pytest.mark.full
def test_a_run_is_read_from_its_folder(run):
    """As from the states at hand, trained again: the same bits."""
    folder, trainer, _ = run
    found = diagnose_run(folder, count=32)
    states = [(0, trainer.init(0))]
    for epoch in (1, 2, 3):
        states.append((epoch, trainer.epoch(states[-1][1], epoch_key(0, epoch))[0]))
    again = along_states(trainer, states, count=32)
    np.testing.assert_array_equal(found.epochs, [0, 1, 2, 3])
    for name in ("distance", "sharpness", "effective_rates", "correlation", "target_alignment"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    assert set(found.invariant) == {"first/kernel", "hidden/0/kernel", "head/kernel"}  # a last batch norm's
    assert found.correlation.shape == (4, 2)
    assert (found.momentum, found.rates[0]) == (0.9, pytest.approx(0.05))


@pytest.mark.full
def test_hidden_inputs_are_the_activations(run):
    _, trainer, trained = run
    model = trainer.model(trained.state)
    x = jnp.asarray(draw(5, 64, seed=1), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = [jax.nn.relu(model.norms[0](model.first(x)))]
        expected.append(jax.nn.relu(model.norms[1](model.hidden[0](expected[0]))))
        found = hidden_inputs(model, lambda model, x: model(x), x)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.full
def test_the_command_takes_the_folder_of_a_run(run, monkeypatch, capsys, tmp_path):
    folder, _, _ = run

    def command(*more):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "diagnose", *map(str, more)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    status, out, err = command(folder, "--count", 32, "--out", tmp_path / "found.json")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1 + 4 + 2
    assert "effective rate: of first/kernel" in out
    assert json.loads((tmp_path / "found.json").read_text())["epochs"] == [0, 1, 2, 3]
    for arguments, words in (
        ([folder, "--seed", 1], "on a run, which draws nothing at random"),
        ([tmp_path], "is not the folder of a run"),
        (["examples/phases.py:ordered", "--data", "digits"], "on MODULE:FUNCTION, which has inputs of its own"),
        ([folder, "--data", "mnist5k"], "was trained on other images"),
    ):
        status, _, err = command(*arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert words in err


@pytest.mark.full
def test_a_damaged_checkpoint_is_told(run, tmp_path):
    import shutil

    folder, trainer, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "checkpoints" / "2" / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"2 is damaged \(metrics\.jsonl has other bytes"):
        diagnose_run(copy)
    other = replace(trainer.dataset, train=trainer.dataset.train.subset(100, 0))
    with pytest.raises(ValueError, match="was trained on other images"):
        diagnose_run(folder, dataset=other)
    with pytest.raises(FileNotFoundError, match="no run in"):
        diagnose_run(tmp_path / "nothing")
