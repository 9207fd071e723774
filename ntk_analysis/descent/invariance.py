"""What a last batch norm makes of gradient descent: layers whose scale the loss does not see, and their norms.

Behind a last batch norm at eps = 0 the loss does not see the scale of a layer W_l without biases, if what follows is
positively homogeneous up to that norm. So <W_l, dL/dW_l> = 0, |W_l|^2 grows by learning_rate^2 |dL/dW_l|^2 a step, and
the rate at which W_l turns falls as learning_rate / |W_l|^2 (van Laarhoven 2017, 1706.05350).
"""

from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ntk_analysis.common.precision import AnyArray, Real, numpy_in_float64
from ntk_analysis.descent.stability import checked, moved
from ntk_analysis.layers import LastBatchNorm, Layer, Serial
from ntk_analysis.layers.base import Params


@dataclass(frozen=True, eq=False)
class ScaleInvariance:
    """Scale of each layer of weights before a last batch norm, along gradient descent; entry t is before step t.

    Layers are in the order of execution.

    Attributes:
        products: inner products <W_l, dL/dW_l>, of shape (steps + 1, layers).
        squared_norms: squared norms |W_l|^2, of shape (steps + 1, layers).
        squared_gradients: squared norms |dL/dW_l|^2, of shape (steps + 1, layers); the last is of a step not made.
        variance: variances of the last batch norm's inputs over all of x, eps not included, of shape (steps + 1,
            outputs).
        loss: loss 1/2 sum |f - y|^2 over each step's batch, of shape (steps + 1,).
        learning_rate: learning rate of the descent.
    """

    products: np.ndarray
    squared_norms: np.ndarray
    squared_gradients: np.ndarray
    variance: np.ndarray
    loss: np.ndarray
    learning_rate: float

    @property
    def cosines(self) -> np.ndarray:
        """Cosines (steps + 1, layers) between weights and gradient: 0 to rounding if the scale makes no difference.

        The rounding is that of the terms of the gradient: at a minimum nothing but this rounding is left of the
        gradient.
        """
        sizes = np.sqrt(self.squared_norms * self.squared_gradients)
        return np.divide(self.products, sizes, out=np.zeros_like(self.products), where=sizes > 0)

    @property
    def growth_error(self) -> np.ndarray:
        """Growth (steps, layers) of |W|^2 beyond learning_rate^2 |gradient|^2, divided by |W|^2: 0 to rounding."""
        grown = np.diff(self.squared_norms, axis=0)
        expected = self.learning_rate**2 * self.squared_gradients[:-1]
        return np.asarray((grown - expected) / self.squared_norms[1:])

    @property
    def effective_learning_rate(self) -> np.ndarray:
        """Learning rate learning_rate / |W_l|^2 of each layer's direction, of shape (steps + 1, layers)."""
        return np.asarray(self.learning_rate / self.squared_norms)


@numpy_in_float64
def scale_invariance(
    network: Layer,
    params: Params,
    x: AnyArray,
    y: AnyArray,
    *,
    learning_rate: Real,
    steps: int,
    batch: int | None = None,
    seed: int = 0,
) -> ScaleInvariance:
    """Norms and gradients of each layer, and the last batch norm's variance, along stochastic gradient descent.

    The products vanish for layers that have no biases and are followed by ReLU or another positively homogeneous
    activation (or a normalisation), if eps = 0. Elsewhere they tell how far the network is from that; nothing is
    assumed.

    Args:
        network: a `Serial` that ends in `LastBatchNorm`, as
            `fully_connected(..., last_batch_norm=True)`.
        params: parameters at which training starts; all is computed in their dtype.
        x: inputs (n, ...).
        y: targets (n, outputs).
        learning_rate: positive learning rate for the loss 1/2 sum |f - y|^2 over a batch.
        steps: number of steps, at least 1.
        batch: number of inputs in each step, drawn without replacement; None is all of them.
        seed: seed of the batches.

    Raises:
        TypeError: the network does not end in `LastBatchNorm`.
        ValueError: targets do not fit, the learning rate, steps or batch are out of range, or training diverged.
    """
    if not (isinstance(network, Serial) and isinstance(network.layers[-1], LastBatchNorm)):
        raise TypeError(f"{network} does not end in LastBatchNorm: fully_connected(..., last_batch_norm=True) does")
    checked(network, params, x, y, steps=steps)
    rate, n = float(learning_rate), len(x)
    if not 0 < rate < np.inf:
        raise ValueError(f"got learning_rate={learning_rate}: expected a positive number")
    if not 3 <= (size := n if batch is None else batch) <= n:  # batch norm of 2 inputs keeps their signs only
        raise ValueError(f"got a batch of {size}: expected 3 to {n}, the number of inputs")
    rows = _batches(n, size, steps + 1, seed)
    moments = _descent(network, params, jnp.asarray(x), jnp.asarray(y), rate, rows)
    found = {name: np.asarray(values) for name, values in moments.items()}
    if not all(np.isfinite(values).all() for values in found.values()):
        raise ValueError(f"training at learning_rate={rate:g} left the range of numbers: take a smaller one")
    return ScaleInvariance(**found, learning_rate=rate)


def _batches(n: int, size: int, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    whole = np.arange(n)
    return np.stack([whole if size == n else generator.choice(n, size, replace=False) for _ in range(count)])


@partial(jax.jit, static_argnums=0)
def _descent(
    network: Serial, params: Params, x: jax.Array, y: jax.Array, rate: Real, rows: AnyArray
) -> dict[str, jax.Array]:
    """The arrays of `ScaleInvariance` by name; each step takes its own rows of x."""
    before_norm, inner = Serial(*network.layers[:-1]), partial(_products, network)

    def step(params: Params, chosen: jax.Array) -> tuple[Params, dict[str, jax.Array]]:
        outputs, pull = jax.vjp(lambda p: network.apply(p, x[chosen]), params)
        residual = outputs - y[chosen].astype(outputs.dtype)
        (gradient,) = pull(residual)
        return moved(params, gradient, rate), {
            "products": inner(params, gradient),
            "squared_norms": inner(params, params),
            "squared_gradients": inner(gradient, gradient),
            "variance": jnp.var(before_norm.apply(params[:-1], x), axis=0),
            "loss": jnp.sum(residual**2) / 2,
        }

    _, moments = jax.lax.scan(step, params, jnp.asarray(rows))
    return dict(moments)


def _products(layer: Layer, left: Params, right: Params) -> Float[jax.Array, " layers"]:
    """Inner products of two trees like the parameters, layer by layer; layers without parameters are left out."""
    if not layer.parts:
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
        return jnp.sum(jnp.stack(jax.tree.leaves(products)), keepdims=True)
    found = []
    for part, key in zip(layer.parts, layer.part_keys, strict=True):
        own = [reduce(getitem, key, params) for params in (left, right)]
        if jax.tree.leaves(own):
            inner = partial(_products, part)
            found.append((jax.vmap(inner) if layer.stacked else inner)(*own).reshape(-1))
    return jnp.concatenate(found)
