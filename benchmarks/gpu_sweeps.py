"""A sweep of an MLP on digits: runs one after another, and at once by vmap; compilation included."""

import time
from dataclasses import replace
from typing import Any

WAYS = ("in turn", "at once")
DEPTH, WIDTH, EPOCHS, RATES, SEEDS = 20, 128, 5, 7, 3


def units(small: bool, dtype: str) -> dict[str, dict[str, Any]]:
    """Both ways, each in a process of its own."""
    del dtype
    sizes = {"depth": 2, "epochs": 1, "rates": 2, "seeds": 1} if small else {
        "depth": DEPTH, "epochs": EPOCHS, "rates": RATES, "seeds": SEEDS,
    }  # fmt: skip
    return {way: {"way": way} | sizes for way in WAYS}


def measure(way: str, depth: int, epochs: int, rates: int, seeds: int) -> dict[str, Any]:
    """Seconds of all runs."""
    from ntk_analysis.training.dataset import load_dataset
    from ntk_analysis.training.recipe import Recipe
    from ntk_analysis.training.sweep import Grid, sweep

    recipe = replace(Recipe(depth=depth, width=WIDTH, epochs=epochs), min_fan_in=2)
    grid = Grid(recipe, tuple(0.001 * 2**index for index in range(rates)), tuple(range(seeds)), ("mimic_norm",))
    dataset, runs = load_dataset("digits"), rates * seeds
    start = time.perf_counter()
    sweep(grid, dataset, together=runs if way == "at once" else 1)
    return {"runs": runs, "seconds": round(time.perf_counter() - start, 2)}
