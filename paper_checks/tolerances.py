"""The error of a comparison, and where it comes from: what decides between confirmed, refuted and unresolved."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike


class Source(StrEnum):
    """Where an error comes from."""

    ROUNDING = "rounding"  # of floating-point numbers: a bound
    QUADRATURE = "quadrature"  # of an integral or a root, as the library states it: a bound
    RESOLUTION = "resolution"  # printed digits, a count, the step of a grid: a bound
    EXTRAPOLATION = "extrapolation"  # to a limit that was not reached: an estimate
    SAMPLING = "sampling"  # of draws, such as networks, seeds or images: an estimate

    @property
    def bounds(self) -> bool:
        """Whether the error is a bound, beyond which the true value cannot be, and no estimate from noise."""
        return self not in (Source.SAMPLING, Source.EXTRAPOLATION)


@dataclass(frozen=True)
class Tolerance:
    """How far apart expected and measured values may be.

    Attributes:
        size: the error, > 0, in the units of the values: a number, or an array with one for each comparison.
        source: where it comes from.
        reason: how it was computed, in words.
        draws: the number of independent draws behind an error of sampling, which falls with its square root; 0 where it
            is not known, or the error is no such one.
    """

    size: ArrayLike
    source: Source
    reason: str
    draws: int = 0


def rounding(size: ArrayLike, reason: str) -> Tolerance:
    """Returns a bound on the rounding of floating-point numbers."""
    return Tolerance(size, Source.ROUNDING, reason)


def quadrature(size: ArrayLike, reason: str) -> Tolerance:
    """Returns the error that the library states for an integral, a fit or a root."""
    return Tolerance(size, Source.QUADRATURE, reason)


def resolution(size: ArrayLike, reason: str) -> Tolerance:
    """Returns half of the smallest difference that can be seen: of printed digits, of a count, of a grid."""
    return Tolerance(size, Source.RESOLUTION, reason)


def extrapolation(size: ArrayLike, reason: str) -> Tolerance:
    """Returns how far a limit moved with the last points that it was extrapolated from."""
    return Tolerance(size, Source.EXTRAPOLATION, reason)


def sampling(size: ArrayLike, reason: str, draws: int = 0) -> Tolerance:
    """Returns half of a confidence interval over draws."""
    return Tolerance(size, Source.SAMPLING, reason, draws)


def nearest(expected: ArrayLike, others: Iterable[ArrayLike]) -> np.ndarray:
    """Returns of the values of other theories the one closest to the expected value but not the same, entry by entry.

    Where every other theory says the same, the entry is NaN: that comparison has no rival.
    """
    said = np.asarray(expected, np.float64)
    values = np.stack([np.broadcast_to(np.asarray(other, np.float64), said.shape) for other in others])
    distances = np.where(
        np.isclose(values, said, rtol=1e-9, atol=1e-12) | ~np.isfinite(values), np.inf, np.abs(values - said)
    )
    closest = np.take_along_axis(values, np.argmin(distances, axis=0)[None], axis=0)[0]
    return np.where(np.isinf(np.min(distances, axis=0)), np.nan, closest)
