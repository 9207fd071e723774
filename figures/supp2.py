"""Supp. Fig. 2 of the paper: with batch norm or weight mean the correlations settle in a band around 0.

The paper leaves the width of the band unexplained. For weight mean it is the finite-width fluctuation of a network at
its fixed point 0, predicted to first order in 1/width (correlation.predicted_spread). For batch norm there is no such
formula here, and the band drawn is measured.
"""

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track
from ntk_analysis.correlation import predicted_spread

from . import pairs
from .config import Config, Result, describe_inputs, load_inputs
from .style import look, note, panels

NORMALIZATIONS = ("batch", "weight_mean")


def compute(config: Config, track: Track) -> Result:
    """Returns correlations of the same pairs under both normalisations, with their center and spread in each layer."""
    depth, width, count, batch, draws = pairs.settings(config)
    inputs = load_inputs(config, batch, image_centering="dataset")
    measured = {name: pairs.measure(config, inputs, name) for name in track(NORMALIZATIONS, "supp2: networks")}
    predicted = pairs.predicted_activation_correlation("weight_mean", measured["weight_mean"].initial, depth)
    arrays = {f"measured_{name}": result.values for name, result in measured.items()}
    arrays["initial"] = measured["batch"].initial
    arrays["center_weight_mean"] = np.median(predicted, axis=1)
    # around the path of each pair the network adds its own fluctuation: the two spreads add in square
    spread = np.hypot(predicted.std(axis=1), predicted_spread(width))
    arrays["spread_weight_mean"] = spread
    pooled = np.moveaxis(arrays["measured_batch"], 1, 0).reshape(depth, -1)
    arrays["center_batch"], arrays["spread_batch"] = pooled.mean(axis=1), pooled.std(axis=1)
    last = np.abs(arrays["measured_weight_mean"][:, -1] - arrays["center_weight_mean"][-1])
    facts = {"depth": depth, "width": width, "pairs": count, "networks": draws, "observable": "Pearson, activations"}
    facts["predicted standard deviation, weight mean, last layer"] = float(spread[-1])
    for name in NORMALIZATIONS:
        facts[f"measured standard deviation, {name}, last layer"] = float(arrays[f"measured_{name}"][:, -1].std())
    facts["weight mean pairs inside the predicted 95 % band"] = float(np.mean(last <= pairs.TWO_SIDED_95 * spread[-1]))
    return Result(arrays, facts | inputs.facts)


def draw(result: Result) -> Figure:
    """Draws batch norm on the left with its measured band, weight mean on the right with its predicted one."""
    a, facts = result.arrays, result.facts
    figure, axes = panels(2, height=3.1)
    bands = (
        ("measured mean", f"measured 95 % band, {facts['networks']} networks"),
        ("theory, median pair (width → ∞)", "theory, 95 % band at this width"),
    )
    for panel, name, (center, band) in zip(axes, NORMALIZATIONS, bands, strict=True):
        label, color, _ = look(name)
        pairs.draw_pairs(panel, a[f"measured_{name}"][pairs.SHOWN_DRAW], color)
        middle, half = a[f"center_{name}"], pairs.TWO_SIDED_95 * a[f"spread_{name}"]
        pairs.draw_band(panel, middle, middle - half, middle + half)
        panel.set_title(label)
        panel.legend(handles=pairs.legend_handles(color, center, band), loc="upper right")
    axes[0].set_ylabel("correlation of activations\n(Pearson, over channels)")
    note(
        figure,
        f"ReLU, width {facts['width']}, {facts['pairs']} pairs, one network of {facts['networks']} shown; "
        f"{describe_inputs(facts)}",
    )
    return figure
