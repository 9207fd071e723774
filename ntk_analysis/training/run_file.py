"""Finished runs, and the file that keeps them: runs.jsonl, a line for each."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ntk_analysis.common.checksums import SEAL, sealed, unsealed
from ntk_analysis.common.files import FULL, append_lines
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.metrics import Epoch
from ntk_analysis.training.recipe import Recipe

LIBRARIES = ("ntk-analysis", "jax", "flax", "optax")
"""Packages whose versions a run is recorded with."""

FIELDS = {"recipe", "data", "made by", "epochs"}  # of a line, and the seal behind them


@dataclass(frozen=True)
class Curve:
    """A finished run.

    Attributes:
        recipe: recipe that was trained.
        epochs: measured epochs; the last one is the recipe's last, or the one in which training diverged.
        made_by: `common.provenance.made_by` in the process that trained it.
    """

    recipe: Recipe
    epochs: tuple[Epoch, ...]
    made_by: dict[str, str] = field(compare=False)

    def first(self, epochs: int) -> "Curve | None":
        """The run as if it had been stopped after so many epochs; None if it is shorter and did not diverge."""
        if len(self.epochs) < epochs and not self.epochs[-1].diverged:
            return None
        return replace(self, recipe=replace(self.recipe, epochs=epochs), epochs=self.epochs[:epochs])


def read_runs(folder: Path) -> dict[tuple[str, str], Curve]:
    """The finished runs in a folder, by the digests of recipe and data set, which together identify a run.

    Of two runs with the same key the later one is taken, which went further. An incomplete last line, left by a kill,
    is no run; `append_runs` writes over it. Nothing is changed, so that a file can be read while a sweep writes to it.

    Raises:
        ValueError: a line is not a run, has numbers that no training gives, or has changed since it was written.
        FileExistsError: the folder is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder or a path that does not exist yet")
    path = _runs(folder)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            curve, dataset = _run(json.loads(line))
        except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: line {number} is no finished run ({error}); delete it, or give another folder"
            ) from error
        found[curve.recipe.digest, dataset] = curve
    return found


def append_runs(folder: Path, curves: Sequence[Curve], dataset: Dataset) -> None:
    """Adds a line for each run; the lines are on the disk when this returns.

    Raises:
        OSError: the disk is full; the runs that are there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = {"name": dataset.name, "sha256": dataset.digest}
    lines = [
        json.dumps(
            sealed(
                {
                    "recipe": json.loads(curve.recipe.to_json()),
                    "data": data,
                    "made by": curve.made_by,
                    "epochs": [json.loads(epoch.to_json()) for epoch in curve.epochs],
                }
            ),
            allow_nan=False,
        )
        for curve in curves
    ]
    try:
        append_lines(_runs(folder), lines)
    except OSError as error:
        if error.errno not in FULL:
            raise
        told = f"no space left for runs in {_runs(folder)}: those that are there stay, make space and call again"
        raise OSError(error.errno, told) from error


def _run(record: Any) -> tuple[Curve, str]:
    """The run of a line, and the digest of its data set.

    Raises:
        ValueError: the line is of another kind, or has changed. A value of another type may raise AttributeError,
            TypeError or ArithmeticError.
    """
    if not isinstance(record, dict) or set(record) - {SEAL} != FIELDS:
        raise ValueError(f"a run has the fields {', '.join(sorted(FIELDS))}")
    record = unsealed(record)
    recipe = Recipe.from_json(json.dumps(record["recipe"]))
    epochs = tuple(map(Epoch.from_record, record["epochs"]))
    if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)) or not epochs:
        raise ValueError("its epochs are not 1, 2, ...")
    if any(epoch.diverged for epoch in epochs[:-1]) or not (epochs[-1].diverged or len(epochs) == recipe.epochs):
        raise ValueError(f"it has {len(epochs)} epochs, its recipe {recipe.epochs}; only one that diverged has fewer")
    dataset, made_by = record["data"].get("sha256"), record["made by"]
    if not (isinstance(dataset, str) and re.fullmatch("[0-9a-f]{64}", dataset)):
        raise ValueError(f"got {dataset!r} as SHA-256 of its data")
    if not all(isinstance(value, str) for value in made_by.values()):
        raise ValueError(f"got {made_by!r} as versions and devices, expected texts")
    return Curve(recipe, epochs, made_by), dataset


def _runs(folder: Path) -> Path:
    return folder / "runs.jsonl"
