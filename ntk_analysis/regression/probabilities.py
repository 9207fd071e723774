"""Class probabilities from outputs that were trained on one-hot targets with squared loss."""

import numpy as np
from jaxtyping import Float64


def on_simplex(outputs: Float64[np.ndarray, "*k classes"]) -> Float64[np.ndarray, "*k classes"]:
    """The nearest points of the simplex: numbers >= 0 of sum 1 in each row, at the least squared distance.

    They are max(outputs - t, 0) with one t for a row, which keeps the order of the outputs (Duchi et al. 2008,
    figure 1).
    """
    falling = -np.sort(-outputs, axis=-1)
    counts = np.arange(1, outputs.shape[-1] + 1)
    thresholds = (np.cumsum(falling, axis=-1) - 1) / counts  # if so many classes keep a probability
    kept = np.sum(falling > thresholds, axis=-1, keepdims=True)
    found: np.ndarray = np.maximum(outputs - np.take_along_axis(thresholds, kept - 1, axis=-1), 0.0)
    return found
