"""What a kernel's eigenvalues say about training: condition number, outliers, stable learning rates, loss curves.

Takes any kernel of one set of inputs (`any_kernel.AnyKernel`): an infinite `Kernel`, an `EmpiricalKernel`, the path
of a saved one or a symmetric array; and always computes in float64 with NumPy, outside JAX's transformations and
whatever its x64 flag says. That does not undo the rounding the kernel arrived with: a float32 kernel has no digits
below about m * 1e-7 of its largest eigenvalue, and results that would need them say so. `matrix_free` takes the network
itself, and forms no kernel.
"""

from ntk_analysis.common.estimates import Estimated
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
from ntk_analysis.spectrum.largest import LargestEigenvalues, largest_eigenvalues
from ntk_analysis.spectrum.matrix_free import matrix_free
from ntk_analysis.spectrum.matrix_free_result import MatrixFreeSpectrum
from ntk_analysis.spectrum.training import TrainingCurve, training_curve

__all__ = [
    "Estimated",
    "LargestEigenvalues",
    "MatrixFreeSpectrum",
    "Spectrum",
    "TrainingCurve",
    "UnresolvedSpectrumWarning",
    "analyse",
    "condition_number",
    "effective_rank",
    "eigenvalues",
    "largest_eigenvalues",
    "largest_stable_learning_rate",
    "matrix_free",
    "outlier_ratio",
    "training_curve",
]
