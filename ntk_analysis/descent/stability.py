"""The largest learning rate at which full-batch gradient descent on a finite network is stable, by trying.

Theory says 2/lambda_max of the tangent kernel, for a network that is linear in its parameters. A network that is not
may survive more: its outputs grow, and with them its parameters move until lambda_max is smaller (the catapult of
Lewkowycz et al. 2020, 2003.02218). Where targets are close to the outputs the network starts from, everything happens
in the linear regime, at every width, and what is measured is the stability of the kernel it starts with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ntk_analysis.common.precision import AnyArray, HeldArray, Real, numpy_in_float64
from ntk_analysis.common.pytrees import Tree
from ntk_analysis.empirical.whole_models import refuse_whole_models
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params

DOUBLINGS = 60  # doublings of the first guess before the search gives up


@dataclass(frozen=True)
class StableRate:
    """The result of a bisection for the largest stable learning rate.

    Attributes:
        bracket: the largest rate seen to be stable and the smallest seen to be unstable, for the loss 1/2 sum |f -
            y|^2.
        steps: number of steps of gradient descent for which each rate was tried.
    """

    bracket: tuple[float, float]
    steps: int

    @property
    def rate(self) -> float:
        """The geometric middle of the bracket."""
        return math.sqrt(self.bracket[0] * self.bracket[1])

    @property
    def error(self) -> float:
        """Largest relative error of `rate` within the bracket."""
        return self.rate / self.bracket[0] - 1


@numpy_in_float64
def largest_stable_learning_rate(
    f: Layer | Callable[..., Any],
    params: Params,
    x: AnyArray,
    y: AnyArray,
    *,
    steps: int = 100,
    resolution: float = 0.01,
    catapults: bool = False,
) -> StableRate:
    """Bisection for the learning rate of full-batch gradient descent on 1/2 sum |f - y|^2, on the network itself.

    A rate is unstable if the loss rises above its start, or stops being finite, at any step. In a linear model this
    never happens below 2/lambda_max. Above that bound, the residual's share s along the largest mode has to grow first,
    so rates up to a fraction (s^(-1 / (2 steps)) - 1) / 2 above the bound pass. Computed in the dtype of the
    parameters; NumPy float64 parameters are computed in float64, whatever JAX's flag. In float32, steps that are lost
    in the rounding of the parameters never diverge: keep the residual above a thousandth of the outputs.

    Args:
        f: a network of layers, or a pure JAX function f(params, x) -> (n, ...).
        params: parameters at which training starts.
        x: inputs (n, ...).
        y: targets in the shape of the outputs.
        steps: number of steps of gradient descent, at least 1.
        resolution: relative width of the bracket at the end, in (0, 1).
        catapults: whether the loss may rise on the way; then only its last value counts.

    Raises:
        ValueError: targets do not fit the outputs; steps or resolution are out of range; the start is not finite, or
            nothing moves from it; no stable rate is found, or no unstable one.
    """
    if not 0 < resolution < 1:
        raise ValueError(f"got resolution={resolution}: expected a number in (0, 1)")
    apply = checked(f, params, x, y, steps=steps)

    def stable(rate: float) -> bool:
        losses = np.asarray(_losses(apply, params, x, y, rate, steps))
        highest = losses[-1] if catapults else np.max(losses)
        return bool(np.isfinite(losses).all() and highest <= losses[0])

    low, high = _bracket(stable, _upper_bound(apply, params, x, y))
    while high > (1 + resolution) * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) else (low, middle)
    return StableRate((low, high), steps)


@numpy_in_float64
def loss_curve(
    f: Layer | Callable[..., Any], params: Params, x: AnyArray, y: AnyArray, *, learning_rate: Real, steps: int
) -> Float[HeldArray, " steps_and_start"]:
    """Loss 1/2 sum |f - y|^2 before training and after each step of full-batch gradient descent, (steps + 1,).

    Arguments and errors are those of `largest_stable_learning_rate`. The loss is infinite or NaN where training
    diverged.
    """
    return _losses(checked(f, params, x, y, steps=steps), params, x, y, float(learning_rate), steps)


Apply = Callable[..., Any]


@dataclass(frozen=True)
class FunctionOf:
    """f(params, x) of a network; unlike a bound method it is equal for equal networks, which then share a program."""

    network: Layer

    def __call__(self, params: Params, x: Tree) -> jax.Array:
        return self.network.apply(params, x)


def checked(f: Layer | Apply, params: Params, x: Tree, y: ArrayLike, *, steps: int) -> Apply:
    """The function f(params, x), after a check that its outputs can be compared with y."""
    if steps < 1:
        raise ValueError(f"got steps={steps}: expected at least 1")
    refuse_whole_models(f, params)
    apply = FunctionOf(f) if isinstance(f, Layer) else f
    shape = jax.eval_shape(apply, params, x).shape
    if shape != np.shape(y):
        raise ValueError(f"targets have shape {np.shape(y)}, the network's outputs {shape}: they must be the same")
    return apply


def moved(params: Params, gradient: Params, rate: Real) -> Params:
    """The parameters after one step of gradient descent, in their dtype."""
    return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g, params, gradient)


def _loss(apply: Apply, params: Params, x: Any, y: Any) -> jax.Array:
    outputs = apply(params, x)
    return jnp.sum((outputs - jnp.asarray(y, outputs.dtype)) ** 2) / 2


@partial(jax.jit, static_argnums=(0, 5))
def _losses(apply: Apply, params: Params, x: Any, y: Any, rate: Real, steps: int) -> jax.Array:
    slope = jax.value_and_grad(partial(_loss, apply))

    def step(params: Params, _: None) -> tuple[Params, jax.Array]:
        loss, gradient = slope(params, x, y)
        return moved(params, gradient, rate), loss

    trained, losses = jax.lax.scan(step, params, length=steps)
    return jnp.append(losses, _loss(apply, trained, x, y))


@partial(jax.jit, static_argnums=0)
def _start(apply: Apply, params: Params, x: Any, y: Any) -> tuple[jax.Array, jax.Array]:
    """Loss and squared norm of its gradient at the start."""
    loss, gradient = jax.value_and_grad(partial(_loss, apply))(params, x, y)
    return loss, sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), jnp.zeros((), loss.dtype))


def _upper_bound(apply: Apply, params: Params, x: Any, y: Any) -> float:
    """The rate 2 |r|^2 / |gradient|^2 for the residual r: at least 2/lambda_max, as |gradient|^2 = r' Theta r."""
    loss, squared_gradient = map(float, _start(apply, params, x, y))
    if not (math.isfinite(loss) and math.isfinite(squared_gradient)):
        raise ValueError(f"loss {loss:.3g} and squared gradient {squared_gradient:.3g} at the start: expected numbers")
    if loss == 0 or squared_gradient == 0:
        raise ValueError("the loss or its gradient is 0 at the start: nothing moves, so no rate is unstable")
    return 4 * loss / squared_gradient


def _bracket(stable: Callable[[float], bool], guess: float) -> tuple[float, float]:
    """A stable rate and an unstable one twice as large."""
    factor, verdict = (2.0, True) if stable(guess) else (0.5, False)
    for _ in range(DOUBLINGS):
        last, guess = guess, guess * factor
        if stable(guess) is not verdict:
            return min(last, guess), max(last, guess)
    word = "unstable" if verdict else "stable"
    raise ValueError(f"no {word} learning rate up to {guess:.3g} from a first guess {guess / factor**DOUBLINGS:.3g}")
