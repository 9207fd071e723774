"""Box plots of single channels over a batch, with the boxes that theory predicts; shared by Fig. 2 and Fig. 3."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ntk_analysis.correlation import channel_distributions
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected

from .config import Config, Inputs
from .style import BLACK, GREY, PALE

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NORMAL_QUARTILE = 0.6744897501960817  # of a standard normal
SHOWN_CHANNELS = 30
KERNEL_INPUTS = 500  # the mean correlation of a batch needs no more


def settings(config: Config) -> tuple[int, int, int]:
    """Returns (depth, width, batch); the paper's 51 layers are 50 hidden ones and the read-out."""
    return (50, 300, 2000) if config.full else (50, 128, 300)


def box_quantiles(config: Config, inputs: Inputs, normalization: str, layers: list[int]) -> np.ndarray:
    """Returns quantiles (layers, channels, 5) of pre-activations, behind BN where there is one, over the layer's rms.

    The norm of a deep finite network fluctuates from draw to draw by a factor of order one; in units of the root mean
    square over the layer's shown channels that factor is gone.
    """
    depth, width, _ = settings(config)
    network = fully_connected(depth, width, normalization)
    values = channel_distributions(network, inputs.x, layers, SHOWN_CHANNELS, seed=config.seed).values
    rms = np.sqrt(np.mean(values**2, axis=(1, 2), keepdims=True))
    return np.moveaxis(np.quantile(values / rms, QUANTILES, axis=2), 0, -1)


def predicted_correlation(inputs: Inputs, normalization: str, layer: int) -> float:
    """Returns the mean correlation of different inputs' pre-activations at a hidden layer, at infinite width."""
    if layer == 1:
        return float(inputs.facts["mean initial correlation"])
    kernel = infinite_kernel(fully_connected(layer - 1, 1, normalization), inputs.x[:KERNEL_INPUTS], exact=True)
    correlation = 1 - np.asarray(kernel.distance)
    m = len(correlation)
    return float((correlation.sum() - m) / (m * (m - 1)))


def draw_boxes(axes: Axes, quantiles: np.ndarray, correlation: float | None, color: str) -> None:
    """Draws measured boxes, with whiskers at 5 and 95 %, over the band and beside the quartiles that theory predicts.

    With correlation c between inputs a channel is sqrt(c) a + sqrt(1 - c) z: a common value a and a spread z, both
    standard normal. None: batch norm, whose channels have no common value and unit spread by construction.
    """
    c = 0.0 if correlation is None else max(correlation, 0.0)
    low, first, median, third, high = quantiles.T
    positions = np.arange(1, len(median) + 1)
    axes.axhspan(-1.96 * np.sqrt(c), 1.96 * np.sqrt(c), color=PALE, alpha=0.5, linewidth=0)
    axes.vlines(positions, low, high, color=color, linewidth=0.7)
    axes.bar(positions, third - first, bottom=first, width=0.6, color="white", edgecolor=color, linewidth=0.8, zorder=2)
    axes.hlines(median, positions - 0.3, positions + 0.3, color=color, linewidth=1.4, zorder=3)
    half = NORMAL_QUARTILE * np.sqrt(1 - c)
    axes.vlines(positions + 0.42, median - half, median + half, color=BLACK, linewidth=1.6, zorder=3)
    axes.set_xlim(0, len(median) + 1)
    axes.set_xticks([1, 10, 20, 30])


def legend_handles(common_value: bool, color: str = GREY) -> list[Patch | Line2D]:
    """Returns entries of a legend that explain the marks of `draw_boxes`; grey stands for boxes of several colours."""
    handles: list[Patch | Line2D] = [
        Patch(facecolor="white", edgecolor=color, label="measured: median, quartiles, 5–95 %"),
        Line2D([], [], color=BLACK, linewidth=1.6, label="predicted quartiles, of a normal distribution"),
    ]
    if common_value:
        handles.append(Patch(facecolor=PALE, alpha=0.5, label="predicted 95 % band of medians"))
    return handles
