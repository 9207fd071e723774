"""What an average over finite networks says: the kernels, and how uncertain they are."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

FEWEST_DRAWS = 4  # a standard error from fewer says nothing


@dataclass(frozen=True, repr=False, eq=False)
class KernelEstimate:
    """NNGP and NTK of n1 with n2 inputs, averaged over draws of finite networks; float64.

    An analysis that takes an array takes the estimate as its NTK.

    Attributes:
        nngp: mean over draws and outputs of the products of outputs, (n1, n2).
        ntk: mean over draws and outputs of the tangent kernel, (n1, n2).
        nngp_error: standard error of each entry of `nngp`, (n1, n2); only draws are independent, not outputs.
        ntk_error: standard error of each entry of `ntk`, (n1, n2).
        draws: number of networks drawn, at each width if there are several.
        seed: seed of the draws.
        symmetric: whether the second inputs are the first ones.
        widths: widths from which the kernels are extrapolated in 1/width; () for networks of one size.
        misfit: smallest probability, of all entries times their number, that averages of these widths lie as far off a
            line in 1/width as they do; 1 for fewer than three widths.
    """

    nngp: Float64[np.ndarray, "n1 n2"]
    ntk: Float64[np.ndarray, "n1 n2"]
    nngp_error: Float64[np.ndarray, "n1 n2"]
    ntk_error: Float64[np.ndarray, "n1 n2"]
    draws: int
    seed: int
    symmetric: bool
    widths: tuple[int, ...] = ()
    misfit: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of first and second inputs."""
        return self.ntk.shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.ntk, dtype=dtype, copy=copy)

    def summary(self) -> str:
        """The estimate as one line of text."""
        relative = (np.max(error) / np.max(np.abs(mean)) for mean, error in self._pairs())
        nngp, ntk = (f"{100 * share:.2g} %" for share in relative)
        of = f", extrapolated from widths {', '.join(map(str, self.widths))}" if self.widths else ""
        each = " each" if self.widths else ""
        return (
            f"nngp and ntk {self.shape} of {self.draws} draws{each}{of}: errors up to {nngp} and {ntk} of the largest"
        )

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def _pairs(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        return (self.nngp, self.nngp_error), (self.ntk, self.ntk_error)
