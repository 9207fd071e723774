"""Fig. 4 of the paper: the correlation maps T and T_bar of one layer, with their fixed points."""

import jax
import numpy as np
from matplotlib.figure import Figure

from ntk_analysis import activations
from ntk_analysis.common.progress import Track
from ntk_analysis.layers import Activation, Dense, Serial
from ntk_analysis.meanfield import analyse

from .config import Config, Result
from .style import DARK, GREY, look, note, panels

NORMALIZATIONS = ("none", "weight_mean")
MAPS = {"none": "$T$", "weight_mean": r"$\bar T$"}


def measure(rho: np.ndarray, width: int, draws: int, seed: int, track: Track) -> dict[str, np.ndarray]:
    """Returns maps of finite layers, (draws, len(rho)): gain times second moment or covariance over the channels."""
    pairs = np.concatenate([[[1.0, 0.0]], np.stack([rho, np.sqrt(1 - rho**2)], axis=1)]) * np.sqrt(2)
    layer = Serial(Dense(width), Activation("relu"))

    @jax.jit
    def channels(key: jax.Array) -> jax.Array:
        _, params = layer.init(key, (-1, 2))
        return layer.apply(params, pairs)

    keys = jax.random.split(jax.random.key(seed), draws)
    features = np.stack([np.asarray(channels(key), np.float64) for key in track(keys, "fig4: finite layers")])
    relu = activations.relu
    centered = features - features.mean(axis=2, keepdims=True)
    return {
        "none": relu.stable_gain() * np.einsum("kn,kpn->kp", features[:, 0], features[:, 1:]) / width,
        "weight_mean": relu.stable_gain(centered=True)
        * np.einsum("kn,kpn->kp", centered[:, 0], centered[:, 1:])
        / (width - 1),
    }


def compute(config: Config, track: Track) -> Result:
    """Computes T over [0, 1], and measures it on layers of finite width."""
    width, draws = (1000, 100) if config.full else (500, 100)
    rho, points = np.linspace(0, 1, 201), np.linspace(0, 1, 11)
    arrays = {"rho": rho, "measured_rho": points}
    for name, maps in measure(points, width, draws, config.seed, track).items():
        field = analyse("relu", normalization=name)
        arrays[f"transition_{name}"] = np.asarray(field.transition(rho))
        arrays[f"measured_{name}"] = maps.mean(axis=0)
        arrays[f"standard_error_{name}"] = maps.std(axis=0, ddof=1) / np.sqrt(draws)
        inside = [point for point in field.fixed_points if point.correlation >= 0]
        arrays[f"fixed_points_{name}"] = np.array([point.correlation for point in inside])
        arrays[f"stable_{name}"] = np.array([point.stable for point in inside])
    return Result(arrays, {"width": width, "draws": draws, "activation": "relu"})


def draw(result: Result) -> Figure:
    """Draws both maps against the diagonal."""
    a, facts = result.arrays, result.facts
    figure, (axes,) = panels(1, height=3.3)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for name in NORMALIZATIONS:
        label, color, _ = look(name)
        axes.plot(a["rho"], a[f"transition_{name}"], color=color, label=f"{label}, {MAPS[name]}")
        axes.errorbar(
            a["measured_rho"],
            a[f"measured_{name}"],
            2 * a[f"standard_error_{name}"],
            fmt="x",
            markersize=4,
            capsize=2,
            linewidth=1,
            color=color,
        )
        for rho, stable in zip(a[f"fixed_points_{name}"], a[f"stable_{name}"], strict=True):
            # the unstable ring is larger, so that a stable disc at the same place stays visible inside it
            size, fill = (7, color) if stable else (11, "none")
            axes.plot(rho, rho, "o", markersize=size, markerfacecolor=fill, color=color, clip_on=False, zorder=4)
    axes.plot([], [], "x", color=DARK, markersize=4, label="finite layers, ± 2 s.e.")
    axes.plot([], [], "o", color=DARK, label="stable fixed point")
    axes.plot([], [], "o", color=DARK, markerfacecolor="none", markersize=8, label="unstable fixed point")
    axes.set(xlabel=r"correlation $\rho$ at one layer", ylabel="correlation at the next", aspect="equal")
    axes.set(xlim=(-0.02, 1.05), ylim=(-0.02, 1.05))
    axes.legend(loc="lower right", borderaxespad=0.2)
    note(figure, f"ReLU, stable gain; crosses: mean over {facts['draws']} layers of width {facts['width']}")
    return figure
