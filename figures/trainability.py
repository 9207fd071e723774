"""Does decorrelation make a network trainable? The NTK's largest eigenvalue by depth, and rates of finite ones.

Weight centering takes the outlier of order m out of the tangent kernel of m inputs, and with it the condition number to
1. The largest learning rate is another matter: it is 2/lambda_max, and while the outlier goes, the diagonal grows by
chi_1 = 1.4669 a layer. So centering allows larger rates in shallow networks on many inputs, and rates smaller by orders
of magnitude in deep ones, sooner for a mini-batch, whose outlier is small, than for the full set.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis import spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.kernels import tangent_kernels
from ntk_analysis.depth_study.trainability import first_depth, largest_eigenvalues, mini_batches, stability

from .config import Config, Result, describe_inputs, load_inputs
from .style import BLACK, look, note, panels

NETWORKS = ("none", "weight_mean")


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of images.
        batch: number of images in a mini-batch.
        batches: number of mini-batches.
        depths: numbers of hidden layers at infinite width.
        width: width of the finite networks.
        trained_images: number of images that they are trained on.
        trained_depths: their numbers of hidden layers.
        draws: number of networks drawn for each depth and normalisation.
        steps: number of training steps.
    """

    images: int
    batch: int
    batches: int
    depths: tuple[int, ...]
    width: int
    trained_images: int
    trained_depths: tuple[int, ...]
    draws: int
    steps: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    if not config.full:
        return Settings(200, 50, 5, tuple(range(1, 26)), 64, 32, (1, 4), 2, 40)
    return Settings(1797, 128, 10, (*range(1, 31), 35, 40, 45, 50), 128, 64, (1, 2, 5, 10, 20), 3, 100)


def compute(config: Config, track: Track) -> Result:
    """Computes largest eigenvalues (networks, depths, full set or mini-batch) and rates (networks, depths, draws)."""
    chosen = settings(config)
    inputs = load_inputs(replace(config, data=config.data or "digits"), chosen.images, image_centering="dataset")
    x, depths = inputs.x, np.array(chosen.depths)
    batch = min(chosen.batch, len(x))
    parts = mini_batches(len(x), batch, chosen.batches, config.seed)
    found = [
        [largest_eigenvalues(kernel, parts) for kernel in tangent_kernels(x, name, chosen.depths)]
        for name in track(NETWORKS, "trainability: kernels")
    ]
    trained = x[: chosen.trained_images]
    keys = jax.random.split(jax.random.key(config.seed), chosen.draws)
    cases = [(name, depth) for name in NETWORKS for depth in chosen.trained_depths]
    measured = [
        [stability(trained, name, depth=depth, width=chosen.width, steps=chosen.steps, key=key) for key in keys]
        for name, depth in track(cases, "trainability: networks")
    ]
    shape = (len(NETWORKS), len(chosen.trained_depths), chosen.draws)
    arrays = {
        key: np.reshape([[getattr(one, key) for one in row] for row in measured], shape)
        for key in ("rate", "bound", "bias")
    }
    arrays |= {"largest": np.array(found), "depths": depths, "trained_depths": np.array(chosen.trained_depths)}
    arrays["rate_infinite"] = 2 / np.array(
        [
            [spectrum.eigenvalues(kernel)[0] for kernel in tangent_kernels(x[: len(trained)], name, depths)]
            for name in NETWORKS
        ]
    )
    counted = {"mini-batch": batch, "mini-batches": len(parts)}
    return Result(arrays, facts_of(arrays, chosen, len(trained)) | counted | inputs.facts)


def facts_of(a: dict[str, np.ndarray], chosen: Settings, trained: int) -> dict[str, object]:
    """Returns the numbers that decide the question."""
    straight, centered = a["largest"]
    ratio = a["rate"] / a["bound"] - 1
    return {
        "first depth at which weight mean has the larger lambda_max, full set and mini-batch": [
            first_depth(a["depths"], centered[:, column] > straight[:, column]) for column in (0, 1)
        ],
        "lambda_max of the full set at the largest depth": {
            name: float(values[-1, 0]) for name, values in zip(NETWORKS, a["largest"], strict=True)
        },
        "measured rate / (2/lambda_max) - 1, smallest and largest": [float(ratio.min()), float(ratio.max())],
        "of which short training may explain up to": float(np.max(a["bias"])),
        "trained on images": trained,
        "width": chosen.width,
        "networks": chosen.draws,
        "steps": chosen.steps,
    }


def draw(result: Result) -> Figure:
    """Draws the largest eigenvalues by depth on the left, the rates that finite networks bear on the right."""
    facts = result.facts
    figure, (left, right) = panels(2, height=3.1, share=False)
    draw_eigenvalues(left, result)
    draw_rates(right, result)
    note(
        figure,
        f"ReLU, stable gain, no bias; {describe_inputs(facts)}. Left: infinite width; mini-batches of "
        f"{facts['mini-batch']} images, mean over {facts['mini-batches']} random ones. Right: "
        f"{facts['trained on images']} of the images; circles: bisection on {facts['networks']} networks of width "
        f"{facts['width']}, {facts['steps']} steps of full-batch gradient descent on ½ Σ|f − y|², y near the first "
        "outputs; crosses: the bound from the same networks' own NTK.",
    )
    return figure


def draw_eigenvalues(axes: Axes, result: Result) -> None:
    """Draws lambda_max of the full set, solid, and of mini-batches, dashed."""
    a = result.arrays
    for name, values in zip(NETWORKS, a["largest"], strict=True):
        label, color, _ = look(name)
        for column, (style, what) in enumerate((("-", "full set"), ("--", "mini-batch"))):
            axes.semilogy(a["depths"], values[:, column], style, color=color, label=f"{label}, {what}")
    axes.set(
        xlabel="hidden layers",
        ylabel=r"largest eigenvalue $\lambda_{\max}$ of the NTK",
        title="the outlier goes, the diagonal grows",
    )
    axes.legend(loc="upper left")


def draw_rates(axes: Axes, result: Result) -> None:
    """Draws measured rates on the bounds that the networks' own kernels and infinite width give."""
    a = result.arrays
    for index, name in enumerate(NETWORKS):
        label, color, _ = look(name)
        axes.semilogy(a["depths"], a["rate_infinite"][index], color=color, label=f"{label}, infinite width")
        x = np.broadcast_to(a["trained_depths"][:, None], a["rate"][index].shape)
        axes.semilogy(x, a["rate"][index], "o", color=color, markerfacecolor="white", markersize=5, linewidth=0)
        axes.semilogy(x, a["bound"][index], "x", color=color, markersize=3, linewidth=0)
    axes.plot([], [], "o", color=BLACK, markerfacecolor="white", markersize=5, label="bisection, finite networks")
    axes.plot([], [], "x", color=BLACK, markersize=3, label=r"$2/\lambda_{\max}$ of their own NTK")
    deepest = a["trained_depths"][-1]
    axes.set(
        xlabel="hidden layers",
        ylabel="largest stable learning rate",
        title=r"the bound $2/\lambda_{\max}$ is the limit",
        xlim=(0, deepest * 1.1),
        ylim=(a["rate"].min() / 2, 2 * max(a["rate"].max(), a["rate_infinite"].max())),
    )
    axes.legend(loc="lower left")
