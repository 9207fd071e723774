"""Training of the linearised network on any loss: outputs at finite times, with or without momentum."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis.any_kernel import AnyKernel
from ntk_analysis.common.arrays import concrete
from ntk_analysis.common.messages import first_line
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

Slope = Callable[[np.ndarray], np.ndarray]
"""Minus the gradient of a loss by the outputs (n, outputs)."""


@dataclass(frozen=True, eq=False)
class LossFlow(Coefficients):
    """Training of n inputs on a loss L(f) by the kernel Theta of the network where it started.

    The linearised network has f = f_0 + Theta A on the training inputs and f = f_0 + Theta_* A on others, where the
    coefficients follow A' = -dL/df - r A from A = 0 (Lee et al. 2019, 1902.06720, equation 5). With momentum m and
    learning rate h the steps v <- m v - g, theta <- theta + h v tend to A'' = -(1 - m) A' / sqrt(h) - dL/df - r A, in
    units of sqrt(h) steps. SciPy's LSODA integrates both.
    """

    @classmethod
    def on(
        cls,
        kernel: AnyKernel,
        loss: Callable[[jax.Array], jax.Array],
        initial: AnyArray,
        times: Real | Sequence[Any],
        *,
        which: str = "ntk",
        regularization: Real = 0.0,
        momentum: float | None = None,
        rate: float | None = None,
        tolerance: Real = 1e-10,
    ) -> "LossFlow":
        """Training on a loss of the outputs, at these times.

        Args:
            kernel: any kernel of n inputs with themselves, (n, n) or full, (n, n, outputs, outputs).
            loss: JAX function of the outputs (n, outputs), float64, that returns a number: the sum or mean that a
                program minimises.
            initial: outputs f_0 (n, outputs) before training, such as zeros, their mean over networks.
            times: training time, a number or an array (t,), finite and >= 0: learning rate times number of steps.
            which: kernel, "ntk", or "nngp", which trains the read-out alone.
            regularization: weight decay r divided by the mean of the kernel's diagonal, as for `GradientFlow.on`.
            momentum: factor m in [0, 1) of the last step; None for gradient flow.
            rate: learning rate h > 0 of gradient descent with momentum; it is given with momentum only.
            tolerance: error of the coefficients that LSODA allows in each of its steps, relative to them, or where that
                is more to the smaller of 1 and the last time. It is no bound on the error at the end.

        Raises:
            TypeError: the loss is no function of JAX that returns one real number.
            ValueError: the array is not a kernel, see `spectrum.analyse`, or the other arguments do not fit.
            OverflowError: the kernel is beyond float64.
            ArithmeticError: the integration fails, or the loss has no finite gradient on the way.
        """
        theta, n = kernel_entries(kernel, which)
        start = concrete(initial, "initial").astype(np.float64)
        if start.ndim != 2 or len(start) != n or not np.isfinite(start).all():
            raise ValueError(f"initial has shape {start.shape}, expected finite ({n}, outputs)")
        require_outputs(theta, n, start.shape[1])
        r = decay(theta, regularization, np.ones(n))
        when = checked_times(times)
        slope = _slope_of(loss, start)
        if momentum is None:
            if rate is not None:
                raise ValueError(
                    f"got rate={rate} without momentum: times are the learning rate times the steps already"
                )
            return cls(
                when,
                integrated(lambda a: slope(start + product(theta, a)) - r * a, start.shape, when, tolerance),
                which,
            )
        if not 0 <= momentum < 1:
            raise ValueError(f"got momentum={momentum}, expected a number in [0, 1)")
        if rate is None or not 0 < rate < math.inf:
            raise ValueError(f"got rate={rate}, expected the learning rate > 0, by which momentum slows down")
        friction = (1 - momentum) / math.sqrt(rate)

        def moved(state: np.ndarray) -> np.ndarray:
            a, velocity = state
            pull = slope(start + product(theta, a)) - r * a
            return np.stack([velocity, pull - friction * velocity])

        both = integrated(moved, (2, *start.shape), when / math.sqrt(rate), tolerance)
        return cls(when, both[:, 0], which)


def _slope_of(loss: Callable[[jax.Array], jax.Array], start: np.ndarray) -> Slope:
    """Minus the gradient of the loss, in float64; its value and gradient at the start are looked at."""
    gradient = jax.jit(jax.grad(loss))

    def slope(outputs: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            found = -np.asarray(gradient(jnp.asarray(outputs, jnp.float64)))
        if not np.isfinite(found).all():
            raise ArithmeticError(f"the loss has no finite gradient at outputs of up to {np.abs(outputs).max():.3g}")
        return found

    try:
        slope(start)
    except TypeError as error:
        raise TypeError(
            f"the loss must be a JAX function of outputs {start.shape} that returns one number: {first_line(error)}"
        ) from error
    return slope
