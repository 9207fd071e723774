"""Batch normalisation of finite batches: growth of gradients per layer, and the condition number it leaves the NTK.

At every batch size gradients grow faster than under weight centering, whose rate is the limit of large batches (Yang et
al. 2019, 1902.08129); and where weight centering takes the condition number to 1, batch normalisation keeps a constant
mode below all others. In a shallow network that mode is the largest: on its way down it passes through the others, and
the condition number dips.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis import batch_norm, spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.meanfield import analyse
from ntk_analysis.networks import fully_connected

from .condition_number import condition_numbers, depths_up_to
from .config import Config, Result, describe_inputs, load_inputs
from .style import BLACK, DARK, look, note, panels, shades

ACTIVATIONS = {"relu": "-", "identity": ":"}
LABELS = {"relu": r"batch norm, ReLU: $\chi(B)$", "identity": r"batch norm, identity: $(B-2)/(B-3)$"}
CURVE = np.unique(np.geomspace(4, 512, 60).round().astype(int))


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        sizes: batch sizes of the exact recursion.
        layers: number of layers of the exact recursion.
        network_sizes: batch sizes of the finite networks.
        network_layers: number of layers of the finite networks.
        widths: widths of the finite networks.
        draws: number of networks drawn for each width and batch size.
    """

    sizes: tuple[int, ...]
    layers: int
    network_sizes: tuple[int, ...]
    network_layers: int
    widths: tuple[int, ...]
    draws: int


def settings(config: Config) -> Settings:
    """Returns the sizes; finite networks start at B = 6: below, the variance of their squared gradients is infinite."""
    if not config.full:
        return Settings((4, 8, 16, 32), 40, (6, 12, 32), 30, (128,), 10)
    return Settings((4, 8, 16, 32, 64, 128), 100, (6, 12, 48), 30, (128, 512), 20)


def recursion(x: np.ndarray, layers: int, depths: list[int]) -> tuple[float, np.ndarray]:
    """Returns the growth per layer of the ReLU NTK's trace on the zero-mean space, and condition numbers at `depths`.

    The growth is that over the second half of the layers.

    Sigma' = 2 NNGP, Theta' = 2 (NNGP + PUSH): the kernels of an infinitely wide network on this one batch, exactly.
    """
    sigma = theta = x @ x.T / x.shape[1]
    traces, found = [], []
    for depth in range(1, layers + 1):
        behind = batch_norm.propagate(sigma, theta)
        sigma, theta = 2 * behind.nngp, 2 * (behind.nngp + behind.pushed)
        traces.append(np.trace(theta) - theta.mean() * len(x))
        if depth in depths:
            found.append(spectrum.condition_number(theta))
    half = layers // 2
    return (traces[-1] / traces[half - 1]) ** (1 / (layers - half)), np.array(found)


def network_growth(x: np.ndarray, width: int, layers: int, draws: int, seed: int) -> np.ndarray:
    """Returns the growth per layer, towards the input, of finite networks' squared weight gradient, (draws,).

    The gradient is that of a random combination of the outputs of one batch. The growth is measured behind the first
    third of the network, which still remembers the images (at infinite width the rest is 1e-4 from the rate at the
    fixed point at B = 48, less below).
    """
    network = fully_connected(layers, width, "batch")

    @jax.jit
    def squared_gradients(key: jax.Array) -> jax.Array:
        network_key, output_key = jax.random.split(key)
        _, params = network.init(network_key, (-1, x.shape[1]))
        weights = jax.random.normal(output_key, (len(x), 1))
        gradient = jax.grad(lambda params: (weights * network.apply(params, x)).sum())(params)
        hidden = gradient[-2][0]["w"]  # the repeated block's, stacked along the first axis
        return (hidden**2).sum(axis=(1, 2))

    keys = jax.random.split(jax.random.key(seed), draws)
    squares = np.stack([np.asarray(squared_gradients(key), np.float64) for key in keys])
    first, last = layers // 3, layers - 3
    return (squares[:, first] / squares[:, last]) ** (1 / (last - first))


