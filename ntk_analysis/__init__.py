"""What normalisation does to the neural tangent kernel: theory, measurement, verdicts.

The public names below are imported on first use, so that `import ntk_analysis` costs nothing.
"""

import importlib
from importlib.metadata import version
from typing import Any

__version__ = version("ntk-analysis")

_MODULES = {
    "activations",
    "alignment",
    "batch_norm",
    "compat",
    "compilation_cache",
    "correlation",
    "data",
    "descent",
    "diagnosis",
    "empirical",
    "last_batch_norm",
    "layers",
    "meanfield",
    "monte_carlo",
    "networks",
    "reference",
    "regression",
    "spectrum",
    "training",
    "width_study",
}
_OBJECTS = {
    "AnyKernel": "any_kernel",
    "EmpiricalKernel": "empirical",
    "Kernel": "infinite",
    "empirical_nngp": "empirical",
    "empirical_ntk": "empirical",
    "infinite_kernel": "infinite",
    "check_layer": "monte_carlo",
    "compare": "monte_carlo",
    "kernels_by_depth": "networks.by_depth",
    "linearize": "empirical.taylor",
    "monte_carlo_kernel": "monte_carlo",
    "open_kernel": "empirical",
    "taylor_expand": "empirical.taylor",
}

__all__ = ["__version__", *sorted(_MODULES), *sorted(_OBJECTS)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _OBJECTS:
        return getattr(importlib.import_module(f"{__name__}.{_OBJECTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
