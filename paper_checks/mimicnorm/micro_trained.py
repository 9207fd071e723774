"""MLPs trained on digits by batch size and normalisation, on record: studies/micro_mlp/trained.jsonl, a line a cell.

`python -m ntk_analysis.paper_checks.mimicnorm.micro_trained FILE` trains what FILE lacks, 15 minutes for all on one CPU
core. A line names recipe, images, versions and hardware, and has the test accuracies in both modes by seed.
"""

import functools
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ntk_analysis.common.files import append_lines
from ntk_analysis.common.provenance import made_by
from ntk_analysis.depth_study.micro_batch import Trained, train
from ntk_analysis.training.dataset import load_dataset
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import LIBRARIES

DEPTHS, BATCHES = (10, 20), (4, 8, 16, 64, 256)
WIDTH, RATE = 128, 0.01
EPOCHS, STEPS = 10, 450  # at least
KINDS = {
    "none": ("none", "unbiased"),
    "layer": ("layer_norm", "unbiased"),
    "mimic": ("mimic_norm", "unbiased"),
    "batch": ("batch_norm", "unbiased"),
    "batch, biased": ("batch_norm", "biased"),
}
"""What is compared: normalisation and remembered variance. Layer norm is group norm of one group."""
RECORD = Path(__file__).parent / "studies" / "micro_mlp" / "trained.jsonl"


class Cell(NamedTuple):
    """One network of the comparison: a key of `KINDS`, hidden layers, images a batch."""

    kind: str
    depth: int
    batch: int


CELLS = [Cell(kind, depth, batch) for depth in DEPTHS for batch in BATCHES for kind in KINDS]
CELLS += [Cell(kind, 10, 2) for kind in ("layer", "mimic")]  # a last batch norm of two images has no gradient


def recipe_of(cell: Cell, images: int) -> Recipe:
    """Returns the recipe of a cell for so many training images: at least 10 epochs, and at least 450 steps."""
    normalization, running_variance = KINDS[cell.kind]
    return Recipe(
        depth=cell.depth,
        width=WIDTH,
        normalization=normalization,
        running_variance=running_variance,
        batch=cell.batch,
        learning_rate=RATE,
        epochs=max(EPOCHS, math.ceil(STEPS / (images // cell.batch))),
    )


def seeds_of(cell: Cell) -> tuple[int, ...]:
    """Returns the seeds of a cell: six where accuracies differ most, three elsewhere."""
    return tuple(range(6 if (cell.depth, cell.batch) in ((10, 4), (20, 8)) else 3))


def trained(cell: Cell, seeds: tuple[int, ...]) -> list[Trained]:
    """Trains a cell anew."""
    dataset = load_dataset("digits")
    return train(recipe_of(cell, len(dataset.train.images)), dataset, seeds)


def record(path: Path) -> None:
    """Trains the cells that the file lacks, and adds a line for each as soon as it is trained."""
    dataset = load_dataset("digits")
    there = read(path) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        lacking = tuple(seed for seed in seeds_of(cell) if seed not in {one.seed for one in there.get(cell, [])})
        if lacking:
            line = {
                "cell": cell._asdict(),
                "recipe": json.loads(recipe_of(cell, len(dataset.train.images)).to_json()),
                "data": {"name": dataset.name, "sha256": dataset.digest},
                "made by": made_by(*LIBRARIES),
                "accuracies": [one._asdict() for one in trained(cell, lacking)],
            }
            append_lines(path, [json.dumps(line)])


@functools.cache
def read(path: Path = RECORD) -> dict[Cell, list[Trained]]:
    """Returns the accuracies on record by cell, of which a file may have several lines, with other seeds."""
    found: dict[Cell, list[Trained]] = {}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        found.setdefault(Cell(**line["cell"]), []).extend(Trained(**one) for one in line["accuracies"])
    return found


def accuracies(mode: str, kind: str, depth: int, batch: int) -> np.ndarray:
    """Returns the test accuracies on record by seed, in "training" or "evaluation" mode."""
    return np.array([getattr(one, mode) for one in read()[Cell(kind, depth, batch)]])


if __name__ == "__main__":
    record(Path(sys.argv[1]))
