"""Ordered and chaotic phases over the variances of weights and biases, with and without weight centering.

Centering does nothing to odd activations, whose mean is zero already; so ReLU and GELU are shown.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ntk_analysis import activations
from ntk_analysis.common.progress import Track
from ntk_analysis.meanfield import critical_line, phase_diagram

from .config import Config, Result
from .style import BLACK, GREY, look, note, panels

ACTIVATIONS = ("relu", "gelu")
NORMALIZATIONS = ("none", "weight_mean")
NAMES = {"relu": "ReLU", "gelu": "GELU"}
CRITICAL_VARIANCES = np.linspace(0, 200, 20_001)
LEVELS = np.linspace(-1, 0.5, 76)
NORM = TwoSlopeNorm(0.0, vmin=-1.0, vmax=0.5)
VARIANCES = np.geomspace(1, 1e5, 2001)  # that the variance passes on its way up from 1


def compute(config: Config, track: Track) -> Result:
    """Computes chi_1, and whether q* exists, over a grid; the edge of where it does; the critical line."""
    points = 81 if config.full else 41
    w_var, b_var = np.linspace(0.05, 4, points), np.linspace(0, 1, points)
    arrays = {"w_var": w_var, "b_var": b_var, "edge_w_var": np.linspace(w_var[0], w_var[-1], 2001)}
    cases = [(activation, name) for activation in ACTIVATIONS for name in NORMALIZATIONS]
    for activation, name in track(cases, "phase_diagram"):
        diagram = phase_diagram(activation, normalization=name, w_var=w_var, b_var=b_var)
        arrays[f"chi_1_{activation}_{name}"] = np.asarray(diagram.chi_1)
        arrays[f"bounded_{activation}_{name}"] = np.asarray(diagram.bounded)
        line = critical_line(activation, normalization=name, q=CRITICAL_VARIANCES)
        reached = line.variance_slope <= 1 + 1e-9  # elsewhere the variance runs away from the line
        arrays[f"critical_{activation}_{name}"] = np.stack([line.w_var, line.b_var])[:, reached]
        arrays[f"edge_{activation}_{name}"] = largest_bias(activation, name, arrays["edge_w_var"])
        # the variance may settle on the line from below, and still run away from it when it starts at 1
        from_1 = (line.b_var <= largest_bias(activation, name, line.w_var))[reached]
        arrays[f"from_1_{activation}_{name}"] = from_1
    return Result(arrays, {"points": points})


def largest_bias(activation: str, normalization: str, w_var: np.ndarray) -> np.ndarray:
    """Returns, by weight variance, the bias variance up to which the variance settles when it starts from q = 1.

    From 1 the variance grows as long as w_var V(q) + b_var > q, so it settles where a q >= 1 has b_var <= q - w_var
    V(q). Negative where no bias variance will do.
    """
    phi = activations.get(activation)
    kept = np.asarray(phi.dual.second_moment(VARIANCES))
    if normalization == "weight_mean":
        kept = kept - np.asarray(phi.mean(VARIANCES)) ** 2
    return np.max(VARIANCES - w_var[:, None] * kept, axis=1)


def draw(result: Result) -> Figure:
    """Draws one panel for each network: chi_1 in colour, the critical line in black, hatched where no q* exists."""
    a = result.arrays
    figure, axes = panels(2, rows=2, height=2.5)
    cases = [(activation, name) for activation in ACTIVATIONS for name in NORMALIZATIONS]
    for panel, (activation, name) in zip(axes, cases, strict=True):
        draw_panel(panel, a["w_var"], a["b_var"], a[f"chi_1_{activation}_{name}"], a[f"bounded_{activation}_{name}"])
        draw_unbounded(panel, a["edge_w_var"], a[f"edge_{activation}_{name}"])
        draw_critical(panel, a[f"critical_{activation}_{name}"], a[f"from_1_{activation}_{name}"], ends=name == "none")
        panel.set_title(f"{NAMES[activation]}, {look(name).label}")
    for panel in axes[2:]:
        panel.set_xlabel(r"weight variance $\sigma_w^2$")
    for panel in axes[::2]:
        panel.set_ylabel(r"bias variance $\sigma_b^2$")
    bar = figure.colorbar(ScalarMappable(NORM, "RdBu_r"), ax=axes, shrink=0.8, aspect=30)
    bar.set_label(r"$\log_{10}\chi_1$:  < 0 ordered,  > 0 chaotic")
    handles: list[Patch | Line2D] = [
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="variance grows without bound from $q = 1$"),
        Line2D([], [], color=BLACK, label=r"critical, $\chi_1 = 1$"),
        Line2D([], [], color=BLACK, linestyle=":", label="critical, not reached from $q = 1$"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    note(
        figure,
        f"Infinite width; {result.facts['points']} x {result.facts['points']} points. ReLU without normalisation is "
        "critical at one point, the dot. The critical line of GELU without normalisation ends, at the other dot, where "
        "the variance no longer settles on it.",
    )
    return figure


def draw_panel(axes: Axes, w_var: np.ndarray, b_var: np.ndarray, chi_1: np.ndarray, bounded: np.ndarray) -> None:
    """Draws chi_1 over the plane; where there is none, which `draw_unbounded` covers, a row's last value goes on."""
    last = bounded.shape[1] - 1 - np.argmax(bounded[:, ::-1], axis=1)
    columns = np.minimum(np.arange(bounded.shape[1]), last[:, None])
    log_chi = np.log10(np.take_along_axis(chi_1, columns, axis=1))
    axes.contourf(w_var, b_var, log_chi, levels=LEVELS, norm=NORM, cmap="RdBu_r", extend="both")
    axes.set(xlim=(w_var[0], w_var[-1]), ylim=(b_var[0], b_var[-1]), xticks=range(1, round(w_var[-1]) + 1))


def draw_unbounded(axes: Axes, w_var: np.ndarray, largest: np.ndarray) -> None:
    """Hatches the part of the plane in which the variance grows without bound."""
    edge = np.maximum(largest, 0)
    top = axes.get_ylim()[1]
    axes.fill_between(w_var, np.minimum(edge, top), top, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
    axes.plot(w_var, edge, color=GREY, linewidth=0.8)


def draw_critical(axes: Axes, line: np.ndarray, reached: np.ndarray, *, ends: bool) -> None:
    """Draws the critical line (2, points), dotted where a variance of 1 does not reach it, with a dot where it ends."""
    w_var, b_var = line
    axes.plot(w_var, np.where(reached, b_var, np.nan), color=BLACK)
    axes.plot(w_var, np.where(reached, np.nan, b_var), ":", color=BLACK)
    if ends:
        axes.plot(w_var[0], b_var[0], "o", color=BLACK, markersize=5, clip_on=False, zorder=4)
