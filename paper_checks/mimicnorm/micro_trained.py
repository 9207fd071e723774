"""Networks trained by batch size and normalisation, on record: MLPs on digits and a narrow VGG11, a line a cell.

`python -m ntk_analysis.paper_checks.mimicnorm.micro_trained FILE` trains the MLPs that FILE lacks, 19 minutes for all
on one CPU core; with IMAGES.npz behind it, it trains VGGs on these, 34 minutes. A line names recipe, images, versions
and hardware, and has the test accuracies in both modes by seed. The files are trained.jsonl in studies/micro_mlp and
studies/micro_vgg.
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
VGG_LAYERS, VGG_CHANNELS = 11, 8  # of the first stage
VGG_EPOCHS, VGG_STEPS = 6, 150  # at least
VGG_REPEATED = (4, 8, 16)  # batches of which there are several seeds
KINDS = {
    "none": ("none", "unbiased"),
    "layer": ("layer_norm", "unbiased"),
    "group": ("group_norm", "unbiased"),
    "mimic": ("mimic_norm", "unbiased"),
    "batch": ("batch_norm", "unbiased"),
    "batch, biased": ("batch_norm", "biased"),
}
"""What is compared: normalisation and remembered variance. Group norm has 8 groups of 16 units, layer norm is one."""
STUDIES = Path(__file__).parent / "studies"
RECORDS = tuple(STUDIES / folder / "trained.jsonl" for folder in ("micro_mlp", "micro_vgg"))


class Cell(NamedTuple):
    """One network of the comparison: a key of `KINDS`, layers (hidden ones of an MLP), images a batch, the model."""

    kind: str
    depth: int
    batch: int
    model: str = "mlp"


CELLS = [Cell(kind, depth, batch) for depth in DEPTHS for batch in BATCHES for kind in KINDS]
CELLS += [Cell(kind, 10, 2) for kind in ("layer", "mimic")]  # a last batch norm of two images has no gradient
VGG_CELLS = [
    Cell(kind, VGG_LAYERS, batch, "vgg")
    for batch in BATCHES
    for kind in ("none", "group", "mimic", "batch", "batch, biased")
]


def recipe_of(cell: Cell, images: int) -> Recipe:
    """Returns the recipe of a cell for so many training images: of so many epochs and steps at least."""
    normalization, running_variance = KINDS[cell.kind]
    mlp = cell.model == "mlp"
    epochs, steps = (EPOCHS, STEPS) if mlp else (VGG_EPOCHS, VGG_STEPS)
    return Recipe(
        model="mlp" if mlp else f"vgg{cell.depth}",
        depth=cell.depth if mlp else None,
        width=WIDTH if mlp else VGG_CHANNELS,
        normalization=normalization,
        running_variance=running_variance,
        batch=cell.batch,
        learning_rate=RATE,
        epochs=max(epochs, math.ceil(steps / (images // cell.batch))),
    )


def seeds_of(cell: Cell) -> tuple[int, ...]:
    """Returns the seeds of a cell: of MLPs six where accuracies differ most, three elsewhere; of VGGs three
    at the smaller batches, one elsewhere."""
    if cell.model == "vgg":
        return (0, 1, 2) if cell.batch in VGG_REPEATED else (0,)
    return tuple(range(6 if (cell.depth, cell.batch) in ((10, 4), (20, 8)) else 3))


def trained(cell: Cell, seeds: tuple[int, ...], images: str = "digits") -> list[Trained]:
    """Trains a cell anew."""
    dataset = load_dataset(images)
    return train(recipe_of(cell, len(dataset.train.images)), dataset, seeds)


def record(path: Path, images: str | None = None) -> None:
    """Trains the cells that the file lacks, VGGs if images are given, and adds a line for each once it is trained."""
    dataset, cells = load_dataset(images or "digits"), CELLS if images is None else VGG_CELLS
    there = read((path,)) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        lacking = tuple(seed for seed in seeds_of(cell) if seed not in {one.seed for one in there.get(cell, [])})
        if lacking:
            line = {
                "cell": cell._asdict(),
                "recipe": json.loads(recipe_of(cell, len(dataset.train.images)).to_json()),
                "data": {"name": dataset.name, "sha256": dataset.digest},
                "made by": made_by(*LIBRARIES),
                "accuracies": [one._asdict() for one in trained(cell, lacking, images or "digits")],
            }
            append_lines(path, [json.dumps(line)])


@functools.cache
def read(paths: tuple[Path, ...] = RECORDS) -> dict[Cell, list[Trained]]:
    """Returns the accuracies on record by cell, of which a file may have several lines, with other seeds."""
    found: dict[Cell, list[Trained]] = {}
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    for line in map(json.loads, lines):
        found.setdefault(Cell(**line["cell"]), []).extend(Trained(**one) for one in line["accuracies"])
    return found


def accuracies(mode: str, kind: str, depth: int, batch: int, model: str = "mlp") -> np.ndarray:
    """Returns the test accuracies on record by seed, in "training" or "evaluation" mode."""
    return np.array([getattr(one, mode) for one in read()[Cell(kind, depth, batch, model)]])


if __name__ == "__main__":
    record(Path(sys.argv[1]), *sys.argv[2:3])
