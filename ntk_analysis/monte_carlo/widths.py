"""Averages over networks of several widths, extrapolated to infinite width."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import chi2

from ntk_analysis.monte_carlo.estimate import KernelEstimate


def extrapolated(widths: tuple[int, ...], estimates: Sequence[KernelEstimate]) -> KernelEstimate:
    """The kernels at 1/width = 0 on the line of weighted least squares through those of each width, entry by entry.

    Their errors are the standard errors of the intercept, if the line is true; `misfit` says whether it can be.
    """
    fits = {name: _line(widths, estimates, name) for name in ("nngp", "ntk")}
    (nngp, nngp_error, first), (ntk, ntk_error, second) = fits["nngp"], fits["ntk"]
    one = estimates[0]
    entries = 2 * number_of_entries(one.shape, symmetric=one.symmetric)
    misfit = min(1.0, entries * min(first, second))
    return KernelEstimate(
        nngp, ntk, nngp_error, ntk_error, one.draws, one.seed, one.symmetric, widths=widths, misfit=misfit
    )


def number_of_entries(shape: tuple[int, ...], *, symmetric: bool) -> int:
    """Number of different entries of a kernel."""
    n1, n2 = shape
    return n1 * (n1 + 1) // 2 if symmetric else n1 * n2


def _line(
    widths: tuple[int, ...], estimates: Sequence[KernelEstimate], name: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Intercept, its standard error, and the least probability of what is left of the points."""
    means = np.stack([getattr(one, name) for one in estimates])
    errors = np.stack([getattr(one, f"{name}_error") for one in estimates])
    # an entry that is the same in all draws has rounding for an error
    errors = np.maximum(errors, np.finfo(np.float64).eps * np.max(np.abs(means)))
    weight, at = 1 / errors**2, (1 / np.asarray(widths, np.float64))[:, None, None]
    s0, s1, s2 = (np.sum(weight * at**k, axis=0) for k in range(3))
    t0, t1 = (np.sum(weight * at**k * means, axis=0) for k in range(2))
    determinant = s0 * s2 - s1**2
    intercept, slope = (s2 * t0 - s1 * t1) / determinant, (s0 * t1 - s1 * t0) / determinant
    freedom = len(widths) - 2
    left = np.sum(weight * (means - intercept - slope * at) ** 2, axis=0)
    least = float(np.min(chi2.sf(left, freedom))) if freedom else 1.0
    return intercept, np.sqrt(s2 / determinant), least
