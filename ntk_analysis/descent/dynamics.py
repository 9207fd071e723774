"""How finite networks move under gradient descent, against the prediction of their own tangent kernel.

A wide network moves as the model that is linear in its parameters where it starts,
    f_t = y + (I - learning_rate Theta)^t (f_0 - y)     for the loss 1/2 sum |f - y|^2 and its own kernel Theta
(Lee et al. 2019, 1902.06720). How far a finite one strays from that falls with its width: their bound is width^(-1/2),
expansions in 1/width give 1/width for smooth activations (Dyer & Gur-Ari 2019, 1909.11304). Here it is measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.norms import norm
from ntk_analysis.common.precision import AnyArray, HeldArray, Real, numpy_in_float64
from ntk_analysis.descent.stability import Apply, checked, moved
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params
from ntk_analysis.spectrum import training_curve
from ntk_analysis.width_study import PowerLaw, fit_power_law


@dataclass(frozen=True, eq=False)
class Linearised:
    """The course of training of the model that is linear in the parameters around their start.

    Attributes:
        outputs: outputs before training and after each step, of shape (steps + 1, n, ...), in float64.
        loss: loss 1/2 sum |f - y|^2 before training and after each step, of shape (steps + 1,).
        stable: whether no mode grows: learning_rate * lambda_max <= 2.
    """

    outputs: np.ndarray
    loss: np.ndarray
    stable: bool


@numpy_in_float64
def linearised(
    f: Layer | Apply, params: Params, x: AnyArray, y: AnyArray, *, learning_rate: Real, steps: int
) -> Linearised:
    """Training by full-batch gradient descent as the network's own tangent kernel at the start predicts it.

    The kernel is `empirical_ntk`, in the dtype of the parameters; its modes are summed in float64.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...).
        params: parameters at which training starts.
        x: inputs (n, ...); they are one batch where outputs depend on the batch.
        y: targets in the shape of the outputs.
        learning_rate: positive learning rate for the loss 1/2 sum |f - y|^2.
        steps: number of steps of gradient descent, at least 1.

    Raises:
        OverflowError: the learning rate is so unstable that the loss leaves float64 within these steps.
        ValueError: targets do not fit the outputs, the learning rate or steps are out of range, or values are not
            finite.
    """
    apply = checked(f, params, x, y, steps=steps)
    start = np.asarray(_outputs(apply, params, x), np.float64)
    target = np.asarray(y, np.float64)
    curve = training_curve(
        empirical_ntk(f, params, x),
        _by_output(target),
        learning_rate=learning_rate,
        steps=steps,
        initial=_by_output(start),
    )
    residuals = np.swapaxes(curve.residuals.reshape(steps + 1, -1, len(target)), 1, 2)
    return Linearised(target + residuals.reshape(steps + 1, *target.shape), curve.loss, curve.stable)


@numpy_in_float64
def trained_outputs(
    f: Layer | Apply, params: Params, x: AnyArray, y: AnyArray, *, learning_rate: Real, steps: int
) -> Float[HeldArray, "steps_and_start n *outputs"]:
    """Outputs of the network itself along the descent of `linearised`, of shape (steps + 1, n, ...).

    The arguments are those of `linearised`. The dtype is that of the parameters; outputs are infinite or NaN where
    training diverged.
    """
    return _trajectory(checked(f, params, x, y, steps=steps), params, x, y, float(learning_rate), steps)


@dataclass(frozen=True, eq=False)
class LinearisationStudy:
    """Networks of several widths, compared with their own linearised predictions.

    Attributes:
        widths: widths of the networks, ascending, of shape (W,).
        distances: |f_T - g_T| / |g_T - f_0| after T steps, for the network's outputs f and the prediction g; (W,
            draws).
        loss: losses of the networks, of shape (W, draws, steps + 1).
        loss_linearised: predicted losses, of shape (W, draws, steps + 1).
        time: training time, learning_rate * steps.
    """

    widths: np.ndarray
    distances: np.ndarray
    loss: np.ndarray
    loss_linearised: np.ndarray
    time: float

    @property
    def distance(self) -> np.ndarray:
        """Mean distance over draws, of shape (W,)."""
        return np.asarray(np.mean(self.distances, axis=1))

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean distance, of shape (W,)."""
        return np.asarray(np.std(self.distances, axis=1, ddof=1) / self.distances.shape[1] ** 0.5)

    @property
    def law(self) -> PowerLaw:
        """The power law in the width that fits the distances."""
        return fit_power_law(self.widths, self.distance, self.error)


