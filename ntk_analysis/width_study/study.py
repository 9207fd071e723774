"""The whole study: networks of several widths drawn, measured against the limit, and summed up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.infinite.kernel import HasKernel
from ntk_analysis.layers import Dense, Layer, Serial
from ntk_analysis.width_study.convergence import Convergence
from ntk_analysis.width_study.draws import draw_kernels
from ntk_analysis.width_study.statistics import FEWEST_DRAWS


@dataclass(frozen=True, eq=False)
class WidthStudy:
    """NTK and NNGP of finite networks by width.

    Attributes:
        widths: widths of the networks, ascending, of shape (W,).
        draws: number of networks drawn at each width, of shape (W,).
        ntk: convergence of the tangent kernel, its mean over outputs (ready networks have one output).
        nngp: convergence of the covariance of the outputs given the hidden layers.
    """

    widths: np.ndarray
    draws: np.ndarray
    ntk: Convergence
    nngp: Convergence

    def summary(self) -> str:
        """The study as three lines of text."""
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
    projection P of centered weights; without centering, P = I, and n stands in place of n - 1. A product of the outputs
    themselves has the same mean but, for one output, a relative deviation of order one at any width.

    The variance of the mean falls as 1/(width seeds), the squared bias as 1/width^2. So a bias is seen from about seeds
    = width on, best at small widths, where thousands of networks cost seconds.

    Finite networks compute in the dtype of x (float32 is enough: its rounding is far below any fluctuation); the limit
    and all statistics are float64. Each width is compiled once; networks of different widths are independent.

    Args:
        make: function from a width to a network that ends in `Dense`, such as `lambda width: fully_connected(3, width,
            "batch")`.
        x: inputs (n, ...); a batch-normalised network takes them as one batch.
        widths: two or more widths, ascending.
        seeds: number of networks drawn at each width, one for all or one for each; at least 4.
        seed: seed of all draws.
        limit: network whose infinite-width kernel is the limit; None is make(widths[0]).

    Raises:
        TypeError: make does not return a `Serial` that ends in `Dense`.
        ValueError: widths, seeds or inputs are not as above, or the network has no finite kernel on these inputs.
        NotImplementedError: the network has no infinite-width kernel.
    """
    widths, draws = _checked_widths(widths, seeds)
    networks = [_checked_network(make(width), width) for width in widths]
    # before any network is drawn, as it checks the inputs; NumPy float64 gives float64
    exact = infinite_kernel(networks[0] if limit is None else limit, concrete(x, "x").astype(np.float64))
    samples = draw_kernels(networks, x, draws, seed)
    ntk, nngp = (
        Convergence.of(widths, [kernels[which] for kernels in samples], np.asarray(expected))
        for which, expected in enumerate((exact.ntk, exact.nngp))
    )
    return WidthStudy(np.array(widths), np.array(draws), ntk, nngp)


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
