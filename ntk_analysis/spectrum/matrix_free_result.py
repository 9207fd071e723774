"""What products with vectors tell of a matrix: its largest eigenvalues, trace and density, as a record and as text."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from ntk_analysis.common.estimates import Estimated
from ntk_analysis.common.memory import gib
from ntk_analysis.spectrum.curvature import LOSSES
from ntk_analysis.spectrum.lanczos import Krylov
from ntk_analysis.spectrum.probing import fraction_below

SHOWN = 5  # number of eigenvalues in the summary, at most
KNOWN = 0.1  # relative error up to which an eigenvalue is shown


@dataclass(frozen=True, eq=False)
class MatrixFreeSpectrum:
    """What products with vectors tell of the eigenvalues of a matrix (m, m).

    Attributes:
        matrix: name of the matrix, a key of `LOSSES`.
        inputs: number N of inputs.
        outputs: number C of outputs; m = N C.
        parameters: number P of parameters.
        dtype: dtype in which the network computes.
        coupling: text that says what couples the outputs of the batch; empty if nothing does.
        rows: number of inputs that went through the network at once.
        memory_bytes: the most bytes that a product takes on the device, as the compiler reports it.
        products: number of products.
        seconds: seconds that one product took.
        eigenvalues: Ritz values of the first run, descending, (k,): each is at most the true one in its place.
        bounds: bound for each: within it of the value there is an eigenvalue of the matrix, (k,).
        rounding: change of the product with the largest eigenvector where parameters and inputs are changed by one
            rounding; not included in `bounds`.
        trace: the sum of all eigenvalues, an estimate.
        runs: all runs of Lanczos' method, the first one first.
    """

    matrix: str
    inputs: int
    outputs: int
    parameters: int
    dtype: np.dtype
    coupling: str
    rows: int
    memory_bytes: int
    products: int
    seconds: float
    eigenvalues: Float64[np.ndarray, " k"]
    bounds: Float64[np.ndarray, " k"]
    rounding: float
    trace: Estimated
    runs: tuple[Krylov, ...]

    @property
    def size(self) -> int:
        """The number m of eigenvalues."""
        return self.inputs * self.outputs

    @property
    def largest(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[0])

    @property
    def largest_error(self) -> float:
        """Error of `largest`: its bound, and the rounding."""
        return float(self.bounds[0]) + self.rounding

    @property
    def mean(self) -> Estimated:
        """The mean of all eigenvalues, an estimate."""
        return Estimated(self.trace.value / self.size, self.trace.standard_error / self.size, self.trace.draws)

    @property
    def learning_rate(self) -> float:
        """Largest stable learning rate of the linear model, 2 / largest eigenvalue, of full-batch gradient descent."""
        return 2 / self.largest

    @property
    def condition_number(self) -> float:
        """A lower bound on the condition number: no smallest eigenvalue is above the smallest Ritz value."""
        smallest = max(min(float(run.ritz()[0][-1]) for run in self.runs), 0.0) + self.rounding
        return self.largest / smallest if smallest > 0 else math.inf

    def fraction_below(self, values: float | np.ndarray) -> Estimated:
        """The fraction of the m eigenvalues that are at most so large, an estimate in the shape of `values`.

        `bias` is half the distance of the two numbers between which the runs know the fraction.
        """
        return fraction_below(self.runs, values)

    def record(self) -> dict[str, Any]:
        """All results as a dict that JSON can hold."""
        grid = self.mean.value * 10.0 ** np.arange(-4, 5, 0.5)
        below = self.fraction_below(grid)
        names = ("matrix", "inputs", "outputs", "parameters", "coupling", "rows", "memory_bytes", "products", "seconds")
        return {name: getattr(self, name) for name in names} | {
            "dtype": str(self.dtype),
            "eigenvalues": self.eigenvalues.tolist(),
            "bounds": self.bounds.tolist(),
            "rounding": self.rounding,
            "trace": vars(self.trace),
            "condition_number_at_least": self.condition_number,
            "largest_stable_learning_rate": self.learning_rate,
            "loss": LOSSES[self.matrix],
            "fraction_below": {
                "eigenvalue": grid.tolist(),
                "fraction": below.value.tolist(),
                "half_width": below.half_width.tolist(),
            },
        }

    def summary(self) -> str:
        """The results as text, one fact a line."""
        errors = self.bounds + self.rounding
        shown = [
            f"{value:.5g} +- {error:.2g}"
            for value, error in zip(self.eigenvalues, errors, strict=True)
            if error <= KNOWN * value
        ][:SHOWN]
        ratio, mean = self.largest / self.mean.value, self.mean
        low, high = (self.fraction_below(mean.value * factor) for factor in (0.1, 1.0))
        batch = f"coupled ({self.coupling}), " if self.coupling else ""
        lines = [
            f"matrix            {self.matrix}, {self.inputs} inputs x {self.outputs} outputs, {self.parameters:,} "
            f"parameters, {self.dtype}",
            f"products          {self.products}, {self.seconds:.3g} s each; {batch}{self.rows} inputs at once in "
            f"{gib(self.memory_bytes)}",
            f"largest           {', '.join(shown) or f'at least {self.largest:.5g}: take more steps'}",
            f"trace             {self.trace} (95 %), mean eigenvalue {mean}",
            f"outlier ratio     {ratio:.4g} (largest / mean)",
            f"condition number  > {self.condition_number:.4g}",
            f"density           {_range(low)} of them below a tenth of the mean, {_range(high)} below the mean (95 %)",
            f"learning rate     < {self.learning_rate:.4g} ({LOSSES[self.matrix]})",
        ]
        singular = self.matrix == "gauss_newton"  # constant shifts of the outputs change no loss
        return "\n".join(line for line in lines if not (singular and line.startswith("condition")))

    __str__ = summary


def _range(fraction: Estimated) -> str:
    """The interval of a fraction as text."""
    low, high = (float(np.clip(fraction.value + side * fraction.half_width, 0, 1)) for side in (-1, 1))
    return f"{low:.0%} to {high:.0%}"
