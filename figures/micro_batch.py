"""Batch norm on small batches: what new points meet behind its statistics, at initialisation and after training.

In training a batch is normalised by itself; a new point is normalised by statistics of others. Behind one frozen batch
its second moment grows without bound with depth. Behind averages over many batches it depends on the framework: with
Bessel's correction of the remembered variance (PyTorch) it shrinks and settles, without it (Flax) it explodes at every
batch size. Of trained MLPs of 10 hidden layers all bear batches of 8; at 4 batch norm fails, layer norm and MimicNorm
do not. Of 20 hidden layers batch norm alone trains at batches of 16, and none does at 4. In a VGG, whose statistics are
over positions, too, batches of 4 do not harm it. Trained networks are on record, see
`paper_checks.mimicnorm.micro_trained`.
"""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.micro_batch import second_moments
from ntk_analysis.meanfield import analyse, evaluation_mode
from ntk_analysis.paper_checks.mimicnorm import micro_trained

from .config import Config, Result
from .style import BLACK, GREY, Look, look, note, panels, shades

FROZEN = (8, 16, 64, 256)  # batch sizes of the frozen batch
RUNNING = (4, 16, 64, 256)
AVERAGED = (1, 4, 16, 100)  # batches that running statistics are averaged over
AVERAGED_SIZE = 16
STYLES = {"unbiased": "-", "biased": "--"}
KINDS = ("none", "layer", "group", "mimic", "batch")
TOP = 1e8  # room for the legend beside the steepest line
NETWORKS = {
    **{f"mlp_{depth}": (tuple(micro_trained.KINDS), depth, "mlp") for depth in micro_trained.DEPTHS},
    "vgg": (tuple(dict.fromkeys(cell.kind for cell in micro_trained.VGG_CELLS)), micro_trained.VGG_LAYERS, "vgg"),
}
"""What was trained, by the name of its arrays: normalisations, layers, model."""


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        width: width of the finite networks.
        draws: number of finite networks.
        layers: number of layers.
    """

    width: int
    draws: int
    layers: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(1500, 10, 30) if config.full else Settings(128, 10, 30)


def moments(batch_size: int, batches: int | None, running_variance: str, layers: int) -> np.ndarray:
    """Returns second moments of new points by layer, in closed form."""
    field = evaluation_mode(batch_size=batch_size, batches=batches, running_variance=running_variance)
    return field.second_moments(layers)


def compute(config: Config, track: Track) -> Result:
    """Computes second moments by layer, in closed form and of finite networks, and reads accuracies by batch size."""
    chosen = settings(config)
    arrays = {"frozen": np.array([moments(B, 1, "biased", chosen.layers) for B in FROZEN])}
    for variance in STYLES:
        arrays[f"running_{variance}"] = np.array([moments(B, None, variance, chosen.layers) for B in RUNNING])
        arrays[f"averaged_{variance}"] = np.array(
            [moments(AVERAGED_SIZE, k, variance, chosen.layers) for k in AVERAGED]
        )
    drawn = [(AVERAGED_SIZE, 1, "biased"), (AVERAGED_SIZE, 4, "unbiased")]
    found = np.array(
        [
            [
                second_moments(
                    chosen.layers, chosen.width, batch_size=B, batches=k, running_variance=variance, new=32,
                    seed=config.seed * chosen.draws + draw,
                )
                for draw in range(chosen.draws)
            ]
            for B, k, variance in track(drawn, "micro_batch: networks")
        ]
    )  # fmt: skip
    arrays["networks"] = found.mean(axis=1)
    arrays["networks_error"] = found.std(axis=1, ddof=1) / np.sqrt(chosen.draws)
    for mode in ("training", "evaluation"):
        for name, (kinds, depth, model) in NETWORKS.items():
            arrays[f"{mode}_{name}"] = np.array(
                [
                    [spread(micro_trained.accuracies(mode, kind, depth, B, model)) for B in micro_trained.BATCHES]
                    for kind in kinds
                ]
            )
    facts = {
        "network": "ReLU, batch norm, eps = 0, orthogonal inputs",
        "width of finite networks": chosen.width,
        "finite networks": chosen.draws,
        "trained on": "digits, on record",
        "trained networks": "MLPs of width 128 at rate 0.01, momentum 0.9, for at least 10 epochs and 450 steps",
        "trained VGG": "VGG11 with 8 to 64 channels on 2,500 images, the same rate, at least 6 epochs and 150 steps",
    }
    return Result(arrays, facts)


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Returns mean, smallest and largest."""
    return float(values.mean()), float(values.min()), float(values.max())


def draw(result: Result) -> Figure:
    """Draws second moments by layer above, and below accuracies by batch size and what else varies with it."""
    facts = result.facts
    figure, axes = panels(4, rows=2, height=2.5, share=False)
    draw_frozen(axes[0], result)
    draw_running(axes[1], result)
    draw_averaged(axes[2], result)
    draw_statistics(axes[3])
    for (name, (_, depth, model)), panel in zip(NETWORKS.items(), axes[4:], strict=False):
        draw_accuracies(panel, result, name)
        panel.set_title(f"VGG{depth}, CIFAR-10" if model == "vgg" else f"MLP, {depth} hidden layers")
    axes[5].set_ylabel("")
    axes[6].set_ylabel("")
    axes[7].axis("off")
    handles = [
        Line2D([], [], color=at.color, marker=at.marker, markersize=4, label=at.label) for at in map(look, KINDS)
    ]
    handles += [
        Line2D([], [], color=GREY, label="Bessel's correction (PyTorch)"),
        Line2D([], [], color=GREY, linestyle="--", label="no correction (Flax)"),
        Line2D([], [], color=GREY, linestyle=":", label="training mode"),
    ]
    axes[7].legend(handles=handles, loc="center left", borderaxespad=0)
    note(
        figure,
        f"Above: {facts['network']}, infinite width; crosses: mean of {facts['finite networks']} networks of width "
        f"{facts['width of finite networks']} ± 2 s.e. Second moments of new points behind batch norm, training points "
        f"have 1; k batches of {AVERAGED_SIZE}. Why: relative deviation of a batch variance; growth a layer of "
        "gradients, and of new points behind one frozen batch, over the limit, less 1. Below: test accuracy by images "
        f"a batch, {facts['trained networks']}, on {facts['trained on']}, mean, smallest and largest of 3 to 6 seeds; "
        f"{facts['trained VGG']}, three seeds up to B = 16, one above. "
        "All in evaluation mode; dotted: batch norm in training mode, and chance.",
    )
    return figure


