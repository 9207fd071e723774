"""NNGP and NTK matrices of one batch of images through the depth, and their spectra, by normalisation.

Six networks, four pictures. With equal variances of all inputs a layer norm before a ReLU only rescales, and one behind
it is weight centering up to a constant: `compute` measures both. Behind the last batch norm the tangent kernel is
P Theta P / s^2 for the outputs of one draw (see `last_batch_norm`); there is no NNGP of inputs alone, and P K P / s^2
stands in its place: as K is the tangent kernel of training only the read-out, so is this, behind the last batch norm.
"""

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntk_analysis import last_batch_norm, spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.kernels import kernels, unit_diagonal

from .condition_number import ROUNDING
from .config import Config, Inputs, Result, describe_inputs, load_images, prepare
from .style import GREY, PAGE, Look, look, note, shades

EXPLAINED = {
    "none": "= layer norm before ReLU",
    "weight_mean": "= layer norm after ReLU",
    "batch": "of this one batch",
    "last": "behind a last batch norm",
}
TWINS = {"layer": "none", "layer_post": "weight_mean"}  # the same kernels, up to a constant
COMPUTED = ("none", "weight_mean", "batch")
KERNELS = ("nngp", "ntk")
CONSTANT = 0.9  # the constant mode is an eigenvector with more than this share of its square along the ones


def _signed_root(values: np.ndarray) -> np.ndarray:
    root: np.ndarray = np.sign(values) * np.sqrt(np.abs(values))
    return root


def _signed_square(values: np.ndarray) -> np.ndarray:
    square: np.ndarray = np.sign(values) * np.square(values)
    return square


