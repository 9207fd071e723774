"""Learning rates x seeds x normalisations."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ntk_analysis.cli.options import TRAINED_NAMES, ClusterOptions, DataSet, ModelOptions, StepOptions, recipe_of
from ntk_analysis.cli.progress import Interrupted, progress

if TYPE_CHECKING:
    from ntk_analysis.common.cluster import Workers
    from ntk_analysis.training.dataset import Dataset
    from ntk_analysis.training.sweep import Grid, Table


def sweep(
    data: DataSet = "digits",
    *,
    normalization: Annotated[
        str, Option(metavar="NAME,NAME,...", help=f"Normalisations: {TRAINED_NAMES}.")
    ] = "none,mimic,batch",
    lr: Annotated[
        str, Option(metavar="FIRST:LAST:POINTS|RATE,...", help="Learning rates: a range with equal ratios, or a list.")
    ] = "1e-3:1:4",
    seeds: Annotated[int, Option(help="Number of seeds; they are 0, 1, 2, ...", min=1)] = 3,
    first: Annotated[
        int | None, Option(help="Show the best accuracy of this many first epochs. [default: of all]", min=1)
    ] = None,
    together: Annotated[int, Option(help="Number of runs of an MLP to train at once.", min=1)] = 1,
    out: Annotated[
        Path | None,
        Option(
            metavar="DIR", help="Folder for runs.jsonl and figures; without it, nothing is kept.", show_default=False
        ),
    ] = None,
    network: ModelOptions,
    steps: StepOptions,
    cluster: ClusterOptions,
) -> None:
    """Trains one recipe at many learning rates, seeds and normalisations; shows the best accuracies by rate.

    A run that diverges is a result. With --out DIR every finished run is a line of DIR/runs.jsonl: the same command
    goes on where it was killed, and with more rates, seeds or normalisations it trains only the missing runs.
    With --workers or --scheduler, runs are tasks of Dask; if a worker dies, another one trains its runs.
    """
    from ntk_analysis.common.cluster import Workers
    from ntk_analysis.training.sweep import Grid

    names = normalization.split(",")
    recipe = recipe_of(network, steps, names)
    if first is not None and first > recipe.epochs:
        raise ValueError(f"got --first {first}: expected at most --epochs {recipe.epochs}")
    grid = Grid(recipe, rates(lr), tuple(range(seeds)), tuple(names))
    workers = Workers(cluster.scheduler, cluster.workers) if cluster.given() else None
    execute(grid, data, out=out, together=together, first=first, cluster=workers)


def rates(text: str) -> tuple[float, ...]:
    """The learning rates of FIRST:LAST:POINTS, spaced geometrically, to six digits; or of a list with commas.

    Raises:
        ValueError: the text has another form, or the range is not positive, not rising or of fewer than two points.
    """
    import numpy as np

    try:
        if ":" not in text:
            return tuple(map(float, text.split(",")))
        first, last, points = text.split(":")
        if not 0 < float(first) < float(last) < float("inf") or int(points) < 2:
            raise ValueError
        return tuple(float(f"{rate:.6g}") for rate in np.geomspace(float(first), float(last), int(points)))
    except ValueError:
        raise ValueError(
            f"got --lr {text}: expected FIRST:LAST:POINTS, positive and rising, as 1e-5:1:11, or rates as 0.01,0.1"
        ) from None


def execute(
    grid: "Grid", source: str, *, out: Path | None, together: int, first: int | None, cluster: "Workers | None"
) -> None:
    """Trains all runs with a progress bar, and prints the tables of accuracies.

    Raises:
        Interrupted: Ctrl-C was pressed, and runs are kept.
    """
    from ntk_analysis.training.dataset import load_dataset
    from ntk_analysis.training.sweep import sweep as train_all

    dataset = load_dataset(source)
    total = len(grid.normalizations) * len(grid.learning_rates) * len(grid.seeds)
    done = 0
    with progress() as track:
        bar = iter(track(range(total), "runs"))
        next(bar)  # the first run has begun

        def told(curve: object) -> None:
            nonlocal done
            del curve
            done += 1
            next(bar, None)

        try:
            found = train_all(grid, dataset, folder=out, together=together, each=told, cluster=cluster)
        except KeyboardInterrupt:
            if out is None:
                raise
            raise Interrupted(f"{done} of {total} runs are in {out}; repeat the command to go on") from None
    for part, what in (("train", "training"), ("test", "test")):
        print(f"best {what} accuracy in the first {first or grid.recipe.epochs} epochs, mean over seeds, %")
        print(as_text(found, part, first) + "\n")
    if out is not None:
        print(f"{draw(found, dataset, out)}; the runs are in {out / 'runs.jsonl'}")


def as_text(table: "Table", part: str, first: int | None) -> str:
    """Table of learning rates by normalisations; behind each accuracy stands how many seeds diverged."""
    grid = table.grid
    columns = [max(len(name), 9) for name in grid.normalizations]
    head = "learning rate  " + "  ".join(map(str.rjust, grid.normalizations, columns))
    means, gone = 100 * table.best(part, first).mean(-1), (table.diverged_at > 0).sum(-1)
    lines = [
        f"{rate:<13g}  "
        + "  ".join(
            (f"{mean:.2f}" + (f" D{lost}" if lost else "   ")).rjust(width)
            for mean, lost, width in zip(means[:, index], gone[:, index], columns, strict=True)
        )
        for index, rate in enumerate(grid.learning_rates)
    ]
    told = ["D1, D2, ...: so many seeds diverged"] if gone.any() else []
    return "\n".join(line.rstrip() for line in [head, *lines, *told])


def draw(table: "Table", dataset: "Dataset", out: Path) -> str:
    """Draws the table beside its runs: by epoch, and by learning rate if there are several; returns the file names."""
    from ntk_analysis.figures.config import Config
    from ntk_analysis.figures.fig6 import draw as by_epoch
    from ntk_analysis.figures.learning_rates import draw as by_rate
    from ntk_analysis.figures.learning_rates import result_of
    from ntk_analysis.figures.store import provenance, save
    from ntk_analysis.figures.style import house_style

    result = result_of(table, dataset)
    config = Config(data=dataset.name, seed=table.grid.seeds[0])
    drawn = {"learning_rates": by_rate} if len(table.grid.learning_rates) > 1 else {}
    with house_style():
        for name, figure in (drawn | {"epochs": by_epoch}).items():
            save(out, name, provenance(name, config, result), result, figure(result))
    return " and ".join(f"{out / name}.png" for name in (*drawn, "epochs"))
