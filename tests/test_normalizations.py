"""Every name and alias of a normalisation, through every entry point that takes one."""

import functools
import json
from inspect import signature

import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

import ntk_analysis.meanfield
from ntk_analysis import networks, training
from ntk_analysis.cli import memory as memory_command
from ntk_analysis.cli import sweep as sweep_command
from ntk_analysis.cli import train as train_command
from ntk_analysis.cli.app import app
from ntk_analysis.common.normalizations import TABLE, infinite_name, row_of, trained_name
from ntk_analysis.depth_study.kernels import tangent_kernels
from ntk_analysis.layers import LastBatchNorm
from ntk_analysis.meanfield import analyse, critical_line, phase_diagram
from ntk_analysis.networks import convolutional, fully_connected, residual
from ntk_analysis.training import NORMALIZATIONS, Recipe, build, sweep
from ntk_analysis.training.memory import TABLE_1, account
from ntk_analysis.training.normalization import hidden_norm

NAMES = [(alias, name) for name, row in TABLE.items() for alias in (name, *row.aliases)]
INFINITE = [(alias, row_of(alias)) for alias, name in NAMES if TABLE[name].infinite]
TRAINED = [(alias, TABLE[name].trained) for alias, name in NAMES if TABLE[name].trained]
each_infinite = pytest.mark.parametrize(("alias", "row"), INFINITE, ids=[alias for alias, _ in INFINITE])
each_trained = pytest.mark.parametrize(("alias", "trained"), TRAINED, ids=[alias for alias, _ in TRAINED])


# what mean field follows, and under which name
SCALAR_MAPS = {"none": "none", "weight_mean": "weight_mean", "weight_standardization": "weight_mean"}


class Reached(Exception):  # noqa: N818  # no error: what a command would compute with
    """What a command hands over to the library."""


def reach(found):
    raise Reached(found)


def test_the_table_holds_what_there_is():
    assert {row.infinite for row in TABLE.values()} == {*networks.NORMALIZATIONS, None}
    assert {row.trained for row in TABLE.values()} == {*NORMALIZATIONS, None}
    assert len(NAMES) == len({alias for alias, _ in NAMES})


def test_the_default_is_none_everywhere():
    for entry in (
        fully_connected,
        convolutional,
        residual,
        analyse,
        phase_diagram,
        critical_line,
        build,
        account,
        Recipe,
    ):
        assert signature(entry).parameters["normalization"].default == "none", entry


# ---- infinite networks and mean field


@each_infinite
def test_networks(alias, row):
    for make in (fully_connected, convolutional, residual):
        given = make(2, 4, alias)
        assert given == make(2, 4, row.infinite, last_batch_norm=row.last)
        assert isinstance(given.layers[-1], LastBatchNorm) == row.last
    assert fully_connected(2, 4, f" {alias.upper().replace('_', '-')} ") == fully_connected(2, 4, alias)
    assert infinite_name(alias) == row.infinite


@each_infinite
def test_mean_field(alias, row, monkeypatch):
    monkeypatch.setattr("ntk_analysis.meanfield.analysis.batch_norm_field", lambda phi, batch_size: reach("batch"))
    if row.infinite == "batch":
        with pytest.raises(Reached, match="batch"):
            analyse("relu", normalization=alias)
    if row.infinite in SCALAR_MAPS:
        assert analyse("relu", normalization=alias).normalization == SCALAR_MAPS[row.infinite]
        assert diagrams(alias) == diagrams(SCALAR_MAPS[row.infinite])
    else:
        for analysis in (phase_diagram_of, critical_line_of):
            with pytest.raises(NotImplementedError, match="normalisation"):
                analysis(alias)


@functools.cache
def diagrams(name):
    return phase_diagram_of(name).chi_1.tolist(), critical_line_of(name).w_var.tolist()


def phase_diagram_of(name):
    return phase_diagram("relu", normalization=name, w_var=np.array([1.0]), b_var=np.array([0.1]))


def critical_line_of(name):
    return critical_line("relu", normalization=name, q=np.array([0.5]))


@pytest.mark.parametrize("alias", ["straight", "weight_centering"])
def test_studies_by_depth(alias):
    x = np.random.default_rng(0).standard_normal((3, 4))
    found, expected = (list(tangent_kernels(x, name, [1, 2])) for name in (alias, infinite_name(alias)))
    np.testing.assert_array_equal(found, expected)


# ---- trained networks


