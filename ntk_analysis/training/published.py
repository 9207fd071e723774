"""What the MimicNorm paper (2010.09278) prints about training, and the grids of recipes that make it again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.sweep import Grid


class Accuracy(NamedTuple):
    """An accuracy in percent, with the uncertainty that the paper prints; None where it prints none."""

    percent: float
    uncertainty: float | None = None


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    Attributes:
        title: what it shows.
        models: its networks, keys of `models.MODELS`.
        normalizations: its normalisations that are built here.
        learning_rates: its learning rates.
        epochs: number of epochs of a run.
        printed: its accuracies by network, normalisation and learning rate.
        missing: what it shows that is not built here, in words; "" for nothing.
    """

    title: str
    models: tuple[str, ...]
    normalizations: tuple[str, ...]
    learning_rates: tuple[float, ...]
    epochs: int
    printed: Mapping[tuple[str, str, float], Accuracy] = field(default_factory=dict)
    missing: str = ""

    def grid(self, model: str, seeds: int, epochs: int | None = None) -> Grid:
        """The runs of one network, with seeds 0, 1, ...; None takes the paper's number of epochs.

        Raises:
            ValueError: the experiment does not have the network, or a number is out of range.
        """
        if model not in self.models:
            raise ValueError(f"got model {model!r}: {self.title} has {', '.join(self.models)}")
        recipe = Recipe.cifar100(model, epochs=self.epochs if epochs is None else epochs)
        return Grid(recipe, self.learning_rates, tuple(range(seeds)), self._normalizations(model))

    def _normalizations(self, model: str) -> tuple[str, ...]:
        """The normalisations that the paper prints for a network; all of them for a figure, which prints none."""
        printed = {normalization for name, normalization, _ in self.printed if name == model}
        return tuple(name for name in self.normalizations if name in printed or not self.printed)


RATE = 0.1
TABLE_2_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
TABLE_2 = {
    "none": (22.12, 26.76, 25.63, 1.24, 1.77, 1.00, 1.00),
    "weight_mean": (34.81, 43.07, 42.63, 36.49, 1.00, 1.00, 1.00),
    "mimic_norm": (38.39, 44.32, 49.53, 46.92, 39.41, 22.03, 9.83),
    "batch_norm": (37.82, 40.49, 37.97, 32.40, 25.50, 8.26, 3.93),
}
TABLE_1 = {
    "vgg11": {"batch_norm": (67.90, 0.14), "mimic_norm": (67.87, 0.20), "none": (65.33, 0.08)},
    "vgg16": {"batch_norm": (72.28, 0.05), "mimic_norm": (72.47, 0.02), "none": (68.97, 0.36)},
    "resnet18": {"batch_norm": (74.72, 0.31), "mimic_norm": (74.96, 0.14)},
    "resnet50": {"batch_norm": (78.53, 0.26), "mimic_norm": (77.91, 0.20)},
    "squeezenet1_0": {"batch_norm": (70.88, 0.08), "mimic_norm": (71.15, 0.10)},
    "shufflenet_v2_x1_0": {"batch_norm": (71.10, 0.49), "mimic_norm": (70.93, 0.13)},
}
PARTS = ("none", "weight_mean", "last_bn", "mimic_norm")

EXPERIMENTS = {
    "table1": Experiment(
        "Table 1",
        tuple(TABLE_1),
        ("none", "mimic_norm", "batch_norm"),
        (RATE,),
        150,
        {
            (model, name, RATE): Accuracy(*numbers)
            for model, columns in TABLE_1.items()
            for name, numbers in columns.items()
        },
        "Fixup is not built here",
    ),
    "table2": Experiment(
        "Table 2",
        ("vgg16",),
        tuple(TABLE_2),
        TABLE_2_RATES,
        10,
        {
            ("vgg16", name, rate): Accuracy(percent)
            for name, row in TABLE_2.items()
            for rate, percent in zip(TABLE_2_RATES, row, strict=True)
        },
    ),
    "fig6": Experiment("Fig. 6", ("vgg16",), PARTS, (RATE,), 150),
    "fig7": Experiment(
        "Fig. 7",
        ("resnet18", "resnet50"),
        PARTS,
        (RATE,),
        150,
        missing="SkipInit and Fixup are not built here",
    ),
    "supp3": Experiment("Supp. Fig. 3", ("vgg11", "resnet18"), ("mimic_norm",), (RATE,), 2),
}
"""The experiments on CIFAR-100, by the names that `ntk-analysis reproduce` takes."""
