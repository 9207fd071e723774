"""The claims about training: what the full sizes gave is on record, and gives the verdict."""

import json
from pathlib import Path

import numpy as np
import pytest

from ntk_analysis.paper_checks.mimicnorm.micro import RERUN
from ntk_analysis.paper_checks.mimicnorm.micro_trained import (
    CELLS,
    RECORDS,
    VGG_CELLS,
    Cell,
    read,
    recipe_of,
    seeds_of,
    trained,
)
from ntk_analysis.paper_checks.mimicnorm.recorded import (
    FULL_RESNET18,
    FULL_VGG16,
    NARROW_VGG16,
    PUBLISHED_VGG16,
    STUDIES,
    of_single_runs,
    study,
)
from ntk_analysis.training.dataset import load_dataset
from ntk_analysis.training.published import TABLE_2, TABLE_2_RATES
from ntk_analysis.training.recipe import Recipe


def test_the_spread_of_runs_is_that_of_settings_with_several_seeds():
    found = study(FULL_VGG16)
    pairs = np.array([found.best("test", "weight_mean", rate) for rate in (0.01, 0.02, 0.05)])
    deviation, freedom = found.spread("test")
    assert (freedom, len(found.curves)) == (3, 31)
    assert deviation == pytest.approx(np.sqrt(np.mean(np.diff(pairs) ** 2 / 2)))
    assert of_single_runs(found, "test").size == pytest.approx(5.841 * np.sqrt(2) * deviation, rel=1e-3)
    with pytest.raises(ValueError, match="no setting has two seeds"):
        study(FULL_RESNET18).spread("test")


def test_readme_has_table_2_as_it_is_on_record():
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split())
    full, narrow = study(FULL_VGG16), study(PUBLISHED_VGG16)
    for name, printed in TABLE_2.items():
        ours = [100 * full.best("test", name, rate)[0] for rate in TABLE_2_RATES]
        cells = [f"{percent:.1f} / {own:.1f}" for percent, own in zip(printed, ours, strict=True)]
        assert f"| {' | '.join([f'`{name}`', *cells])} |" in readme
    shown = [f"`{name}` {100 * narrow.best('test', name, rate)[0]:.1f}" for name, rate, _ in narrow.curves]
    assert ", ".join(shown) in readme
    diverged = {name: len(curve.epochs) for (name, _, _), curve in narrow.curves.items() if curve.epochs[-1].diverged}
    assert diverged == {"weight_mean": 3}


def test_the_published_network_was_trained_on_the_images_of_the_variant():
    published, variant = (
        [json.loads(line) for line in (STUDIES / name / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in (PUBLISHED_VGG16, NARROW_VGG16)
    )
    assert {line["data"]["sha256"] for line in published} <= {line["data"]["sha256"] for line in variant}
    for curve in study(PUBLISHED_VGG16).curves.values():
        varied = {name: getattr(curve.recipe, name) for name in ("normalization", "learning_rate", "seed")}
        assert curve.recipe == Recipe.cifar100("vgg16", width=16, batch=64, epochs=10, **varied)


def test_networks_trained_by_batch_size_are_those_of_their_recipes():
    digits = load_dataset("digits")
    for record in RECORDS:
        of_images = set()
        for line in map(json.loads, record.read_text(encoding="utf-8").splitlines()):
            cell = Cell(**line["cell"])
            recipe = recipe_of(cell, len(digits.train.images) if cell.model == "mlp" else 2500)
            assert Recipe.from_json(json.dumps(line["recipe"])) == recipe
            of_images.add((cell.model, *line["data"].values()))
        assert len(of_images) == 1
        assert of_images <= {("mlp", digits.name, digits.digest)} or cell.model == "vgg"
    found = read()
    expected = {cell: {*seeds_of(cell)} for cell in CELLS + VGG_CELLS}
    assert {cell: {one.seed for one in found[cell]} for cell in found} == expected


@pytest.mark.full  # trains
def test_a_network_trained_by_batch_size_is_trained_again():
    """Other machines round otherwise, and training enlarges it: to three images of 359 here."""
    (again,) = trained(RERUN, (0,))
    before = next(one for one in read()[RERUN] if one.seed == 0)
    assert again.evaluation == pytest.approx(before.evaluation, abs=0.0084)
