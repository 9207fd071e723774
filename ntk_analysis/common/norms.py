"""Lengths of arrays whose squares may leave float64's range."""

import numpy as np


def norm(values: np.ndarray) -> float:
    """Euclidean length of all entries, in float64; infinite only where it is beyond float64 itself, or an entry is."""
    wide = np.asarray(values, np.float64)
    largest = float(np.max(np.abs(wide), initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return largest
    with np.errstate(over="ignore", under="ignore"):
        return largest * float(np.linalg.norm((wide / largest).ravel()))