@each_trained
def test_recipes_and_sweeps(alias, trained):
    recipe = Recipe(model="resnet18", normalization=alias)
    assert recipe == Recipe(model="resnet18", normalization=trained)
    assert json.loads(recipe.to_json())["normalization"] == trained
    assert Recipe.from_json(recipe.to_json().replace(f'"{trained}"', f'"{alias}"')) == recipe
    assert Recipe.cifar100(normalization=alias) == Recipe.cifar100(normalization=trained)
    assert sweep.Grid(recipe, (0.1,), (0,), (alias,)).normalizations == (trained,)
    kinds = (type(hidden_norm(name, 3, rngs=nnx.Rngs(0))) for name in (alias, trained))
    assert len({*kinds}) == 1


@pytest.mark.full
@each_trained
def test_models_and_their_memory(alias, trained):
    given, expected = (
        nnx.eval_shape(lambda name=name: build("resnet18", classes=2, normalization=name, rngs=nnx.Rngs(0), width=4))
        for name in (alias, trained)
    )
    assert nnx.graphdef(given) == nnx.graphdef(expected)
    assert account("resnet18", normalization=alias, batch=2, classes=2, width=4).normalization == trained


def test_published_memory():
    row = next(row for row in TABLE_1 if row.model == "resnet18")
    assert row.saving("mimic") == row.saving("mimic_norm") > 0 == row.saving("bn")


def test_one_name_twice_is_refused():
    with pytest.raises(ValueError, match="each once"):
        sweep.Grid(Recipe(), (0.1,), (0,), ("bn", "batch_norm"))


# ---- command line


def handed_over(arguments):
    """What the command of these arguments hands over."""
    result = CliRunner().invoke(app, arguments.split())
    assert isinstance(result.exception, Reached), result.output
    return result.exception.args[0]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Commands that end where they would begin to compute."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.eye(4))
    made = networks.fully_connected
    monkeypatch.setattr(networks, "fully_connected", lambda *args, **kwargs: reach(made(*args, **kwargs)))
    for name in ("analyse", "phase_diagram"):
        monkeypatch.setattr(ntk_analysis.meanfield, name, lambda *args, normalization, **_: reach(normalization))
    monkeypatch.setattr(train_command, "execute", lambda recipe, *args, **kwargs: reach(recipe.normalization))
    monkeypatch.setattr(sweep_command, "execute", lambda grid, *args, **kwargs: reach(grid.normalizations))
    monkeypatch.setattr(memory_command, "_accounts", lambda row, sizes, names, *others, **options: reach(names))
    return made


@each_infinite
def test_commands_on_infinite_networks(alias, row, stopped):
    expected = stopped(10, 1, row.infinite, last_batch_norm=row.last)
    assert handed_over(f"kernel x.npy --out k.npz --normalization {alias}") == expected
    assert handed_over(f"compare --normalization {alias}") == expected
    drawn = handed_over(f"empirical --images x.npy --plan --width 3 --classes 2 --normalization {alias}")
    assert drawn == stopped(10, 3, row.infinite, outputs=2, last_batch_norm=row.last)
    for command in ("meanfield", "phase"):
        assert handed_over(f"{command} --normalization {alias}") == alias  # the functions take it, as above


@each_trained
def test_commands_that_train(alias, trained, stopped):
    assert handed_over(f"train --model resnet18 --normalization {alias}") == trained
    assert handed_over(f"train --paper --normalization {alias}") == trained
    assert handed_over(f"sweep --model resnet18 --normalization {alias}") == (trained,)
    names = list(handed_over(f"memory resnet18 --normalization {alias}"))
    assert names == ["batch_norm", *(name for name in [trained] if name != "batch_norm")]


@pytest.mark.parametrize(
    "command",
    [
        "kernel x.npy --out k.npz --normalization",
        "compare --normalization",
        "empirical --images x.npy --plan --normalization",
        "meanfield --normalization",
        "phase --normalization",
        "train --out run --normalization",
        "sweep --normalization",
        "memory resnet18 --normalization",
    ],
)
def test_the_command_line_lists_the_names(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.eye(4))
    result = CliRunner().invoke(app, [*command.split(), "bathc"])
    assert result.exit_code != 0
    assert "unknown normalization 'bathc': choose one of none, weight_mean" in result.stderr + str(result.exception)


def test_names_without_the_other_side_say_so():
    with pytest.raises(ValueError, match=r"'fixup' is not known here: choose one of none, .*layer_post"):
        fully_connected(2, 4, "fixup")
    with pytest.raises(ValueError, match=r"'layer_post' is not known here: choose one of none, .*fixup"):
        Recipe(normalization="layer_post")
    with pytest.raises(ValueError, match="'layer_post' is not known here"):
        training.build("mlp", classes=2, rngs=nnx.Rngs(0), normalization="layer_post", inputs=4)
    assert trained_name("fixup") == "fixup"
