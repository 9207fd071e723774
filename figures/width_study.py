"""Finite networks against the infinite-width NTK: one draw, the mean of many, and what depth does to the fluctuation.

Whatever the normalisation, one draw is width^(-1/2) away from the limit and the mean of many draws width^(-1), as the
theory has it. The fluctuation of the NTK's diagonal grows about as exp(c depth/width) - 1 (Hanin & Nica 2019,
1909.05989, for networks without normalisation); one c for each normalisation is a guide to the eye and no fit of all
depths: at equal depth/width, deep networks with weight mean lie above it and deep ones with batch norm below.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ntk_analysis.common.progress import Track
from ntk_analysis.layers import Serial
from ntk_analysis.networks import fully_connected
from ntk_analysis.width_study import (
    RESOLVED,
    Convergence,
    PowerLaw,
    diagonal_fluctuation,
    draw_kernels,
    fluctuation_rate,
    width_study,
)

from .config import Config, Result, describe_inputs, load_inputs
from .style import BLACK, Look, legend_above, look, note, panels, plain_ticks

NORMALIZATIONS = ("none", "weight_mean", "batch", "layer")
DEPTH = 3


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        names: normalisations.
        images: number of images.
        widths: widths of the networks of depth 3.
        draws: number of networks drawn for each of these widths.
        deep: (depth, width) of the deeper networks.
        deep_draws: number of networks drawn for each of these.
    """

    names: tuple[str, ...]
    images: int
    widths: tuple[int, ...]
    draws: tuple[int, ...]
    deep: tuple[tuple[int, int], ...]
    deep_draws: tuple[int, ...]


def settings(config: Config) -> Settings:
    """Returns the sizes, with most networks where they are cheap: to see a bias takes as many as a layer has units.

    The small one leaves layer norm out: its time is that of its programs, one for each width and normalisation.
    """
    if not config.full:
        return Settings(NORMALIZATIONS[:3], 8, (16, 64), (1000, 200), ((10, 64),), (60,))
    deep = ((10, 64), (30, 128))
    return Settings(NORMALIZATIONS, 16, (16, 32, 64, 256, 1024), (6000, 6000, 3000, 300, 32), deep, (1000, 200))


def in_their_span(x: np.ndarray) -> np.ndarray:
    """Inputs (n, d) of n < d features and the same x.x'/d: Gaussian weights cannot tell, and need n/d of the time."""
    if len(x) >= x.shape[1]:
        return x
    _, triangle = np.linalg.qr(x.T)
    return triangle.T * (len(x) / x.shape[1]) ** 0.5


def compute(config: Config, track: Track) -> Result:
    """Computes distance, squared bias and fluctuation by width, and the fluctuation of deeper networks."""
    chosen = settings(config)
    inputs = load_inputs(config, chosen.images, image_centering="dataset")
    x = in_their_span(inputs.x).astype(np.float32)
    arrays = {"widths": np.array(chosen.widths), "draws": np.array(chosen.draws), "deep": np.array(chosen.deep)}
    ratios = np.array([DEPTH / width for width in chosen.widths] + [depth / width for depth, width in chosen.deep])
    arrays["depth_over_width"] = ratios
    laws: dict[str, dict[str, object]] = {}
    for name in track(chosen.names, "width_study"):

        def make(width: int, depth: int = DEPTH, name: str = name) -> Serial:
            return fully_connected(depth, width, name)

        study = width_study(make, x, chosen.widths, chosen.draws, seed=config.seed)
        deep = [make(width, depth) for depth, width in chosen.deep]
        found = np.array(
            [diagonal_fluctuation(ntk) for ntk, _ in draw_kernels(deep, x, chosen.deep_draws, config.seed)]
        )
        fluctuation = np.concatenate([study.ntk.fluctuation, found[:, 0]])
        error = np.concatenate([study.ntk.fluctuation_error, found[:, 1]])
        rate, rate_error = fluctuation_rate(ratios, fluctuation, error)
        arrays |= {f"{key}_{name}": value for key, value in _columns(study.ntk).items()}
        arrays |= {f"fluctuation_{name}": fluctuation, f"fluctuation_error_{name}": error}
        laws[name] = {
            "NTK, exponent of one draw": _fact(study.ntk.distance_law),
            "NTK, exponent of the bias": _fact(study.ntk.bias_law),
            "NNGP, exponent of one draw": _fact(study.nngp.distance_law),
            "NNGP, exponent of the bias": _fact(study.nngp.bias_law),
            "c of fluctuation exp(c depth/width) - 1": [rate, rate_error],
        }
    facts = {"[value, standard error]": laws, "depth": DEPTH, "activation": "relu"}
    return Result(arrays, facts | inputs.facts)


def shown(result: Result) -> dict[str, Look]:
    """Returns the looks of the normalisations that were studied."""
    return {name: look(name) for name in NORMALIZATIONS if f"distance_{name}" in result.arrays}


def _columns(ntk: Convergence) -> dict[str, np.ndarray]:
    return {
        "distance": ntk.mean_distance,
        "distance_error": ntk.distance_error,
        "bias_squared": ntk.bias_squared,
        "bias_squared_error": ntk.bias_squared_error,
    }


def _fact(law: PowerLaw) -> list[float] | None:
    return None if np.isnan(law.exponent) else [law.exponent, law.error]


