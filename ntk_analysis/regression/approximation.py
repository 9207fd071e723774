"""How far a kernel's entries may be off because it was approximated: by few nodes, or as a function of the angle."""

import numpy as np

from ntk_analysis.any_kernel import AnyKernel, opened
from ntk_analysis.infinite import Kernel, StoredKernel


def approximation(kernel: AnyKernel, which: str) -> float:
    """Largest error of an entry, relative to the largest entry of the kernel of all these inputs with themselves.

    `Kernel.approximation_error` is that of the NTK. An entry sqrt(v1 v2) (1 - d) of the NNGP has that of the variances
    and that of the distance d <= 2.
    """
    kernel = opened(kernel)
    error = kernel.approximation_error if isinstance(kernel, Kernel | StoredKernel) else 0.0
    return error if which == "ntk" else 2 * error


def growth(test: AnyKernel) -> float:
    """Bound on the largest entry sqrt(theta(x, x) theta(z, z)) of new x with z over that of z with themselves.

    Where a kernel is a function of the angle its diagonal is a multiple of the variances.
    """
    if not isinstance(test, Kernel):
        return 1.0
    new, old = (float(np.max(np.asarray(variance))) for variance in (test.variance1, test.variance2))
    return (new / old) ** 0.5 if old > 0 else 1.0
