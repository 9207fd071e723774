"""The limit of a sequence in depth, width or batch, from finitely many of its values, at a rate that theory states."""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from .by_depth import critical_terms
from .tolerances import Tolerance, extrapolation

Terms: TypeAlias = Callable[[np.ndarray], tuple[np.ndarray, ...]]


class Rate(StrEnum):
    """How a sequence approaches its limit, l being the depth, the width or the batch."""

    INVERSE = "1/l"
    LOGARITHMIC = "log l / l"
    POWER = "power"  # l^-p, p being found
    EXPONENTIAL = "exponential"  # q^l, q being found


class Limit(NamedTuple):
    """A limit that was extrapolated.

    Attributes:
        value: the limit.
        tolerance: its estimated error, and how it was found.
        rate: p of l^-p, or q of q^l; NaN where the rate has no number of its own.
    """

    value: float
    tolerance: Tolerance
    rate: float


POWERS = (0.05, 12.0)
"""Where p is searched."""
TO_GO = 0.3
"""The part of its way that an exponential approach may still have to go at the end of a fit: noise fits slower ones."""
GRID = 200
FEWEST = 18
ROUNDING = 1e-13
SHRINKS = 0.95  # what a move is of the one before, at most, of a sequence that has a limit
ERRORS = 5.0  # standard errors of a fit's limit, whose values have noise


def limit(values: ArrayLike, at: ArrayLike, rate: Rate | str) -> Limit:
    """Extrapolates a sequence to infinity.

    The terms of the rate, and of its next orders, are fitted three times: to the first half of the values, to the half
    in the middle and to the last half, whose limit is the result. What the terms leave out moves the limit from one fit
    to the next. The error is the larger one of the two moves or, if that is more, the sum of all moves that would
    follow at the same ratio; and five standard errors of the fits.

    Args:
        values: (n,) values of the sequence, n >= 18.
        at: (n,) depths, widths or batches, growing; best from l to 10 l and more.
        rate: "1/l" (terms 1, 1/l, 1/l^2), "log l / l" (those of the critical line: log(l)/l, 1/l and their products),
            "power" (l^-p and l^-(p + 1)) or "exponential" (q^l).

    Raises:
        ValueError: fewer than 18 values, values that are not finite, `at` that does not grow, an unknown rate, or a
            limit that moves no less from fit to fit.
    """
    found, places = np.asarray(values, np.float64), np.asarray(at, np.float64)
    if found.ndim != 1 or found.shape != places.shape or len(found) < FEWEST:
        raise ValueError(
            f"got values {found.shape} at {places.shape}; expected two arrays of one length, {FEWEST} at least"
        )
    if not np.isfinite(found).all() or not (places > 0).all() or not (np.diff(places) > 0).all():
        raise ValueError("expected finite values, at places > 0 that grow from one to the next")
    kind, quarter = Rate(rate), len(found) // 4
    starts = (len(found) - 4 * quarter, len(found) - 3 * quarter, len(found) - 2 * quarter)
    fits = [_fit(kind, found[start:][: 2 * quarter], places[start:][: 2 * quarter]) for start in starts]
    before, after = np.abs(np.diff([fit.limit for fit in fits]))
    last = fits[-1]
    noise = ERRORS * max(fit.error for fit in fits) + np.finfo(np.float64).eps * np.abs(found).max()
    if after > max(SHRINKS * before, noise):
        raise ValueError(f"the limit at the rate {kind} moves by {before:.2g}, then by {after:.2g}: another rate?")
    tail = after**2 / (before - after) if before > after else 0.0
    error = float(max(before, after, tail) + noise)
    said = {Rate.POWER: f"l^-{last.number:.3g}", Rate.EXPONENTIAL: f"{last.number:.4g}^l"}.get(kind, kind.value)
    because = f"moves of the limit in {said} as halves of l = {places[0]:g} to {places[-1]:g} are fitted"
    return Limit(last.limit, extrapolation(error, because), last.number)


class _Fit(NamedTuple):
    limit: float
    error: float
    number: float


def _fit(rate: Rate, values: np.ndarray, at: np.ndarray) -> _Fit:
    number, spread = np.nan, np.ptp(values)
    if spread <= ROUNDING * np.abs(values).max():  # it has arrived: no rate can be seen
        return _Fit(float(values[-1]), float(spread), number)
    if rate is Rate.POWER:
        number = _best(values, at, _powers, np.geomspace(*POWERS, GRID))
    elif rate is Rate.EXPONENTIAL:
        number = _best(values, at, _factors, np.linspace(0, TO_GO ** (1 / (at[-1] - at[0])), GRID + 1)[1:])
    columns = np.stack(_terms(rate, number)(at), axis=1)
    coefficients = np.linalg.lstsq(columns, values)[0]
    free = max(len(values) - columns.shape[1], 1)
    variance = np.sum((columns @ coefficients - values) ** 2) / free
    error = np.sqrt(variance * np.sum(np.linalg.pinv(columns)[0] ** 2))
    return _Fit(float(coefficients[0]), float(error), float(number))


def _terms(rate: Rate, number: float) -> Terms:
    return {
        Rate.INVERSE: lambda at: (np.ones(len(at)), 1 / at, 1 / at**2),
        Rate.LOGARITHMIC: critical_terms,
        Rate.POWER: lambda at: _powers(at, number),
        Rate.EXPONENTIAL: lambda at: _factors(at, number),
    }[rate]


def _powers(at: np.ndarray, power: float) -> tuple[np.ndarray, ...]:
    return np.ones(len(at)), (at / at[0]) ** -power, (at / at[0]) ** -(power + 1)


def _factors(at: np.ndarray, factor: float) -> tuple[np.ndarray, ...]:
    return np.ones(len(at)), factor ** (at - at[0])


def _best(
    values: np.ndarray, at: np.ndarray, terms: Callable[[np.ndarray, float], tuple[np.ndarray, ...]], grid: np.ndarray
) -> float:
    """Returns the number of the rate with which the terms fit the values best."""

    def missed(number: float) -> float:
        columns = np.stack(terms(at, number), axis=1)
        return float(np.linalg.norm(columns @ np.linalg.lstsq(columns, values)[0] - values))

    best = int(np.argmin([missed(number) for number in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(optimize.minimize_scalar(missed, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x)
