"""Test accuracy of infinitely wide networks by depth: what trains fastest need not be what generalises.

Every network here fits its training images perfectly at the end of training, the weight-centered one ever faster: its
condition number goes to 1. It does so because its kernel becomes the identity, and what is learnt of one image says
nothing of another: the mean prediction on test images, over infinitely many networks, vanishes. Two accuracies come of
it. The mean prediction's own (kernel regression) asks only for the order of the classes, which is left in outputs
however small. That of one network depends on the scale of its outputs: it adds a Gaussian deviation, in proportion to
the outputs the network starts from, of variance 1 here against targets one-hot - 1/classes, and ends at chance. Outputs
and their gradients times s would leave the mean prediction and multiply the deviation by s.

Batch norm predicts with the statistics of its training batch, here of all training images. Behind them new images grow
with depth and become alike, so that the mean prediction, too, ends at chance.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ntk_analysis import data
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.generalisation import DRAWS, Measures, measure
from ntk_analysis.depth_study.kernels import kernels

from .config import Config, Inputs, Result, load_images, prepare
from .kernel_matrices import KERNELS, TWINS
from .style import BLACK, GREY, look, note, panels

NETWORKS = ("none", "weight_mean")
PREDICTING = "batch"  # its kernel is of one split: statistics of the training images
LINES: dict[str, Any] = {
    "nngp": {"linewidth": 0.9, "linestyle": "--"},
    "ntk": {"linewidth": 1.4, "linestyle": "-", "marker": ".", "markersize": 4},
}
PANELS = {
    "ensemble": ("mean prediction", "test accuracy"),
    "single": ("one network", "test accuracy"),
    "condition_number": ("condition of the kernel", r"condition number $\kappa$"),
}
TICKS = (1, 2, 5, 10, 20, 50)
COMPARED = 100  # images on which layer norm's kernels are compared with those they equal


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of training images, and of test images.
        splits: number of random splits into the two.
        depth: largest number of hidden layers.
        batch_splits: number of splits with batch norm, whose kernels are computed anew for each.
        batch_depth: largest number of hidden layers with batch norm.
    """

    images: int
    splits: int
    depth: int
    batch_splits: int
    batch_depth: int


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    return Settings(200, 5, 50, 3, 20) if config.full else Settings(40, 3, 16, 2, 8)


def image_sets(config: Config) -> list[data.ImageSet]:
    """Returns the data set asked for, else digits and, where it is installed, MNIST.

    Raises:
        ValueError: images without labels.
    """
    both = ["digits", "mnist5k"] if data.mnist5k_available() else ["digits"]
    sets = [load_images(name) for name in ([config.data] if config.data else both)]
    for images in sets:
        if not images.labelled:
            raise ValueError(f"{images.name} has no labels, which a test accuracy needs: give images with labels")
    return sets


def by_split(pairs: np.ndarray, labels: np.ndarray, splits: int, seed: int) -> np.ndarray:
    """Returns `Measures` (measures, depths, 2, splits) of kernels (depths, 2, m, m) of m images, half for training."""
    orders, half = orders_of(labels, splits, seed), len(labels) // 2
    found = [
        [
            [measure(pair[0], kernel, labels, train=order[:half], test=order[half:], seed=seed) for order in orders]
            for kernel in pair
        ]
        for pair in pairs
    ]
    return np.moveaxis(np.array(found), -1, 0)


def orders_of(labels: np.ndarray, splits: int, seed: int) -> list[np.ndarray]:
    """Returns the random orders of the images, of which the first half is for training."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(len(labels)) for _ in range(splits)]


def with_batch_norm(x: np.ndarray, labels: np.ndarray, depths: list[int], orders: Iterable[np.ndarray]) -> np.ndarray:
    """Returns `Measures` (measures, depths, 2, splits) behind the statistics of the training images of each split."""
    half, found = len(x) // 2, []
    train, test = np.split(np.arange(2 * half), 2)
    for seed, order in enumerate(orders):
        pairs = kernels(x[order], PREDICTING, depths, training=half)
        found.append(
            [
                [measure(pair[0], kernel, labels[order], train=train, test=test, seed=seed) for kernel in pair]
                for pair in pairs
            ]
        )
    return np.moveaxis(np.array(found), (0, -1), (-1, 0))


def compute(config: Config, track: Track) -> Result:
    """Returns the fields of `Measures`, each (data sets, networks, depths, 2 kernels, splits), batch norm's apart."""
    chosen = settings(config)
    depths = sorted({round(depth) for depth in np.geomspace(1, chosen.depth, 13)})
    batch_depths = [depth for depth in depths if depth <= chosen.batch_depth]
    sets, found, predicting, described = image_sets(config), [], [], {}
    for images in sets:
        total = min(2 * chosen.images, len(images.images))
        pool = images.subset(total, config.seed)
        inputs = prepare(pool, config, image_centering="dataset")
        described[images.name] = inputs.facts | {"layer norm": twin_differences(inputs, depths)}
        found.append(
            [
                by_split(kernels(inputs.x, name, depths), pool.labels, chosen.splits, config.seed)
                for name in track(NETWORKS, f"generalisation: {images.name}")
            ]
        )
        orders = orders_of(pool.labels, chosen.batch_splits, config.seed)
        predicting.append(
            with_batch_norm(inputs.x, pool.labels, batch_depths, track(orders, f"{images.name}: batch norm"))
        )
    values, batch = np.moveaxis(np.array(found), 2, 0), np.moveaxis(np.array(predicting), 1, 0)
    arrays = dict(zip(Measures._fields, values, strict=True)) | {"depths": np.array(depths)}
    arrays |= {f"{PREDICTING}_{key}": array for key, array in zip(Measures._fields, batch, strict=True)}
    arrays[f"{PREDICTING}_depths"] = np.array(batch_depths)
    facts = {
        "network": "ReLU, infinite width, stable gain, no bias; kernel regression until the end of training",
        "training images": chosen.images,
        "random splits of the same images": chosen.splits,
        "smallest training accuracy": float(arrays["training"].min()),
        "chance": [1 / images.num_classes for images in sets],
        "ensemble is": "accuracy of the mean prediction over infinitely many networks, kernel regression; it asks for "
        "the order of the classes and does not depend on the scale of the outputs",
        "single is": f"expected accuracy of one network, {DRAWS} draws for each test image; it depends on the scale of "
        "the outputs, which start with variance 1 against targets one-hot - 1/classes",
        "data sets": described,
        "depths": depths,
        "batch norm": f"statistics of the training images, {chosen.batch_splits} splits, depths {batch_depths}",
    }
    for key in Measures._fields[:-1]:
        facts[key] = summary(arrays[key], list(described), NETWORKS)
        facts[f"{key}, batch norm"] = summary(arrays[f"{PREDICTING}_{key}"][:, None], list(described), (PREDICTING,))
    return Result(arrays, facts)


