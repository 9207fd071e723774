"""Panels of a function of one variable: intervals in which it and its slope are polynomials of low degree.

A quadrature is good where its integrand is a polynomial in every interval. So a function is cut, once and before
anything is integrated, at its kinks and jumps and wherever one polynomial does not do. They are looked for where the
function's program switches (`switches`), and by measurement: an interval that no halving resolves holds one.
"""

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.activations.switches import switches

REACHES = 12e3 / 4.0 ** np.arange(12)  # |x| up to which functions are looked at: 12 deviations of the variance 1e6
FAR = 46.0  # for a tighter tolerance, the reach may fall to this |x|, but not below
DEGREE = 15  # degree of the polynomials: Gauss-Legendre rules of 10 nodes and more integrate their squares
LAST = 4  # number of last coefficients whose size tells how good a polynomial is
TOLERANCES = (1e-13, 1e-11, 1e-9, 1e-7, 1e-5)
MOST_PANELS = 64
NARROWEST = 2.0**-48  # width, relative to |x| and to 1e-6, of an interval that holds a kink
AT_ONCE = 64  # number of intervals in one call of the compiled function

Function: TypeAlias = Callable[[jax.Array], jax.Array]
Values: TypeAlias = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Panels:
    """The cuts of a function's domain into intervals on which it is smooth.

    Attributes:
        edges: edges of the panels, ascending; the function was looked at from the first to the last.
        kinks: edges at which the function, its slope or its curvature jumps.
        jumps: whether the function itself jumps anywhere, and not only its slope or curvature.
        bends: whether the function or its slope jumps anywhere.
        tolerance: largest residual of the polynomials, relative to the largest value up to that |x|.
    """

    edges: tuple[float, ...]
    kinks: tuple[float, ...]
    jumps: bool
    bends: bool
    tolerance: float

    @property
    def centers(self) -> tuple[float, ...]:
        """The kinks, and the edge between the narrowest panels: for wide Gaussians a steep place is a kink."""
        widths = np.diff(self.edges)
        steepest = self.edges[1 + int(np.argmin(widths[:-1] + widths[1:]))] if len(widths) > 1 else 0.0
        return tuple(sorted({*self.kinks, steepest}))

    @property
    def reach(self) -> float:
        """Largest |x| looked at on both sides."""
        return min(-self.edges[0], self.edges[-1])


@functools.lru_cache(maxsize=256)
def panels(function: Function, kinks: tuple[float, ...] = (), tolerance: float = 0.0) -> Panels:
    """Panels of a function and its derivative, `kinks` among their edges; concrete, even while a program is traced.

    The tightest of TOLERANCES is taken that can be met and is not below `tolerance`.

    Raises:
        ValueError: not even the neighbourhood of 0 can be resolved.
    """
    with ThreadPoolExecutor(1) as apart:  # a thread of its own knows nothing of the caller's trace
        return apart.submit(_panels, function, kinks, tolerance).result()


def _panels(function: Function, kinks: tuple[float, ...], least: float) -> Panels:
    with jax.enable_x64(True):
        values = _both(function)
        likely = np.array([*kinks, *switches(function, REACHES[0])])
        tolerances = [tolerance for tolerance in TOLERANCES if tolerance >= least]
        for reaches in (REACHES[REACHES >= FAR], REACHES[REACHES < FAR]):
            for tolerance, reach in itertools.product(tolerances, reaches):
                found = _resolved(values, likely, kinks, float(reach), tolerance)
                if found is not None:
                    return found
    name = getattr(function, "__name__", repr(function))
    raise ValueError(
        f"activation {name} cannot be integrated: near 0 it is not finite, or no polynomial of degree {DEGREE} "
        f"between {MOST_PANELS} points; bound its slope"
    )


def _both(function: Function) -> Values:
    """A function from x (n, points) to function and slope, NumPy (n, points, 2), in calls of one shape."""

    @jax.jit
    def both(x: jax.Array) -> jax.Array:
        return jnp.stack(jax.jvp(function, (x,), (jnp.ones_like(x),)), axis=-1)

    def values(x: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(x), AT_ONCE):
            part = x[start : start + AT_ONCE]
            filled = np.concatenate([part, np.ones((AT_ONCE - len(part), x.shape[1]))])
            found.append(np.asarray(both(filled), np.float64)[: len(part)])
        return np.concatenate(found)

    return values


def _resolved(
    values: Values, likely: np.ndarray, kinks: tuple[float, ...], reach: float, tolerance: float
) -> Panels | None:
    """Panels up to this reach within this tolerance; None if the function is not finite or the panels are too many."""
    decades = np.append(10.0 ** np.arange(-10, np.log10(reach) - 0.1), reach)
    first = np.unique(np.concatenate([-decades, [0.0], decades, likely[np.abs(likely) < reach]]))
    judge = _Judge(values, first, tolerance)
    if not np.all(np.isfinite(judge.largest)):
        return None
    found: list[float] = [kink for kink in kinks if abs(kink) < reach]
    edges = first
    for _ in range(3):  # each round cuts at the kinks that the one before has found
        halved = _halved(judge, edges)
        if halved is None:
            return None
        edges, narrow = halved
        before = len(found)
        for place in narrow:  # neighbours that hold the same kink count once
            if all(abs(place - kink) > 1e-9 * abs(kink) + 1e-12 for kink in found):
                found.append(place)
        if len(found) == before:
            break
        edges = np.unique([*first, *found])
    else:
        return None
    merged = _merged(judge, edges)
    if len(merged) > MOST_PANELS + 1:
        return None
    bent = _bent(judge, merged, kinks)
    jumps, bends = _jumps(values, np.array(bent))
    return Panels(tuple(merged), tuple(bent), jumps, jumps or bends, tolerance)


