"""One kernel of finite networks by width against its limit: distances, bias, fluctuation, and their laws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.norms import norm
from ntk_analysis.width_study.laws import UNRESOLVED, PowerLaw, fit_power_law
from ntk_analysis.width_study.statistics import FEWEST_DRAWS, diagonal_fluctuation, squared_bias

RESOLVED = 3  # number of standard errors above zero from which a bias counts as seen


@dataclass(frozen=True, eq=False)
class Convergence:
    """One kernel of finite networks at W widths, several draws each, against its infinite-width limit K.

    Attributes:
        widths: widths of the networks, of shape (W,).
        distance: relative Frobenius distances |k - K| / |K| of the S draws k, an array (S,) for each width.
        bias_squared: squared bias |E k - K|^2 / |K|^2, without bias of its own, (W,): the mean's squared distance less
            variance / S, which the mean of S draws would have without any bias. Negative values are noise around zero.
        bias_squared_error: standard errors of `bias_squared`, of shape (W,).
        fluctuation: relative variance Var k(x, x) / (E k(x, x))^2, mean over inputs, of shape (W,).
        fluctuation_error: standard errors of `fluctuation`, (W,); only draws are independent, not the inputs of one
            draw.
    """

    widths: np.ndarray
    distance: tuple[np.ndarray, ...]
    bias_squared: Float64[np.ndarray, " W"]
    bias_squared_error: Float64[np.ndarray, " W"]
    fluctuation: Float64[np.ndarray, " W"]
    fluctuation_error: Float64[np.ndarray, " W"]

    @classmethod
    def of(cls, widths: Sequence[int], samples: Sequence[np.ndarray], limit: np.ndarray) -> "Convergence":
        """Statistics of an ensemble of kernels against their limit.

        Args:
            widths: widths of the networks, W numbers.
            samples: kernels of all draws, an array (S, n, n) for each width.
            limit: kernel (n, n) that they should approach.

        Raises:
            ValueError: shapes do not fit, kernels are NaN or infinite, there are fewer than 4 draws, or the limit is 0.
        """
        limit = concrete(limit, "limit").astype(np.float64)
        draws = [_checked(kernels, limit, width) for width, kernels in zip(widths, samples, strict=True)]
        size = norm(limit)
        if not 0 < size < np.inf:
            raise ValueError(f"the limit has norm {size}: relative distances need a finite kernel that is not 0")
        off = [kernels / size - limit / size for kernels in draws]  # of a size whose squares are in range
        bias, fluctuation = (
            np.array([statistic(kernels) for kernels in given]).T
            for statistic, given in ((squared_bias, off), (diagonal_fluctuation, [kernels / size for kernels in draws]))
        )
        distance = tuple(np.linalg.norm(one, axis=(1, 2)) for one in off)
        return cls(np.array(widths), distance, *bias, *fluctuation)

    @property
    def mean_distance(self) -> Float64[np.ndarray, " W"]:
        """Mean over draws of the relative distance of one draw, (W,)."""
        return np.array([draws.mean() for draws in self.distance])

    @property
    def distance_error(self) -> Float64[np.ndarray, " W"]:
        """Standard error of `mean_distance`, (W,)."""
        return np.array([draws.std(ddof=1) / len(draws) ** 0.5 for draws in self.distance])

    @property
    def bias(self) -> Float64[np.ndarray, " W"]:
        """Relative distance of the mean over infinitely many draws; 0 where the estimate of its square is negative."""
        return np.sqrt(np.maximum(self.bias_squared, 0))

    @property
    def bias_error(self) -> Float64[np.ndarray, " W"]:
        """Standard error of `bias`, to first order; where it is not small against the bias, look at the squares."""
        return self.bias_squared_error / (2 * np.sqrt(np.maximum(self.bias_squared, self.bias_squared_error)))

    @property
    def bias_resolved(self) -> np.ndarray:
        """Whether the squared bias is more than 3 standard errors above zero, (W,)."""
        return self.bias_squared > RESOLVED * self.bias_squared_error

    @property
    def distance_law(self) -> PowerLaw:
        """The distance of one draw as a power of the width; theory: -1/2."""
        return fit_power_law(self.widths, self.mean_distance, self.distance_error)

    @property
    def bias_law(self) -> PowerLaw:
        """The bias as a power of the width; theory: -1. It is not resolved unless the bias is at two widths or more.

        It is fitted to the squares at all widths, so that none is left out because it happens to be small.
        """
        if np.count_nonzero(self.bias_resolved) < 2:
            return UNRESOLVED
        law = fit_power_law(self.widths, self.bias_squared, self.bias_squared_error)
        return PowerLaw(law.exponent / 2, law.error / 2, law.prefactor**0.5, law.chi_squared)

    def summary(self) -> str:
        """The statistics as one line of text."""
        last = f"{self.mean_distance[-1]:.3g} ± {self.distance_error[-1]:.1g}"
        bias = f"width^({self.bias_law})" if np.sum(self.bias_resolved) > 1 else "not resolved"
        return (
            f"one draw width^({self.distance_law}), {last} at width {self.widths[-1]}; bias {bias}; "
            f"Var/E² of the diagonal {self.fluctuation[-1]:.2g} ± {self.fluctuation_error[-1]:.1g}"
        )


def _checked(kernels: np.ndarray, limit: np.ndarray, width: int) -> np.ndarray:
    kernels = concrete(kernels, f"kernels at width {width}").astype(np.float64)
    if kernels.ndim != 3 or kernels.shape[1:] != limit.shape:
        raise ValueError(f"kernels at width {width} have shape {kernels.shape}, expected (draws, *{limit.shape})")
    if len(kernels) < FEWEST_DRAWS:
        raise ValueError(f"got {len(kernels)} draws at width {width}: standard errors need at least {FEWEST_DRAWS}")
    if not np.all(np.isfinite(kernels)):
        bad = np.flatnonzero(~np.isfinite(kernels).all(axis=(1, 2)))
        raise ValueError(
            f"{len(bad)} of {len(kernels)} networks of width {width} have NaN or infinite kernels, first in draw "
            f"{bad[0]}: use larger widths, float64 inputs, or for a batch normalisation eps > 0 or more inputs"
        )
    return kernels
