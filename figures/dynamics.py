"""Finite networks in training against theory: their own linearised model, and what a last batch norm conserves.

The wider a network, the closer its outputs stay to the linear model of its own tangent kernel. Behind a last batch
norm gradient descent only ever lengthens the weights, |W|^2 by learning_rate^2 |gradient|^2 a step and layer. A large
rate makes itself small: the variance that batch norm divides by grows by orders of magnitude in the first steps.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ntk_analysis import spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.descent import ScaleInvariance, against_linearised, scale_invariance
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Serial
from ntk_analysis.networks import fully_connected

from .config import Config, Result, describe_inputs, load_inputs
from .style import DARK, GREY, look, note, panels, plain_ticks, shades

NORMALIZATIONS = ("none", "weight_mean")
SHOWN = "weight_mean"  # whose loss is drawn
CIRCLES: Any = {"marker": "o", "markersize": 4, "markerfacecolor": "white", "color": DARK, "linestyle": ""}
BOUND_SHARE = 0.25  # of the largest stable learning rate at infinite width


class Settings(NamedTuple):
    """The sizes of the figure.

    Attributes:
        images: number of images.
        depth: number of hidden layers of all networks.
        widths: widths of the networks that are compared with their linear model.
        draws: number of networks drawn for each width.
        steps: number of training steps.
        norm_width: width of the network with a last batch norm.
        norm_steps: number of its training steps.
        norm_batch: number of images in its batch.
        rates: learning rates of the training.
    """

    images: int
    depth: int
    widths: tuple[int, ...]
    draws: int
    steps: int
    norm_width: int
    norm_steps: int
    norm_batch: int
    rates: tuple[float, ...]


def settings(config: Config) -> Settings:
    """Returns the sizes of the figure; the small ones give the same panels."""
    if not config.full:
        return Settings(16, 2, (16, 64), 6, 40, 32, 100, 8, (0.1, 1.0, 10.0))
    return Settings(32, 2, (16, 32, 64, 128, 256, 512), 14, 100, 128, 200, 16, (0.1, 1.0, 10.0))


def compute(config: Config, track: Track) -> Result:
    """Computes distances and loss (networks, widths, draws), norms and variances (rates, steps + 1)."""
    chosen = settings(config)
    inputs = load_inputs(replace(config, data=config.data or "digits"), chosen.images, image_centering="dataset")
    y = np.random.default_rng(config.seed).choice([-1.0, 1.0], (len(inputs.x), 1))
    arrays: dict[str, np.ndarray] = {"widths": np.array(chosen.widths), "rates": np.array(chosen.rates)}
    laws, times = {}, {}
    for name in track(NORMALIZATIONS, "dynamics: networks"):

        def make(width: int, name: str = name) -> Serial:
            return fully_connected(chosen.depth, width, name)

        rate = BOUND_SHARE * spectrum.largest_stable_learning_rate(infinite_kernel(make(1), inputs.x))
        study = against_linearised(
            make,
            inputs.x.astype(np.float32),
            y,
            widths=chosen.widths,
            draws=chosen.draws,
            learning_rate=rate,
            steps=chosen.steps,
            seed=config.seed,
        )
        laws[name], times[name] = [study.law.exponent, study.law.error, study.law.chi_squared], study.time
        arrays |= {f"distance_{name}": study.distance, f"error_{name}": study.error}
        arrays |= {f"prefactor_{name}": np.array(study.law.prefactor)}
        for key, loss in (("loss", study.loss), ("loss_linearised", study.loss_linearised)):
            arrays[f"{key}_{name}"] = np.mean(loss / loss[..., :1], axis=1)
    measured = [normalised(inputs.x, y, chosen, rate, config.seed) for rate in chosen.rates]
    norms = [each.squared_norms.sum(axis=1) for each in measured]
    arrays["squared_norm"] = np.array([norm / norm[0] for norm in norms])
    arrays["squared_norm_expected"] = np.array(
        [expected_norm(each) / norm[0] for each, norm in zip(measured, norms, strict=True)]
    )
    arrays["variance"] = np.array([each.variance[:, 0] / each.variance[0, 0] for each in measured])
    facts = {
        "exponent of the distance, standard error, chi squared": laws,
        "learning rate times steps": times,
        "behind a last batch norm, largest |<W, gradient>| over |W| and the layer's largest gradient": max(
            float(np.max(np.abs(each.products) / largest_size(each))) for each in measured
        ),
        "largest error of a step's growth of |W|^2, over |W|^2": max(
            float(np.abs(each.growth_error).max()) for each in measured
        ),
        "settings": chosen._asdict(),
    }
    return Result(arrays, facts | inputs.facts)


def normalised(x: np.ndarray, y: np.ndarray, chosen: Settings, rate: float, seed: int) -> ScaleInvariance:
    """Trains one network with weight mean and a last batch norm, in float64."""
    network = fully_connected(chosen.depth, chosen.norm_width, SHOWN, last_batch_norm=True)
    with jax.enable_x64(True):
        _, params = network.init(jax.random.key(seed), (-1, x.shape[1]))
        batch = {"batch": chosen.norm_batch, "seed": seed}
        return scale_invariance(
            network,
            params,
            jax.numpy.asarray(x),
            jax.numpy.asarray(y),
            learning_rate=rate,
            steps=chosen.norm_steps,
            **batch,
        )


def expected_norm(measured: ScaleInvariance) -> np.ndarray:
    """Returns |W|^2 by step, computed from its start and the gradients alone."""
    gradients = measured.squared_gradients.sum(axis=1)[:-1]
    start = measured.squared_norms[0].sum()
    return np.concatenate([[start], start + measured.learning_rate**2 * np.cumsum(gradients)])


def largest_size(measured: ScaleInvariance) -> np.ndarray:
    """Returns |W| times the largest gradient of all steps: once the loss is at its floor, gradients are rounding."""
    return np.sqrt(measured.squared_norms * measured.squared_gradients.max(axis=0))


def draw(result: Result) -> Figure:
    """Draws loss and distance by width above, norms and variance below."""
    figure, (loss, distance, norms, variance) = panels(2, rows=2, height=2.6, share=False)
    draw_loss(loss, result)
    draw_distance(distance, result)
    draw_norms(norms, result)
    draw_variance(variance, result)
    chosen = result.facts["settings"]
    note(
        figure,
        f"ReLU, hidden layers: {chosen['depth']}, stable gain, no bias; {describe_inputs(result.facts)}; targets ±1 at "
        f"random; gradient descent on ½ Σ|f − y|². Above: full batch, {chosen['draws']} networks of each width, each "
        f"against the linear model of its own NTK at the start, {chosen['steps']} steps at {BOUND_SHARE} of the "
        "largest stable learning rate at infinite width; error bars: one standard error. Below: one network with "
        f"weight mean and a last batch norm, width {chosen['norm_width']}, batches of {chosen['norm_batch']}; all "
        "layers together; the variance is that of all images.",
    )
    return figure


def draw_loss(axes: Axes, result: Result) -> None:
    """Draws the loss of a narrow, a middle and a wide network as measured, solid, and as predicted, dashed."""
    a = result.arrays
    shown = sorted({0, len(a["widths"]) // 3, len(a["widths"]) - 1})
    for index, color in zip(shown, shades(look(SHOWN).color, len(shown)), strict=True):
        steps = np.arange(len(a[f"loss_{SHOWN}"][index]))
        axes.semilogy(steps, a[f"loss_{SHOWN}"][index], color=color, label=f"width {a['widths'][index]}")
        axes.semilogy(steps, a[f"loss_linearised_{SHOWN}"][index], "--", color=color, linewidth=0.9)
    axes.plot([], [], "--", color=GREY, linewidth=0.9, label="their linear models")
    axes.set(xlabel="step", ylabel="loss / loss at the start", title=f"{look(SHOWN).label}, mean over networks")
    axes.legend()


def draw_distance(axes: Axes, result: Result) -> None:
    """Draws the relative distance after the last step, with the fitted powers."""
    a = result.arrays
    for name in NORMALIZATIONS:
        label, color, marker = look(name)
        exponent, error, _ = result.facts["exponent of the distance, standard error, chi squared"][name]
        axes.errorbar(
            a["widths"], a[f"distance_{name}"], a[f"error_{name}"], color=color, marker=marker, markersize=4,
            linestyle="", elinewidth=0.9,
        )  # fmt: skip
        fitted = float(a[f"prefactor_{name}"]) * a["widths"] ** exponent
        axes.plot(
            a["widths"], fitted, color=color, linewidth=0.9, label=f"{label}: $n^{{{exponent:.2f} \\pm {error:.2f}}}$"
        )
    axes.set(
        xlabel="width $n$",
        ylabel="relative distance of outputs\n" r"$|f_T - f^{\mathrm{lin}}_T| \,/\, |f^{\mathrm{lin}}_T - f_0|$",
        title="distance from the linear model, last step",
        yscale="log",
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(a["widths"], [str(width) for width in a["widths"]])
    axes.minorticks_off()
    plain_ticks(axes.yaxis)
    axes.legend()


def draw_norms(axes: Axes, result: Result) -> None:
    """Draws the growth of |W|^2 by step, in the colours of `draw_variance`, and what the gradients say it has to be."""
    a = result.arrays
    columns = zip(a["squared_norm"], a["squared_norm_expected"], rate_colors(a["rates"]), strict=True)
    for measured, expected, color in columns:
        steps = np.arange(1, len(measured))
        axes.loglog(steps, measured[1:] - 1, color=color)
        axes.loglog(steps, expected[1:] - 1, markevery=0.12, **CIRCLES)
    axes.plot([], [], **CIRCLES, label=r"from gradients, $\eta^2 \sum |\nabla L|^2 / |W_0|^2$")
    axes.set(xlabel="step", title="MimicNorm: its weights grow")
    axes.set_ylabel("growth of squared weights\n$|W|^2 / |W_0|^2 - 1$")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.73))


def draw_variance(axes: Axes, result: Result) -> None:
    """Draws the variance that the last batch norm divides by."""
    a = result.arrays
    for rate, variance, color in zip(a["rates"], a["variance"], rate_colors(a["rates"]), strict=True):
        axes.loglog(np.arange(1, len(variance)), variance[1:], color=color, label=f"learning rate {rate:g}")
    axes.set(xlabel="step", ylabel="variance over its start", title="MimicNorm: the variance it divides by")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.6))


def rate_colors(rates: np.ndarray) -> list[str]:
    """Returns a colour for each learning rate: weight mean behind a last batch norm is MimicNorm."""
    return shades(look("mimic").color, len(rates))
