"""neural-tangents' names for this library: programs written for it run by changing the import line.

    import ntk_analysis.compat.neural_tangents as nt
    from ntk_analysis.compat.neural_tangents import stax

Everything here is a thin translation; the page on neural-tangents in the documentation says what differs and what is
not there. In code of your own use the library's own names.
"""

from ntk_analysis.compat.neural_tangents import predict, stax
from ntk_analysis.compat.neural_tangents.functions import (
    batch,
    empirical_kernel_fn,
    empirical_nngp_fn,
    empirical_ntk_fn,
    monte_carlo_kernel_fn,
)
from ntk_analysis.compat.neural_tangents.kernel import Kernel
from ntk_analysis.empirical.taylor import linearize, taylor_expand

__all__ = [
    "Kernel",
    "batch",
    "empirical_kernel_fn",
    "empirical_nngp_fn",
    "empirical_ntk_fn",
    "linearize",
    "monte_carlo_kernel_fn",
    "predict",
    "stax",
    "taylor_expand",
]
