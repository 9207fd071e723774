"""What is measured in each epoch, and the line of JSON that it is written as."""

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import jax
import numpy as np

HOPELESS = 1000.0
"""A finite training loss counts as diverged above this many times the loss of a network that knows nothing."""

ROUNDING = 1e-6
"""What an accuracy may exceed 1 by: a float32 mean of means is off by a few units of 6e-8."""


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
        """The epoch that `to_json` wrote.

        Raises:
            ValueError: the line is no such epoch, or has a number that no training gives.
        """
        return cls.from_record(json.loads(line))

    @classmethod
    def from_record(cls, record: object) -> "Epoch":
        """The epoch of a line of JSON, as JSON's own objects.

        Raises:
            ValueError: the record is no epoch, or has a number that no training gives.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(record, dict) or sorted(record) != sorted(names):
            raise ValueError(f"an epoch has the fields {', '.join(names)}")
        values = {name: _readable(value) for name, value in record.items()}
        _check(values)
        return cls(**values)


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


def _writable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_writable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_readable, value))
    return float(value) if value in ("nan", "inf", "-inf") else value


def _check(values: dict[str, Any]) -> None:
    """Raises ValueError for what no training gives: other types, accuracies above 1, NaN where nothing diverged."""
    epoch, diverged = values["epoch"], values["diverged"]
    variances = () if values["last_bn_variance"] is None else values["last_bn_variance"]
    if type(epoch) is not int or epoch < 1 or type(diverged) is not bool:
        raise ValueError(f"got epoch={epoch!r} and diverged={diverged!r}: expected 1, 2, ... and a bool")
    if type(variances) is not tuple:
        raise ValueError(f"got last_bn_variance={variances!r} in epoch {epoch}: expected a list, or null")
    for name, most in (("train_accuracy", 1 + ROUNDING), ("test_accuracy", 1 + ROUNDING), ("seconds", math.inf)):
        value = values[name]
        if type(value) not in (int, float) or not 0 <= value <= most or math.isinf(value):
            expected = "a positive number" if name == "seconds" else "a number in [0, 1]"
            raise ValueError(f"got {name}={value!r} in epoch {epoch}: expected {expected}")
    numbers = [(name, values[name]) for name in ("learning_rate", "train_loss", "test_loss")]
    for name, value in numbers + [("last_bn_variance", value) for value in variances]:
        if type(value) not in (int, float) or not (diverged or math.isfinite(value)):
            raise ValueError(
                f"got {name}={value!r} in epoch {epoch}: expected a number, finite where training did not diverge"
            )
