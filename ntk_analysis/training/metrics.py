"""What is measured in each epoch, and the JSONL file that it is written to as it comes."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk_analysis.common.files import write_whole

HOPELESS = 1000.0
"""A finite training loss counts as diverged above this many times the loss of a network that knows nothing."""


class Metrics(NamedTuple):
    """Measurements of one epoch on the device, float32 scalars; a tree that scan and vmap can stack.

    Attributes:
        learning_rate: learning rate of the epoch's last step.
        train_loss: mean loss over the epoch's batches while training, thus on augmented images and with moving weights.
        train_accuracy: accuracy over the same batches, in [0, 1].
        test_loss: mean loss over the test images after the epoch, in evaluation mode.
        test_accuracy: accuracy on the test images after the epoch, in evaluation mode, in [0, 1].
        last_bn_variance: running variances (classes,) of the last batch norm; None if the network has none.
    """

    learning_rate: jax.Array
    train_loss: jax.Array
    train_accuracy: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    last_bn_variance: jax.Array | None


@dataclass(frozen=True)
class Epoch:
    """Measurements of one epoch as they are written to a file.

    Attributes:
        epoch: number of the epoch, 1, 2, ...
        learning_rate: learning rate of the last step; numbers from here on may be NaN or infinite if training diverged.
        train_loss: mean training loss, as in `Metrics`.
        train_accuracy: training accuracy, as in `Metrics`.
        test_loss: mean test loss, as in `Metrics`.
        test_accuracy: test accuracy, as in `Metrics`.
        last_bn_variance: running variances of the last batch norm, as in `Metrics`.
        diverged: whether a loss was not finite, or the training loss hopelessly large.
        seconds: time that the epoch took, in seconds.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    last_bn_variance: tuple[float, ...] | None
    diverged: bool
    seconds: float

    def to_json(self) -> str:
        """One line of JSON; numbers that are not finite become strings ("nan", "inf"): JSON has no such numbers."""
        return json.dumps({name: _writable(value) for name, value in asdict(self).items()}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Epoch":
        """The epoch that `to_json` wrote."""
        found = {name: _readable(value) for name, value in json.loads(line).items()}
        return cls(**found)


def epoch_record(number: int, metrics: Metrics, ignorant_loss: float, seconds: float) -> Epoch:
    """The record of an epoch, from the metrics of one network on the device.

    Args:
        number: number of the epoch.
        metrics: metrics of the epoch, scalars.
        ignorant_loss: loss of a network that knows nothing; a training loss above `HOPELESS` times it counts as
            diverged.
        seconds: time that the epoch took, in seconds.
    """
    found: dict[str, Any] = {
        name: tuple(np.asarray(value).tolist()) if name == "last_bn_variance" else float(value)
        for name, value in metrics._asdict().items()
        if value is not None
    }
    losses = found["train_loss"], found["test_loss"]
    diverged = not all(map(math.isfinite, losses)) or found["train_loss"] > HOPELESS * ignorant_loss
    return Epoch(**{"last_bn_variance": None} | found, epoch=number, diverged=diverged, seconds=seconds)


def append(path: Path, epoch: Epoch) -> None:
    """Adds the epoch's line to the file; it is on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(epoch.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, epochs: int) -> list[Epoch]:
    """Cuts the file after its first epochs and returns them: a kill may leave more lines, the last one incomplete.

    Raises:
        ValueError: the file has fewer lines, or other lines.
    """
    lines = path.read_text(encoding="utf-8").splitlines()[:epochs] if path.exists() else []
    try:
        found = [Epoch.from_json(line) for line in lines]
    except (ValueError, TypeError, AttributeError):
        found = []
    if [each.epoch for each in found] != list(range(1, epochs + 1)):
        raise ValueError(
            f"{path}: expected lines of epochs 1 to {epochs}, as the checkpoint has; start in a new folder"
        )
    write_whole(path, lambda temporary: temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8"))
    return found


def _writable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_writable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_readable, value))
    return float(value) if isinstance(value, str) else value
