"""Training and evaluation mode: what models call them, and whether a model obeys."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MODES = ("eval", "train")
IN_TRAINING = {
    "train": True,
    "training": True,
    "is_training": True,
    "update_stats": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Arguments and attributes that set the mode, with their values while training."""


class Seen(NamedTuple):
    """A batch norm or dropout that the model called.

    Attributes:
        name: kind of the layer and its place.
        trains: whether it took the batch's statistics, or dropped units.
    """

    name: str
    trains: bool


def check_mode(mode: str) -> None:
    """Raises ValueError if the mode is unknown."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}: choose one of {', '.join(MODES)}")


def flags(mode: str) -> dict[str, bool]:
    """The value of every flag in this mode.

    Raises:
        ValueError: the mode is unknown.
    """
    check_mode(mode)
    return {name: value == (mode == "train") for name, value in IN_TRAINING.items()}


def arguments(call: Callable[..., Any], mode: str, given: dict[str, Any]) -> dict[str, Any]:
    """The given arguments, and those arguments of the call that set the mode.

    Raises:
        ValueError: the mode is given twice.
    """
    wanted = flags(mode)
    if twice := sorted(wanted.keys() & given):
        raise ValueError(f"got {twice[0]}={given[twice[0]]} beside mode={mode!r}, which sets it: give mode alone")
    return given | {name: value for name, value in wanted.items() if name in inspect.signature(call).parameters}


def check_obeyed(mode: str, seen: Sequence[Seen]) -> None:
    """Raises ValueError if a module evaluates although it is to train, or the reverse.

    While training, SOME frozen batch norms may be intended by the model; that all layers evaluate may not.
    """
    if mode == "eval":
        wrong, does = [one.name for one in seen if one.trains], "in training mode"
    else:
        wrong, does = [one.name for one in seen] if not any(one.trains for one in seen) else [], "in evaluation mode"
    if wrong:
        raise ValueError(
            f"got mode={mode!r}, but the model calls {', '.join(wrong)} {does} whatever it is told: give its __call__ "
            "an argument `train` that they follow, or choose the other mode"
        )