def draw(result: Result) -> Figure:
    """Draws the distance of one draw left, the bias in the middle, the fluctuation against depth/width right."""
    figure, (left, middle, right) = panels(3, height=3.0, share=False)
    draw_distance(left, result)
    draw_bias(middle, result)
    draw_fluctuation(right, result)
    legend_above(figure, left)
    note(
        figure,
        f"ReLU, stable gain, one output, at initialisation; left and middle {result.facts['depth']} hidden layers, "
        f"{result.arrays['draws'][0]} networks of width {result.arrays['widths'][0]} to {result.arrays['draws'][-1]} "
        f"of width {result.arrays['widths'][-1]}; {describe_inputs(result.facts)}. Error bars: one standard error; "
        f"triangles: bias less than {RESOLVED} standard errors from 0, at its upper limit (2 s.e.).",
    )
    return figure


def draw_distance(axes: Axes, result: Result) -> None:
    """Draws the relative distance of one draw, with the slope -1/2."""
    a = result.arrays
    for name, (label, color, marker) in shown(result).items():
        axes.errorbar(
            a["widths"], a[f"distance_{name}"], a[f"distance_error_{name}"], color=color, marker=marker, markersize=4,
            linewidth=0.9, label=label,
        )  # fmt: skip
    top = max(a[f"distance_{name}"][0] for name in shown(result))
    guide(axes, a["widths"], 1.3 * top, -0.5, r"$\propto n^{-1/2}$")
    axes.set(title="one draw", ylabel="relative distance of one NTK\n" r"$|\Theta_n - \Theta| \,/\, |\Theta|$")
    _width_axis(axes, a["widths"])


def draw_bias(axes: Axes, result: Result) -> None:
    """Draws the relative distance of the mean, with the slope -1; upper limits where it is not resolved."""
    a, top = result.arrays, 0.0
    for name, (_, color, marker) in shown(result).items():
        square, error = a[f"bias_squared_{name}"], a[f"bias_squared_error_{name}"]
        seen = square > RESOLVED * error
        bias = np.sqrt(square[seen])
        axes.errorbar(
            a["widths"][seen], bias, error[seen] / (2 * bias), color=color, marker=marker, markersize=4, linewidth=0.9
        )
        limit = np.sqrt(np.maximum(square, 0) + 2 * error)
        axes.plot(a["widths"][~seen], limit[~seen], marker=7, color=color, linestyle="", markersize=4, alpha=0.45)
        top = max(top, *np.where(seen, np.sqrt(np.maximum(square, 0)), limit))
    guide(axes, a["widths"], 1.3 * top, -1, r"$\propto n^{-1}$")
    axes.set(title="bias of the mean")
    axes.set(ylabel="relative bias of the NTK\n" r"$|\mathrm{E}\,\Theta_n - \Theta| \,/\, |\Theta|$")
    _width_axis(axes, a["widths"])


def draw_fluctuation(axes: Axes, result: Result) -> None:
    """Draws the diagonal's variance by depth/width: filled at depth 3, open deeper, lines exp(c depth/width) - 1."""
    a = result.arrays
    ratio, shallow = a["depth_over_width"], len(a["widths"])
    line = np.geomspace(ratio.min() / 1.3, ratio.max() * 1.3, 100)
    for name, (_, color, marker) in shown(result).items():
        values, error = a[f"fluctuation_{name}"], a[f"fluctuation_error_{name}"]
        for part, face in ((slice(None, shallow), color), (slice(shallow, None), "white")):
            axes.errorbar(
                ratio[part], values[part], error[part], color=color, marker=marker, markersize=4, linestyle="",
                markerfacecolor=face, elinewidth=0.9,
            )  # fmt: skip
        rate = result.facts["[value, standard error]"][name]["c of fluctuation exp(c depth/width) - 1"][0]
        axes.loglog(line, np.expm1(rate * line), color=color, linewidth=0.9, label=f"$c = {rate:.2f}$")
    depths = sorted({int(depth) for depth, _ in a["deep"]})
    axes.plot([], [], "o", color=BLACK, markersize=4, label=f"$L = {result.facts['depth']}$")
    axes.plot(
        [], [], "o", color=BLACK, markerfacecolor="white", markersize=4, label=f"$L = {', '.join(map(str, depths))}$"
    )
    axes.set(title=r"fluctuation, $e^{cL/n} - 1$", xlabel="depth / width $L/n$")
    axes.set(
        ylabel="relative variance on the diagonal\n"
        r"$\mathrm{Var}\,\Theta_n(x, x) \,/\, \mathrm{E}[\Theta_n(x, x)]^2$"
    )
    for axis in (axes.xaxis, axes.yaxis):  # labels of powers of ten only
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", borderaxespad=0, labelspacing=0.25, handlelength=1.2)


def guide(axes: Axes, widths: np.ndarray, first: float, exponent: float, label: str) -> None:
    """Draws a dashed power of the width, with its name in the middle."""
    values = first * (widths / widths[0]) ** exponent
    axes.loglog(widths, values, color=BLACK, linewidth=0.9, linestyle="--")
    middle = (len(widths) - 1) // 2
    axes.annotate(label, (widths[middle], values[middle]), (4, 3), textcoords="offset points", fontsize=7)


def _width_axis(axes: Axes, widths: np.ndarray) -> None:
    axes.set_xlabel("width $n$")
    axes.set_xscale("log", base=2)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    plain_ticks(axes.yaxis)
