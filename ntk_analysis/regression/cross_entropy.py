"""Training by gradient flow on cross-entropy: outputs and probabilities of the linearised network at finite times."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.integrate
import scipy.linalg
import scipy.special
from jaxtyping import Float64

from ntk_analysis.alignment import centered_one_hot
from ntk_analysis.any_kernel import AnyKernel, entries, output_by_output
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.finite import require_finite
from ntk_analysis.common.precision import AnyArray, Real
from ntk_analysis.regression.gradient_flow import checked_weights
from ntk_analysis.spectrum.conditioning import times_exp
from ntk_analysis.spectrum.matrix import as_matrix

METHOD = "LSODA"  # it notices by itself where the equation turns stiff, as it does once large modes are learned


@dataclass(frozen=True, eq=False)
class CrossEntropyFlow:
    """Training of n inputs on the loss - sum w y log softmax(f), by the kernel Theta of the network where it started.

    The linearised network has f = f_0 + Theta A on the training inputs and f = f_0 + Theta_* A on others, where the
    coefficients follow A' = W (y - softmax(f)) - r A from A = 0 (Lee et al. 2019, 1902.06720, equation 5, for a loss
    that is not squared). No formula is known for A: SciPy's LSODA integrates it. Without weight decay r separable
    classes have no end of training, so times are finite.

    Attributes:
        times: training times (t,), in the order given, in absolute units.
        coefficients: A at each time, (t, n, classes).
        which: kernel, "ntk" or "nngp".
    """

    times: Float64[np.ndarray, " t"]
    coefficients: Float64[np.ndarray, "t n classes"]
    which: str

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
        matrix = as_matrix(kernel, which)
        n = matrix.inputs
        theta = times_exp(matrix.entries.ravel(), matrix.log_scale).reshape(matrix.entries.shape)
        if not np.isfinite(theta).all():
            raise OverflowError(f"the {which.upper()} is beyond float64, expected true values: scale the network down")
        y = _probabilities(targets, n)
        if len(theta) not in (n, n * y.shape[1]):
            raise ValueError(f"targets have {y.shape[1]} classes against a kernel of {len(theta) // n} outputs")
        start = np.zeros_like(y) if initial is None else concrete(initial, "initial").astype(np.float64)
        if start.shape != y.shape or not np.isfinite(start).all():
            raise ValueError(f"initial has shape {start.shape}, expected finite {y.shape}")
        if not 0 <= regularization < math.inf:
            raise ValueError(f"regularization={regularization}, expected a finite number >= 0")
        w = np.ones(n) if weights is None else checked_weights(weights, n)
        r = float(regularization) * np.average(np.diagonal(theta), weights=np.tile(w, len(theta) // n))
        when = np.atleast_1d(concrete(times, "times")).astype(np.float64)
        if when.ndim != 1 or when.size == 0 or not (np.isfinite(when) & (when >= 0)).all():
            raise ValueError(f"times={times}, expected finite numbers >= 0, one or (t,)")
        if relative:
            when = when / (_largest_eigenvalue(theta, np.tile(np.sqrt(w), len(theta) // n)) + r)

        def moved(a: np.ndarray) -> np.ndarray:
            outputs = start + _product(theta, a)
            change: np.ndarray = w[:, None] * (y - scipy.special.softmax(outputs, axis=1)) - r * a
            return change

        return cls(when, _integrated(moved, y.shape, when, float(tolerance)), which)

    def outputs(self, test: AnyKernel, initial: AnyArray | None = None) -> Float64[np.ndarray, "t k classes"]:
        """Outputs f (t, k, classes) on k test inputs at each time, up to what is added to all classes.

        Args:
            test: kernel (k, n) of the test inputs with the training inputs, its scale included; (k, n, classes,
                classes) of a full one.
            initial: their outputs f_0 (k, classes) before training; 0 if not given.

        Raises:
            ValueError: the kernel or `initial` does not fit, or an output is beyond float64.
        """
        values, log_scale = entries(test, self.which)
        n, classes = self.coefficients.shape[1:]
        if values.shape[1:] not in ((n,), (n, classes, classes)):
            raise ValueError(
                f"kernel of test with training inputs has shape {values.shape}, expected (k, {n}) or (k, {n}, "
                f"{classes}, {classes})"
            )
        rows = (output_by_output(values) if values.ndim == 4 else values).astype(np.float64)
        theta = times_exp(rows.ravel(), log_scale).reshape(rows.shape)
        start = np.zeros((len(values), classes)) if initial is None else concrete(initial, "initial")
        if start.shape != (len(values), classes):
            raise ValueError(f"initial has shape {start.shape}, expected {(len(values), classes)}")
        with np.errstate(over="ignore", invalid="ignore"):  # reported below
            found = np.stack([start + _product(theta, a) for a in self.coefficients])
        require_finite(np.abs(found).max(axis=(0, 2)), "the predicted output", why=lambda *_: "it leaves float64")
        return found

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


def _product(theta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The kernel times coefficients (n, classes): of one output, or of all outputs, output by output."""
    if theta.shape[1] == len(a):
        product: np.ndarray = theta @ a
        return product
    return (theta @ a.T.ravel()).reshape(a.shape[1], -1).T


def _integrated(
    moved: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int], times: np.ndarray, tolerance: float
) -> Float64[np.ndarray, "t n classes"]:
    """The coefficients at these times, from 0."""
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
        rtol=tolerance,
        atol=tolerance * min(1.0, last),  # coefficients are at most the time, for weights of 1
    )
    if not found.success:
        raise ArithmeticError(f"training is not integrated up to time {last:.3g}: {found.message}")
    coefficients: np.ndarray = found.y.T.reshape(-1, *shape)[places]
    return coefficients
