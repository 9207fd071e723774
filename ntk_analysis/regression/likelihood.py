"""Log marginal likelihood of a network's kernel, its derivatives by hyperparameters, and where it is largest."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Float64
from sklearn.utils import check_random_state
from sklearn.utils.optimize import _check_optimize_result

from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.regression.hyperparameters import Hyperparameters


@dataclass(frozen=True, eq=False)
class Likelihood:
    """log p(y) of targets y ~ N(0, K + r W^-1) as a function of the logarithms theta of a network's hyperparameters.

    Attributes:
        free: hyperparameters and their network.
        x: training inputs.
        y: targets (n, outputs); outputs are independent, and their logarithms are summed.
        weights: weights (n,) of the inputs.
        which: the kernel K, "ntk" or "nngp".
        batch_norm: how a batch normalisation is integrated.
    """

    free: Hyperparameters
    x: np.ndarray
    y: Float64[np.ndarray, "n outputs"]
    weights: Float64[np.ndarray, " n"]
    which: str
    batch_norm: Literal["exact", "large_batch"]

    def __call__(self, theta: np.ndarray) -> tuple[float, Float64[np.ndarray, " p"]]:
        """The logarithm and its derivatives; -inf and zeros where K + r W^-1 is not positive definite."""
        theta = np.asarray(theta, np.float64)
        if theta.shape != self.free.start.shape:
            raise ValueError(f"theta has shape {theta.shape}, expected one of {', '.join(self.free.names)} each")
        with jax.enable_x64(True):
            value, slope = jax.value_and_grad(self._traced)(jnp.asarray(theta))
        found, slope = float(value), np.asarray(slope)
        if not math.isfinite(found) or not np.isfinite(slope).all():
            return -math.inf, np.zeros_like(theta)
        return found, slope

    def _traced(self, theta: jax.Array) -> jax.Array:
        network, regularization = self.free.build(list(jnp.exp(theta)))
        kernel = infinite_kernel(network, self.x, batch_norm=self.batch_norm)
        return _log_density(kernel.ntk if self.which == "ntk" else kernel.nngp, regularization, self.y, self.weights)


@jax.jit
def _log_density(kernel: jax.Array, regularization: Any, y: jax.Array, weights: jax.Array) -> jax.Array:
    """Rasmussen & Williams 2006, equation 2.30, by a Cholesky decomposition; NaN where there is none."""
    n, outputs = y.shape
    r = regularization * jnp.average(jnp.diagonal(kernel), weights=weights)
    root = jnp.linalg.cholesky((kernel + kernel.T) / 2 + jnp.diag(r / weights))
    white = jax.scipy.linalg.solve_triangular(root, y, lower=True)
    half_determinant = jnp.sum(jnp.log(jnp.diagonal(root)))
    return -jnp.sum(white**2) / 2 - outputs * (half_determinant + n * math.log(2 * math.pi) / 2)


def maximised(likelihood: Likelihood, optimizer: Any, restarts: int, random_state: Any) -> Float64[np.ndarray, " p"]:
    """The theta of the largest likelihood that was found, by scikit-learn's conventions.

    Args:
        likelihood: function that is maximised.
        optimizer: "fmin_l_bfgs_b", or a function (obj_func, initial_theta, bounds=bounds) -> (theta, value), where
            obj_func(theta, eval_gradient=True) is minus the logarithm, with its derivatives.
        restarts: number of further starts, drawn uniformly from the bounds of theta.
        random_state: seed or generator of these starts.

    Raises:
        ValueError: the optimizer is neither, or the likelihood is defined nowhere it looked.
    """
    if optimizer != "fmin_l_bfgs_b" and not callable(optimizer):
        raise ValueError(f"got optimizer={optimizer!r}, expected 'fmin_l_bfgs_b', a function or None")

    def objective(theta: np.ndarray, eval_gradient: bool = True) -> Any:
        value, slope = likelihood(theta)
        return (-value, -slope) if eval_gradient else -value

    search: Callable[..., Any] = partial(_l_bfgs_b if optimizer == "fmin_l_bfgs_b" else optimizer, objective)
    lowest, highest = likelihood.free.bounds.T
    generator = check_random_state(random_state)
    starts = [likelihood.free.start, *(generator.uniform(lowest, highest) for _ in range(restarts))]
    ends = [search(start, bounds=likelihood.free.bounds) for start in starts]
    theta, value = min(ends, key=lambda end: float(end[1]))
    if not math.isfinite(value):
        raise ValueError(
            "the kernel is not positive definite at the hyperparameters that were tried: start with a larger "
            "regularization"
        )
    return np.asarray(theta, np.float64)


def _l_bfgs_b(objective: Any, start: np.ndarray, *, bounds: np.ndarray) -> tuple[np.ndarray, float]:
    found = scipy.optimize.minimize(objective, start, method="L-BFGS-B", jac=True, bounds=bounds)
    _check_optimize_result("lbfgs", found)  # a warning where it has not converged
    return found.x, float(found.fun)
