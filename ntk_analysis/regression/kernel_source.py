"""What an estimator's `kernel` may be: a network, a function of two sets of inputs, or "precomputed"."""

from typing import Any, Literal

import jax

from ntk_analysis.any_kernel import AnyKernel, opened
from ntk_analysis.common.finite import require_finite
from ntk_analysis.empirical import EmpiricalKernel
from ntk_analysis.empirical.coupling import known_coupling
from ntk_analysis.empirical.functions import name_of
from ntk_analysis.infinite import StoredKernel, infinite_kernel
from ntk_analysis.infinite.kernel import HasKernel, Kernel
from ntk_analysis.layers import Layer

COUPLED = (
    "the network's outputs depend on the other inputs of their batch, as behind a batch normalisation in training "
    "mode: the kernel of one joint batch is not that of a network that predicts; give the infinite network itself, "
    "whose new points stand behind the statistics of the training batch, or a finite one in evaluation mode"
)


def is_precomputed(source: object) -> bool:
    """Whether the inputs themselves are the kernel."""
    return isinstance(source, str) and source == "precomputed"


def kernel_between(
    source: object,
    x1: Any,
    x2: Any = None,
    *,
    batch: Any = None,
    batch_norm: Literal["exact", "large_batch"] = "exact",
) -> AnyKernel:
    """Kernel of x1 with x2, or of x1 with itself.

    A batch-normalised network has the statistics of its training batch, which is x1, or `batch` where x1 are new
    points; then x2 is this batch, too, or None. How it is integrated, `batch_norm` says, as for `infinite_kernel`.

    Raises:
        ValueError: the source has none of the three forms, or its kernel is not finite; or `batch_norm` is given for a
            kernel that is not of a batch-normalised network of infinite width.
        NotImplementedError: outputs of the empirical kernel depend on the other inputs of the batch; or the network has
            no kernel between two sets of inputs.
    """
    if isinstance(source, Layer) and known_coupling(source):
        if batch is None:
            return infinite_kernel(source, x1, batch_norm=batch_norm)
        joined = infinite_kernel(source, batch, x1, statistics="x1", batch_norm=batch_norm)
        return joined.test if x2 is None else joined.cross
    if batch_norm != "exact":
        raise ValueError(
            f"batch_norm={batch_norm!r} has no effect on this kernel: it is for a batch-normalised network of infinite "
            "width; leave it out"
        )
    if is_precomputed(source):
        return x1
    if isinstance(source, HasKernel):
        if x2 is None:  # a network that only has a joint kernel refuses here, not after the work
            jax.eval_shape(lambda a, b: infinite_kernel(source, a, b).distance, x1[:1], x1[:1])
        return infinite_kernel(source, x1, x2)
    if not callable(source):
        raise ValueError(f"kernel={source!r}, expected a network, a function (x1, x2) or 'precomputed'")
    kernel = opened(source(x1, x2))
    if isinstance(kernel, EmpiricalKernel) and kernel.coupled:
        raise NotImplementedError(COUPLED)
    if not isinstance(kernel, Kernel | StoredKernel | EmpiricalKernel):  # those have reported NaN themselves
        require_finite(kernel, f"the kernel of {name_of(source)}")
    return kernel


def in_memory(kernel: AnyKernel) -> AnyKernel:
    """The kernel; one of infinite width in a store is read as a whole."""
    return kernel[:] if isinstance(kernel, StoredKernel) else kernel
