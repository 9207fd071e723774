"""Table 1: the memory of training the authors' networks at CIFAR size, by normalisation, beside the paper's.

MimicNorm saves a third to a half of what the backward pass keeps before compilation; the paper's percentages are of
all that PyTorch holds on the GPU.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track
from ntk_analysis.training.memory import TABLE_1, account

from .config import Config, Result
from .style import BLACK, DARK, GREY, look, note, panels, shades, written

CLASSES = 100
PAIR = ("batch_norm", "mimic_norm")
KINDS = {
    "convolution": DARK,
    "batch norm": look("batch").color,
    "ReLU": GREY,
    "skip scale": look("mimic").color,
}  # what a normalisation adds has its colour; the others are small, and shown together
GIBIBYTE = 2**30


def compute(config: Config, track: Track) -> Result:
    """Returns bytes by network, normalisation and kind of layer, and the percentages saved. It uses no data."""
    names = [row.model for row in TABLE_1]
    accounts = [
        [account(row.model, normalization, batch=row.batch, classes=CLASSES, published=True) for normalization in PAIR]
        for row in track(TABLE_1, "table1: networks")
    ]
    kinds = [[[found.by_kind.get(kind, 0) for kind in KINDS] for found in pair] for pair in accounts]
    kept = np.array([[found.kept for found in pair] for pair in accounts], float)
    saved = {
        "backward pass keeps": 100 * (1 - kept[:, 1] / kept[:, 0]),
        "arrays of training": np.array([100 * (1 - pair[1].training / pair[0].training) for pair in accounts]),
        "the paper's GPU total": np.array([row.saving("mimic_norm") for row in TABLE_1]),
    }
    arrays = {"kinds": np.array(kinds, float), "kept": kept, "saved": np.stack(list(saved.values()))}
    facts = {
        "networks": names,
        "batch": [row.batch for row in TABLE_1],
        "percent that MimicNorm saves of batch norm's": {
            what: dict(zip(names, values.round(1).tolist(), strict=True)) for what, values in saved.items()
        },
    }
    return Result(arrays, facts)


def draw(result: Result) -> Figure:
    """Draws the savings on the left, and on the right what is kept, batch norm's bar above MimicNorm's."""
    figure, (saved, kept) = panels(2, height=3.4)
    draw_saved(saved, result)
    draw_kept(kept, result)
    # outside: bars fill all corners
    figure.legend(*saved.get_legend_handles_labels(), loc="outside upper left")
    figure.legend(*kept.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    batches = result.facts["batch"]
    note(
        figure,
        f"Networks of the authors' code, CIFAR size, {CLASSES} classes, batch {max(batches)}"
        + (f" (ResNet50 {min(batches)})" if len(set(batches)) > 1 else "")
        + ", float32. Kept: arrays handed from forward to backward pass, before compilation. Arrays of training: "
        "these, images, and three times the parameters.",
    )
    return figure


def draw_saved(axes: Axes, result: Result) -> None:
    """Draws the savings in percent of batch norm's memory, by network."""
    names = result.facts["networks"]
    places = np.arange(len(names))
    of = result.facts["percent that MimicNorm saves of batch norm's"]
    ours = shades(look("mimic").color, 3)[1:]
    for offset, what, color in zip((-0.26, 0, 0.26), of, (*ours, BLACK), strict=True):
        axes.barh(places + offset, list(of[what].values()), 0.24, color=color, label=what)
    axes.set_yticks(places, [written(name) for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="saved by MimicNorm, % of batch norm's", title="memory against batch norm")


def draw_kept(axes: Axes, result: Result) -> None:
    """Draws the GiB that the backward pass keeps, by kind of layer."""
    kinds, kept = result.arrays["kinds"] / GIBIBYTE, result.arrays["kept"] / GIBIBYTE
    rest = kept - kinds.sum(-1)
    parts = [*zip(KINDS.items(), np.moveaxis(kinds, -1, 0), strict=True), (("other", "white"), rest)]
    left = np.zeros_like(kept)
    for (kind, color), values in parts:
        for index, offset in enumerate((-0.2, 0.2)):
            places = np.arange(len(kept)) + offset
            name = "_" * index + kind  # one entry of the legend for both
            axes.barh(
                places, values[:, index], 0.36, left=left[:, index], color=color, edgecolor=DARK, linewidth=0.4,
                label=name,
            )  # fmt: skip
        left += values
    axes.set(xlabel="kept for the backward pass, GiB", title="batch norm above, MimicNorm below")
