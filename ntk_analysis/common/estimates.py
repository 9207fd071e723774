"""Numbers that random draws estimate, with their standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True, eq=False)
class Estimated:
    """The mean of independent draws.

    Attributes:
        value: the mean, a number or an array.
        standard_error: standard error of the mean, or a bound on it, in the shape of `value`.
        draws: number of draws, >= 2.
        bias: bound on what the mean of many draws is off by.
    """

    value: Any
    standard_error: Any
    draws: int
    bias: Any = 0.0

    @property
    def half_width(self) -> Any:
        """Half the interval around `value` that holds the true value in 95 % of cases, by Student's distribution."""
        return float(stdtrit(self.draws - 1, 0.975)) * self.standard_error + self.bias

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.half_width:.2g}"


def estimated(draws: Sequence[Any] | np.ndarray) -> Estimated:
    """The mean of the draws (numbers, or arrays of one shape), with the standard error that their deviations tell."""
    values = np.asarray(draws, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return Estimated(values.mean(axis=0), error, len(values))
