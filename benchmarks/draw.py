"""Pictures of the results: speed beside the peers, and how time grows.

    uv run python benchmarks/draw.py

writes comparison.png and growth.png into benchmarks/results, from the JSON files there.
"""

import json
from typing import Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure
from timing import RESULTS

from ntk_analysis.figures.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, house_style, panels

NT, TORCH, MONTE_CARLO, PRODUCT = "neural-tangents", "torch.func", "Monte Carlo", "product and two writes"
COLOURS = {NT: BLUE, TORCH: ORANGE, MONTE_CARLO: PURPLE, PRODUCT: GREEN}


def result(name: str) -> dict[str, Any]:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def ratios() -> list[tuple[str, str, float, float]]:
    """Work, peer, how many times as long as ours the peer takes, and the goal of that."""
    kernels, recursion, networks = result("kernels"), result("recursion"), result("empirical_networks")
    beside = kernels["2000 inputs beside neural-tangents"]["depth 50"]["faster"]
    large = kernels["10000 inputs by depth"]
    found = [
        ("ReLU, depth 50, 2,000 inputs", NT, beside["median_s"], 200.0),
        ("the same with compilation", NT, beside["first_s"], 50.0),
    ]
    for name, goal in (("straight", 1.0), ("weight-centered", 1 / 1.2)):
        ratio = large[PRODUCT]["median_s"] / large[f"{name}, depth 50"]["median_s"]
        found.append((f"{name}, depth 50, 10,000 inputs", PRODUCT, ratio, goal))
    for name, goal in (("erf, bias", 8.0), ("relu, bias", 80.0), ("gelu", 80.0)):
        facts = recursion[f"{name}, depth 50"]  # the processors' seconds, as others used the machine
        for which, label in (("faster", "any norms"), ("faster at one norm", "one norm")):
            if which in facts:
                found.append((f"{name}, depth 50, {label}", NT, facts[which]["median_cpu_s"], goal))
    name = "CNN, 5 layers, flatten"
    found.append((f"{name}, 128 images", NT, recursion[name]["faster"]["median_s"], 3.0))
    found.append(("batch norm, B = 128, 10 layers", MONTE_CARLO, result("batch_norm")["faster_than_monte_carlo"], 1e3))
    for layout, goal in (("full", 0.65), ("trace", 0.6)):
        times = result("empirical")["time"][layout]
        found.append((f"empirical {layout}, 5 x 512, 256 images", NT, 1 / times["median_wall_ratio"], 1 / goal))
    for name, facts in networks.items():
        if "images" in name:
            for layout, times in facts.items():
                for peer, part in times["our part of"].items():
                    goal = 0.1 if peer == TORCH else 0.8
                    found.append((f"empirical {layout}, {name}", peer.split(",")[0], 1 / part, 1 / goal))
    return found


def comparison() -> Figure:
    """Draws how many times faster we are than the peers, and the goals."""
    rows = ratios()
    figure, (axes,) = panels(1, height=0.19 * len(rows) + 0.8)
    figure.set_size_inches(7.0, figure.get_size_inches()[1])
    for place, (_, peer, ratio, goal) in enumerate(rows):
        axes.plot([1, ratio], [place, place], color=COLOURS[peer], linewidth=2.5, solid_capstyle="butt")
        axes.plot(ratio, place, "o", color=COLOURS[peer], markersize=4)
        axes.plot(goal, place, "|", color="black", markersize=9, markeredgewidth=1.2)
        text = f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.2g}"
        axes.annotate(text, (max(ratio, goal, 1), place), (6, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 1.6e7)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=0.6)
    axes.set_yticks(range(len(rows)), [work for work, *_ in rows])
    axes.set_xlabel("time of the peer / ours")
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker="o", markersize=4, label=peer) for peer, colour in COLOURS.items()
    ]
    goal_mark = mpl.lines.Line2D([], [], color="black", marker="|", markersize=9, linestyle="", label="goal")
    axes.legend(handles=[*handles, goal_mark], loc="lower right")
    return figure


def growth() -> Figure:
    """Time against inputs, batch, depth, width and outputs."""
    works = {name: sizes for name, sizes in result("growth").items() if isinstance(sizes, dict) and name != "machine"}
    figure, axes = panels(3, rows=2, height=2.4, share=False)
    colours = dict(
        zip(("inputs", "batch", "depth", "width", "outputs"), (BLUE, BLUE, VERMILION, GREEN, ORANGE), strict=True)
    )
    for place, (work, sizes) in zip(axes, works.items(), strict=True):
        for size, facts in sizes.items():
            values = {int(key): value for key, value in facts["seconds"].items()}
            exponent = facts["exponents"][-1]
            place.loglog(
                values.keys(),
                values.values(),
                "o-",
                markersize=3,
                color=colours[size],
                label=f"{size}, last slope {exponent:g}",
            )
        place.set_xscale("log", base=2)
        place.xaxis.set_major_locator(mpl.ticker.LogLocator(base=2, numticks=4))  # of which all have room
        place.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
        place.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        low, high = place.get_ylim()
        place.set_ylim(low, high * (high / low) ** (0.14 * len(sizes) + 0.04))  # room for the legend
        place.set_title(work)
        place.set_ylabel("seconds")
        place.set_xlabel(" or ".join(sizes))
        place.legend(loc="upper left")
    return figure


def main() -> None:
    """Draws both."""
    with house_style():
        for name, figure in (("comparison", comparison()), ("growth", growth())):
            figure.savefig(RESULTS / f"{name}.png", dpi=150)
            print(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