def twin_differences(inputs: Inputs, depths: list[int]) -> dict[str, float]:
    """Returns how far the kernels of a layer norm are from those of the network it equals, at unit mean diagonal."""
    ends, x = (depths[0], depths[-1]), inputs.x[:COMPARED]
    return {
        f"{twin} and {name}, largest difference": float(np.max(np.abs(kernels(x, twin, ends) - kernels(x, name, ends))))
        for twin, name in TWINS.items()
    }


def summary(values: np.ndarray, sets: list[str], networks: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Returns the means over splits by data set, network and kernel, each a list over depths."""
    return {
        name: {
            f"{network}, {kernel}": np.round(values[i, j, :, k].mean(axis=-1), 6).tolist()
            for j, network in enumerate(networks)
            for k, kernel in enumerate(KERNELS)
        }
        for i, name in enumerate(sets)
    }


def draw(result: Result) -> Figure:
    """Draws a row for each data set: accuracy of the mean prediction, accuracy of one network, condition number."""
    a, facts = result.arrays, result.facts
    figure, axes = panels(len(PANELS), rows=len(facts["data sets"]), height=2.0, share=False)
    for row, (name, chance) in enumerate(zip(facts["data sets"], facts["chance"], strict=True)):
        line = dict(zip(PANELS, axes[len(PANELS) * row :], strict=False))
        for key, panel in line.items():
            for network, of_network in zip(NETWORKS, a[key][row], strict=True):
                draw_lines(panel, network, a["depths"], of_network)
            draw_lines(panel, PREDICTING, a[f"{PREDICTING}_depths"], a[f"{PREDICTING}_{key}"][row])
            panel.set_xlim(0.9, a["depths"][-1] * 1.15)
            title, quantity = PANELS[key]
            panel.set(title=title if row == 0 else "", ylabel=quantity)
        for key in ("ensemble", "single"):
            line[key].axhline(chance, color=BLACK, linewidth=0.9, linestyle=":")
            line[key].set(ylim=(0, 1.02))
        line["condition_number"].set(yscale="log", ylim=(0.7, None))
        line["ensemble"].set_ylabel(f"{name}\n{PANELS['ensemble'][1]}")
    for panel in axes[-len(PANELS) :]:
        panel.set_xlabel("hidden layers")
    handles = [
        Line2D([], [], color=look(network).color, label=look(network).label) for network in (*NETWORKS, PREDICTING)
    ]
    handles += [Line2D([], [], color=GREY, label=kernel.upper(), **LINES[kernel]) for kernel in reversed(KERNELS)]
    handles.append(Line2D([], [], color=BLACK, linewidth=0.9, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    described = next(iter(facts["data sets"].values()))
    centered = "mean image subtracted" if described["centering of images"] == "dataset" else "not centered"
    note(
        figure,
        f"ReLU, infinite width, stable gain, no bias, trained to the end on {facts['training images']} images "
        f"(training accuracy {facts['smallest training accuracy']:.0%} everywhere), tested on as many; {centered}, "
        f"|x|² = d. Mean and standard deviation of {facts['random splits of the same images']} splits of the same "
        "images. Mean prediction: over infinitely many networks (kernel regression), whatever the scale of their "
        "outputs. One network: expected accuracy, which depends on that scale; outputs start with variance 1. Layer "
        "norm before the ReLU has the kernels of no normalisation, behind it those of weight mean. Batch norm "
        "predicts with the statistics of its training images.",
    )
    return figure


def draw_lines(axes: Axes, network: str, depths: np.ndarray, values: np.ndarray) -> None:
    """Draws mean and standard deviation over splits of one network's values (depths, 2 kernels, splits)."""
    for column, kernel in reversed(list(enumerate(KERNELS))):
        of_splits = values[:, column]
        axes.errorbar(
            depths,
            of_splits.mean(axis=-1),
            of_splits.std(axis=-1, ddof=1),
            color=look(network).color,
            elinewidth=0.7,
            **LINES[kernel],
        )
    axes.set(xscale="log", xticks=TICKS, xticklabels=[str(tick) for tick in TICKS])
    axes.minorticks_off()
