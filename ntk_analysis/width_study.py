"""How fast kernels of finite networks approach the infinite-width kernel, and what is left of them with depth.

With n the width and K the infinite-width kernel, of finite networks drawn at initialisation one expects
    |Theta - K| / |K| ~ n^(-1/2)     for one draw: fluctuations (Jacot et al. 2018, 1806.07572),
    |E Theta - K| / |K| ~ n^(-1)     for the mean over draws: bias (Dyer & Gur-Ari 2019, 1909.11304, of all correlators
                                     of networks with polynomial activations; Huang & Yau 2019, 1909.08156),
    Var Theta(x, x) / E[Theta(x, x)]^2 ~ exp(c L/n) - 1   for L hidden ReLU layers: the fluctuation grows with depth
                                     over width, and at L ~ n no width is infinite (Hanin & Nica 2019, 1909.05989).
What the theory does not say are the constants, and whether normalisation changes them: these are measured here.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64
from scipy.optimize import curve_fit

from ntk_analysis.empirical.functions import Side, couples_batch, flattened
from ntk_analysis.empirical.layerwise import layerwise_method
from ntk_analysis.infinite import HasKernel, infinite_kernel
from ntk_analysis.layers import Dense, Layer, Serial
from ntk_analysis.layers.base import Params
from ntk_analysis.precision import AnyArray

FEWEST_DRAWS = 4  # the fewest that leave a variance of the variance to estimate
RESOLVED = 3  # standard errors above zero from which a bias counts as seen


class PowerLaw(NamedTuple):
    """values ~ prefactor * width^exponent, fitted.

    Attributes:
        exponent: NaN where nothing was resolved.
        error: its standard error, times sqrt(chi_squared) where that is above 1: a power law that holds for large
            widths only does not fit small ones within their errors.
        prefactor: NaN where nothing was resolved.
        chi_squared: per degree of freedom; 0 for two widths, which any power law fits.
    """

    exponent: float
    error: float
    prefactor: float
    chi_squared: float

    def __str__(self) -> str:
        return "not resolved" if np.isnan(self.exponent) else f"{self.exponent:.3f} ± {self.error:.3f}"


UNRESOLVED = PowerLaw(np.nan, np.nan, np.nan, np.nan)


@dataclass(frozen=True, eq=False)
class Convergence:
    """One kernel of finite networks at W widths, several draws each, against its infinite-width limit K.

    Attributes:
        widths: (W,).
        distance: for each width (S,), the relative Frobenius distance |k - K| / |K| of each of its S draws k.
        bias_squared: (W,) |E k - K|^2 / |K|^2 without bias: the mean's squared distance less variance / S, what the
            mean of S draws would have without any. Negative values are noise around zero.
        bias_squared_error: (W,) standard error of that.
        fluctuation: (W,) Var k(x, x) / (E k(x, x))^2, mean over inputs.
        fluctuation_error: (W,) standard error of that; inputs of one draw are not independent, only draws are.
    """

    widths: np.ndarray
    distance: tuple[np.ndarray, ...]
    bias_squared: Float64[np.ndarray, " W"]
    bias_squared_error: Float64[np.ndarray, " W"]
    fluctuation: Float64[np.ndarray, " W"]
    fluctuation_error: Float64[np.ndarray, " W"]

    @classmethod
    def of(cls, widths: Sequence[int], samples: Sequence[np.ndarray], limit: np.ndarray) -> "Convergence":
        """Statistics of an ensemble.

        Args:
            widths: W widths.
            samples: for each width (S, n, n), the kernel of each draw.
            limit: (n, n), what they should approach.

        Raises:
            ValueError: shapes that do not fit, NaN or infinite kernels, fewer than 4 draws, a limit of 0.
        """
        limit = np.asarray(limit, np.float64)
        draws = [_checked(kernels, limit, width) for width, kernels in zip(widths, samples, strict=True)]
        size = float(np.linalg.norm(limit))
        if not 0 < size < np.inf:
            raise ValueError(f"the limit has norm {size}: relative distances need a finite kernel that is not 0")
        bias, fluctuation = (
            np.array([statistic(kernels) for kernels in draws]).T
            for statistic in (lambda kernels: squared_bias((kernels - limit) / size), diagonal_fluctuation)
        )
        distance = tuple(np.linalg.norm(kernels - limit, axis=(1, 2)) / size for kernels in draws)
        return cls(np.array(widths), distance, *bias, *fluctuation)

    @property
    def mean_distance(self) -> Float64[np.ndarray, " W"]:
        """Mean over draws of the relative distance of one draw."""
        return np.array([draws.mean() for draws in self.distance])

    @property
    def distance_error(self) -> Float64[np.ndarray, " W"]:
        """Standard error of `mean_distance`."""
        return np.array([draws.std(ddof=1) / len(draws) ** 0.5 for draws in self.distance])

    @property
    def bias(self) -> Float64[np.ndarray, " W"]:
        """Relative distance of the mean over infinitely many draws; 0 where its square was estimated below."""
        return np.sqrt(np.maximum(self.bias_squared, 0))

    @property
    def bias_error(self) -> Float64[np.ndarray, " W"]:
        """Standard error of `bias`, to first order; where it is not small against the bias, look at the squares."""
        return self.bias_squared_error / (2 * np.sqrt(np.maximum(self.bias_squared, self.bias_squared_error)))

    @property
    def bias_resolved(self) -> np.ndarray:
        """(W,) whether the squared bias is more than 3 standard errors above zero."""
        return self.bias_squared > RESOLVED * self.bias_squared_error

    @property
    def distance_law(self) -> PowerLaw:
        """The distance of one draw as a power of the width; theory: -1/2."""
        return fit_power_law(self.widths, self.mean_distance, self.distance_error)

    @property
    def bias_law(self) -> PowerLaw:
        """The bias as a power of the width; theory: -1. Not resolved unless it is at two widths or more.

        Fitted to the squares at all widths, so that none is left out for having come out small.
        """
        if np.count_nonzero(self.bias_resolved) < 2:
            return UNRESOLVED
        law = fit_power_law(self.widths, self.bias_squared, self.bias_squared_error)
        return PowerLaw(law.exponent / 2, law.error / 2, law.prefactor**0.5, law.chi_squared)

    def summary(self) -> str:
        """One line."""
        last = f"{self.mean_distance[-1]:.3g} ± {self.distance_error[-1]:.1g}"
        bias = f"width^({self.bias_law})" if np.sum(self.bias_resolved) > 1 else "not resolved"
        return (
            f"one draw width^({self.distance_law}), {last} at width {self.widths[-1]}; bias {bias}; "
            f"Var/E² of the diagonal {self.fluctuation[-1]:.2g} ± {self.fluctuation_error[-1]:.1g}"
        )


@dataclass(frozen=True, eq=False)
class WidthStudy:
    """NTK and NNGP of finite networks by width.

    Attributes:
        widths: (W,) ascending.
        draws: (W,) networks drawn at each width.
        ntk: of the tangent kernel, its mean over outputs (ready networks have one).
        nngp: of the covariance of the outputs given the hidden layers.
    """

    widths: np.ndarray
    draws: np.ndarray
    ntk: Convergence
    nngp: Convergence

    def summary(self) -> str:
        """Three lines."""
        drawn = ", ".join(f"{draws} of {width}" for draws, width in zip(self.draws, self.widths, strict=True))
        return f"networks by width: {drawn}\nNTK: {self.ntk.summary()}\nNNGP: {self.nngp.summary()}"


def width_study(
    make: Callable[[int], Layer],
    x: AnyArray,
    widths: Sequence[int],
    seeds: int | Sequence[int],
    *,
    seed: int = 0,
    limit: HasKernel | None = None,
) -> WidthStudy:
    """Kernels of freshly drawn finite networks, by width, against the infinite-width kernel on the same inputs.

    The NTK is exact for each draw (the layer-wise method of `empirical_ntk`). The NNGP of a draw is the covariance of
    its outputs over read-out weights, given its hidden layers: w_var <P phi, P phi'> / (n - 1) + b_var with the
    projection P of centred weights, and P = I and n in place of n - 1 without. A product of the outputs themselves has
    the same mean but, for one output, a relative deviation of order one at any width.

    The variance of the mean falls as 1/(width seeds), the squared bias as 1/width^2: a bias is seen from about
    seeds = width on, best at small widths, where thousands of networks cost seconds.

    Finite networks compute in the dtype of x (float32 is enough: its rounding is far below any fluctuation); the limit
    and all statistics are float64. Compiled once for each width; networks of different widths are independent.

    Args:
        make: width -> network, as in `lambda width: fully_connected(3, width, "batch")`. It ends in a `Dense` layer.
        x: (n, ...) inputs; a batch-normalised network takes them as one batch.
        widths: at least two, ascending.
        seeds: number of networks drawn at each width, one for all or one for each; at least 4.
        seed: of all draws.
        limit: the network whose infinite-width kernel is compared with; None is make(widths[0]).

    Raises:
        TypeError: make does not return a `Serial` that ends in `Dense`.
        ValueError: widths, seeds or inputs as above; a network without a finite kernel on these inputs.
        NotImplementedError: the network has no infinite-width kernel.
    """
    widths, draws = _checked_widths(widths, seeds)
    networks = [_checked_network(make(width), width) for width in widths]
    # before any network is drawn, with its checks of the inputs; NumPy float64 gives float64
    exact = infinite_kernel(networks[0] if limit is None else limit, np.asarray(x).astype(np.float64))
    samples = draw_kernels(networks, x, draws, seed)
    ntk, nngp = (
        Convergence.of(widths, [kernels[which] for kernels in samples], np.asarray(expected))
        for which, expected in enumerate((exact.ntk, exact.nngp))
    )
    return WidthStudy(np.array(widths), np.array(draws), ntk, nngp)


def draw_kernels(networks: Sequence[Serial], x: AnyArray, seeds: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """For each network (2, S, n, n): NTK (mean over outputs) and NNGP of each of its S draws, as in `width_study`.

    Networks have different widths or depths and are alike otherwise: the first one says whether outputs couple the
    batch. Each is compiled, which takes most of the time, beside another on a thread of its own.
    """
    x = np.asarray(x)
    x = x if x.dtype == np.float64 else x.astype(np.float32)
    coupled = _couples(networks[0], x)
    keys = [jax.random.fold_in(jax.random.key(seed), number) for number in range(len(networks))]

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(
            pool.map(lambda network, key, draws: _drawn(network, x, key, draws, coupled), networks, keys, seeds)
        )


def _couples(network: Serial, x: np.ndarray) -> bool:
    with jax.enable_x64(x.dtype == np.float64):
        params = jax.jit(lambda key: network.init(key, (-1, *x.shape[1:]))[1])(jax.random.key(0))
        return couples_batch(jax.jit(flattened(network)), params, x)


def _drawn(network: Serial, x: np.ndarray, key: jax.Array, draws: int, coupled: bool) -> np.ndarray:
    with jax.enable_x64(x.dtype == np.float64), jax.default_matmul_precision("highest"):
        side = Side(jnp.asarray(x), jnp.arange(len(x)) if coupled else None)
        method = layerwise_method(network, "trace")

        def one(key: jax.Array) -> jax.Array:
            (_, outputs), params = network.init(key, (-1, *x.shape[1:]))
            features = method.features(params, side)
            ntk = method.contract(params, features, features) / outputs
            return jnp.stack([ntk, output_covariance(network, params, side.x)])

        # one after another: a batch of draws takes twice as long to compile and no less to run
        kernels = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, draws))
        return np.asarray(kernels, np.float64).swapaxes(0, 1)


def output_covariance(network: Serial, params: Params, x: jax.Array) -> Float[jax.Array, "n n"]:
    """Covariance of an output over read-out weights and biases, given the hidden layers, (n, n).

    Exact at every width: standardised weights are sqrt(fan-in) times a uniformly distributed unit vector of the space
    of sum 0, which has one dimension fewer, and so the covariance of centred ones.
    """
    *hidden, readout = network.layers
    assert isinstance(readout, Dense), "checked before"
    phi = Serial(*hidden).apply(params[:-1], x) if hidden else x
    weights = readout.weights
    if weights.centered:
        phi = phi - jnp.mean(phi, axis=1, keepdims=True)
    gain = weights.w_var / (phi.shape[1] - weights.centered)
    return gain * jnp.matmul(phi, phi.T, precision="highest") + weights.b_var


def squared_bias(deviations: np.ndarray) -> tuple[float, float]:
    """|E d|^2 of random vectors d from S draws, unbiased, and its standard error.

    The estimate |mean d|^2 - tr C / S, C the covariance of d, is the mean of <d_i, d_j> over pairs of different draws.
    Its variance is 4 <b, C b> / S + 2 tr C^2 / (S (S - 1)) with b = E d, exactly; here <b, C b> is estimated at the
    mean, less the tr C^2 / S that its own deviation adds, and tr C^2 as in Bai & Saranadasa 1996 (Statistica Sinica 6,
    311), both unbiased for Gaussian d but for
    being cut off at 0: near b = 0 the error is up to 1.4 times too large, never too small.

    Args:
        deviations: (S, ...), S >= 4.
    """
    flat = deviations.reshape(len(deviations), -1)
    draws, mean = len(flat), flat.mean(axis=0)
    centered = flat - mean
    inner = centered @ centered.T if draws < flat.shape[1] else centered.T @ centered  # equal but for eigenvalues of 0
    trace, frobenius = np.trace(inner) / (draws - 1), np.sum(inner**2) / (draws - 1) ** 2
    squared = (draws - 1) ** 2 / ((draws - 2) * (draws + 1)) * (frobenius - trace**2 / (draws - 1))
    squared = max(squared, frobenius / draws)  # the least of a positive matrix of this rank
    along = np.sum((centered @ mean) ** 2) / (draws - 1)
    variance = 4 / draws * max(along - squared / draws, 0) + 2 * squared / (draws * (draws - 1))
    return float(mean @ mean - trace / draws), float(variance**0.5)


def diagonal_fluctuation(kernels: np.ndarray) -> tuple[float, float]:
    """Var k(x, x) / (E k(x, x))^2 from S draws (S, n, n), mean over x, and its standard error by the delta method.

    The squared mean is freed of its own variance / S. Draws of a heavy-tailed kernel (depth near width) hide the rare
    large ones that make up their variance: the estimate is then low, and so is its error.
    """
    diagonal = np.diagonal(kernels, axis1=1, axis2=2)
    mean, variance = diagonal.mean(axis=0), diagonal.var(axis=0, ddof=1)
    squared_mean = mean**2 - variance / len(kernels)
    deviation = diagonal - mean
    influence = (deviation**2 - variance) / squared_mean - 2 * variance * mean * deviation / squared_mean**2
    error = influence.mean(axis=1).std(ddof=1) / len(kernels) ** 0.5
    return float(np.mean(variance / squared_mean)), float(error)


def fit_power_law(widths: np.ndarray, values: np.ndarray, errors: np.ndarray) -> PowerLaw:
    """Weighted least squares of values ~ prefactor * width^exponent, at least two widths.

    Of the values, not of their logarithms, which is the same where errors are small and still right for a value that
    noise has taken below zero.
    """
    widths, values, errors = (np.asarray(a, np.float64) for a in (widths, values, errors))
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
    except RuntimeError:  # no convergence: the values are no power of the width
        return UNRESOLVED
    freedom = len(widths) - 2
    chi_squared = float(np.sum(((values - law(steps, *found)) / errors) ** 2) / freedom) if freedom else 0.0
    error = float(covariance[0, 0] ** 0.5) * max(1.0, chi_squared) ** 0.5
    return PowerLaw(float(found[0]), error, float(np.exp(found[1]) * middle ** -found[0]), chi_squared)


def fluctuation_rate(depth_over_width: np.ndarray, fluctuation: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The c of Var/E^2 = exp(c depth/width) - 1, by weighted least squares of log(1 + Var/E^2), and its error.

    The error is times sqrt(chi^2) per degree of freedom where that is above 1, as in `PowerLaw`.
    """
    ratio, y, error = np.asarray(depth_over_width), np.log1p(fluctuation), np.asarray(errors) / (1 + fluctuation)
    weight = 1 / error**2
    rate = float(np.sum(weight * ratio * y) / np.sum(weight * ratio**2))
    chi_squared = float(np.sum(weight * (y - rate * ratio) ** 2)) / max(len(y) - 1, 1)
    return rate, float((max(1.0, chi_squared) / np.sum(weight * ratio**2)) ** 0.5)


def _checked(kernels: np.ndarray, limit: np.ndarray, width: int) -> np.ndarray:
    kernels = np.asarray(kernels, np.float64)
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


def _checked_widths(widths: Sequence[int], seeds: int | Sequence[int]) -> tuple[list[int], list[int]]:
    found = [int(width) for width in widths]
    if len(found) < 2 or found[0] < 1 or any(second <= first for first, second in pairwise(found)):
        raise ValueError(f"got widths {found}: give at least two, ascending, as in [32, 64, 128]")
    draws = [seeds] * len(found) if isinstance(seeds, int) else [int(count) for count in seeds]
    if len(draws) != len(found) or min(draws) < FEWEST_DRAWS:
        raise ValueError(
            f"got seeds {seeds} for {len(found)} widths: give one number of networks for all or one for each, at least "
            f"{FEWEST_DRAWS} for a standard error"
        )
    return found, draws


def _checked_network(network: object, width: int) -> Serial:
    if not isinstance(network, Serial) or not isinstance(network.layers[-1], Dense):
        raise TypeError(
            f"make({width}) must be a Serial of layers that ends in Dense, its read-out, got {network!r}: "
            "as in lambda width: fully_connected(3, width)"
        )
    return network
