"""Laws fitted to what was measured: powers of the width, and exponential growth with depth over width."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import curve_fit

from ntk_analysis.common.arrays import concrete


class PowerLaw(NamedTuple):
    """The fit values ~ prefactor * width^exponent.

    Attributes:
        exponent: exponent of the width; NaN if nothing was resolved.
        error: standard error of the exponent, times sqrt(chi_squared) where that is above 1: a power law that holds for
            large widths only does not fit small ones within their errors.
        prefactor: factor of the power; NaN if nothing was resolved.
        chi_squared: chi^2 per degree of freedom; 0 for two widths, which any power law fits.
    """

    exponent: float
    error: float
    prefactor: float
    chi_squared: float

    def __str__(self) -> str:
        return "not resolved" if np.isnan(self.exponent) else f"{self.exponent:.3f} ± {self.error:.3f}"


UNRESOLVED = PowerLaw(np.nan, np.nan, np.nan, np.nan)


def fit_power_law(widths: np.ndarray, values: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Weighted least squares of values ~ prefactor * width^exponent, at least two widths.

    The fit is to the values, not to their logarithms. The two agree where errors are small, but only the former is
    right for a value that noise has taken below zero.

    Args:
        widths: widths (W,), positive.
        values: measured values (W,), float64.
        errors: standard errors (W,) of the values.

    Returns:
        The law; `UNRESOLVED` where fewer than two values are positive, or an error is not.
    """
    widths, values, errors = (
        concrete(given, name).astype(np.float64)
        for given, name in ((widths, "widths"), (values, "values"), (errors, "errors"))
    )
    positive = values > 0
    if np.count_nonzero(positive) < 2 or not np.all(errors > 0):
        return UNRESOLVED
    middle = np.exp(np.mean(np.log(widths)))
    steps = np.log(widths / middle)
    start = np.polyfit(steps[positive], np.log(values[positive]), 1, w=(values / errors)[positive])

    def law(step: np.ndarray, exponent: float, logarithm: float) -> np.ndarray:
        return np.exp(logarithm + exponent * step)

    try:
        found, covariance = curve_fit(law, steps, values, p0=start, sigma=errors, absolute_sigma=True)
    except RuntimeError:  # no convergence: the values are not a power of the width
        return UNRESOLVED
    freedom = len(widths) - 2
    chi_squared = float(np.sum(((values - law(steps, *found)) / errors) ** 2) / freedom) if freedom else 0.0
    error = float(covariance[0, 0] ** 0.5) * max(1.0, chi_squared) ** 0.5
    return PowerLaw(float(found[0]), error, float(np.exp(found[1]) * middle ** -found[0]), chi_squared)


def fluctuation_rate(depth_over_width: np.ndarray, fluctuation: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The rate c in Var/E^2 = exp(c depth/width) - 1, by weighted least squares of log(1 + Var/E^2), and its error.

    The error is multiplied by the root of chi^2 per degree of freedom where that is above 1, as in `PowerLaw`.

    Args:
        depth_over_width: ratios (n,) of depth to width.
        fluctuation: measured values (n,) of Var/E^2.
        errors: standard errors (n,) of these values.

    Returns:
        The rate c and its standard error.
    """
    ratio, y, error = np.asarray(depth_over_width), np.log1p(fluctuation), np.asarray(errors) / (1 + fluctuation)
    weight = 1 / error**2
    rate = float(np.sum(weight * ratio * y) / np.sum(weight * ratio**2))
    chi_squared = float(np.sum(weight * (y - rate * ratio) ** 2)) / max(len(y) - 1, 1)
    return rate, float((max(1.0, chi_squared) / np.sum(weight * ratio**2)) ** 0.5)
