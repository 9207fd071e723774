"""Options that would change nothing are refused: whoever gives one expects something of it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntk_analysis.training.recipe import Recipe


def refuse_idle(names: Iterable[str], where: str) -> None:
    """Refuses the first of the options that are named, as idle: "--eps has no effect with --normalization none".

    Raises:
        ValueError: there is one.
    """
    for name in sorted(names):
        raise ValueError(f"--{name.replace('_', '-')} has no effect {where}: leave it out")


def check_training(given: Mapping[str, Any], recipe: "Recipe", normalizations: Iterable[str]) -> None:
    """Refuses options of a recipe that change none of the trainings with these normalisations.

    Args:
        given: options of the recipe that were given, by the names of `Recipe`.
        recipe: recipe that they make.
        normalizations: names or aliases of its normalisations.

    Raises:
        ValueError: an option changes nothing, or a name is unknown.
    """
    from ntk_analysis.common.normalizations import trained_name
    from ntk_analysis.training.models import OF_ARCHITECTURES, OF_CLASSIFIERS, RESIDUAL
    from ntk_analysis.training.normalization import NORMALIZATIONS

    names = [trained_name(name) for name in normalizations]
    parts = [NORMALIZATIONS[name] for name in names]
    of_names, of_model = f"with --normalization {','.join(names)}", f"with --model {recipe.model}"
    centers = any(part.centered or part.standardized for part in parts)
    if recipe.model not in RESIDUAL:
        refuse_idle({"skip_scale"} & given.keys(), f"{of_model}, which is no ResNet")
    if recipe.model not in OF_CLASSIFIERS:
        refuse_idle({"classifier"} & given.keys(), f"{of_model}, which is no VGG")
    if recipe.model not in OF_ARCHITECTURES:
        refuse_idle({"architecture"} & given.keys(), f"{of_model}, which has one only")
    if recipe.model == "mlp":
        refuse_idle({"initialization"} & given.keys(), f"{of_model}, which has one only")
    if not any(part.scale == "damped" for part in parts):
        refuse_idle({"skip_scale"} & given.keys(), f"{of_names}: only MimicNorm's parts scale branches")
    if not centers:
        refuse_idle({"min_fan_in", "dense"} & given.keys(), f"{of_names}, which centers no weights")
    if recipe.model != "mlp" and recipe.stem == "cifar" and recipe.classifier == "linear":
        refuse_idle({"dense"} & given.keys(), f"{of_model}, which has no hidden dense layer")
    if recipe.initialization == "he" and not centers:
        refuse_idle({"gain"} & given.keys(), f"{of_names}, which centers no weights")
    if recipe.initialization == "published" and not any(part.hidden == "none" for part in parts):
        refuse_idle({"gain"} & given.keys(), f"{of_names}: with hidden norms the published gain is 2, or PyTorch's")
    if not any(part.hidden == "batch_norm" or part.last for part in parts):
        refuse_idle({"running_variance"} & given.keys(), f"{of_names}, which has no batch norm")
    if not recipe.decay_at:
        refuse_idle({"decay_factor"} & given.keys(), "without --decay-at")
