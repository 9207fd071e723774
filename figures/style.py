"""The look that all figures share: column widths, fonts, colours.

A colour says which normalisation, and nothing else does: `LOOKS` is the one table, keyed by the names of
`ntk_analysis.common.normalizations`. Sizes, depths, widths and rates are `shades` of a normalisation's colour, or of
grey; limits, theory and guides are black or grey. A figure has no colours of its own (tests/test_figures.py).
"""

import math
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ntk_analysis.common.normalizations import TABLE, row_of

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

DARK, GREY, PALE = "#444444", "#8A8A8A", "#D9D9D9"


class Look(NamedTuple):
    """The look of one normalisation in every figure.

    Attributes:
        label: the name in legends and titles.
        color: the colour, "#rrggbb".
        marker: the marker, which no other has.
    """

    label: str
    color: str
    marker: str


# any two colours are at least 15 units of CIE Lab apart, for readers without red, green or blue cones too
LOOKS = {
    "none": Look("no normalisation", VERMILION, "o"),
    "weight_mean": Look("weight mean", BLUE, "s"),
    "weight_standardization": Look("weight standardisation", "#792306", "p"),
    "batch": Look("batch norm", PURPLE, "v"),
    "layer": Look("layer norm", SKY, "P"),
    "layer_post": Look("layer norm after activation", "#5F1F5F", "d"),
    "group": Look("group norm", "#04188D", "h"),
    "last_bn": Look("last batch norm", ORANGE, "^"),
    "mimic": Look("MimicNorm", GREEN, "D"),
    "skip_init": Look("SkipInit", "#8C24F3", "X"),
    "fixup": Look("Fixup", "#A5D279", "*"),
}


WRITTEN = {
    "mlp": "MLP",
    "squeezenet1_0": "SqueezeNet",
    "shufflenet_v2_x1_0": "ShuffleNetV2",
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
}


def look(name: str) -> Look:
    """Returns label, colour and marker of a normalisation, by any of its names.

    Raises:
        ValueError: no normalisation has this name.
    """
    row = row_of(name)
    return next(LOOKS[key] for key in TABLE if TABLE[key] is row)


def shades(color: str, count: int) -> list[str]:
    """Returns `count` shades of a colour from light to dark, for the values of one quantity in their order."""
    rgb, whole = np.array(to_rgb(color)), []
    for place in np.linspace(-1, 1, count) if count > 1 else (0.0,):
        # towards white or black; what is left of the colour tells it from others
        target, share = (1.0, 0.42) if place < 0 else (0.0, 0.55)
        whole.append(to_hex(rgb + abs(place) * share * (target - rgb)))
    return whole


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


def legend_above(figure: Figure, axes: Axes) -> None:
    """Writes the legend of these axes above all others, in lines of at most six entries, equally long."""
    handles, labels = axes.get_legend_handles_labels()
    lines = math.ceil(len(labels) / 6)
    figure.legend(handles, labels, loc="outside upper center", ncols=math.ceil(len(labels) / lines))


def written(name: str) -> str:
    """Returns the name of a model or an optimizer as papers write it."""
    return WRITTEN.get(name, name.replace("vgg", "VGG").replace("resnet", "ResNet"))


def plain_ticks(axis: Axis) -> None:
    """Labels 1, 2 and 5 of each power of ten in plain numbers: over few decades, powers alone are one tick or two.

    Within one decade, 3 and 7 too.
    """
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 2, 3, 5, 7)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def note(figure: Figure, text: str) -> None:
    """Writes small lines of provenance below everything else."""
    characters = int(22 * figure.get_figwidth())  # that many fit an inch at this size
    figure.supxlabel(textwrap.fill(text, characters), fontsize=6, color=DARK)
