"""Supp. Fig. 1 of the paper: in a straight network the correlation of every pair of images rises to 1."""

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track

from . import pairs
from .config import Config, Result, describe_inputs, load_inputs
from .style import look, note, panels


def compute(config: Config, track: Track) -> Result:
    """Computes measured and predicted correlations of the same pairs, by layer."""
    depth, width, count, batch, draws = pairs.settings(config)
    inputs = load_inputs(config, batch, image_centering="dataset")
    (measured,) = [pairs.measure(config, inputs, "none") for _ in track([0], "supp1: networks")]
    predicted = pairs.predicted_activation_correlation("none", measured.initial, depth)
    arrays = {
        "measured": measured.values,
        "initial": measured.initial,
        "predicted_quantiles": np.quantile(predicted, [0.025, 0.5, 0.975], axis=1),
    }
    facts = {"depth": depth, "width": width, "pairs": count, "networks": draws}
    return Result(arrays, facts | {"observable": "Pearson, activations"} | inputs.facts)


def draw(result: Result) -> Figure:
    """Draws all pairs of one network, and the band in which theory puts the middle 95 % of them."""
    a, facts = result.arrays, result.facts
    figure, (axes,) = panels(1, height=3.1)
    label, color, _ = look("none")
    pairs.draw_pairs(axes, a["measured"][pairs.SHOWN_DRAW], color)
    low, middle, high = a["predicted_quantiles"]
    pairs.draw_band(axes, middle, low, high)
    axes.set(title=label, ylabel="correlation of activations\n(Pearson, over channels)")
    handles = pairs.legend_handles(color, "theory, median pair (width → ∞)", "theory, middle 95 % of pairs")
    axes.legend(handles=handles, loc="lower right")
    note(figure, f"ReLU, width {facts['width']}, {facts['pairs']} pairs in one network; {describe_inputs(facts)}")
    return figure
