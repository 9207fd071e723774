"""Finished runs, and the file that keeps them: runs.jsonl, a line for each."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ntk_analysis.common.files import write_whole
from ntk_analysis.training.dataset import Dataset
from ntk_analysis.training.metrics import Epoch
from ntk_analysis.training.recipe import Recipe

LIBRARIES = ("ntk-analysis", "jax", "flax", "optax")
"""Packages whose versions a run is recorded with."""


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
    is cut off.

    Raises:
        ValueError: a line is not a run.
        FileExistsError: the folder is a file.
    """
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, expected a folder or a path that does not exist yet")
    path = _runs(folder)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = json.loads(line)
            recipe = Recipe.from_json(json.dumps(record["recipe"]))
            epochs = tuple(Epoch.from_json(json.dumps(epoch)) for epoch in record["epochs"])
            if [epoch.epoch for epoch in epochs] != list(range(1, len(epochs) + 1)) or not epochs:
                raise ValueError("its epochs are not 1, 2, ...")
            made_by = {str(name): str(value) for name, value in record["made by"].items()}
            found[recipe.digest, record["data"]["sha256"]] = Curve(recipe, epochs, made_by)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: line {number} is no finished run ({error}); delete it, or give another folder"
            ) from error
    if whole != text:
        write_whole(path, lambda temporary: temporary.write_text(whole, encoding="utf-8"))
    return found


def append_runs(folder: Path, curves: Sequence[Curve], dataset: Dataset) -> None:
    """Adds a line for each run; the lines are on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"name": dataset.name, "sha256": dataset.digest}
    lines = [
        json.dumps(
            {
                "recipe": asdict(curve.recipe),
                "data": data,
                "made by": curve.made_by,
                "epochs": [json.loads(epoch.to_json()) for epoch in curve.epochs],
            },
            allow_nan=False,
        )
        for curve in curves
    ]
    with _runs(folder).open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _runs(folder: Path) -> Path:
    return folder / "runs.jsonl"
