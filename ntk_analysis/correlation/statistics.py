"""What was measured, layer by layer: its means, bands and standard errors over pairs and draws."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Integer


class UndefinedCorrelationWarning(UserWarning):
    """A layer is the same in all channels (Pearson) or zero (cosine) for some input: its correlations are NaN."""


@dataclass(frozen=True, eq=False)
class CorrelationByLayer:
    """Correlation coefficients of P pairs of inputs at every hidden layer of several networks.

    Statistics pool pairs and draws. They leave out NaN, which marks an undefined correlation (a dead layer) and which
    an UndefinedCorrelationWarning announced. A layer with no other values is NaN.

    Attributes:
        values: coefficients in [-1, 1], of shape (draws, depth, P); layer l is at index l - 1.
        initial: cosines x.x' / (|x| |x'|) of the inputs, of shape (P,).
        pairs: row numbers of x, of shape (P, 2).
        observable: one of OBSERVABLES, or "given" or "cosine" for the layers of a function.
    """

    values: Float64[np.ndarray, "draws depth pairs"]
    initial: Float64[np.ndarray, " pairs"]
    pairs: Integer[np.ndarray, "pairs 2"]
    observable: str

    def mean(self) -> Float64[np.ndarray, " depth"]:
        """Mean over pairs and draws."""
        return _pooled_mean(self.values)

    def standard_deviation(self) -> Float64[np.ndarray, " depth"]:
        """Standard deviation over pairs and draws (divided by their number): the measured band."""
        return _pooled_deviation(self.values)

    def mean_error(self) -> Float64[np.ndarray, " depth"]:
        """Standard error of `mean` over draws, for these inputs and pairs.

        Raises:
            ValueError: there is one draw only.
        """
        return self._over_draws(_pooled_mean)

    def standard_deviation_error(self) -> Float64[np.ndarray, " depth"]:
        """Standard error of `standard_deviation` over draws, by the jackknife (leaving out one network at a time).

        Raises:
            ValueError: there is one draw only.
        """
        return self._over_draws(_pooled_deviation)

    def quantiles(
        self, probabilities: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)
    ) -> Float64[np.ndarray, "quantiles depth"]:
        """Quantiles over pairs and draws."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
            return np.nanquantile(self.values, np.asarray(probabilities, np.float64), axis=(0, 2))

    def _over_draws(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        draws = len(self.values)
        if draws < 2:
            raise ValueError("one draw has no standard error: networks are the independent unit, use draws >= 2")
        others = np.stack([statistic(np.delete(self.values, draw, axis=0)) for draw in range(draws)])
        return np.sqrt((draws - 1) * others.var(axis=0))


@dataclass(frozen=True, eq=False)
class ChannelDistributions:
    """Values of single channels over a batch, at some hidden layers of one network.

    Attributes:
        values: values of shape (layers, channels, batch).
        layers: numbers of the hidden layers, 1 to depth.
        observable: name of the observable that is shown.
    """

    values: Float64[np.ndarray, "layers channels batch"]
    layers: tuple[int, ...]
    observable: str

    def quantiles(
        self, probabilities: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ) -> Float64[np.ndarray, "quantiles layers channels"]:
        """Quantiles of each channel over the batch: the box plots of Fig. 2 and 3."""
        return np.quantile(self.values, np.asarray(probabilities, np.float64), axis=-1)


def _pooled_mean(values: np.ndarray) -> np.ndarray:
    return np.ma.masked_invalid(values).mean(axis=(0, 2)).filled(np.nan)


def _pooled_deviation(values: np.ndarray) -> np.ndarray:
    return np.ma.masked_invalid(values).std(axis=(0, 2)).filled(np.nan)
