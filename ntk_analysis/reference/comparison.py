"""Our infinite-width kernels against neural-tangents'."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np

from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Layer
from ntk_analysis.reference.translation import translate


@dataclass(frozen=True)
class Comparison:
    """Distance of our kernels from neural-tangents', both in float64: largest |ours - theirs| over largest |theirs|.

    Attributes:
        nngp: distance of the NNGP, over all pairs of inputs.
        ntk: distance of the NTK, over all pairs of inputs.
        ntk_off_diagonal: distance of the NTK without the pairs of an input with itself; equal to `ntk` for two sets of
            inputs.
    """

    nngp: float
    ntk: float
    ntk_off_diagonal: float


def compare(network: Layer, x1: AnyArray, x2: AnyArray | None = None) -> Comparison:
    """Largest relative differences of NNGP and NTK between `infinite_kernel` and neural-tangents, in float64.

    Closed forms agree to rounding (1e-14 for 50 ReLU layers), with two exceptions. neural-tangents takes angles from
    covariances, which for an input with itself gives 1e-8 in place of 0: 5e-9 of the diagonal of a ReLU network's NTK
    for each layer (hence `ntk_off_diagonal`). And a chaotic network multiplies rounding by chi_1 in each layer.
    Activations by quadrature agree to the error that `translate` names.

    Args:
        network: layers that neural-tangents can express, see `translate`.
        x1: vectors (n1, d) or images (n1, height, width, channels).
        x2: inputs (n2, ...) of the same features, or None for x1 with itself.

    Raises:
        ImportError: neural-tangents cannot be loaded.
        NotImplementedError: one of the two libraries has no such infinite-width kernel.
    """
    first = concrete(x1, "x1").astype(np.float64)
    second = None if x2 is None else concrete(x2, "x2").astype(np.float64)
    kernel_fn = translate(network)[2]
    ours = infinite_kernel(network, first, second)
    try:
        with as_neural_tangents_expects():
            theirs = kernel_fn(first, second, get=("nngp", "ntk"))  # not jitted: XLA needs minutes for 50 layers
    except NotImplementedError as error:
        raise NotImplementedError(f"neural-tangents refuses this network: {error}") from error
    nngp, ntk = np.asarray(theirs.nngp), np.asarray(theirs.ntk)
    nngp_difference, ntk_difference = np.asarray(ours.nngp) - nngp, np.asarray(ours.ntk) - ntk
    off_diagonal = ntk_difference if second is not None else ntk_difference * ~np.eye(len(ntk), dtype=bool)
    return Comparison(_relative(nngp_difference, nngp), _relative(ntk_difference, ntk), _relative(off_diagonal, ntk))


@contextlib.contextmanager
def as_neural_tangents_expects() -> Iterator[None]:
    """A context with float64, JAX's implicit promotions of dtypes and ranks, and no warnings of neural-tangents."""
    with jax.enable_x64(True), permissive():
        yield


@contextlib.contextmanager
def permissive() -> Iterator[None]:
    """A context like `as_neural_tangents_expects`, but in the caller's precision: it may be used inside jit."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _relative(difference: np.ndarray, reference: np.ndarray) -> float:
    largest = float(np.max(np.abs(reference)))
    return float(np.max(np.abs(difference))) / (largest if largest > 0 else 1.0)
