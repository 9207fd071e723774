"""What is measured in each epoch, and the JSONL file that it is written to as it comes."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ntk_analysis.files import write_whole

HOPELESS = 1000.0
"""A training loss so many times that of a network that knows nothing counts as diverged, though it is finite."""


class Metrics(NamedTuple):
    """One epoch on the device, float32 scalars; a tree that scan and vmap can stack.

    Attributes:
        learning_rate: of the epoch's last step.
        train_loss: mean over the epoch's batches, while training: of augmented images and moving weights.
        train_accuracy: likewise, in [0, 1].
        test_loss: mean over the test images behind the epoch, in evaluation mode.
        test_accuracy: likewise, in [0, 1].
        last_bn_variance: (classes,) running variances of the last batch norm; None where the network has none.
    """

    learning_rate: jax.Array
    train_loss: jax.Array
    train_accuracy: jax.Array
    test_loss: jax.Array
    test_accuracy: jax.Array
    last_bn_variance: jax.Array | None


@dataclass(frozen=True)
class Epoch:
    """One epoch as it is written down.

    Attributes:
        epoch: 1, 2, ...
        learning_rate: this and the next as in `Metrics`; NaN or infinite where training diverged.
        train_loss: see above.
        train_accuracy: see above.
        test_loss: see above.
        test_accuracy: see above.
        last_bn_variance: see above.
        diverged: whether a loss was not finite, or hopelessly large.
        seconds: it took.
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
        """One line; numbers that are not finite become strings ("nan", "inf"), which JSON has no numbers for."""
        return json.dumps({name: _writable(value) for name, value in asdict(self).items()}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Epoch":
        """What `to_json` wrote."""
        found = {name: _readable(value) for name, value in json.loads(line).items()}
        return cls(**found)


def epoch_record(number: int, metrics: Metrics, ignorant_loss: float, seconds: float) -> Epoch:
    """The metrics of one network, off the device.

    Args:
        number: of the epoch.
        metrics: scalars.
        ignorant_loss: of a network that knows nothing; `HOPELESS` times it is diverged.
        seconds: the epoch took.
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
    """Adds a line to the file, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(epoch.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def truncate(path: Path, epochs: int) -> list[Epoch]:
    """The first epochs of the file, and the file cut behind them: a kill may leave more, the last one incomplete.

    Raises:
        ValueError: fewer, or other lines.
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
