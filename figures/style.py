"""One look for all figures: column widths, fonts, colour-blind-safe colours."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.5, 7.0  # widths in inches of one and of two columns of a paper

# Okabe & Ito's palette: told apart with every common form of colour blindness
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#000000",
)

RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "legend.frameon": True,
    "legend.framealpha": 0.92,
    "legend.edgecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",
    "svg.hashsalt": "ntk_analysis",  # the same picture is the same file
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Sets Matplotlib's parameters while a figure is drawn and saved."""
    with mpl.rc_context(RC):
        yield


def panels(columns: int, *, rows: int = 1, height: float = 2.6, share: bool = True) -> tuple[Figure, list[Axes]]:
    """Returns a figure one column wide for one panel, two columns wide for more, and its axes row by row."""
    width = COLUMN if columns == 1 else PAGE
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), sharey=share, squeeze=False)
    return figure, list(axes.flat)


def note(figure: Figure, text: str) -> None:
    """Writes small lines of provenance below everything else."""
    characters = int(22 * figure.get_figwidth())  # that many fit an inch at this size
    figure.supxlabel(textwrap.fill(text, characters), fontsize=6, color="#555555")
