"""Options that would change nothing are refused: whoever gives one expects something of it."""

from collections.abc import Iterable, Mapping
from typing import Any


def refuse_idle(names: Iterable[str], where: str) -> None:
    """Refuses the first of the options that are named, as idle: "--eps has no effect with --normalization none".

    Raises:
        ValueError: there is one.
    """
    for name in sorted(names):
        raise ValueError(f"--{name.replace('_', '-')} has no effect {where}: leave it out")


def check_training(given: Mapping[str, Any], model: str, normalizations: Iterable[str]) -> None:
    """Refuses options of a recipe that change none of the trainings with these normalisations.

    Args:
        given: options of the recipe that were given, by the names of `Recipe`.
        model: name of the network.
        normalizations: names or aliases of its normalisations.

    Raises:
        ValueError: an option changes nothing, or a name is unknown.
    """
    from ntk_analysis.common.normalizations import trained_name
    from ntk_analysis.training.models import RESIDUAL
    from ntk_analysis.training.normalization import NORMALIZATIONS

    names = [trained_name(name) for name in normalizations]
    parts = [NORMALIZATIONS[name] for name in names]
    of_names = f"with --normalization {','.join(names)}"
    if model not in RESIDUAL:
        refuse_idle({"skip_scale"} & given.keys(), f"with --model {model}, which is no ResNet")
    if not any(part.scale == "damped" for part in parts):
        refuse_idle({"skip_scale"} & given.keys(), f"{of_names}: only MimicNorm's parts scale branches")
    if not any(part.centered or part.standardized for part in parts):
        refuse_idle({"gain", "min_fan_in"} & given.keys(), f"{of_names}, which centers no weights")
    if not any(part.hidden == "batch_norm" or part.last for part in parts):
        refuse_idle({"running_variance"} & given.keys(), f"{of_names}, which has no batch norm")
    if not given.get("decay_at"):
        refuse_idle({"decay_factor"} & given.keys(), "without --decay-at")
