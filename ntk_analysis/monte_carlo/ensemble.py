"""Networks that are drawn: how a draw is made, and one draw's kernels on the inputs of a tile."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ntk_analysis.empirical.functions import Network, Side, flattened, precise
from ntk_analysis.empirical.layouts import arranged, inner
from ntk_analysis.empirical.methods import Method
from ntk_analysis.empirical.tiles import NETWORKS, method_of
from ntk_analysis.layers import Layer
from ntk_analysis.layers.base import Params, Shape

Init: TypeAlias = Callable[[jax.Array, Shape], tuple[Any, Params]]
"""A function (key, input shape with the batch axis) -> (anything, parameters), as `Layer.init` is one."""
Drawn: TypeAlias = Layer | tuple[Init, Network]
"""What can be drawn: a network of layers, or a pair (init, apply)."""


@dataclass(frozen=True)
class Ensemble:
    """A network whose parameters are drawn.

    Attributes:
        network: network of layers, or a pair (init, apply): a `Drawn`; all else is refused.
    """

    network: Any

    def __post_init__(self) -> None:
        pair = self.network
        if isinstance(pair, Layer):
            return
        functions = isinstance(pair, tuple) and len(pair) == 2 and callable(pair[0])
        if not (functions and (callable(pair[1]) or isinstance(pair[1], Layer))):
            raise TypeError(
                f"got {pair!r} to draw, expected a network of layers, or a pair (init, apply) of functions "
                "init(key, input_shape) -> (output_shape, params) and apply(params, x)"
            )

    @property
    def f(self) -> Network:
        """The network as a function of parameters and inputs."""
        return self.network if isinstance(self.network, Layer) else self.network[1]

    def drawn(self, key: jax.Array, shape: Shape) -> Params:
        """The parameters of this key, for inputs of this shape, whose first axis is the batch.

        Raises:
            TypeError: `init` returns no pair.
        """
        init = self.network.init if isinstance(self.network, Layer) else self.network[0]
        found = init(key, shape)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(f"init must return a pair (output shape, params), got {type(found).__name__}")
        return found[1]


class Sums(NamedTuple):
    """Mean and spread of values over draws.

    Attributes:
        mean: mean over the draws.
        spread: sum over the draws of the squared deviations from the mean.
    """

    mean: Any
    spread: Any


@lru_cache(maxsize=NETWORKS)
def draw_program(ensemble: Ensemble, shape: Shape) -> Callable[[jax.Array, jax.Array], Params]:
    """The compiled function (key, number) -> parameters of the draw of this number."""
    return jax.jit(lambda key, number: ensemble.drawn(jax.random.fold_in(key, number), shape))


@lru_cache(maxsize=NETWORKS)
def sums_program(ensemble: Ensemble, shape: Shape, name: str) -> Callable[..., Sums]:
    """The compiled sums over draws of NNGP and NTK of a tile, both means over outputs.

    It is a function (key, first, last, rows, columns) of the numbers of the draws and of the two sides of the tile;
    columns of None are the rows. Mean and spread have the shape (2, n1, n2): NNGP, NTK. They are summed as in Welford
    1962 (Technometrics 4, 419), which does not subtract large sums from each other.
    """
    method, f = method_of(ensemble.f, name, "trace"), precise(flattened(ensemble.f))

    def one(params: Params, left: Side, right: Side | None) -> jax.Array:
        outputs = _outputs(f, params, left), None if right is None else _outputs(f, params, right)
        first, second = outputs[0], outputs[0] if outputs[1] is None else outputs[1]
        count = first.shape[1]
        nngp = inner(first[:, :, None], second[:, :, None], "trace") / count
        return jnp.stack([nngp, _ntk(method, params, left, right) / count])

    def sums(key: jax.Array, first: jax.Array, last: jax.Array, left: Side, right: Side | None) -> Sums:
        def add(number: jax.Array, sums: Sums) -> Sums:
            params = ensemble.drawn(jax.random.fold_in(key, number), shape)
            value = one(params, left, right)
            off = value - sums.mean
            mean = sums.mean + off / (number - first + 1).astype(value.dtype)
            return Sums(mean, sums.spread + off * (value - mean))

        example = jax.eval_shape(lambda: one(ensemble.drawn(key, shape), left, right))
        none = jnp.zeros(example.shape, example.dtype)
        return jax.lax.fori_loop(first, last, add, Sums(none, none))

    return jax.jit(sums)


def _outputs(f: Callable[..., jax.Array], params: Params, side: Side) -> jax.Array:
    y = f(params, side.x)
    return y if side.rows is None else y[side.rows]


def _ntk(method: Method, params: Params, left: Side, right: Side | None) -> jax.Array:
    rows = method.prepare(params, left)
    columns = rows if right is None else method.prepare(params, right)
    return arranged(method.contract(params, rows, columns), "trace")
