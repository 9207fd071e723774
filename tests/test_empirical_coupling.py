"""Whether the outputs of a batch depend on each other: found on values, also where chaos amplifies rounding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_empirical import drawn as drawn_at_random
from tiers import full

from ntk_analysis.empirical.functions import couples_batch, flattened, known_coupling
from ntk_analysis.layers import (
    Activation,
    BatchNorm,
    Dense,
    LastBatchNorm,
    LayerNorm,
    Repeat,
    Residual,
    ResidualChain,
    Serial,
)
from ntk_analysis.networks import fully_connected


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def plain(params, x):
    return (jnp.tanh(x @ params["in"] + params["b"][None]) @ params["out"]).reshape(len(x), 2, -1)


def coupled(params, x):
    hidden = x @ params["in"]
    hidden = (hidden - jnp.mean(hidden, 0, keepdims=True)) / jnp.std(hidden, 0, keepdims=True)
    return jnp.tanh(hidden + params["b"][None]) @ params["out"]


PARAMS = {"in": draw(3, 5), "b": draw(5, seed=1), "out": draw(5, 4, seed=2)}
COUPLINGS = {
    "batch norm": (coupled, True),
    "stopped statistics": (
        lambda p, x: plain(p, x) - jax.lax.stop_gradient(jnp.mean(plain(p, x), 0, keepdims=True)),
        True,
    ),
    "maximum": (lambda p, x: plain(p, x) / jnp.max(jnp.abs(plain(p, x))), True),
    "size of the batch": (lambda p, x: plain(p, x) / len(x), True),
    "none": (plain, False),
    "layer norm": (lambda p, x: plain(p, x - jnp.mean(x, 1, keepdims=True)), False),
}


@pytest.mark.parametrize("name", COUPLINGS)
def test_coupling_is_detected(name):
    f, couples = COUPLINGS[name]
    f = jax.jit(flattened(f))
    for n in (3, 20):
        assert couples_batch(f, PARAMS, draw(n, 3)) == couples
    assert not couples_batch(f, PARAMS, draw(1, 3)), "one input has nothing to be coupled to"


class MeanTaker(Activation):
    """A layer of one's own, derived from one that is known."""

    def compute(self, params, x):
        return super().compute(params, x) - jnp.mean(x, 0, keepdims=True)


RELU, INNER = Activation("relu"), Serial(Activation("relu"), Dense(5))
OF_LAYERS = {
    "layer norm": (Serial(Dense(5), LayerNorm(), RELU, Dense(4)), False),
    "last batch norm": (Serial(Dense(5), RELU, Dense(4), LastBatchNorm()), True),
    "repeated": (Serial(Dense(5), Repeat(Serial(BatchNorm(), RELU, Dense(5)), 2)), True),
    "residual chain": (Serial(Dense(5), ResidualChain(INNER, (0.5, 0.5))), False),
    "in the shortcut": (Serial(Dense(5), Residual(INNER, shortcut=Serial(Dense(5), BatchNorm()))), True),
    "residual": (Serial(Dense(5), Residual(INNER)), False),
    "of one's own": (Serial(Dense(5), MeanTaker("relu")), None),
}


@pytest.mark.parametrize("name", OF_LAYERS)
def test_what_is_known_of_layers_is_what_is_found(name):
    network, known = OF_LAYERS[name]
    assert known_coupling(network) is known
    params, x, _ = drawn_at_random(network, (3,), 8)
    assert couples_batch(jax.jit(flattened(network)), params, x) == (known is not False)


CHAOTIC = {
    "weight mean": fully_connected(60, 128, "weight_mean", outputs=4),
    "tanh": fully_connected(60, 128, "none", "tanh", 4, 6.0),
    "batch norm": fully_connected(60, 128, "batch", outputs=4),
}
SHALLOWER = fully_connected(30, 128, "weight_mean", outputs=4)
X = np.float32(draw(8, 20, seed=3))


def drawn(network):
    """Its weights, in float32."""
    return jax.tree.map(np.float32, drawn_at_random(network, X.shape[1:])[0])


def first_differs(f, params, x):
    """By how much of the outputs' size the first input by itself differs from the first of the batch."""
    batch, alone = f(params, x), f(params, x[:1])
    return float(jnp.max(jnp.abs(batch[:1] - alone)) / jnp.max(jnp.abs(batch)))


@pytest.mark.parametrize("name", ["weight mean", "batch norm", *full("tanh")])
def test_chaos_is_not_coupling(name):
    """float32, 60 layers: rounding is amplified until it is a good part of the outputs."""
    network = CHAOTIC[name]
    f, params = jax.jit(flattened(network)), drawn(network)
    if name != "batch norm":
        assert first_differs(f, params, X) > 1e4 * np.finfo(np.float32).eps, "there is something to be mistaken for it"
    assert couples_batch(f, params, X) == (name == "batch norm")


def test_chaos_behind_indices_is_not_coupling():
    """Integers cannot be moved by a rounding; parameters are."""
    network = CHAOTIC["weight mean"]

    def f(params, tokens):
        table, inner = params
        return network.apply(inner, table[tokens])

    assert not couples_batch(
        jax.jit(flattened(f)), (jnp.asarray(X), drawn(network)), np.array([3, 1, 4, 1, 5, 0, 2, 6])
    )


HIDDEN = {
    "stopped statistics": lambda p, x: SHALLOWER.apply(p, x - jax.lax.stop_gradient(jnp.mean(x, 0, keepdims=True))),
    "maximum": lambda p, x: SHALLOWER.apply(p, x) + jnp.max(x),
    "size of the batch": lambda p, x: SHALLOWER.apply(p, x) / len(x),
}


@pytest.mark.parametrize("name", ["stopped statistics", "size of the batch", *full("maximum")])
def test_chaos_hides_no_coupling(name):
    assert couples_batch(jax.jit(flattened(HIDDEN[name])), drawn(SHALLOWER), X)


def test_noise_of_one_program_is_not_coupling():
    """As of sums whose order changes from run to run."""
    calls = itertools.count()

    def f(params, x):
        return flattened(plain)(params, x) * (1 + 1e-6 * (next(calls) % 2))

    assert not couples_batch(f, PARAMS, draw(8, 3))
