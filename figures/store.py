"""Figures on disk: picture, data and provenance side by side, never half of one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ntk_analysis.common.files import write_together
from ntk_analysis.common.numpy_files import read_arrays
from ntk_analysis.common.provenance import versions

from .config import Config, Result

LARGE_PNG = 300_000  # bytes; pictures of many colours take a third of it with a palette of 256, and look the same


def provenance(name: str, config: Config, result: Result) -> dict[str, Any]:
    """Returns what a reader needs to make the figure again."""
    libraries = ("ntk-analysis", "jax", "numpy", "scipy", "matplotlib")
    return {
        "figure": name,
        "config": asdict(config),
        "facts": result.facts,
        "versions": versions(*libraries),
    }


def save(folder: Path, name: str, record: dict[str, Any], result: Result, figure: Figure) -> None:
    """Writes NAME.png, NAME.svg, NAME.npz (the arrays) and NAME.json (configuration, facts, versions) into `folder`."""
    figure.draw_without_rendering()  # lays it out, which takes as long as all the rest: once for both pictures
    figure.set_layout_engine("none")
    write_together(
        folder,
        {
            f"{name}.npz": lambda path: np.savez_compressed(path, **result.arrays),  # type: ignore[arg-type]
            f"{name}.json": lambda path: _write_text(path, json.dumps(record, indent=2) + "\n"),
            f"{name}.svg": lambda path: figure.savefig(path, metadata={"Date": None}),
            f"{name}.png": lambda path: _write_png(path, figure),
        },
    )
    plt.close(figure)


def _write_png(path: Path, figure: Figure) -> None:
    figure.savefig(path)
    if path.stat().st_size > LARGE_PNG:
        with Image.open(path) as picture:
            # this method keeps the colours of few pixels, those of thin lines
            palette = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
            palette.save(path, "PNG", optimize=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load(folder: Path, name: str) -> tuple[dict[str, Any], Result]:
    """Returns the provenance and the result that `save` wrote.

    Raises:
        ValueError: files missing, damaged, or of another figure.
    """
    try:
        record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        result = Result(read_arrays(folder / f"{name}.npz"), record["facts"])
        if record["figure"] != name:
            raise ValueError(f"it is the data of {record['figure']}")
    except Exception as error:
        raise ValueError(
            f"--from-data {folder}: cannot read {name}.json and {name}.npz ({' '.join(str(error).split())}); "
            "compute the figure first (leave --from-data out)"
        ) from error
    return record, result
