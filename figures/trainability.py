"""Does decorrelation make a network trainable? The NTK's largest eigenvalue by depth, and rates of finite ones.

Weight centring takes the outlier of order m out of the tangent kernel of m inputs, and with it the condition number to
1. The largest learning rate is another matter: it is 2/lambda_max, and while the outlier goes, the diagonal grows by
chi_1 = 1.4669 a layer. So centring allows larger rates in shallow networks on many inputs, and rates smaller by orders
of magnitude in deep ones, sooner for a mini-batch, whose outlier is small, than for the full set.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.condition_number import readouts
from figures.config import Config, Result, Track, describe_inputs, load_inputs
from figures.style import BLACK, BLUE, VERMILION, note, panels
from ntk_analysis import spectrum
from ntk_analysis.descent import largest_stable_learning_rate
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import fully_connected

NETWORKS = ("none", "weight_mean")
LABELS = {"none": "none", "weight_mean": "weight mean"}
COLORS = {"none": VERMILION, "weight_mean": BLUE}
NEAR = 1e-6  # targets lie that far from the outputs at the start: training stays in its linear regime
RESOLUTION = 0.01  # of a bisection


class Settings(NamedTuple):
    """Images, of a mini-batch, mini-batches, depths; width, images, depths, number, steps of finite networks."""

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
    """The small one has the same panels."""
    if not config.full:
        return Settings(200, 50, 5, tuple(range(1, 26)), 64, 32, (1, 4), 2, 40)
    return Settings(1797, 128, 10, (*range(1, 31), 35, 40, 45, 50), 128, 64, (1, 2, 5, 10, 20), 3, 100)


def tangent_kernels(x: np.ndarray, normalization: str, depths: Iterable[int]) -> Iterator[np.ndarray]:
    """Tangent kernels (m, m) of infinitely wide networks of these numbers of hidden layers, ascending, in one pass."""
    wanted = {int(depth) for depth in depths}
    for depth, kernel in enumerate(readouts(normalization, max(wanted), x), 1):
        if depth in wanted:
            yield kernel.ntk


def mini_batches(count: int, batch: int, batches: int, seed: int) -> list[np.ndarray]:
    """Random choices of `batch` of `count` inputs."""
    generator = np.random.default_rng(seed)
    return [generator.choice(count, batch, replace=False) for _ in range(batches)]


def largest_eigenvalues(kernel: np.ndarray, chosen: list[np.ndarray]) -> tuple[float, float]:
    """Of the kernel of all inputs, and of these parts of them, on average."""
    parts = [spectrum.eigenvalues(kernel[np.ix_(part, part)])[0] for part in chosen]
    return float(spectrum.eigenvalues(kernel)[0]), float(np.mean(parts))


class Stability(NamedTuple):
    """What one finite network bears.

    Attributes:
        rate: largest stable learning rate, by bisection.
        bound: 2/lambda_max of its own tangent kernel.
        bias: relative, by which a linear model passes the bound in so few steps.
        error: relative, of the bisection.
        kernel: (m, m) its own tangent kernel.
    """

    rate: float
    bound: float
    bias: float
    error: float
    kernel: np.ndarray


def stability(x: np.ndarray, normalization: str, depth: int, width: int, steps: int, key: jax.Array) -> Stability:
    """Of one network, in float64, on targets so close to its outputs that training stays in the linear regime."""
    network = fully_connected(depth, width, normalization)
    network_key, target_key = jax.random.split(key)
    with jax.enable_x64(True):
        _, params = network.init(network_key, (-1, x.shape[1]))
        residual = NEAR * np.asarray(jax.random.normal(target_key, (len(x), 1)))
        y = np.asarray(network.apply(params, x)) + residual
        found = largest_stable_learning_rate(network, params, x, y, steps=steps, resolution=RESOLUTION)
        kernel = np.asarray(empirical_ntk(network, params, x, method="jacobian", coupled=False).ntk)[:, :, 0, 0]
    share = np.sum((np.linalg.eigh(kernel)[1][:, -1] @ residual) ** 2) / np.sum(residual**2)
    bias = (share ** (-1 / (2 * steps)) - 1) / 2  # see largest_stable_learning_rate
    return Stability(found.rate, spectrum.largest_stable_learning_rate(kernel), float(bias), found.error, kernel)


def compute(config: Config, track: Track) -> Result:
    """Largest eigenvalues (networks, depths, full set or mini-batch); rates (networks, depths, draws)."""
    chosen = settings(config)
    inputs = load_inputs(replace(config, data=config.data or "digits"), chosen.images)
    x, depths = inputs.x, np.array(chosen.depths)
    batch = min(chosen.batch, len(x))
    parts = mini_batches(len(x), batch, chosen.batches, config.seed)
    found = [
        [largest_eigenvalues(kernel, parts) for kernel in tangent_kernels(x, name, depths)]
        for name in track(NETWORKS, "trainability: kernels")
    ]
    trained = x[: chosen.trained_images]
    keys = jax.random.split(jax.random.key(config.seed), chosen.draws)
    cases = [(name, depth) for name in NETWORKS for depth in chosen.trained_depths]
    measured = [
        [stability(trained, name, depth, chosen.width, chosen.steps, key) for key in keys]
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
    return Result(arrays, facts_of(arrays, chosen, len(trained)) | {"mini-batch": batch} | inputs.facts)


def facts_of(a: dict[str, np.ndarray], chosen: Settings, trained: int) -> dict[str, object]:
    """The numbers that decide."""
    straight, centred = a["largest"]
    ratio = a["rate"] / a["bound"] - 1
    return {
        "first depth at which weight mean has the larger lambda_max, full set and mini-batch": [
            first_depth(a["depths"], centred[:, column] > straight[:, column]) for column in (0, 1)
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


def first_depth(depths: np.ndarray, holds: np.ndarray) -> int | None:
    """The smallest depth from which on it holds at all larger ones; None if not at the largest."""
    fails = np.flatnonzero(~holds)
    after = fails[-1] + 1 if len(fails) else 0
    return int(depths[after]) if after < len(depths) else None


def draw(result: Result) -> Figure:
    """Largest eigenvalues by depth left, the rates that finite networks bear right."""
    facts = result.facts
    figure, (left, right) = panels(2, height=3.1, share=False)
    draw_eigenvalues(left, result)
    draw_rates(right, result)
    note(
        figure,
        f"ReLU, stable gain, no bias; {describe_inputs(facts)}. Left: infinite width; mini-batch of "
        f"{facts['mini-batch']}, mean of several. Right: {facts['trained on images']} of the images; circles: "
        f"bisection on {facts['networks']} networks of width {facts['width']}, {facts['steps']} steps of "
        "full-batch gradient descent on ½ Σ|f − y|², y near the first outputs; crosses: "
        "2/λ_max of the same networks' own NTK.",
    )
    return figure


def draw_eigenvalues(axes: Axes, result: Result) -> None:
    """lambda_max of the full set, solid, and of mini-batches, dashed."""
    a = result.arrays
    for name, values in zip(NETWORKS, a["largest"], strict=True):
        for column, (style, what) in enumerate((("-", "full set"), ("--", "mini-batch"))):
            axes.semilogy(a["depths"], values[:, column], style, color=COLORS[name], label=f"{LABELS[name]}, {what}")
    axes.set(
        xlabel="hidden layers",
        ylabel=r"largest eigenvalue $\lambda_{\max}$ of the NTK",
        title="the outlier goes, the diagonal grows",
    )
    axes.legend(loc="upper left")


def draw_rates(axes: Axes, result: Result) -> None:
    """Measured rates on the bound of the networks' own kernels and on that of infinite width."""
    a = result.arrays
    for index, name in enumerate(NETWORKS):
        color = COLORS[name]
        axes.semilogy(a["depths"], a["rate_infinite"][index], color=color, label=f"{LABELS[name]}, infinite width")
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
