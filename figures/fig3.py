"""Fig. 3 of the paper: at layer 50 the channels of batch norm and weight mean networks are alive."""

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track

from . import channels
from .config import Config, Result, describe_inputs, load_inputs
from .style import look, note, panels

NORMALIZATIONS = ("batch", "weight_mean")


def compute(config: Config, track: Track) -> Result:
    """Computes quantiles of 30 random channels of the last hidden layer for both normalisations."""
    depth, width, batch = channels.settings(config)
    inputs = load_inputs(config, batch, image_centering="dataset")
    quantiles = [
        channels.box_quantiles(config, inputs, name, [depth])[0] for name in track(NORMALIZATIONS, "fig3: networks")
    ]
    predicted = channels.predicted_correlation(inputs, "weight_mean", depth)
    arrays = {"quantiles": np.stack(quantiles), "predicted_correlation": np.array(predicted)}
    return Result(
        arrays,
        {"depth": depth, "width": width, "observable": "pre-activation, after batch norm where there is one"}
        | inputs.facts,
    )


def draw(result: Result) -> Figure:
    """Draws batch norm on the left, weight mean on the right."""
    a, depth = result.arrays, result.facts["depth"]
    figure, (left, right) = panels(2, height=2.9)
    batch, centered = (look(name) for name in NORMALIZATIONS)
    channels.draw_boxes(left, a["quantiles"][0], None, batch.color)
    left.set(
        title=f"{batch.label}, layer {depth}\nmean 0 and variance 1 by construction",
        xlabel="channel",
        ylabel="pre-activation / layer r.m.s.",
    )
    correlation = float(a["predicted_correlation"])
    channels.draw_boxes(right, a["quantiles"][1], correlation, centered.color)
    right.set(title=f"{centered.label}, layer {depth}\npredicted mean correlation {correlation:.3f}", xlabel="channel")
    figure.legend(handles=channels.legend_handles(False), loc="outside upper center", ncols=2)
    note(
        figure,
        f"ReLU, width {result.facts['width']}, predictions for width → ∞; {describe_inputs(result.facts)}. Left: batch "
        "norm fixes mean and variance, not the shape; measured quartiles that are narrower than those of a normal "
        "distribution of the same variance tell of heavy tails: most images lie close together, a few far out.",
    )
    return figure
