"""Accuracies of ours beside those that the paper prints, with their difference in standard errors."""

from dataclasses import dataclass

import numpy as np

from ntk_analysis.training.published import Accuracy, Experiment
from ntk_analysis.training.sweep import Table


@dataclass(frozen=True)
class Beside:
    """One cell of a table: ours beside the paper's.

    Attributes:
        model: the network.
        normalization: the normalisation.
        learning_rate: the learning rate.
        ours: best test accuracies in percent by seed.
        printed: what the paper prints; None where it prints nothing.
    """

    model: str
    normalization: str
    learning_rate: float
    ours: tuple[float, ...]
    printed: Accuracy | None

    @property
    def mean(self) -> float:
        """Mean over seeds, in percent."""
        return float(np.mean(self.ours))

    @property
    def error(self) -> float | None:
        """Standard error of the mean over seeds, in percent; None for one seed, which has no spread."""
        if len(self.ours) < 2:
            return None
        return float(np.std(self.ours, ddof=1) / np.sqrt(len(self.ours)))

    @property
    def apart(self) -> float | None:
        """Ours less the paper's in standard errors of the difference; None where an error is not known, or both are 0.

        An accuracy that the paper prints without an uncertainty is taken as exact.
        """
        if self.printed is None or self.error is None:
            return None
        error = float(np.hypot(self.error, self.printed.uncertainty or 0.0))
        return None if error == 0 else (self.mean - self.printed.percent) / error


def beside(experiment: Experiment, model: str, table: Table) -> list[Beside]:
    """The cells of one network's table, learning rates innermost."""
    grid = table.grid
    best = 100 * table.best("test")
    return [
        Beside(model, name, rate, tuple(best[row, column].tolist()), experiment.printed.get((model, name, float(rate))))
        for row, name in enumerate(grid.normalizations)
        for column, rate in enumerate(grid.learning_rates)
    ]


def as_text(cells: list[Beside]) -> str:
    """The cells as a table: our mean and standard error, the paper's accuracy, and the difference."""
    rows = [("network", "normalisation", "rate", "ours, %", "paper, %", "difference")]
    for cell in cells:
        ours = f"{cell.mean:.2f}" + (" (1 seed)" if cell.error is None else f" +- {cell.error:.2f}")
        paper, apart = "", ""
        if cell.printed is not None:
            paper = f"{cell.printed.percent:.2f}"
            paper += "" if cell.printed.uncertainty is None else f" +- {cell.printed.uncertainty:.2f}"
            apart = f"{cell.mean - cell.printed.percent:+.2f}"
            apart += "" if cell.apart is None else f" ({cell.apart:+.1f} standard errors)"
        rows.append((cell.model, cell.normalization, f"{cell.learning_rate:g}", ours, paper, apart))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
