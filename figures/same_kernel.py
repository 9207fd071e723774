"""Is weight centering's kernel batch normalisation's? One pair at a time yes, as matrices no, behind a last BN nearly.

The maps of one pair's correlation agree in a large batch of uncorrelated inputs. What inputs have in common, batch
normalisation removes in one layer, weight centering a factor at a time. Batch normalisation's NTK also keeps a constant
mode. A last batch normalisation removes that, and the straight network's outlier as well; what then singles out weight
centering is the rate. Batch normalisation slows down: it remembers unequal distances from the batch's mean.
"""

import warnings
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntk_analysis import batch_norm, spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.kernels import kernels
from ntk_analysis.meanfield import analyse

from .condition_number import ROUNDING, depths_up_to
from .config import Config, Result, load_inputs
from .kernel_matrices import behind_last_batch_norm
from .style import BLACK, GREY, look, note, panels, shades

NORMALIZATIONS = ("none", "weight_mean", "batch")
LAST = {"none": "last_bn", "weight_mean": "mimic", "batch": "batch"}  # their looks behind a last batch norm
COMMON = (0.0, 0.5, 0.9)


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
    arrays = {"depths": np.array(depths), "common": np.array(COMMON)}
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
        for name, center in track([(n, c) for n in NORMALIZATIONS for c in images], "same_kernel: kernels")
    }
    for center in images:
        arrays[f"condition_number_{center}"] = np.array(
            [[condition_number(pair[1]) for pair in found[name, center]] for name in NORMALIZATIONS]
        )
    behind = [[behind_last_batch_norm(pair, config.seed) for pair in found[name, "dataset"]] for name in NORMALIZATIONS]
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
    figure, (left, middle, right) = panels(3, height=3.3, share=False)
    draw_pairs(left, result)
    draw_condition_numbers(middle, result)
    draw_last(right, result)
    names = (*NORMALIZATIONS, "last_bn", "mimic")
    handles = [Line2D([], [], color=look(name).color, label=look(name).label) for name in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    note(
        figure,
        f"ReLU, infinite width, stable gain, no bias, eps = 0. Left: circles from the exact kernel of a batch of "
        f"{facts['batch of the map of pairs']}; lines: weight mean's T̄, in grey of what is left without the common "
        "correlation. Middle: χ/e₁ is the growth of the NTK per layer over what one layer adds to the constant mode. "
        f"Middle and right: {facts['images']} images of {facts['data set']}, one batch, scaled to |x|² = d; mean "
        f"correlation {facts['mean initial correlation']:.2f} centered, "
        f"{facts['mean initial correlation, not centered']:.2f} raw. Right: one output drawn, null space left out; "
        "MimicNorm is weight mean behind a last batch norm.",
    )
    return figure


def draw_pairs(axes: Axes, result: Result) -> None:
    """Draws T_BN for each correlation that the batch has in common, on weight mean's T_bar."""
    a, centered = result.arrays, analyse("relu", normalization="weight_mean")
    colors = shades(look("batch").color, len(a["common"]))
    for common, before, after, color in zip(a["common"], a["before"], a["after"], colors, strict=True):
        rho, line = np.linspace(common, 1, 101), look("weight_mean").color if common == 0 else GREY
        axes.plot(rho, centered.transition((rho - common) / (1 - common)), color=line, linewidth=0.9)
        axes.plot(before, after, "o", color=color, markersize=4, markerfacecolor="white", label=f"{common:g}")
    axes.set(xlabel="correlation of a pair", ylabel="correlation behind one layer", title="one pair: the same map")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.45), yticks=np.linspace(0, 1, 6))
    axes.legend(loc="upper left", title="batch norm, correlation\ncommon to the batch:", title_fontsize=7)


def draw_condition_numbers(axes: Axes, result: Result) -> None:
    """Draws condition numbers by depth, of centered images (solid) and of raw ones (dotted)."""
    a = result.arrays
    for row, name in enumerate(NORMALIZATIONS):
        if name != "none":
            axes.loglog(a["depths"], a["condition_number_dataset"][row], color=look(name).color)
            axes.loglog(a["depths"], a["condition_number_none"][row], ":", color=look(name).color)
    limit = result.facts["limit with batch norm"]
    axes.axhline(limit, color=BLACK, linewidth=0.8, linestyle="--")
    axes.plot([], [], color=GREY, label="centered images")
    axes.plot([], [], ":", color=GREY, label="raw images")
    label = "limit of batch norm,\n" rf"$\chi/e_1 = {limit:.2f}$"
    axes.plot([], [], color=BLACK, linewidth=0.8, linestyle="--", label=label)
    axes.set(xlabel="hidden layers", ylabel=r"condition number $\kappa$ of the NTK", title="matrices: not the same")
    axes.legend(loc="upper right")


def draw_last(axes: Axes, result: Result) -> None:
    """Draws the condition number less 1, with a last batch norm (solid) and without (dashed)."""
    a = result.arrays
    for row, name in enumerate(NORMALIZATIONS):
        # solid lines are wider: a dashed one on top of its own shows both
        for key, shown, style, width in (("last", LAST[name], "-", 2.2), ("dataset", name, "--", 1.1)):
            kappa = a[f"condition_number_{key}"][row]
            resolved = kappa - 1 > ROUNDING
            axes.loglog(
                a["depths"][resolved], kappa[resolved] - 1, style, color=look(shown).color, linewidth=width,
                zorder=2 + (style == "--"),
            )  # fmt: skip
    axes.plot([], [], color=GREY, linewidth=2.2, label="behind it")
    axes.plot([], [], "--", color=GREY, linewidth=1.1, label="without it")
    axes.set(xlabel="hidden layers", ylabel=r"condition number less 1, $\kappa - 1$", title="behind a last batch norm")
    axes.set_ylim(1e-9, None)
    axes.legend(loc="lower left")