NORM = FuncNorm((_signed_root, _signed_square), vmin=-1, vmax=1)  # 0.01 is seen beside 1
CIRCLE: Any = {"marker": "o", "markersize": 3.5, "markerfacecolor": "white"}
MOST_CLASSES = 20  # the ticks of more classes are a line
COLORMAP = "RdBu_r"


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of images.
        depths: four numbers of hidden layers.
    """

    images: int
    depths: tuple[int, ...]


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(100, (1, 5, 20, 50)) if config.full else Settings(50, (1, 5, 20, 50))


def sorted_images(config: Config, count: int) -> tuple[Inputs, np.ndarray]:
    """Returns about `count` images, equally many of each class, sorted by class, and their labels.

    Images without labels are a random choice.
    """
    images = load_images(config.data)
    if images.labelled:
        chosen = balanced_choice(images.labels, count, config.seed)
        images = replace(images, images=images.images[chosen], labels=images.labels[chosen])
    else:
        images = images.subset(min(count, len(images.images)), config.seed)
    return prepare(images, config, image_centering="dataset"), images.labels


def balanced_choice(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns indices of count / classes images of each class, sorted by class; fewer where a class is smaller."""
    generator = np.random.default_rng(seed)
    classes = np.unique(labels)[:count]
    members = [np.flatnonzero(labels == label) for label in classes]
    return np.concatenate([generator.choice(m, min(count // len(classes), len(m)), replace=False) for m in members])


def behind_last_batch_norm(pair: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns P K P and P Theta P with unit mean diagonal, (2, m, m), for one draw of outputs; null space (m, 2)."""
    outputs = last_batch_norm.sample_outputs(pair[0], 1, seed)
    behind = [unit_diagonal(np.asarray(last_batch_norm.ntk(matrix, outputs))[:, :, 0, 0]) for matrix in pair]
    return np.array(behind), np.asarray(last_batch_norm.null_space(outputs))


class Measures(NamedTuple):
    """Measures of one matrix's eigenvalues.

    Attributes:
        eigenvalues: (m,) descending, over their mean; zeros at the end for the null space, which counts nowhere.
        condition_number: condition number on the range.
        condition_number_without_constant: condition number on what is left of the range without the vector of ones.
        outlier_ratio: largest eigenvalue over their mean.
        constant_mode: rank, 1 the largest, of the eigenvector that is nearly constant; 0 where none is.
    """

    eigenvalues: np.ndarray
    condition_number: float
    condition_number_without_constant: float
    outlier_ratio: float
    constant_mode: int


def measure(matrix: np.ndarray, null_space: np.ndarray | None) -> Measures:
    """Computes all `Measures` of a matrix; a null space holds the vector of ones."""
    with warnings.catch_warnings():
        # a lower bound would be printed as a value: better no figure than a wrong one
        warnings.simplefilter("error", spectrum.UnresolvedSpectrumWarning)
        full = spectrum.analyse(matrix, without=null_space)
        rest = spectrum.analyse(matrix, without=np.ones(len(matrix)) if null_space is None else null_space)
    values = full.eigenvalues_scaled / np.mean(full.eigenvalues_scaled)
    return Measures(
        np.pad(values, (0, len(matrix) - len(values))),
        full.condition_number,
        rest.condition_number,
        full.outlier_ratio,
        constant_mode(matrix) if null_space is None else 0,
    )


def constant_mode(matrix: np.ndarray) -> int:
    """Returns the rank of the eigenvector along the vector of ones, 0 where there is none."""
    _, ascending = np.linalg.eigh(matrix)
    share = ascending.sum(axis=0)[::-1] ** 2 / len(matrix)
    return int(np.argmax(share)) + 1 if np.max(share) > CONSTANT else 0


def compute(config: Config, track: Track) -> Result:
    """Returns matrices (4 networks, depths, 2 kernels, m, m), and what follows from their eigenvalues."""
    chosen = settings(config)
    inputs, labels = sorted_images(config, chosen.images)
    names = (*COMPUTED, *TWINS)
    found = {name: kernels(inputs.x, name, chosen.depths) for name in track(names, "kernel_matrices")}
    behind = [behind_last_batch_norm(pair, config.seed) for pair in found["weight_mean"]]
    found["last"] = np.stack([pair for pair, _ in behind])
    measured = [[measure(matrix, None) for matrix in pair] for name in COMPUTED for pair in found[name]]
    measured += [[measure(matrix, null_space) for matrix in pair] for pair, null_space in behind]
    arrays = {"matrices": np.stack([found[name] for name in EXPLAINED])}
    for key in Measures._fields:
        values = np.array([[getattr(measures, key) for measures in pair] for pair in measured])
        arrays[key] = values.reshape(len(EXPLAINED), len(chosen.depths), *values.shape[1:])
    arrays["depths"], arrays["labels"] = np.array(chosen.depths), labels
    differences = {
        f"{twin} and {name}": float(np.max(np.abs(found[twin] - found[name]))) for twin, name in TWINS.items()
    }
    return Result(arrays, facts_of(arrays, differences) | inputs.facts)


def facts_of(arrays: dict[str, np.ndarray], differences: dict[str, float]) -> dict[str, Any]:
    """Returns facts of the computation, and the numbers by network and kernel, each a list over depths."""

    def by_network(key: str) -> dict[str, dict[str, list[float]]]:
        return {
            name: {kernel: values[:, column].tolist() for column, kernel in enumerate(KERNELS)}
            for name, values in zip(EXPLAINED, arrays[key], strict=True)
        }

    return {
        "activation": "relu",
        "network": "infinite width, stable gain, no bias, eps = 0, one joint batch",
        "last": "weight_mean behind a last batch norm, one output drawn: ntk is P NTK P, nngp is P NNGP P; "
        "its 2 zero eigenvalues are left out",
        "depths": arrays["depths"].tolist(),
        "condition number": by_network("condition_number"),
        "condition number without the constant mode": by_network("condition_number_without_constant"),
        "largest eigenvalue / mean": by_network("outlier_ratio"),
        "rank of the constant mode (1 is the largest, 0 none)": by_network("constant_mode"),
        "largest difference of kernels with unit mean diagonal": differences,
    }


def draw(result: Result) -> Figure:
    """Draws a row of matrices for each depth, a column for each network, and the spectra below.

    The NNGP is above the diagonal of a matrix, the NTK on and below it.
    """
    a = result.arrays
    rows, columns = len(a["depths"]), len(EXPLAINED)
    figure = plt.figure(figsize=(PAGE, 9.4))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.0, rect=(0, 0, 1, 0.996))
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[1] * rows + [0.95])
    squares: Any = np.array(
        [[figure.add_subplot(grid[row, column]) for column in range(columns)] for row in range(rows)]
    )
    for column, row in np.ndindex(columns, rows):
        axes: Axes = squares[row, column]
        draw_matrices(axes, a["matrices"][column, row])
        full, rest = (a[key][column, row] for key in ("condition_number", "condition_number_without_constant"))
        names = ("PKP", "NTK") if column == columns - 1 else ("NNGP", "NTK")
        label_matrices(axes, names, [condition_text(*both) for both in zip(full, rest, strict=True)])
        mark_classes(axes, a["labels"], named=column == 0)
    for leftmost, depth in zip(squares[:, 0], a["depths"], strict=True):
        leftmost.set_ylabel(f"depth {depth}", fontsize=8.5, labelpad=6)
    for top, (name, explanation) in zip(squares[0], EXPLAINED.items(), strict=True):
        top.set_title(look_of(name).label, pad=19, fontweight="bold")
        put(top, explanation, (0.5, 1), 11, "center", 7)
    draw_scale(figure, squares)
    draw_spectra([figure.add_subplot(grid[-1, column]) for column in range(columns)], result)
    note(
        figure,
        f"ReLU, infinite width, stable gain, no bias; {describe_inputs(result.facts)}, sorted by class. Matrices over "
        "their mean diagonal; κ in brackets: without the constant mode, where that changes it by more than 10 %. "
        "MimicNorm: weight mean behind a last batch norm, one output drawn, no NNGP but PKP, the "
        "read-out's part of the NTK; 2 zero eigenvalues left out.",
    )
    return figure


def look_of(name: str) -> Look:
    """Returns the look of a column: weight mean behind a last batch norm is MimicNorm."""
    return look("mimic" if name == "last" else name)


def draw_matrices(axes: Axes, pair: np.ndarray) -> None:
    """Draws the NNGP above the diagonal and the NTK below."""
    nngp, ntk = pair
    axes.imshow(np.tril(ntk) + np.triu(nngp, 1), norm=NORM, cmap=COLORMAP, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.4)


def put(axes: Axes, text: str, at: tuple[float, float], points: float, side: str, size: float) -> None:
    """Writes a text whose baseline is `points` points from a place in the axes."""
    axes.annotate(text, at, (0, points), "axes fraction", "offset points", ha=side, va="baseline", fontsize=size)


def label_matrices(axes: Axes, names: Iterable[str], numbers: Iterable[str]) -> None:
    """Writes the condition numbers, each beside its triangle."""
    above, below = (rf"{name} $\kappa$ = {number}" for name, number in zip(names, numbers, strict=True))
    put(axes, above, (1, 1), 2.5, "right", 6)
    put(axes, below, (0, 0), -8, "left", 6)


def condition_text(full: float, rest: float) -> str:
    """Returns the condition number, and in brackets the one without the constant mode where that is over 10 % away."""
    return number_text(full) + (f" ({number_text(rest)})" if full > 1.1 * rest else "")


def number_text(kappa: float) -> str:
    """Returns a condition number with three digits, or, close to 1, its distance from 1."""
    if kappa - 1 < ROUNDING:
        return "1"
    if kappa - 1 < 0.01:
        digit, exponent = f"{kappa - 1:.0e}".split("e")
        return rf"1 + {digit}$\cdot$10$^{{{int(exponent)}}}$"
    return f"{kappa:#.3g}" if kappa < 99.95 else f"{float(f'{kappa:.3g}'):,.0f}"


def mark_classes(axes: Axes, labels: np.ndarray, *, named: bool) -> None:
    """Draws a tick at every class boundary, and the labels beside the first column."""
    classes, starts = np.unique(labels, return_index=True)
    if not 1 < len(classes) <= MOST_CLASSES:
        return
    edges = np.append(starts, len(labels)) - 0.5
    axes.set(xticks=edges, yticks=edges, xticklabels=[], yticklabels=[])
    axes.tick_params(length=1.5, width=0.4)
    if named:
        axes.set_yticks((edges[:-1] + edges[1:]) / 2, [str(label) for label in classes], minor=True, fontsize=5.5)
        axes.tick_params(axis="y", which="minor", length=0, pad=2.5)


def draw_scale(figure: Figure, squares: np.ndarray) -> None:
    """Draws the one scale of all matrices; its root shows 0.01 beside 1."""
    bar = figure.colorbar(
        ScalarMappable(NORM, COLORMAP), ax=squares, location="bottom", shrink=0.75, aspect=60, pad=0.01
    )
    bar.ax.set_xlim(-0.4, 1)
    ticks = (-0.3, -0.1, -0.01, 0, 0.01, 0.1, 0.3, 0.6, 1)
    bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "\N{MINUS SIGN}") for tick in ticks], fontsize=7)
    bar.set_label("kernel / mean of its diagonal", labelpad=1)


def draw_spectra(panels: list[Axes], result: Result) -> None:
    """Draws eigenvalues over their mean by index, darker with depth, with a circle on the constant mode."""
    a, depths = result.arrays, len(result.arrays["depths"])
    for axes, network, ranks, name in zip(panels, a["eigenvalues"], a["constant_mode"], EXPLAINED, strict=True):
        label, base, _ = look_of(name)
        for color, pair, pair_ranks in zip(shades(base, depths), network, ranks, strict=True):
            for values, rank, style in zip(pair, pair_ranks, ("--", "-"), strict=True):
                draw_eigenvalues(axes, values[values > 0], rank, color, style)
        axes.set_title(label, pad=3, fontsize=7)
        axes.set_xlabel("index", labelpad=1)
        axes.sharey(panels[0])
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    panels[0].set_ylabel("eigenvalue / mean")
    handles = [
        Line2D([], [], color=color, linewidth=1.5, label=f"depth {depth}")
        for color, depth in zip(shades(GREY, depths), a["depths"], strict=True)
    ]
    panels[3].legend(handles=handles, loc="lower left", fontsize=6)
    marks = [
        Line2D([], [], color=GREY, linewidth=1, label="NTK"),
        Line2D([], [], color=GREY, linewidth=1, linestyle="--", label="NNGP (PKP)"),
        Line2D([], [], color=GREY, linewidth=0, label="constant mode", **CIRCLE),
    ]
    panels[1].legend(handles=marks, loc="lower left", fontsize=6)


def draw_eigenvalues(axes: Axes, values: np.ndarray, rank: int, color: str, style: str) -> None:
    """Draws one spectrum, with its constant mode where it has one."""
    axes.loglog(np.arange(1, len(values) + 1), values, style, color=color, linewidth=1)
    if rank:
        axes.loglog(rank, values[rank - 1], color=color, **CIRCLE)
