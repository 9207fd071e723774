"""Is weight mean's kernel batch norm's in a convolutional network? VGG- and ResNet-like ones, layer by layer.

Batch norm's batch is all positions of all images, so that its kernel is that of a batch images x positions. What stands
behind each layer of weights is read out by the mean over equal positions.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntk_analysis import data
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.image_networks import NETWORKS, behind_weights

from .config import Config, Result, load_images
from .style import look, note, panels, plain_ticks

NORMALIZATIONS = ("none", "weight_mean", "batch")
LAST = {"none": "last_bn", "weight_mean": "mimic", "batch": "batch"}  # their looks behind a last batch norm
BEHIND_LAST = "condition_number_last"
PANELS = {
    "correlation": "correlation of two images",
    "condition_number": r"condition number $\kappa$",
    "growth": "growth, NTK / NNGP",
}


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of images.
        size: height and width to which they are averaged.
    """

    images: int
    size: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(16, 8) if config.full else Settings(12, 4)


def small_images(images: data.ImageSet, size: int) -> data.ImageSet:
    """Returns the images as means over size x size equal blocks, without what is left over at the borders.

    Raises:
        ValueError: the images are smaller than that.
    """
    n, height, width, channels = images.images.shape
    if min(height, width) < size:
        raise ValueError(f"{images.name} has images of {height} x {width}, expected {size} x {size} at least")
    rows, columns = height // size, width // size
    top, left = (height - size * rows) // 2, (width - size * columns) // 2
    cut = images.images[:, top : top + size * rows, left : left + size * columns].astype(np.float64)
    blocks = cut.reshape(n, size, rows, size, columns, channels)
    return replace(images, images=blocks.mean((2, 4)))


def compute(config: Config, track: Track) -> Result:
    """Computes each panel's (normalisations, layers) of each network, "VGG-like growth", from one hidden layer on."""
    chosen = settings(config)
    images = load_images(config.data)
    images = small_images(images.subset(min(chosen.images, len(images.images)), config.seed), chosen.size)
    centering = config.image_centering or "dataset"
    x = data.preprocess(images.images, image_centering=centering).reshape(images.images.shape)
    pairs = [(network, name) for network in NETWORKS for name in NORMALIZATIONS]
    kernels = {pair: list(behind_weights(NETWORKS[pair[0]](pair[1]), x))[1:] for pair in track(pairs, "image_kernels")}
    arrays = {}
    for network in NETWORKS:
        rows = [kernels[network, name] for name in NORMALIZATIONS]
        for key in PANELS:
            arrays[f"{network} {key}"] = np.array([[getattr(kernel, key) for kernel in row] for row in rows])
        arrays[f"{network} {BEHIND_LAST}"] = np.array(
            [row[-1].condition_number_behind_last(config.seed) for row in rows]
        )
    facts = {
        "data set": images.name,
        "images": len(x),
        "positions": f"{chosen.size} x {chosen.size}",
        "centering of images": centering,
        "mean initial correlation": data.mean_correlation(x.reshape(len(x), -1)),
        "batch of a channel in the first layers": len(x) * chosen.size**2,
        "networks": "ReLU, infinite width, stable gain, no bias, eps = 0, average pooling",
    }
    shown = {
        key: {network: named(arrays[f"{network} {key}"]) for network in NETWORKS}
        for key in ("condition_number", BEHIND_LAST)
    }
    return Result(arrays, facts | shown)


def named(values: np.ndarray) -> dict[str, object]:
    """Returns the numbers by normalisation, each a list over layers, or a number."""
    return dict(zip(NORMALIZATIONS, values.tolist(), strict=True))


def draw(result: Result) -> Figure:
    """Draws a row for each network: correlation, condition number with and without a last batch norm, growth."""
    facts = result.facts
    figure, axes = panels(len(PANELS), rows=len(NETWORKS), height=2.3, share=False)
    places = [(network, key) for network in NETWORKS for key in PANELS]
    for panel, (network, key) in zip(axes, places, strict=True):
        draw_panel(panel, result, network, key)
        panel.set(title=network, ylabel=PANELS[key], xlabel="hidden layers")
    names = (*NORMALIZATIONS, "last_bn", "mimic")
    handles = [
        Line2D(
            [], [], color=look(name).color, label=look(name).label, marker=look(name).marker, markersize=3.5,
            linestyle="" if name in ("last_bn", "mimic") else "-",
        )
        for name in names
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    note(
        figure,
        f"{facts['networks']}. {facts['images']} images of {facts['data set']}, averaged to {facts['positions']}, "
        f"{'mean image subtracted' if facts['centering of images'] == 'dataset' else 'not centered'}, one batch: of "
        f"{facts['batch of a channel in the first layers']} numbers a channel at first. Left: NNGP, mean of all pairs. "
        "Middle: of the NTK; markers beside the ends of the lines stand for a last batch norm behind them, one output "
        "drawn, null space left out, batch norm's is hollow. Right: ratio of the means of the diagonals.",
    )
    return figure


def draw_panel(axes: Axes, result: Result, network: str, key: str) -> None:
    """Draws one quantity of one network by hidden layer, and condition numbers behind a last batch norm beside it."""
    for place, name in enumerate(NORMALIZATIONS):
        values, style = result.arrays[f"{network} {key}"][place], look(name)
        layers = np.arange(1, len(values) + 1)
        axes.plot(layers, values, color=style.color, marker=style.marker, markersize=3.5)
        if key == "condition_number":
            last, face = look(LAST[name]), "white" if name == "batch" else look(LAST[name]).color
            kappa = result.arrays[f"{network} {BEHIND_LAST}"][place]
            axes.plot(len(values) + 0.6, kappa, color=last.color, marker=last.marker, markerfacecolor=face)
    if key != "correlation":
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