_NODES = np.cos(math.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
_TO_COEFFICIENTS = np.polynomial.chebyshev.chebvander(_NODES, DEGREE).T * (2 / (DEGREE + 1))
_TO_COEFFICIENTS[0] /= 2


class _Judge:
    """Decides whether function and slope are polynomials on intervals, to a tolerance.

    Residuals are relative to the largest value up to that |x|: values further in weigh more in every average.
    """

    def __init__(self, values: Values, edges: np.ndarray, tolerance: float) -> None:
        self.values, self.tolerance = values, tolerance
        largest = np.abs(values(_points(edges[:-1], edges[1:]))).max(axis=1)
        outer = np.maximum(np.abs(edges[:-1]), np.abs(edges[1:]))
        order = np.argsort(outer, kind="stable")
        self.outer, self.largest = outer[order], np.maximum.accumulate(largest[order])

    def resolved(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Whether on each interval (n,) the polynomial's coefficients fall off and it meets both halves' nodes."""
        middle = (low + high) / 2
        between = np.concatenate([_points(low, middle), _points(middle, high)], axis=1)
        return self._meets(low, high, between)

    def joined(self, low: float, high: float, inner: np.ndarray) -> bool:
        """Whether, on the union of the intervals between edges `inner`, one polynomial meets the nodes of each."""
        between = _points(inner[:-1], inner[1:]).reshape(1, -1)
        return bool(self._meets(np.array([low]), np.array([high]), between)[0])

    def _meets(self, low: np.ndarray, high: np.ndarray, between: np.ndarray) -> np.ndarray:
        inside = self.values(_points(low, high))
        there = self.values(between.reshape(-1, DEGREE + 1)).reshape(*between.shape, 2)
        coefficients = np.einsum("kp,npc->knc", _TO_COEFFICIENTS, inside)
        scaled = (2 * between - (low + high)[:, None]) / (high - low)[:, None]
        polynomial = np.polynomial.chebyshev.chebval(scaled.T[..., None], coefficients[:, None], tensor=False)
        missed = np.abs(polynomial - np.swapaxes(there, 0, 1)).max(axis=0)
        size = np.maximum(self._size(np.maximum(np.abs(low), np.abs(high))), np.abs(inside).max(axis=1))
        last = np.abs(coefficients[-LAST:]).max(axis=0)
        return np.asarray(np.all((last <= self.tolerance * size) & (missed <= 10 * self.tolerance * size), axis=-1))

    def _size(self, outer: np.ndarray) -> np.ndarray:
        return self.largest[np.minimum(np.searchsorted(self.outer, outer), len(self.outer) - 1)]


def _points(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Chebyshev nodes (n, DEGREE + 1) of n intervals."""
    return (low + high)[:, None] / 2 + ((high - low) / 2)[:, None] * _NODES


def _halved(judge: _Judge, edges: np.ndarray) -> tuple[np.ndarray, list[float]] | None:
    """Edges of resolved intervals, and the middles of those too narrow to halve; None if they are too many."""
    low, high = edges[:-1], edges[1:]
    done, narrow = [edges[-1:]], []
    most = len(edges) + 40 * MOST_PANELS
    while len(low):
        good = judge.resolved(low, high)
        tiny = ~good & (high - low <= NARROWEST * np.maximum(np.abs(low), 1e-6))
        done.append(low[good | tiny])
        narrow.extend(((low + high) / 2)[tiny].tolist())
        low, high = low[~(good | tiny)], high[~(good | tiny)]
        if sum(map(len, done)) + len(low) > most:
            return None
        middle = (low + high) / 2
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return np.unique(np.concatenate(done)), sorted(narrow)


def _merged(judge: _Judge, edges: np.ndarray) -> list[float]:
    """Fewer edges: neighbours are joined if one polynomial fits both; not across 0, as small variances look there."""
    kept, start = [float(edges[0])], 0
    for i in range(1, len(edges) - 1):
        if edges[i] == 0 or not judge.joined(edges[start], edges[i + 1], edges[start : i + 2]):
            kept.append(float(edges[i]))
            start = i
    return [*kept, float(edges[-1])]


def _bent(judge: _Judge, edges: list[float], kinks: tuple[float, ...]) -> list[float]:
    """The edges at which no neighbourhood, however small, is one polynomial."""
    widths = np.diff(edges)
    near = 1e-4 * np.minimum(widths[:-1], widths[1:])
    inner = np.array(edges[1:-1])
    smooth = judge.resolved(inner - near, inner + near) if len(inner) else np.ones(0, bool)
    return sorted({*inner[~smooth].tolist(), *(kink for kink in kinks if edges[0] < kink < edges[-1])})


def _jumps(values: Values, kinks: np.ndarray) -> tuple[bool, bool]:
    """Whether the function changes at a kink by more than its slopes beside it explain; whether its slope changes."""
    if not len(kinks):
        return False, False
    near = 1e-9 * (np.abs(kinks) + 1e-6)
    left, right = (values((kinks + side)[:, None])[:, 0] for side in (-near, near))
    size, change = np.abs(left) + np.abs(right), np.abs(right - left)
    jumps = change[:, 0] > 4 * near * size[:, 1] + 1e-13 * size[:, 0]
    return bool(np.any(jumps)), bool(np.any(change[:, 1] > 1e-6 * size[:, 1]))
