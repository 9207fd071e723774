"""Fig. 2 of the paper: channels of a straight 51-layer network freeze; their boxes shrink from layer 20 to 50."""

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track

from . import channels
from .config import Config, Result, describe_inputs, load_inputs
from .style import look, note, panels


def compute(config: Config, track: Track) -> Result:
    """Computes quantiles of 30 random channels at two layers, and the predicted correlation there."""
    depth, width, batch = channels.settings(config)
    layers = [2 * depth // 5, depth]
    inputs = load_inputs(config, batch, image_centering="dataset")
    quantiles = channels.box_quantiles(config, inputs, "none", layers)
    predicted = [channels.predicted_correlation(inputs, "none", layer) for layer in track(layers, "fig2: theory")]
    arrays = {"quantiles": quantiles, "predicted_correlation": np.array(predicted), "layers": np.array(layers)}
    return Result(arrays, {"depth": depth, "width": width, "observable": "pre-activation", **inputs.facts})


def draw(result: Result) -> Figure:
    """Draws one panel for each layer."""
    a, straight = result.arrays, look("none")
    figure, axes = panels(2, height=2.9)
    for panel, layer, quantiles, correlation in zip(
        axes, a["layers"], a["quantiles"], a["predicted_correlation"], strict=True
    ):
        channels.draw_boxes(panel, quantiles, correlation, straight.color)
        panel.set(
            title=f"{straight.label}, layer {layer}\npredicted mean correlation {correlation:.3f}", xlabel="channel"
        )
    axes[0].set_ylabel("pre-activation / layer r.m.s.")
    figure.legend(handles=channels.legend_handles(True, straight.color), loc="outside upper center", ncols=3)
    note(figure, f"ReLU, width {result.facts['width']}, predictions for width → ∞; {describe_inputs(result.facts)}")
    return figure
