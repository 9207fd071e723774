"""Condition number of the NTK by depth: straight networks grow an outlier of order m, weight-centered ones lose it."""

import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ntk_analysis import Kernel, spectrum
from ntk_analysis.common.progress import Track
from ntk_analysis.depth_study.kernels import readouts

from .config import Config, Inputs, Result, describe_inputs, load_inputs
from .style import BLACK, DARK, GREY, PALE, look, note, panels, shades

NORMALIZATIONS = ("none", "weight_mean")
ROUNDING = 1e-13  # kappa - 1 below this is rounding of a few hundred layers


def settings(config: Config) -> tuple[tuple[int, ...], int]:
    """Returns the sizes of the data sets, and the largest depth."""
    return ((10, 30, 100, 300), 200) if config.full else ((10, 30, 100), 100)


def depths_up_to(largest: int) -> list[int]:
    """Returns up to 25 depths from 1 to `largest`, about evenly spaced on a logarithmic scale, each once."""
    return sorted({round(depth) for depth in np.geomspace(1, largest, 25)})


def condition_numbers(x: np.ndarray, normalization: str, depths: list[int], sizes: Sequence[int]) -> np.ndarray:
    """Returns NTK condition numbers of the first inputs, (sizes, depths), after these numbers of hidden layers.

    One pass for all: a read-out wherever asked, and the kernel of the first inputs is a part of that of all.
    """
    found = []
    for depth, kernel in enumerate(readouts(normalization, depths[-1], x), 1):
        if depth in depths:
            found.append([_condition_number(kernel[:size, :size]) for size in sizes])
    return np.array(found).T


def _condition_number(kernel: Kernel) -> float:
    with warnings.catch_warnings():
        # a lower bound would be drawn as a value: better no figure than a wrong one
        warnings.simplefilter("error", spectrum.UnresolvedSpectrumWarning)
        return spectrum.condition_number(kernel)


def compute(config: Config, track: Track) -> Result:
    """Computes condition numbers of infinitely wide networks, (normalisations, sizes, depths)."""
    sizes, largest = settings(config)
    inputs: Inputs = load_inputs(config, sizes[-1], image_centering="dataset")
    sizes = tuple(size for size in sizes if size <= len(inputs.x))
    depths = depths_up_to(largest)
    rows = [condition_numbers(inputs.x, name, depths, sizes) for name in track(NORMALIZATIONS, "condition_number")]
    arrays = {"condition_number": np.array(rows), "sizes": np.array(sizes), "depths": np.array(depths)}
    return Result(arrays, {"activation": "relu", "network": "infinite width, stable gain, no bias", **inputs.facts})


def draw(result: Result) -> Figure:
    """Draws straight networks on the left, with their limits (m + 3)/3, weight-centered ones less 1 on the right."""
    a = result.arrays
    figure, (left, right) = panels(2, height=2.9, share=False)
    depths, (straight, centered) = a["depths"], a["condition_number"]
    straight_shades, centered_shades, greys = (
        shades(color, len(a["sizes"])) for color in (look("none").color, look("weight_mean").color, GREY)
    )
    for size, color, grey, kappa in zip(a["sizes"], straight_shades, greys, straight, strict=True):
        left.loglog(depths, kappa, color=color, marker=".", markersize=4)
        left.plot([], [], color=grey, marker=".", markersize=4, label=f"m = {size}")
        left.axhline((size + 3) / 3, color=color, linewidth=0.9, linestyle="--")
    left.plot([], [], color=BLACK, linewidth=0.9, linestyle="--", label="limit (m + 3)/3")
    left.set(title=look("none").label, ylabel=r"condition number $\kappa$ of the NTK", xlabel="hidden layers")
    for color, kappa in zip(centered_shades, centered, strict=True):
        resolved = kappa - 1 > ROUNDING
        right.loglog(depths[resolved], kappa[resolved] - 1, color=color, marker=".", markersize=4)
    rate = 10 * depths * 2.0**-depths
    right.loglog(depths, rate, color=BLACK, linewidth=0.9, linestyle=":", label=r"proportional to $L\,2^{-L}$")
    right.axhspan(ROUNDING / 100, ROUNDING, color=PALE, linewidth=0)
    right.text(1.1, ROUNDING / 30, r"$\kappa = 1$ in float64", fontsize=7, color=DARK)
    right.set(title=look("weight_mean").label, ylabel=r"condition number less 1, $\kappa - 1$", xlabel="hidden layers")
    right.set(xlim=left.get_xlim(), ylim=(ROUNDING / 100, None))
    figure.legend(loc="outside upper center", ncols=len(a["sizes"]) + 2)
    note(figure, f"ReLU, infinite width, stable gain; {describe_inputs(result.facts)}")
    return figure
