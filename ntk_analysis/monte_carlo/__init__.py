"""Kernels by Monte Carlo: averages over finite networks at initialisation, with their standard errors.

They are what this library checks its own theory with, for any network: one of layers, or any pair of functions (init,
apply), whether its infinite-width kernel is known or not. `compare` says whether a theory and such an average agree.
"""

from ntk_analysis.monte_carlo.average import monte_carlo_kernel, monte_carlo_kernels
from ntk_analysis.monte_carlo.comparison import Agreement, Comparison, compare
from ntk_analysis.monte_carlo.conformance import LayerCheck, check_layer
from ntk_analysis.monte_carlo.estimate import KernelEstimate

__all__ = [
    "Agreement",
    "Comparison",
    "KernelEstimate",
    "LayerCheck",
    "check_layer",
    "compare",
    "monte_carlo_kernel",
    "monte_carlo_kernels",
]
