"""Every name and alias of a normalisation, through every entry point that takes one."""

import json

import numpy as np
import pytest
from flax import nnx
from typer.testing import CliRunner

from ntk_analysis import networks
from ntk_analysis.cli.app import app
from ntk_analysis.common.normalizations import TABLE, infinite_name, row_of, trained_name
from ntk_analysis.layers import LastBatchNorm
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected
from ntk_analysis.training import NORMALIZATIONS, Recipe, build, sweep
from ntk_analysis.training.memory import account

NAMES = [(alias, name) for name, row in TABLE.items() for alias in (name, *row.aliases)]
INFINITE = [(alias, row_of(alias)) for alias, name in NAMES if TABLE[name].infinite]
TRAINED = [(alias, TABLE[name].trained) for alias, name in NAMES if TABLE[name].trained]


def test_the_table_holds_what_there_is():
    assert {row.infinite for row in TABLE.values()} == {*networks.NORMALIZATIONS, None}
    assert {row.trained for row in TABLE.values()} == {*NORMALIZATIONS, None}
    assert len(NAMES) == len({alias for alias, _ in NAMES})


@pytest.mark.parametrize(("alias", "row"), INFINITE, ids=[alias for alias, _ in INFINITE])
def test_networks_and_mean_field(alias, row):
    given = fully_connected(2, 4, alias)
    assert given == fully_connected(2, 4, row.infinite, last_batch_norm=row.last)
    assert isinstance(given.layers[-1], LastBatchNorm) == row.last
    assert fully_connected(2, 4, f" {alias.upper().replace('_', '-')} ") == given
    assert infinite_name(alias) == row.infinite
    if row.infinite in ("none", "weight_mean"):
        assert analyse("relu", normalization=alias).normalization == row.infinite


@pytest.mark.parametrize(("alias", "trained"), TRAINED, ids=[alias for alias, _ in TRAINED])
def test_recipes_and_sweeps(alias, trained):
    recipe = Recipe(model="resnet18", normalization=alias)
    assert recipe == Recipe(model="resnet18", normalization=trained)
    assert json.loads(recipe.to_json())["normalization"] == trained
    assert sweep.Grid(recipe, (0.1,), (0,), (alias,)).normalizations == (trained,)


@pytest.mark.full
@pytest.mark.parametrize("alias", ["bn", "mimic"])
def test_models_and_their_memory(alias):
    given, expected = (
        nnx.eval_shape(
            lambda name=name: build("mlp", classes=2, normalization=name, rngs=nnx.Rngs(0), inputs=4, depth=2, width=8)
        )
        for name in (alias, trained_name(alias))
    )
    assert nnx.graphdef(given) == nnx.graphdef(expected)
    assert account("resnet18", normalization=alias, batch=2, classes=2).normalization == trained_name(alias)


def test_one_name_twice_is_refused():
    with pytest.raises(ValueError, match="each once"):
        sweep.Grid(Recipe(), (0.1,), (0,), ("bn", "batch_norm"))


@pytest.mark.parametrize(
    "command",
    ["kernel x.npy --out k.npz --normalization", "meanfield --normalization", "train --out run --normalization"],
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
