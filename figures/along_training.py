"""What normalisation does along training: tangent kernel, sharpness, effective rate and activations by epoch.

Of MLPs in training mode on one batch of training images. The kernel turns most in the first epochs, and least under
batch norm. With weight mean alone sharpness comes to the edge of stability of the rate and beyond; behind a last batch
norm it begins there, and is far below after an epoch. Under batch norm, and behind a last one, the length of weights
does not matter, and without weight decay it grows: the effective rate falls by itself. A network without normalisation
starts with activations that are nearly alike for all inputs, and tells them apart within some epochs.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis.common.progress import Track
from ntk_analysis.common.provenance import made_by
from ntk_analysis.training.along import along_states
from ntk_analysis.training.dataset import Dataset, load_dataset
from ntk_analysis.training.loop import Trainer, epochs
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import LIBRARIES

from .config import Config, Result
from .style import GREY, legend_above, look, note, panels, written

TRAINED = ("none", "batch_norm", "weight_mean", "mimic_norm")
RATE = 0.02


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        depth: number of hidden layers.
        width: number of units of each.
        epochs: number of epochs.
        images: number of images on which the networks are measured.
    """

    depth: int
    width: int
    epochs: int
    images: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(10, 128, 20, 64) if config.full else Settings(5, 32, 3, 24)


def recipe(config: Config, normalization: str) -> Recipe:
    """Returns how one of the networks is trained."""
    chosen = settings(config)
    return Recipe(
        depth=chosen.depth, width=chosen.width, epochs=chosen.epochs, normalization=normalization, min_fan_in=2,
        learning_rate=RATE, batch=64, seed=config.seed,
    )  # fmt: skip


def compute(config: Config, track: Track) -> Result:
    """Trains the networks and measures each after every epoch, until it diverges."""
    dataset: Dataset = load_dataset(config.data or "digits")
    arrays: dict[str, np.ndarray] = {}
    accuracy: dict[str, float] = {}
    for name in track(TRAINED, "along_training: networks"):
        trainer = Trainer(recipe(config, name), dataset)
        states = [(0, trainer.init(config.seed))]
        for state, epoch in epochs(trainer, trainer.recipe, states[0][1]):
            if not epoch.diverged:
                states.append((epoch.epoch, state))
                accuracy[name] = epoch.test_accuracy
        found = along_states(trainer, states, count=settings(config).images)
        arrays |= {f"epochs_{name}": found.epochs, f"distance_{name}": found.distance, f"edge_{name}": found.edge}
        arrays |= {f"correlation_{name}": found.correlation}
        if found.effective_rates is not None:
            arrays[f"effective_{name}"] = found.effective_rates / found.effective_rates[0]
    facts = {
        "settings": settings(config)._asdict(),
        "recipe": {name: value for name, value in vars(recipe(config, "none")).items() if name != "normalization"},
        "trained on": f"{len(dataset.train.images)} images of {dataset.name}",
        "images, SHA-256": dataset.digest,
        "made by": made_by(*LIBRARIES),
        "test accuracy behind the last epoch": accuracy,
        "kernel distance behind the last epoch": {name: float(arrays[f"distance_{name}"][-1]) for name in TRAINED},
        "largest fraction of the edge of stability": {name: float(arrays[f"edge_{name}"].max()) for name in TRAINED},
    }
    return Result(arrays, facts)


def draw(result: Result) -> Figure:
    """Draws kernel distance and sharpness above, effective rate and correlation below."""
    figure, (distance, edge, effective, correlation) = panels(2, rows=2, height=2.4, share=False)
    for name in TRAINED:
        draw_lines(distance, result, name, "distance")
        draw_lines(edge, result, name, "edge")
        draw_lines(effective, result, name, "effective")
        label, color, marker = look(name)
        values = result.arrays[f"correlation_{name}"][:, -1]
        correlation.plot(result.arrays[f"epochs_{name}"], values, color=color, marker=marker, markersize=3, label=label)
    distance.set(title="tangent kernel: distance from the start", ylabel="1 - cosine", ylim=(0, None))
    edge.axhline(1, color=GREY, linewidth=0.9, linestyle="--")
    edge.set(title="sharpness over the edge of stability", yscale="log")
    edge.set_ylabel(r"$\lambda_{\max} \, \eta \,/\, 2(1 + \beta)$")
    effective.set(title="effective rate, scale-invariant weights", ylabel=r"$\eta \,/\, |w|^2$ over its start")
    correlation.set(title="last hidden layer: how alike inputs are", ylabel="mean cosine", ylim=(0, 1))
    for axes in (distance, edge, effective, correlation):
        axes.set_xlabel("epoch")
    legend_above(figure, correlation)
    chosen, trained = result.facts["settings"], result.facts["recipe"]
    note(
        figure,
        f"ReLU MLPs, hidden layers: {chosen['depth']}, width {chosen['width']}; {result.facts['trained on']}; "
        f"{written(trained['optimizer'])}, rate {trained['learning_rate']:g}, momentum {trained['momentum']:g}, batch "
        f"{trained['batch']}; one seed; measured in training mode on {chosen['images']} training images. Sharpness: "
        "largest eigenvalue of the Gauss-Newton matrix. Effective rates: of arrays on whose length no output depends; "
        "without normalisation, and with weight mean alone, there are none.",
    )
    return figure


def draw_lines(axes: Axes, result: Result, name: str, what: str) -> None:
    """Draws one quantity of a network by epoch, where it has it."""
    if f"{what}_{name}" in result.arrays:
        label, color, marker = look(name)
        axes.plot(
            result.arrays[f"epochs_{name}"], result.arrays[f"{what}_{name}"], color=color, marker=marker, markersize=3,
            label=label,
        )  # fmt: skip
