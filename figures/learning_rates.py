"""Which learning rates train a deep network, by normalisation: the paper's Table 2 on an MLP, training and test images.

A last batch norm learns soonest, from smaller rates on, and nothing diverges with it; at this depth it hardly trains
larger rates than no norm at all, but three times those of weight mean alone. With weight mean, at small rates, training
images are learnt by heart: test accuracy stays near chance.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track
from ntk_analysis.training.dataset import Dataset, hold_out, load_dataset
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import Curve
from ntk_analysis.training.sweep import Grid, Table, sweep

from .config import Config, Result
from .style import legend_above, look, note, panels, written

TRAINED_HERE = ("none", "weight_mean", "last_bn", "mimic_norm", "batch_norm", "layer_norm")
EARLY = 3  # epochs
PARTS = ("train", "test")
REPLACED = ("normalization", "learning_rate", "seed")  # fields of the recipe that the grid replaces
FEW = 7  # rates whose names all fit under an axis
TRAINED = 0.9  # training accuracy of a rate that trains


def settings(config: Config) -> tuple[Grid, Dataset]:
    """Returns the sizes; the small ones have the same normalisations, and fewer of all the rest."""
    dataset = load_dataset(config.data or "digits")
    if not config.full:
        few = hold_out(dataset.train.subset(len(dataset.train.images) // 2, config.seed))
        recipe = Recipe(depth=5, width=32, min_fan_in=2, batch=32, epochs=6)
        return Grid(recipe, geometric(1e-3, 1.0, 4), (config.seed, config.seed + 1), TRAINED_HERE), few
    rates = geometric(1e-5, 1.0, 11)
    seeds = tuple(range(config.seed, config.seed + 3))
    return Grid(Recipe(depth=19, width=128, epochs=30), rates, seeds, TRAINED_HERE), dataset


def geometric(first: float, last: float, points: int) -> tuple[float, ...]:
    """Returns numbers evenly spaced on a logarithmic scale, to six digits."""
    return tuple(float(f"{rate:.6g}") for rate in np.geomspace(first, last, points))


def compute(config: Config, track: Track) -> Result:
    """Trains the grid; see `result_of`."""
    grid, dataset = settings(config)
    runs = len(grid.normalizations) * len(grid.learning_rates) * len(grid.seeds)
    bar = iter(track(range(runs), "learning_rates"))
    next(bar)  # the first run has begun

    def advance(curve: Curve) -> None:
        del curve
        next(bar, None)

    return result_of(sweep(grid, dataset, each=advance), dataset)


def result_of(table: Table, dataset: Dataset) -> Result:
    """Returns what `draw` needs of a sweep: accuracies (normalizations, rates, seeds, epochs), and their origin."""
    grid = table.grid
    arrays = {
        "learning_rates": np.array(grid.learning_rates),
        "train_accuracy": table.train_accuracy,
        "test_accuracy": table.test_accuracy,
        "diverged_at": table.diverged_at,
    }
    recipe = grid.recipe
    size = f" of {recipe.depth} hidden layers, width {recipe.width}" if recipe.depth and recipe.width else ""
    facts = {
        "normalizations": list(grid.normalizations),
        "seeds": list(grid.seeds),
        "epochs": recipe.epochs,
        "network": f"{recipe.model}{size}",
        "recipe": {name: value for name, value in vars(recipe).items() if name not in REPLACED},
        "trained on": f"{len(dataset.train.images)} images of {dataset.name}, tested on {len(dataset.test.images)}",
        "images, SHA-256": dataset.digest,
        "made by": table.made_by,
        "[mean, standard error] of the best accuracy by learning rate": best_facts(table),
        f"learning rates with a mean training accuracy above {TRAINED}": trained_facts(table),
    }
    return Result(arrays, facts)


def best_facts(table: Table) -> dict[str, object]:
    """Returns the best accuracies by part, epochs, normalisation and rate."""
    return {
        f"{part}, first {epochs} epochs": {
            name: {
                f"{rate:g}": [round(float(number), 4) for number in (cell.mean(), standard_error(cell))]
                for rate, cell in zip(table.grid.learning_rates, row, strict=True)
            }
            for name, row in zip(table.grid.normalizations, table.best(part, epochs), strict=True)
        }
        for part in PARTS
        for epochs in sorted({min(EARLY, table.grid.recipe.epochs), table.grid.recipe.epochs})
    }


def trained_facts(table: Table) -> dict[str, list[float]]:
    """Returns, by normalisation, the rates at which it learns its training images."""
    return {
        name: [rate for rate, good in zip(table.grid.learning_rates, row, strict=True) if good]
        for name, row in zip(table.grid.normalizations, table.best("train").mean(-1) > TRAINED, strict=True)
    }


def standard_error(values: np.ndarray) -> np.ndarray:
    """Returns the standard error of the mean over the last axis, the seeds; 0 for one seed, which tells no error."""
    count = values.shape[-1]
    return np.std(values, -1, ddof=1) / count**0.5 if count > 1 else np.zeros(values.shape[:-1])


def draw(result: Result) -> Figure:
    """Draws training images left, test images right; the first epochs above, all of them below."""
    facts = result.facts
    early = min(EARLY, facts["epochs"])
    figure, axes = panels(2, rows=2, height=2.3)
    for row, epochs in enumerate((early, facts["epochs"])):
        for column, part in enumerate(PARTS):
            draw_panel(axes[2 * row + column], result, part, epochs)
    legend_above(figure, axes[0])
    note(
        figure,
        f"{training(facts)}; {of_seeds(facts, 'bars')}. Open symbols: a run diverged.",
    )
    return figure


def training(facts: dict[str, Any]) -> str:
    """Returns words for the network, its images and the recipe, without what the grid replaces."""
    recipe = facts["recipe"]
    network = facts["network"].replace(recipe["model"], written(recipe["model"]), 1)
    return (
        f"ReLU {network}; {facts['trained on'].replace('.npz,', ',')}; {written(recipe['optimizer'])}, momentum "
        f"{recipe['momentum']:g}, batch {recipe['batch']}, warm-up epochs: {recipe['warmup_epochs']}"
    )


def of_seeds(facts: dict[str, Any], error: str) -> str:
    """Returns words for the number of seeds that a line is the mean of, and for the marks of its error."""
    count = len(facts["seeds"])
    return f"mean of {count} seeds, {error}: one standard error" if count > 1 else "one seed"


def top(result: Result) -> float:
    """Returns the upper end of the axes in percent: 100 and a margin, or less where no network comes near."""
    best = 100 * max(result.arrays[f"{part}_accuracy"].max() for part in PARTS)
    return float(min(102, 1.15 * best))


def draw_panel(axes: Axes, result: Result, part: str, epochs: int) -> None:
    """Draws the best accuracy in the first epochs, with open symbols where a seed diverged."""
    rates, curves = result.arrays["learning_rates"], result.arrays[f"{part}_accuracy"][..., :epochs]
    diverged = np.any(result.arrays["diverged_at"] > 0, -1)
    for name, best, gone in zip(result.facts["normalizations"], curves.max(-1), diverged, strict=True):
        label, color, marker = look(name)
        mean, error = 100 * best.mean(-1), 100 * standard_error(best)
        axes.errorbar(rates, mean, error, color=color, linewidth=1, elinewidth=0.7)
        axes.plot(rates[gone], mean[gone], marker, color=color, markerfacecolor="white", markersize=4)
        axes.plot(rates[~gone], mean[~gone], marker, color=color, markersize=4)
        axes.plot([], [], marker=marker, color=color, markersize=4, linewidth=1, label=label)
    what = {"train": "training", "test": "test"}[part]
    axes.set(
        xscale="log", ylim=(0, top(result)), title=f"{what} accuracy, best of {epochs} epochs", xlabel="learning rate"
    )
    if len(rates) <= FEW:
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
    axes.set_ylabel("accuracy, %")