def draw_frozen(axes: Axes, result: Result) -> None:
    """Draws growth behind the statistics of one frozen batch."""
    a = result.arrays
    draw_family(axes, a["frozen"], FROZEN, "-", "B = ")
    draw_networks(axes, a["networks"][0], a["networks_error"][0])
    finish(axes, "one frozen batch")
    axes.set_ylabel("second moment of new points")


def draw_running(axes: Axes, result: Result) -> None:
    """Draws evaluation mode behind averages over many batches, in both conventions."""
    for variance, style in STYLES.items():
        draw_family(
            axes, result.arrays[f"running_{variance}"], RUNNING, style, "B = " if variance == "unbiased" else None
        )
    finish(axes, "average of many batches", bottom=0.3)


def draw_averaged(axes: Axes, result: Result) -> None:
    """Draws evaluation mode behind averages over few batches, in both conventions."""
    a = result.arrays
    for variance, style in STYLES.items():
        label = "k = " if variance == "unbiased" else None
        draw_family(axes, a[f"averaged_{variance}"], AVERAGED, style, label)
    draw_networks(axes, a["networks"][1], a["networks_error"][1])
    finish(axes, "average of k batches", bottom=0.3)


def draw_family(axes: Axes, values: np.ndarray, numbers: tuple[int, ...], style: str, label: str | None) -> None:
    """Draws a line for each number, in shades of batch norm's colour."""
    layers = np.arange(1, values.shape[1] + 1)
    for number, line, color in zip(numbers, values, shades(look("batch").color, len(numbers)), strict=True):
        shown = "" if label is None else f"${label}{number}$"
        axes.semilogy(layers, line, style, color=color, linewidth=1.2, label=shown)


def draw_networks(axes: Axes, mean: np.ndarray, error: np.ndarray) -> None:
    """Draws crosses of finite networks at some layers."""
    at = np.array([1, 3, 6, 10, 15, 20, 30])
    axes.errorbar(at, mean[at - 1], 2 * error[at - 1], fmt="x", color=BLACK, markersize=4, linewidth=0.8, zorder=3)


def finish(axes: Axes, title: str, bottom: float = 0.8) -> None:
    """Draws training points' line, and sets title and limits."""
    axes.axhline(1, color=BLACK, linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel="layer", ylim=(bottom, TOP), xlim=(0, 31))
    axes.legend(loc="upper left", handlelength=0.8, labelspacing=0.2, borderaxespad=0.2)


def draw_accuracies(axes: Axes, result: Result, network: str) -> None:
    """Draws test accuracies by batch size of one network, a key of `NETWORKS`."""
    batches = np.array(micro_trained.BATCHES)
    for row, kind in enumerate(NETWORKS[network][0]):
        name, *biased = kind.split(", ")
        style: Look = look(name)
        mean, low, high = result.arrays[f"evaluation_{network}"][row].T
        axes.errorbar(
            batches, mean, [mean - low, high - mean], color=style.color, marker=style.marker, markersize=3.5,
            linestyle=STYLES["biased" if biased else "unbiased"], linewidth=1.2, elinewidth=0.7,
        )  # fmt: skip
        if kind == "batch":
            axes.plot(batches, result.arrays[f"training_{network}"][row, :, 0], ":", color=style.color, linewidth=1.2)
    axes.axhline(0.1, color=BLACK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="images a batch $B$", ylabel="test accuracy", ylim=(0, 1.02))
    by_batch(axes, batches)


def draw_statistics(axes: Axes) -> None:
    """Draws, over B, the spread of a batch variance, and growth of gradients and of new points over their limits."""
    sizes = np.unique(np.geomspace(4, 256, 40).round().astype(int))
    limit = analyse("relu", normalization="batch").chi_1
    chi = np.array([analyse("relu", normalization="batch", batch_size=int(B)).chi_1 for B in sizes])
    rate = np.array([evaluation_mode(batch_size=int(B), batches=1, running_variance="biased").rate for B in sizes])
    color = look("batch").color
    axes.plot(sizes, np.sqrt(2 / (sizes - 1)), color=GREY, label="batch variance")
    axes.plot(sizes, chi / limit - 1, color=color, label="gradients")
    axes.plot(sizes, rate / limit - 1, "--", color=color, label="new points")
    axes.set(
        yscale="log",
        xlabel="images a batch $B$",
        ylabel="relative deviation, growth",
        title="why: statistics of few",
        ylim=(3e-3, 300),
    )
    by_batch(axes, np.array(micro_trained.BATCHES))
    axes.legend(loc="upper right", handlelength=1.2)


def by_batch(axes: Axes, batches: np.ndarray) -> None:
    """Gives the horizontal axis its batch sizes."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(B) for B in batches])
    axes.minorticks_off()
