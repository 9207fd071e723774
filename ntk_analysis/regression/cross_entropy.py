"""Training by gradient flow on cross-entropy: outputs and probabilities of the linearised network at finite times."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Float64

from ntk_analysis.alignment import centered_one_hot
from ntk_analysis.any_kernel import AnyKernel
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.regression.coefficients import (
    Coefficients,
    checked_times,
    decay,
    integrated,
    kernel_entries,
    product,
    require_outputs,
)
from ntk_analysis.regression.gradient_flow import checked_weights


@dataclass(frozen=True, eq=False)
class CrossEntropyFlow(Coefficients):
    """Training of n inputs on the loss - sum w y log softmax(f), by the kernel Theta of the network where it started.

    The linearised network has f = f_0 + Theta A on the training inputs and f = f_0 + Theta_* A on others, where the
    coefficients follow A' = W (y - softmax(f)) - r A from A = 0 (Lee et al. 2019, 1902.06720, equation 5, for a loss
    that is not squared). No formula is known for A: SciPy's LSODA integrates it. Without weight decay r separable
    classes have no end of training, so times are finite.
    """

    @classmethod
    def on(
        cls,
        kernel: AnyKernel,
        targets: AnyArray,
        times: Real | Sequence[Any],
        *,
        which: str = "ntk",
        regularization: Real = 0.0,
        weights: AnyArray | None = None,
        initial: AnyArray | None = None,
        relative: bool = False,
        tolerance: Real = 1e-10,
    ) -> "CrossEntropyFlow":
        """Training towards classes, at these times; a step of gradient descent takes its learning rate.

        Args:
            kernel: any kernel of n inputs with themselves, (n, n) or full, (n, n, classes, classes).
            targets: labels (n,), whose sorted classes are the outputs, or probabilities (n, classes).
            times: training time, a number or an array (t,), finite and >= 0.
            which: kernel, "ntk", or "nngp", which trains the read-out alone.
            regularization: weight decay r divided by the mean of the kernel's diagonal, as for `GradientFlow.on`.
            weights: weights (n,) of the inputs in the loss, > 0; None for 1 each.
            initial: outputs f_0 (n, classes) before training; 0, their mean over networks, if not given.
            relative: whether times count in units of 1 / (largest eigenvalue of Theta + r I), or with weights of W^1/2
                Theta W^1/2 + r I, as for `GradientFlow.mean`.
            tolerance: error of the coefficients that LSODA allows in each of its steps, relative to them, or where that
                is more to the smaller of 1 and the last time. It is no bound on the error at the end.

        Raises:
            ValueError: the array is not a kernel, see `spectrum.analyse`, or targets, times or options do not fit.
            OverflowError: the kernel is beyond float64.
            ArithmeticError: the integration fails; the message is SciPy's.
        """
        theta, n = kernel_entries(kernel, which)
        y = _probabilities(targets, n)
        require_outputs(theta, n, y.shape[1])
        start = np.zeros_like(y) if initial is None else concrete(initial, "initial").astype(np.float64)
        if start.shape != y.shape or not np.isfinite(start).all():
            raise ValueError(f"initial has shape {start.shape}, expected finite {y.shape}")
        w = np.ones(n) if weights is None else checked_weights(weights, n)
        r = decay(theta, regularization, w)
        when = checked_times(times)
        if relative:
            when = when / (_largest_eigenvalue(theta, np.tile(np.sqrt(w), len(theta) // n)) + r)

        def moved(a: np.ndarray) -> np.ndarray:
            outputs = start + product(theta, a)
            change: np.ndarray = w[:, None] * (y - scipy.special.softmax(outputs, axis=1)) - r * a
            return change

        return cls(when, integrated(moved, y.shape, when, tolerance), which)

    def probabilities(self, test: AnyKernel, initial: AnyArray | None = None) -> Float64[np.ndarray, "t k classes"]:
        """Probabilities softmax(f) (t, k, classes) on k test inputs; arguments and errors are those of `outputs`."""
        found: np.ndarray = scipy.special.softmax(self.outputs(test, initial), axis=2)
        return found


def _probabilities(targets: AnyArray, n: int) -> Float64[np.ndarray, "n classes"]:
    given = np.asarray(targets)
    if given.shape == (n,):
        one_hot = centered_one_hot(given)
        return one_hot + 1 / one_hot.shape[1]
    y = concrete(targets, "targets").astype(np.float64)
    if y.ndim != 2 or len(y) != n or not ((y >= 0).all() and np.allclose(y.sum(axis=1), 1)):
        raise ValueError(
            f"targets have shape {y.shape}, expected labels ({n},) or probabilities ({n}, classes), which sum to 1"
        )
    return y


def _largest_eigenvalue(theta: np.ndarray, roots: np.ndarray) -> float:
    last = (len(theta) - 1, len(theta) - 1)
    found = scipy.linalg.eigh(roots[:, None] * theta * roots, eigvals_only=True, subset_by_index=last)
    return float(found[0])
