"""The tangent kernel of the network and its spectra."""

import warnings
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ntk_analysis import spectrum
from ntk_analysis.common.progress import Track, untracked
from ntk_analysis.empirical import EmpiricalKernel, TilePlan, empirical_ntk, plan
from ntk_analysis.empirical.functions import Network
from ntk_analysis.layers.base import Params
from ntk_analysis.spectrum import Spectrum

FULL_SIZE, FULL_FLOPS = 2048, 1e12  # limits for computing the full kernel besides the trace: rows and cost, some 10 s


class Tangent(NamedTuple):
    """The tangent kernel of a network, by its spectra.

    Attributes:
        plan: plan by which the kernel was computed.
        coupling: text that says what couples the batch; empty if nothing does.
        trace: spectrum of the kernel's mean over outputs, (N, N).
        full: spectrum of the whole kernel, (N C, N C); None if it was too large.
        ratio: mean entry off the diagonal / mean entry on it, of the mean over outputs.
    """

    plan: TilePlan
    coupling: str
    trace: Spectrum
    full: Spectrum | None
    ratio: float


def tangent(
    f: Network,
    params: Params,
    x: np.ndarray,
    *,
    memory: str | int | None,
    coupled: bool | str,
    track: Track = untracked,
) -> Tangent:
    """Spectra of the kernel of the inputs with themselves: of the whole kernel if it is cheap enough, and of the mean.

    Raises:
        ValueError: the kernel is zero, or so small that its entries have no digits left.
        MemoryError: one pair of inputs needs more than `memory`.
    """
    options: dict[str, Any] = {"memory": memory, "layout": "trace"}
    found = plan(f, params, x, coupled=coupled, **options)
    options["coupled"] = found.coupled
    if found.outputs * len(x) <= FULL_SIZE and _cheap(f, params, x, options):
        options["layout"] = "full"
    kernel = empirical_ntk(f, params, x, **options, track=track)
    averaged = _averaged(kernel)
    _check_digits(averaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", spectrum.UnresolvedSpectrumWarning)  # the report says ">"
        trace = spectrum.analyse(averaged)
        full = spectrum.analyse(kernel) if kernel.layout == "full" else None
    return Tangent(kernel.plan, found.coupling, trace, full, _off_diagonal_ratio(averaged.astype(np.float64)))


def _cheap(f: Network, params: Params, x: np.ndarray, options: dict[str, Any]) -> bool:
    try:
        return plan(f, params, x, **options | {"layout": "full"}).flops <= FULL_FLOPS
    except MemoryError:
        return False


def _averaged(kernel: EmpiricalKernel) -> np.ndarray:
    """The MEAN of the kernel over outputs, (N, N)."""
    trace = kernel.ntk if kernel.layout == "trace" else np.einsum("abcc->ab", kernel.ntk)
    return trace / np.asarray(kernel.plan.outputs, trace.dtype)


def _off_diagonal_ratio(kernel: np.ndarray) -> float:
    diagonal = np.trace(kernel)
    return float((kernel.sum() - diagonal) / (len(kernel) - 1) / diagonal)


def _check_digits(kernel: np.ndarray) -> None:
    largest, about = float(np.max(np.abs(kernel))), jnp.finfo(kernel.dtype)
    if largest == 0:
        raise ValueError(
            f"the tangent kernel is zero in {kernel.dtype}: no parameter moves any output, so the network is dead, "
            "saturated or switched off: make weights and biases smaller, or pass NumPy float64 if gradients underflow"
        )
    # below a dtype's smallest normal number there are no digits: rounding has that number's size, not a fraction of
    # entries
    if largest * float(about.eps) < float(about.tiny):
        raise ValueError(
            f"the tangent kernel underflows {kernel.dtype}: its largest entry is {largest:.2g}, small ones are lost: "
            "pass params and x as NumPy float64, or scale the outputs of f up"
        )
