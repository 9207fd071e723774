"""Is weight centering's kernel batch normalisation's? One pair at a time yes, as matrices no, behind a last BN nearly.

The maps of one pair's correlation agree in a large batch of uncorrelated inputs. What inputs have in common, batch
normalisation removes in one layer, weight centering a factor at a time. And batch normalisation's NTK keeps a constant
mode. A last batch normalisation removes that, and the straight network's outlier as well; what then singles out weight
centering is the rate. Batch normalisation slows down: it remembers unequal distances from the batch's mean.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis import batch_norm, spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.kernels import kernels
from ntk_analysis.meanfield import analyse

from .condition_number import ROUNDING, depths_up_to
from .config import Config, Result, load_inputs
from .kernel_matrices import behind_last_batch_norm
from .style import BLACK, BLUE, GREEN, PURPLE, VERMILION, note, panels

COLORS = {"none": BLACK, "weight_mean": PURPLE, "batch": BLUE}
LABELS = {"none": "none", "weight_mean": "weight mean", "batch": "batch norm"}
COMMON = {0.0: BLUE, 0.5: GREEN, 0.9: VERMILION}


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of images.
        layers: largest number of hidden layers.
        batch: batch size for the map of pairs.
        points: number of points on each curve of that map.
    """

    images: int
    layers: int
    batch: int
    points: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(32, 100, 128, 9) if config.full else Settings(16, 60, 64, 6)


def pair_map(rho: float, common: float, batch: int) -> float:
    """Returns the correlation of a pair behind one batch-normalised layer and the next subtraction of the batch's mean.

    The batch is of pairs with correlation rho, and `common` between pairs.
    """
    pairs = np.kron(np.eye(batch // 2), np.full((2, 2), rho - common)) + (1 - rho) * np.eye(batch) + common
    # the linear kernel is that of the batch normalisation's own output
    behind = batch_norm.nngp(batch_norm.nngp(pairs), "identity")
    return float(behind[0, 1] / behind[0, 0])


def condition_number(matrix: np.ndarray, without: np.ndarray | None = None) -> float:
    """Returns the condition number of a resolved spectrum; raises where there is only a lower bound, not to draw it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", spectrum.UnresolvedSpectrumWarning)
        return spectrum.condition_number(matrix, without=without)


def compute(config: Config, track: Track) -> Result:
    """Computes maps of pairs (common correlations, points), and condition numbers (networks, depths) of images."""
    chosen = settings(config)
    depths = depths_up_to(chosen.layers)
    arrays = {"depths": np.array(depths), "common": np.array(list(COMMON))}
    arrays["before"] = np.array([np.linspace(common, 1, chosen.points + 2)[1:-1] for common in COMMON])
    arrays["after"] = np.array(
        [
            [pair_map(rho, common, chosen.batch) for rho in row]
            for common, row in track(list(zip(COMMON, arrays["before"], strict=True)), "same_kernel: pairs")
        ]
    )
    images = {name: load_inputs(replace(config, image_centering=name), chosen.images) for name in ("dataset", "none")}
    found = {
        (name, center): kernels(images[center].x, name, depths)
        for name, center in track([(n, c) for n in COLORS for c in images], "same_kernel: kernels")
    }
    for center in images:
        arrays[f"condition_number_{center}"] = np.array(
            [[condition_number(pair[1]) for pair in found[name, center]] for name in COLORS]
        )
    behind = [[behind_last_batch_norm(pair, config.seed) for pair in found[name, "dataset"]] for name in COLORS]
    arrays["condition_number_last"] = np.array(
        [[condition_number(pair[1], null_space) for pair, null_space in row] for row in behind]
    )
    facts = {
        "batch of the map of pairs": chosen.batch,
        "limit with batch norm": analyse(
            "relu", normalization="batch", batch_size=len(images["dataset"].x)
        ).condition_number,
        "mean initial correlation, not centered": images["none"].facts["mean initial correlation"],
    }
    return Result(arrays, facts | images["dataset"].facts)


def draw(result: Result) -> Figure:
    """Draws the map of pairs, condition numbers of centered and of raw images, and those behind a last batch norm."""
    facts = result.facts
    figure, (left, middle, right) = panels(3, height=3.2, share=False)
    draw_pairs(left, result)
    draw_condition_numbers(middle, result)
    draw_last(right, result)
    note(
        figure,
        f"ReLU, infinite width, stable gain, no bias, eps = 0. Left: circles from the exact kernel of a batch of "
        f"{facts['batch of the map of pairs']}, lines from weight mean's T̄. Others: {facts['images']} images of "
        f"{facts['data set']}, one batch, scaled to |x|² = d; mean correlation {facts['mean initial correlation']:.2f} "
        f"centered, {facts['mean initial correlation, not centered']:.2f} raw. "
        "Right: one output drawn, null space left out.",
    )
    return figure


def draw_pairs(axes: Axes, result: Result) -> None:
    """Draws T_BN for each correlation that the batch has in common, on weight mean's T_bar."""
    a, centered = result.arrays, analyse("relu", normalization="weight_mean")
    for common, before, after in zip(a["common"], a["before"], a["after"], strict=True):
        color = COMMON[float(common)]
        rho = np.linspace(common, 1, 101)
        axes.plot(rho, centered.transition((rho - common) / (1 - common)), color=color, linewidth=0.9)
        axes.plot(before, after, "o", color=color, markersize=4, markerfacecolor="white", label=f"{common:g}")
    rho = np.linspace(0, 1, 101)
    axes.plot(rho, centered.transition(rho), color=PURPLE, linestyle="--", linewidth=1.8, label="weight mean, any")
    axes.set(xlabel="correlation of a pair", ylabel="behind one layer", title="one pair: the same map")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.6), yticks=np.linspace(0, 1, 6))
    axes.legend(loc="upper left", title="batch norm, common\ncorrelation of the batch", title_fontsize=7)


def draw_condition_numbers(axes: Axes, result: Result) -> None:
    """Draws condition numbers by depth, of centered images (solid) and of raw ones (dotted)."""
    a = result.arrays
    for row, name in enumerate(COLORS):
        if name == "none":
            continue
        axes.loglog(a["depths"], a["condition_number_dataset"][row], color=COLORS[name], label=LABELS[name])
        axes.loglog(a["depths"], a["condition_number_none"][row], ":", color=COLORS[name], label="raw images")
    limit = result.facts["limit with batch norm"]
    axes.axhline(limit, color=BLACK, linewidth=0.8, linestyle="--", label=rf"$\chi/e_1 = {limit:.2f}$")
    axes.set(xlabel="hidden layers", ylabel=r"condition number $\kappa$ of the NTK", title="matrices: not the same")
    axes.legend(loc="upper right")


def draw_last(axes: Axes, result: Result) -> None:
    """Draws the condition number less 1, with a last batch norm (solid) and without (dashed)."""
    a = result.arrays
    for row, (name, color) in enumerate(COLORS.items()):
        for key, style in (("last", "-"), ("dataset", "--")):
            kappa = a[f"condition_number_{key}"][row]
            resolved = kappa - 1 > ROUNDING
            label = LABELS[name] if style == "-" else None
            axes.loglog(a["depths"][resolved], kappa[resolved] - 1, style, color=color, linewidth=1.2, label=label)
    axes.plot([], [], "--", color="#777777", linewidth=1.2, label="without last BN")
    axes.set(xlabel="hidden layers", ylabel=r"$\kappa - 1$", title="behind a last batch norm", ylim=(1e-9, None))
    axes.legend(loc="lower left")
