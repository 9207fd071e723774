"""Fixed points of the correlation map: where they are, which one is stable, how fast it is approached."""

import math
from dataclasses import replace

import numpy as np
from scipy.optimize import brentq

from ntk_analysis.meanfield.block import FixedPoint, MeanField, evaluated
from ntk_analysis.meanfield.phase import LARGEST_TOLERANCE
from ntk_analysis.meanfield.variance import EPS, NEARLY_ZERO, NOISE

DISTANCES = np.unique(np.concatenate([np.geomspace(1e-15, 1e-2, 391), np.linspace(1e-2, 2, 400)]))


def with_fixed_points(block: MeanField) -> MeanField:
    """The block with its fixed points and correlation length, or with the reason why it has none."""
    if block.w_var == block.b_var == 0:
        return replace(block, reason="w_var = b_var = 0: every pre-activation is 0, and 0 has no correlation")
    after, _, error = evaluated(block, DISTANCES)
    gain = after / DISTANCES - 1
    smooth_limit = block.q_star == 0 and not block.activation.homogeneous
    if np.all(np.abs(gain) <= (100 * NEARLY_ZERO if smooth_limit else NOISE)):
        where = "in the limit q -> 0" if smooth_limit else "to rounding"
        slope = block.chi_1 if smooth_limit else block.variance_slope  # both are w_var phi'(0)^2
        reason = f"every correlation is fixed: T(rho) = rho {where}"
        return replace(block, every_correlation_fixed=True, variance_slope=slope, reason=reason)
    # sin t - t cos t, which bends the maps of kinked activations, has lost the digits eps/t at the angle t
    noise = NOISE / 4 * (1 + 1 / np.sqrt(DISTANCES)) if block.activation.homogeneous else NOISE
    noise = np.maximum(noise, error)
    signs = np.where(np.abs(gain) <= noise, 0, np.sign(gain))
    points = tuple(_fixed_point(block, distance, signs) for distance in _fixed_distances(block, after, signs))
    block = replace(block, fixed_points=points)
    attractors = [point for point in points if point.stable]
    if not attractors:
        return replace(block, reason="the stable fixed point is too close to rho = 1 to be told from it")
    return replace(block, correlation_length=_correlation_length(attractors[-1].slope, _tolerance(block)))


def _fixed_distances(block: MeanField, after: np.ndarray, signs: np.ndarray) -> list[float]:
    """All 1 - rho with T(rho) = rho, descending: sign changes on the grid of distances, refined, and the two ends."""
    resolved = np.flatnonzero(signs)
    turns = np.flatnonzero(signs[resolved][1:] != signs[resolved][:-1])
    brackets = [(DISTANCES[resolved[i]], DISTANCES[resolved[i + 1]]) for i in turns]

    def gain(distance: float) -> float:
        return float(evaluated(block, distance)[0]) - distance

    def root(low: float, high: float) -> float:
        if low < 1 < high and abs(gain(1.0)) <= NOISE:  # rho = 0 of odd and of centered maps, however flat they are
            return 1.0
        return float(brentq(gain, low, high, xtol=EPS * low, rtol=4 * EPS))

    roots = [root(low, high) for low, high in brackets]
    opposite = [2.0] if abs(after[-1] - 2) <= NOISE and not any(2 - x <= NOISE for x in roots) else []
    return [*opposite, *reversed(roots), 0.0]


def _fixed_point(block: MeanField, distance: float, signs: np.ndarray) -> FixedPoint:
    slope = float(evaluated(block, distance)[1])
    if abs(abs(slope) - 1) > _tolerance(block):
        return FixedPoint(1 - distance, slope, abs(slope) < 1, distance)
    resolved = signs != 0
    nearer = signs[resolved & (distance * (1 - NOISE) > DISTANCES)][-1:]
    farther = signs[resolved & (distance * (1 + NOISE) < DISTANCES)][:1]
    # marginal case: correlations on either inner side have to move towards it
    return FixedPoint(1 - distance, slope, bool(np.all(nearer > 0) and np.all(farther < 0)), distance)


def _tolerance(block: MeanField) -> float:
    return min(block.chi_1_error or 0.0, LARGEST_TOLERANCE)


def _correlation_length(slope: float, tolerance: float) -> float:
    if abs(slope) <= EPS:
        return 0.0
    return math.inf if abs(abs(slope) - 1) <= tolerance else -1 / math.log(abs(slope))
