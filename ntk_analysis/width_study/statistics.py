"""Estimates from independent draws, each with its standard error: squared bias, fluctuation of the diagonal."""

import numpy as np

FEWEST_DRAWS = 4  # smallest number of draws that allows to estimate the variance of the variance


def squared_bias(deviations: np.ndarray) -> tuple[float, float]:
    """The squared length |E d|^2 for random vectors d from S draws, estimated without bias, and its standard error.

    The estimate |mean d|^2 - tr C / S, with C the covariance of d, is the mean of <d_i, d_j> over pairs of different
    draws. Its variance is 4 <b, C b> / S + 2 tr C^2 / (S (S - 1)) with b = E d, exactly. Here <b, C b> is estimated at
    the mean, less the tr C^2 / S that the mean's own deviation adds, and tr C^2 as in Bai & Saranadasa 1996 (Statistica
    Sinica 6, 311). Both are unbiased for Gaussian d, except that they are cut off from below: near b = 0 the squared
    error is too large on average, up to 1 + 2 E max(z^2 - 1, 0) = 1.97 times (b = 0, C of rank 1, z standard normal).

    Args:
        deviations: random vectors d, of shape (S, ...), with S >= 4.
    """
    flat = deviations.reshape(len(deviations), -1)
    draws, mean = len(flat), flat.mean(axis=0)
    centered = flat - mean
    inner = centered @ centered.T if draws < flat.shape[1] else centered.T @ centered  # equal but for eigenvalues of 0
    trace, frobenius = np.trace(inner) / (draws - 1), np.sum(inner**2) / (draws - 1) ** 2
    squared = (draws - 1) ** 2 / ((draws - 2) * (draws + 1)) * (frobenius - trace**2 / (draws - 1))
    squared = max(squared, frobenius / draws)  # the least value of a positive matrix of this rank
    along = np.sum((centered @ mean) ** 2) / (draws - 1)
    variance = 4 / draws * max(along - squared / draws, 0) + 2 * squared / (draws * (draws - 1))
    return float(mean @ mean - trace / draws), float(variance**0.5)


def diagonal_fluctuation(kernels: np.ndarray) -> tuple[float, float]:
    """Var k(x, x) / (E k(x, x))^2, mean over inputs x, and its standard error by the delta method.

    The squared mean is corrected for its own variance / S. Draws of a heavy-tailed kernel (depth near width) hide the
    rare large values that make up their variance: the estimate is then too low, and so is its error.

    Args:
        kernels: S draws (S, n, n) of one kernel, float64 or float32.
    """
    diagonal = np.diagonal(kernels, axis1=1, axis2=2)
    mean, variance = diagonal.mean(axis=0), diagonal.var(axis=0, ddof=1)
    squared_mean = mean**2 - variance / len(kernels)
    deviation = diagonal - mean
    influence = (deviation**2 - variance) / squared_mean - 2 * variance * mean * deviation / squared_mean**2
    error = influence.mean(axis=1).std(ddof=1) / len(kernels) ** 0.5
    return float(np.mean(variance / squared_mean)), float(error)
