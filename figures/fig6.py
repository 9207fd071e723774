"""Fig. 6 and 7: accuracy by epoch at one learning rate, MimicNorm beside its parts.

Here it is measured on digits and in an MLP; `draw` takes any sweep, such as those of the paper's networks.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ntk_analysis.common.progress import Track
from ntk_analysis.training.dataset import Dataset, load_dataset
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve
from ntk_analysis.training.sweep import Grid, sweep

from .config import Config, Result
from .learning_rates import PARTS, of_seeds, result_of, standard_error, top, training
from .style import legend_above, look, note, panels

NORMALIZATIONS = ("none", "weight_mean", "last_bn", "mimic_norm", "batch_norm")
WORDS = {"train": "training", "test": "test"}


def settings(config: Config) -> tuple[Grid, Dataset]:
    """Returns the sizes; the small ones have the same normalisations, and fewer layers, images, epochs and seeds."""
    dataset = load_dataset(config.data or "digits")
    if not config.full:
        seeds = tuple(range(config.seed, config.seed + 3))
        return Grid(Recipe(depth=7, width=64, epochs=8), (1e-2,), seeds, NORMALIZATIONS), dataset
    seeds = tuple(range(config.seed, config.seed + 5))
    return Grid(Recipe(depth=13, width=128, epochs=15), (1e-2,), seeds, NORMALIZATIONS), dataset


def compute(config: Config, track: Track) -> Result:
    """Trains the grid; see `learning_rates.result_of`."""
    grid, dataset = settings(config)
    bar = iter(track(range(len(grid.normalizations) * len(grid.seeds)), "fig6"))
    next(bar)  # the first run has begun

    def advance(curve: Curve) -> None:
        del curve
        next(bar, None)

    return result_of(sweep(grid, dataset, each=advance), dataset)


def draw(result: Result) -> Figure:
    """Draws training images left, test images right; each normalisation at its best rate where there are several."""
    facts = result.facts
    figure, axes = panels(2)
    for panel, part in zip(axes, PARTS, strict=True):
        draw_panel(panel, result, part)
    legend_above(figure, axes[0])
    rates = result.arrays["learning_rates"]
    rate = f"learning rate {rates[0]:g}" if len(rates) == 1 else "each at the rate of its best test accuracy"
    note(
        figure,
        f"{training(facts)}, {rate}; {of_seeds(facts, 'bands')}.",
    )
    return figure


def draw_panel(axes: Axes, result: Result, part: str) -> None:
    """Draws the accuracy by epoch, which is 0 after the epoch in which a run diverged."""
    rates = result.arrays["learning_rates"]
    chosen = result.arrays["test_accuracy"].max(-1).mean(-1).argmax(-1)  # by normalisation
    for name, curves, rate in zip(
        result.facts["normalizations"], result.arrays[f"{part}_accuracy"], chosen, strict=True
    ):
        label, color, marker = look(name)
        label += f", {rates[rate]:g}" if len(rates) > 1 else ""
        curve = 100 * np.moveaxis(curves[rate], 0, -1)  # (epochs, seeds)
        mean, error, epochs = curve.mean(-1), standard_error(curve), np.arange(1, len(curve) + 1)
        axes.plot(epochs, mean, color=color, marker=marker, markersize=3, linewidth=1.2, label=label)
        axes.fill_between(epochs, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="epoch", ylim=(0, top(result)), title=f"{WORDS[part]} accuracy", xlim=(0.5, len(epochs) + 0.5))
    axes.set_ylabel("accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
