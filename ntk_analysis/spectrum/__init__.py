"""What a kernel's eigenvalues say about training: condition number, outliers, stable learning rates, loss curves.

Takes a symmetric array or a `Kernel`, and always computes in float64 with NumPy, outside JAX's transformations and
whatever its x64 flag says. That does not undo the rounding the kernel arrived with: a float32 kernel has no digits
below about m * 1e-7 of its largest eigenvalue, and results that would need them say so.
"""

from ntk_analysis.spectrum.conditioning import (
    Spectrum,
    UnresolvedSpectrumWarning,
    analyse,
    condition_number,
    effective_rank,
    eigenvalues,
    largest_stable_learning_rate,
    outlier_ratio,
)
from ntk_analysis.spectrum.matrix import AnyKernel, ScaledKernel
from ntk_analysis.spectrum.training import TrainingCurve, training_curve

__all__ = [
    "AnyKernel",
    "ScaledKernel",
    "Spectrum",
    "TrainingCurve",
    "UnresolvedSpectrumWarning",
    "analyse",
    "condition_number",
    "effective_rank",
    "eigenvalues",
    "largest_stable_learning_rate",
    "outlier_ratio",
    "training_curve",
]
