"""The paper's tables and figures about training, trained again."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from ntk_analysis.cli.options import ClusterOptions
from ntk_analysis.cli.progress import Interrupted

if TYPE_CHECKING:
    from ntk_analysis.training.dataset import Dataset
    from ntk_analysis.training.recipe import Recipe
    from ntk_analysis.training.run_file import Curve
    from ntk_analysis.training.sweep import Grid

Name = Literal["table1", "table2", "table3", "fig6", "fig7", "supp3"]
QUICK_RATES, QUICK_EPOCHS = 2, 2


def reproduce(
    experiment: Annotated[Name, Argument(help="The table or figure of the paper.", show_default=False)],
    *,
    data: Annotated[
        str | None,
        Option(metavar="FOLDER", help="Folder of CIFAR-100, with both splits. [default: none, needed but for --quick]"),
    ] = None,
    models: Annotated[
        str | None, Option(metavar="NAME,NAME,...", help="Networks to train. [default: all of the table or figure]")
    ] = None,
    seeds: Annotated[int, Option(help="Number of seeds; they are 0, 1, 2, ...", min=1)] = 3,
    epochs: Annotated[int | None, Option(help="Number of epochs. [default: as in the paper]", min=1)] = None,
    out: Annotated[
        Path | None, Option(metavar="DIR", help="Folder for runs and figures. [default: out/EXPERIMENT]")
    ] = None,
    plan: Annotated[bool, Option("--plan", help="Print the plan, and train nothing.")] = False,
    quick: Annotated[
        bool,
        Option("--quick", help="Train small MLPs on digits in the place of the networks, to see the command work."),
    ] = False,
    cluster: ClusterOptions,
) -> None:
    """Trains a table or figure of the paper again, and prints our accuracies beside the printed ones.

    First comes the plan: how many runs there are, how many of them are there already, and what a step keeps in memory.
    Each finished run is a line of DIR/NETWORK/runs.jsonl at once; the same command goes on where it was killed.
    """
    from ntk_analysis.training.published import EXPERIMENTS

    if experiment == "table3":
        print(table_3())
        return
    if data is None and not quick:
        raise ValueError("reproduce needs --data FOLDER, the folder of CIFAR-100 with both splits; or take --quick")
    chosen = EXPERIMENTS[experiment]
    names = chosen.models if models is None else tuple(models.split(","))
    grids = {name: chosen.grid(name, seeds, epochs) for name in names}
    if quick:
        grids = {name: quickly(grid) for name, grid in grids.items()}
        print("--quick trains MLPs on digits in the place of these networks: differences to the paper mean nothing")
    execute(experiment, grids, data or "digits", out=out or Path("out") / experiment, plan=plan, cluster=cluster)


def quickly(grid: "Grid") -> "Grid":
    """The grid with an MLP of three narrow layers, two epochs, and the first and last rate."""
    from ntk_analysis.training.recipe import Recipe

    rates = grid.learning_rates[:: max(len(grid.learning_rates) - 1, 1)]
    recipe = Recipe(depth=3, width=64, epochs=min(grid.recipe.epochs, QUICK_EPOCHS))
    return replace(grid, recipe=recipe, learning_rates=rates[:QUICK_RATES])


def execute(
    name: str, grids: "dict[str, Grid]", source: str, *, out: Path, plan: bool, cluster: ClusterOptions
) -> None:
    """Prints the plan, trains what is missing, prints the table and draws the figures.

    Raises:
        Interrupted: Ctrl-C was pressed; finished runs are kept.
    """
    from ntk_analysis.cli.sweep import draw
    from ntk_analysis.common.cluster import Workers
    from ntk_analysis.training.beside import as_text, beside
    from ntk_analysis.training.dataset import load_dataset
    from ntk_analysis.training.published import EXPERIMENTS
    from ntk_analysis.training.recipe import Recipe
    from ntk_analysis.training.sweep import finished, sweep

    dataset = load_dataset(source)
    todo = set[Recipe]()
    for model, grid in grids.items():
        done = finished(grid, dataset, out / model)
        missing = {recipe for recipe, curve in done.items() if curve is None}
        print(planned(model, grid, dataset, runs=len(done), done=len(done) - len(missing)), flush=True)
        todo |= missing
    print(f"{len(todo)} runs to train, into {out}", flush=True)
    if plan:
        return
    told, cells, drawn = Told(todo), [], []
    for model, grid in grids.items():
        workers = Workers(cluster.scheduler, cluster.workers) if cluster.given() else None
        try:
            table = sweep(grid, dataset, folder=out / model, each=told, cluster=workers)
        except KeyboardInterrupt:
            raise Interrupted(f"the finished runs are in {out}; repeat the command to go on") from None
        cells += beside(EXPERIMENTS[name], model, table)
        drawn.append(draw(table, dataset, out / model))
    print("\n" + as_text(cells))
    if EXPERIMENTS[name].missing:
        print(f"{EXPERIMENTS[name].missing}.")
    print(f"figures: {'; '.join(drawn)}")


def planned(model: str, grid: "Grid", dataset: "Dataset", *, runs: int, done: int) -> str:
    """One line on the runs of a network, and what a step of the dearest normalisation keeps in memory."""
    from ntk_analysis.cli.train import memory
    from ntk_analysis.training.loop import Trainer

    recipe = grid.recipes(grid.normalizations[-1])[0]
    return (
        f"{model}: {runs} runs of {grid.recipe.epochs} epochs ({', '.join(grid.normalizations)}; rates "
        f"{', '.join(f'{rate:g}' for rate in grid.learning_rates)}; {len(grid.seeds)} seeds), {done} of them done; "
        f"{recipe.normalization} {memory(Trainer(recipe, dataset))}"
    )


class Told:
    """Tells of each run in a line, and of the time that is left at the rate of those that were trained so far."""

    def __init__(self, todo: "set[Recipe]") -> None:
        self.todo, self.left, self.start = len(todo), set(todo), time.perf_counter()

    def __call__(self, curve: "Curve") -> None:
        """Prints the line of one run; that of a run that was there already has no time."""
        recipe, best = curve.recipe, max(epoch.test_accuracy for epoch in curve.epochs)
        words = f"{recipe.model} {recipe.normalization}, rate {recipe.learning_rate:g}, seed {recipe.seed}: {best:.2%}"
        if recipe in self.left:
            self.left.remove(recipe)
            seconds = (time.perf_counter() - self.start) / (self.todo - len(self.left)) * len(self.left)
            about = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"
            words += f"; {len(self.left)} left, about {about}"
        print(words, flush=True)


def table_3() -> str:
    """The memory that Table 3 prints; its accuracies need ImageNet."""
    from ntk_analysis.training.memory import TABLE_3

    lines = [
        "Table 3's accuracies need ImageNet, which is not at hand: its memory, in MB, as printed and what is saved"
    ]
    for row in TABLE_3:
        columns = ", ".join(f"{name} {megabytes}" for name, megabytes in row.megabytes.items())
        lines.append(f"{row.model}, batch {row.batch}: {columns}; MimicNorm saves {row.saving('mimic_norm'):.1f} %")
    lines.append("ours, by shapes: ntk-analysis memory MODEL --normalization mimic_norm --stem imagenet --batch 256")
    return "\n".join(lines)
