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

from ntk_analysis.common.progress import Track
from ntk_analysis.meanfield import critical_line, phase_diagram

from .config import Config, Result
from .style import BLACK, note, panels

ACTIVATIONS = ("relu", "gelu")
NORMALIZATIONS = ("none", "weight_mean")
TITLES = {"none": "straight", "weight_mean": "weight mean"}
NAMES = {"relu": "ReLU", "gelu": "GELU"}
CRITICAL_VARIANCES = np.linspace(0, 200, 20_001)
NORM = TwoSlopeNorm(0.0, vmin=-1.0, vmax=0.5)


def compute(config: Config, track: Track) -> Result:
    """Computes chi_1, and whether q* exists, over a grid."""
    points = 81 if config.full else 41
    w_var, b_var = np.linspace(0.05, 4, points), np.linspace(0, 1, points)
    arrays = {"w_var": w_var, "b_var": b_var}
    cases = [(activation, name) for activation in ACTIVATIONS for name in NORMALIZATIONS]
    for activation, name in track(cases, "phase_diagram"):
        diagram = phase_diagram(activation, normalization=name, w_var=w_var, b_var=b_var)
        arrays[f"chi_1_{activation}_{name}"] = np.asarray(diagram.chi_1)
        arrays[f"bounded_{activation}_{name}"] = np.asarray(diagram.bounded)
        line = critical_line(activation, normalization=name, q=CRITICAL_VARIANCES)
        reached = line.variance_slope <= 1 + 1e-9  # elsewhere the variance runs away from the line
        arrays[f"critical_{activation}_{name}"] = np.stack([line.w_var, line.b_var])[:, reached]
    return Result(arrays, {"points": points})


def draw(result: Result) -> Figure:
    """Draws one panel for each network: chi_1 in colour, the critical line in black, hatched where no q* exists."""
    a = result.arrays
    figure, axes = panels(2, rows=2, height=2.5)
    cases = [(activation, name) for activation in ACTIVATIONS for name in NORMALIZATIONS]
    for panel, (activation, name) in zip(axes, cases, strict=True):
        draw_panel(panel, a["w_var"], a["b_var"], a[f"chi_1_{activation}_{name}"], a[f"bounded_{activation}_{name}"])
        # a line of one point is ReLU's (2, 0): a marker shows it, a line would not
        critical = a[f"critical_{activation}_{name}"]
        panel.plot(*critical, color=BLACK, marker="o" if critical.shape[1] == 1 else "", clip_on=critical.shape[1] > 1)
        panel.set_title(f"{NAMES[activation]}, {TITLES[name]}")
    for panel in axes[2:]:
        panel.set_xlabel(r"weight variance $\sigma_w^2$")
    for panel in axes[::2]:
        panel.set_ylabel(r"bias variance $\sigma_b^2$")
    bar = figure.colorbar(ScalarMappable(NORM, "RdBu_r"), ax=axes, shrink=0.8, aspect=30)
    bar.set_label(r"$\log_{10}\chi_1$:  < 0 ordered,  > 0 chaotic")
    handles: list[Patch | Line2D] = [
        Patch(facecolor="white", edgecolor="#777777", hatch="////", label="variance grows without bound from $q = 1$"),
        Line2D([], [], color=BLACK, marker="o", label=r"critical, $\chi_1 = 1$"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    note(figure, f"infinite width; {result.facts['points']} x {result.facts['points']} points")
    return figure


def draw_panel(axes: Axes, w_var: np.ndarray, b_var: np.ndarray, chi_1: np.ndarray, bounded: np.ndarray) -> None:
    """Draws chi_1 over the plane."""
    log_chi = np.ma.masked_where(~bounded, np.log10(np.where(bounded, chi_1, 1.0)))
    axes.pcolormesh(w_var, b_var, log_chi, norm=NORM, cmap="RdBu_r", shading="nearest", rasterized=True)
    axes.set_facecolor("white")
    axes.contourf(w_var, b_var, (~bounded).astype(float), levels=[0.5, 1.5], colors="none", hatches=["////"], zorder=0)
    axes.set(xlim=(0, w_var[-1]), ylim=(b_var[0], b_var[-1]))