def against_linearised(
    make: Callable[[int], Layer],
    x: AnyArray,
    y: AnyArray,
    *,
    widths: Sequence[int],
    draws: int,
    learning_rate: Real,
    steps: int,
    seed: int = 0,
) -> LinearisationStudy:
    """Trains freshly drawn networks of each width and compares each with its own linearised prediction.

    Prediction and training start from the same draw of the same network, so that only the change of the kernel makes a
    difference. Computed in float64 for float64 inputs, else in float32. Each width is compiled once.

    Args:
        make: function from a width to a network, such as `lambda width: fully_connected(3, width, "weight_mean")`.
        x: inputs (n, ...).
        y: targets in the shape of the outputs.
        widths: two or more widths, ascending.
        draws: number of networks of each width, at least 2.
        learning_rate: learning rate of all widths, for the loss 1/2 sum |f - y|^2.
        steps: number of steps of gradient descent; distances are taken after the last one.
        seed: seed of all draws.

    Raises:
        OverflowError: the loss leaves float64, as for `linearised`.
        ValueError: an argument does not fit, as for `linearised`; widths or draws are not as above; a network diverged.
    """
    if len(widths) < 2 or any(a >= b for a, b in pairwise(widths)):
        raise ValueError(f"got widths {list(widths)}: expected at least two, ascending")
    if draws < 2:
        raise ValueError(f"got draws={draws}: expected at least 2, for a standard error")
    x = np.asarray(x)
    x = x if x.dtype == np.float64 else x.astype(np.float32)
    found = []
    with jax.enable_x64(x.dtype == np.float64):
        for width in widths:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), width), draws)
            found.append([_compared(make(width), key, x, y, learning_rate, steps) for key in keys])
    distances, losses, predicted = (np.array([[one[i] for one in row] for row in found]) for i in range(3))
    if not np.isfinite(distances).all():
        diverged = np.asarray(widths)[~np.isfinite(distances).all(axis=1)]
        raise ValueError(
            f"networks of width {', '.join(map(str, diverged))} diverged at learning_rate={learning_rate}: take a "
            "smaller one, see largest_stable_learning_rate"
        )
    return LinearisationStudy(np.asarray(widths), distances, losses, predicted, float(learning_rate) * steps)


def _compared(
    network: Layer, key: jax.Array, x: np.ndarray, y: AnyArray, rate: Real, steps: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """The distance after the last step, the network's loss and the predicted loss."""
    _, params = network.init(key, (-1, *x.shape[1:]))
    prediction = linearised(network, params, jnp.asarray(x), y, learning_rate=rate, steps=steps)
    outputs = np.asarray(
        trained_outputs(network, params, jnp.asarray(x), y, learning_rate=rate, steps=steps), np.float64
    )
    moved = norm(prediction.outputs[-1] - prediction.outputs[0])
    with np.errstate(over="ignore", invalid="ignore"):  # diverged, which is said by width
        distance = norm(outputs[-1] - prediction.outputs[-1]) / moved
        loss = np.sum((outputs - np.asarray(y)).reshape(steps + 1, -1) ** 2, axis=1) / 2
    return float(distance), loss, prediction.loss


def _by_output(values: np.ndarray) -> np.ndarray:
    """Values (n, ...) as a vector in the order of a kernel's matrix, output by output."""
    return values.reshape(len(values), -1).T.ravel()


@partial(jax.jit, static_argnums=0)
def _outputs(apply: Apply, params: Params, x: Any) -> jax.Array:
    outputs: jax.Array = apply(params, x)
    return outputs


@partial(jax.jit, static_argnums=(0, 5))
def _trajectory(apply: Apply, params: Params, x: Any, y: Any, rate: Real, steps: int) -> jax.Array:
    def step(params: Params, _: None) -> tuple[Params, jax.Array]:
        outputs, pull = jax.vjp(lambda p: apply(p, x), params)
        (gradient,) = pull(outputs - jnp.asarray(y, outputs.dtype))
        return moved(params, gradient, rate), outputs

    trained, outputs = jax.lax.scan(step, params, length=steps)
    return jnp.concatenate([outputs, apply(trained, x)[None]])
