"""The linearised network along its training, as coefficients of the kernel: what flows on any loss share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.integrate
from jaxtyping import Float64

from ntk_analysis.any_kernel import AnyKernel, entries, output_by_output
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.finite import require_finite
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.spectrum.conditioning import times_exp
from ntk_analysis.spectrum.matrix import as_matrix

METHOD = "LSODA"  # it notices by itself where the equation turns stiff, as it does once large modes are learned


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A linearised network at several times of its training on n inputs.

    It has f = f_0 + Theta A on the training inputs and f = f_0 + Theta_* A on others.

    Attributes:
        times: training times (t,), in the order given, in absolute units: learning rate times number of steps.
        coefficients: A at each time, (t, n, outputs).
        which: kernel, "ntk" or "nngp".
    """

    times: Float64[np.ndarray, " t"]
    coefficients: Float64[np.ndarray, "t n outputs"]
    which: str

    def outputs(self, test: AnyKernel, initial: AnyArray | None = None) -> Float64[np.ndarray, "t k outputs"]:
        """Outputs f (t, k, outputs) on k test inputs at each time, up to what is added to all outputs.

        Args:
            test: kernel (k, n) of the test inputs with the training inputs, its scale included; (k, n, outputs,
                outputs) of a full one.
            initial: their outputs f_0 (k, outputs) before training; 0 if not given.

        Raises:
            ValueError: the kernel or `initial` does not fit, or an output is beyond float64.
        """
        values, log_scale = entries(test, self.which)
        n, outputs = self.coefficients.shape[1:]
        if values.shape[1:] not in ((n,), (n, outputs, outputs)):
            raise ValueError(
                f"kernel of test with training inputs has shape {values.shape}, expected (k, {n}) or (k, {n}, "
                f"{outputs}, {outputs})"
            )
        rows = (output_by_output(values) if values.ndim == 4 else values).astype(np.float64)
        theta = times_exp(rows.ravel(), log_scale).reshape(rows.shape)
        start = np.zeros((len(values), outputs)) if initial is None else concrete(initial, "initial")
        if start.shape != (len(values), outputs):
            raise ValueError(f"initial has shape {start.shape}, expected {(len(values), outputs)}")
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            found = np.stack([start + product(theta, a) for a in self.coefficients])
        require_finite(np.abs(found).max(axis=(0, 2)), "the predicted output", why=lambda *_: "it leaves float64")
        return found


def kernel_entries(kernel: AnyKernel, which: str) -> tuple[np.ndarray, int]:
    """Entries of a kernel of inputs with themselves, (n, n) or (n outputs, n outputs), and their number n.

    Raises:
        ValueError: the array is not a kernel.
        OverflowError: it is beyond float64.
    """
    matrix = as_matrix(kernel, which)
    theta = times_exp(matrix.entries.ravel(), matrix.log_scale).reshape(matrix.entries.shape)
    if not np.isfinite(theta).all():
        raise OverflowError(f"the {which.upper()} is beyond float64, expected true values: scale the network down")
    return theta, matrix.inputs


def require_outputs(theta: np.ndarray, n: int, outputs: int) -> None:
    """Raises ValueError unless the kernel is one of all outputs, or of so many."""
    if len(theta) not in (n, n * outputs):
        raise ValueError(f"targets have {outputs} classes against a kernel of {len(theta) // n} outputs")


def decay(theta: np.ndarray, regularization: Real, weights: np.ndarray) -> float:
    """The weight decay r, from what it is relative to the mean of the kernel's diagonal, with weights (n,).

    Raises:
        ValueError: it is no finite number >= 0.
    """
    if not 0 <= regularization < math.inf:
        raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
    tiled = np.tile(weights, len(theta) // len(weights))
    return float(float(regularization) * np.average(np.diagonal(theta), weights=tiled))


def checked_times(times: Real | Sequence[Any]) -> Float64[np.ndarray, " t"]:
    """Training times as an array; raises ValueError unless they are finite and >= 0."""
    when = np.atleast_1d(concrete(times, "times")).astype(np.float64)
    if when.ndim != 1 or when.size == 0 or not (np.isfinite(when) & (when >= 0)).all():
        raise ValueError(f"times={times}, expected finite numbers >= 0, one or (t,)")
    return when


def product(theta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The kernel times coefficients (n, classes): of one output, or of all outputs, output by output."""
    if theta.shape[1] == len(a):
        found: np.ndarray = theta @ a
        return found
    return (theta @ a.T.ravel()).reshape(a.shape[1], -1).T


def integrated(
    moved: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], times: np.ndarray, tolerance: Real
) -> Float64[np.ndarray, "t *shape"]:
    """What moves by moved(state), at these times, from 0.

    Raises:
        ArithmeticError: LSODA fails.
    """
    distinct, places = np.unique(times, return_inverse=True)
    last = float(distinct[-1])
    if last == 0:
        return np.zeros((len(times), *shape))
    found = scipy.integrate.solve_ivp(
        lambda _, a: last * moved(a.reshape(shape)).ravel(),  # in units of the last time, whatever its size
        (0.0, 1.0),
        np.zeros(math.prod(shape)),
        method=METHOD,
        t_eval=distinct / last,
        rtol=float(tolerance),
        atol=float(tolerance) * min(1.0, last),  # coefficients are at most the time, for slopes of 1
    )
    if not found.success:
        raise ArithmeticError(f"training is not integrated up to time {last:.3g}: {found.message}")
    states: np.ndarray = found.y.T.reshape(-1, *shape)[places]
    return states
