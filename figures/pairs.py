"""Correlation of input pairs through the layers, with the predicted band; shared by Supp. Fig. 1 and 2."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ntk_analysis.correlation import CorrelationByLayer, layer_correlations, random_pairs
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected

from .config import Config, Inputs
from .style import BLACK, GREY

SHOWN_DRAW = 0
TWO_SIDED_95 = 1.96


def settings(config: Config) -> tuple[int, int, int, int, int]:
    """Returns (depth, width, pairs, batch, networks)."""
    return (50, 300, 200, 400, 10) if config.full else (50, 128, 100, 200, 5)


def measure(config: Config, inputs: Inputs, normalization: str) -> CorrelationByLayer:
    """Returns the Pearson correlation over the channels of the activations, (networks, depth, pairs)."""
    depth, width, pairs, _, draws = settings(config)
    network = fully_connected(depth, width, normalization)
    chosen = random_pairs(len(inputs.x), pairs, config.seed)
    return layer_correlations(network, inputs.x, chosen, seed=config.seed, draws=draws)


def predicted_activation_correlation(normalization: str, initial: np.ndarray, depth: int) -> np.ndarray:
    """Returns the activations' correlation (depth, pairs) at infinite width, of pairs with these initial correlations.

    The pre-activations follow T (or T_bar); across the channels of the activations their mean is subtracted, which is
    one more step of T_bar.
    """
    field, centered = analyse("relu", normalization=normalization), analyse("relu", normalization="weight_mean")
    paths = np.asarray(field.trajectory(np.clip(initial, -1, 1), depth - 1))
    return np.asarray(centered.transition(np.clip(paths, -1, 1)))


def draw_pairs(axes: Axes, measured: np.ndarray, color: str) -> None:
    """Draws one thin line for each pair of `measured`, (depth, pairs)."""
    layers = np.arange(1, len(measured) + 1)
    axes.plot(layers, measured, color=color, alpha=0.18, linewidth=0.5, rasterized=True)
    axes.set(xlabel="hidden layer", xlim=(1, len(measured)), ylim=(-0.55, 1.03))


def draw_band(axes: Axes, center: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Draws a center line, predicted or measured, and the edges of its band on top of the pairs."""
    layers = np.arange(1, len(center) + 1)
    axes.fill_between(layers, low, high, color=GREY, alpha=0.15, linewidth=0, zorder=1)
    axes.plot(layers, center, color=BLACK, zorder=3)
    for edge in (low, high):
        axes.plot(layers, edge, color=BLACK, linewidth=1, linestyle="--", zorder=3)


def legend_handles(color: str, center: str, band: str) -> list[Line2D | Patch]:
    """Returns entries of a legend that explain the marks of `draw_pairs` and `draw_band`."""
    return [
        Line2D([], [], color=color, linewidth=0.8, alpha=0.6, label="one pair of images, one network"),
        Line2D([], [], color=BLACK, label=center),
        Line2D([], [], color=BLACK, linewidth=1, linestyle="--", label=band),
    ]
