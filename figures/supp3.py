"""Supp. Fig. 3: the last batch norm's running variance over the first two epochs, as the learning rate rises to 0.1.

It surges within some steps, and falls slowly then: large steps lengthen the weights, which makes later steps smaller.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track
from ntk_analysis.common.provenance import made_by
from ntk_analysis.training.dataset import Dataset, hold_out, load_dataset
from ntk_analysis.training.loop import Trainer
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import LIBRARIES
from ntk_analysis.training.surge import variance_by_step

from .config import Config, Result
from .style import look, note, panels, shades, written

EPOCHS = 2
RATE = 0.1


def settings(config: Config) -> tuple[dict[str, Recipe], Dataset]:
    """Returns recipes by network, and images; the small sizes have narrower convolutions, a quarter of the images."""
    dataset = load_dataset(config.data or "digits")
    common: dict[str, Any] = {"normalization": "mimic_norm", "learning_rate": RATE, "seed": config.seed}
    common |= {"epochs": EPOCHS, "warmup_epochs": EPOCHS, "batch": 16}  # the paper's warm-up; about as many steps
    if not config.full:
        dataset = hold_out(dataset.train.subset(len(dataset.train.images) // 3, config.seed))
    width = 16 if config.full else 4
    recipes = {"mlp": Recipe(model="mlp", depth=10, width=128, **common)}
    return recipes | {name: Recipe(model=name, width=width, **common) for name in ("vgg11", "resnet18")}, dataset


def compute(config: Config, track: Track) -> Result:
    """Returns the running variance (steps + 1, classes) of each network."""
    recipes, dataset = settings(config)
    arrays = {
        name: variance_by_step(Trainer(recipes[name], dataset), epochs=EPOCHS)
        for name in track(list(recipes), "supp3: networks")
    }
    means = {name: np.exp(np.log(values).mean(-1)) for name, values in arrays.items()}
    facts = {
        "recipes": {name: vars(recipe) for name, recipe in recipes.items()},
        "trained on": f"{len(dataset.train.images)} images of {dataset.name}",
        "images, SHA-256": dataset.digest,
        "made by": made_by(*LIBRARIES),
        "largest running variance, geometric mean over classes": {
            name: float(values.max()) for name, values in means.items()
        },
        "in step": {name: int(values.argmax()) for name, values in means.items()},
        "behind the last step": {name: float(values[-1]) for name, values in means.items()},
    }
    return Result(arrays, facts)


def draw(result: Result) -> Figure:
    """Draws for each network the geometric mean over classes, and a band from the smallest to the largest class."""
    figure, (axes,) = panels(1)
    colors = shades(look("mimic_norm").color, len(result.arrays))
    for color, (name, values) in zip(colors, result.arrays.items(), strict=True):
        steps = np.arange(len(values))
        axes.fill_between(steps, values.min(-1), values.max(-1), color=color, alpha=0.2, linewidth=0)
        axes.semilogy(steps, np.exp(np.log(values).mean(-1)), color=color, label=written(name))
    recipes = result.facts["recipes"]
    recipe = next(iter(recipes.values()))
    widths = ", ".join(f"{written(name)} {each['width']}" for name, each in recipes.items())
    axes.set(xlabel="step", ylabel="running variance of the outputs", title="last batch norm, first two epochs")
    axes.legend()
    note(
        figure,
        f"MimicNorm; width: {widths}; {recipe['depth']} hidden layers in the MLP; {result.facts['trained on']}; "
        f"{written(recipe['optimizer'])}, momentum {recipe['momentum']:g}, batch "
        f"{recipe['batch']}, learning rate rising to {RATE:g}; bands: smallest to largest class",
    )
    return figure