def compute(config: Config, track: Track) -> Result:
    """Computes rates in closed form, by the exact recursion on images, and of finite networks (widths, batch sizes)."""
    chosen = settings(config)
    inputs = load_inputs(config, chosen.sizes[-1], image_centering="dataset")
    x, count, depths = inputs.x, len(inputs.x), depths_up_to(chosen.layers)
    sizes, network_sizes = ([B for B in s if count >= B] for s in (chosen.sizes, chosen.network_sizes))
    if not network_sizes:
        raise ValueError(f"bn_growth needs at least {chosen.network_sizes[0]} images, got {count}: give a larger set")
    arrays = {"depths": np.array(depths), "curve_sizes": CURVE, "sizes": np.array(sizes)}
    for name in ACTIVATIONS:
        arrays[f"chi_{name}"] = rates(name, CURVE)
    found = [recursion(x[:B], chosen.layers, depths) for B in track(sizes, "bn_growth: kernels")]
    arrays["recursion_growth"], arrays["condition_number"] = (np.array(column) for column in zip(*found, strict=True))
    limits = [analyse("relu", normalization="batch", batch_size=B).condition_number for B in sizes]
    arrays["condition_limit"] = np.array(limits)
    arrays["weight_mean_condition_number"] = condition_numbers(x[: sizes[-1]], "weight_mean", depths, sizes[-1:])[0]

    cases = [(width, B) for width in chosen.widths for B in network_sizes]
    measured = [
        network_growth(x[:B], width, chosen.network_layers, chosen.draws, config.seed)
        for width, B in track(cases, "bn_growth: networks")
    ]
    growth = np.reshape(measured, (len(chosen.widths), len(network_sizes), chosen.draws))
    arrays["network_sizes"], arrays["widths"] = np.array(network_sizes), np.array(chosen.widths)
    arrays["network_growth"] = growth.mean(axis=2)
    arrays["standard_error"] = growth.std(axis=2, ddof=1) / np.sqrt(chosen.draws)

    excess = arrays["network_growth"] / rates("relu", network_sizes) - 1
    facts = {
        "rate of weight mean": analyse("relu", normalization="weight_mean").chi_1,
        "largest |recursion / theory - 1|": float(
            np.max(np.abs(arrays["recursion_growth"] / rates("relu", sizes) - 1))
        ),
        "finite networks / theory - 1": {
            f"width {width}, B = {B}": float(excess[i, j])
            for i, width in enumerate(chosen.widths)
            for j, B in enumerate(network_sizes)
        },
        "layers": chosen.layers,
        "layers of finite networks": chosen.network_layers,
        "networks": chosen.draws,
    }
    return Result(arrays, facts | inputs.facts)


def rates(activation: str, sizes: Iterable[int]) -> np.ndarray:
    """Returns chi(B) in closed form."""
    return np.array([analyse(activation, normalization="batch", batch_size=B).chi_1 for B in sizes])


def draw(result: Result) -> Figure:
    """Draws the growth per layer against the batch size on the left, and the condition number by depth on the right."""
    facts = result.facts
    figure, (left, right) = panels(2, height=3.1, share=False)
    draw_growth(left, result)
    draw_condition_numbers(right, result)
    note(
        figure,
        f"Stable gain, no bias, eps = 0; {describe_inputs(facts)}, each batch its first B. Circles: growth of the "
        f"infinite-width NTK over layers {facts['layers'] // 2} to {facts['layers']}; crosses: of squared weight "
        f"gradients, mean over {facts['networks']} networks of {facts['layers of finite networks']} layers, ± 2 s.e. "
        "χ/e₁: growth of the NTK over what one layer adds to the constant mode.",
    )
    return figure


def draw_growth(axes: Axes, result: Result) -> None:
    """Draws chi(B), with the points of the exact recursion and of the widest finite networks on it."""
    a, batch, centered = result.arrays, look("batch"), look("weight_mean")
    for name, style in ACTIVATIONS.items():
        axes.plot(a["curve_sizes"], a[f"chi_{name}"], style, color=batch.color, label=LABELS[name])
    limit = result.facts["rate of weight mean"]
    axes.axhline(limit, color=centered.color, linestyle="--", label=rf"{centered.label}, ReLU: $\pi/(\pi-1)$")
    axes.plot(
        a["sizes"], a["recursion_growth"], "o", color=DARK, markerfacecolor="white", label="exact kernels on images"
    )
    label = f"finite networks, width {a['widths'][-1]}"
    growth, error = a["network_growth"][-1], 2 * a["standard_error"][-1]
    axes.errorbar(a["network_sizes"], growth, error, fmt="x", capsize=2, linewidth=1, color=BLACK, label=label)
    axes.set_xscale("log", base=2)
    ticks = 2 ** np.arange(2, 10)
    axes.set_xticks(ticks, [str(B) for B in ticks])
    axes.set(
        xlabel="batch size $B$",
        ylabel="growth of the gradient per layer",
        ylim=(0.9, 3.2),
        title="gradients grow faster in small batches",
    )
    axes.legend(loc="upper right")


def draw_condition_numbers(axes: Axes, result: Result) -> None:
    """Draws the condition numbers of every second batch size, from the second on, with their limits."""
    a, batch, centered = result.arrays, look("batch"), look("weight_mean")
    shown = slice(1, None, 2)
    sizes = a["sizes"][shown]
    columns = zip(
        sizes, a["condition_number"][shown], a["condition_limit"][shown], shades(batch.color, len(sizes)), strict=True
    )
    for B, kappa, limit, color in columns:
        axes.loglog(a["depths"], kappa, color=color, marker=".", markersize=4, label=f"{batch.label}, $B = {B}$")
        axes.axhline(limit, color=color, linestyle="--", linewidth=0.9)
    axes.plot([], [], color=BLACK, linestyle="--", linewidth=0.9, label=r"their limits $\chi/e_1$")
    axes.loglog(
        a["depths"], a["weight_mean_condition_number"], color=centered.color, marker=".", markersize=4,
        label=f"{centered.label}, $m = {a['sizes'][-1]}$",
    )  # fmt: skip
    axes.set(
        xlabel="hidden layers", ylabel=r"condition number $\kappa$ of the NTK", title="batch norm keeps a constant mode"
    )
    axes.legend(loc="upper right")
