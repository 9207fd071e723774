"""Whether outputs depend on the rest of their batch, their place or its size: found on outputs and derivatives."""

import itertools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.empirical import empirical_nngp, empirical_ntk
from ntk_analysis.empirical.coupling import (
    BY_LAYERS,
    OTHERS,
    PLACE,
    SIZE,
    coupling,
    few_that_differ,
    known_coupling,
    tried_coupling,
)
from ntk_analysis.empirical.directions import random_direction
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

from .test_empirical import assert_close, dense
from .test_empirical import drawn as drawn_at_random
from .tiers import full

CALLS = itertools.count(1)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def net(params, x):
    return jnp.tanh(x @ params["in"] + params["b"][None]) @ params["out"]


def normed(x):
    """Batch norm without an affine part, as a user writes it; 0 for a batch of one."""
    centered = x - jnp.mean(x, 0, keepdims=True)
    return centered / jnp.sqrt(jnp.mean(centered**2, 0, keepdims=True) + 1e-5)


def batch_norm(params, x):
    return jnp.tanh(normed(x @ params["in"]) + params["b"][None]) @ params["out"]


def column(x, values):
    """(n, 1), for strict dtypes."""
    return jnp.asarray(values, x.dtype)[:, None]


def heads(params, x):
    return jnp.concatenate([1e6 * net(params, x), batch_norm(params, x)], 1)


def groups_of_three(params, x):
    parts = x.reshape(-1, 3, x.shape[1])
    return net(params, (parts - jnp.mean(parts, 1, keepdims=True)).reshape(x.shape))


def dropped(params, x):
    return net(params, jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0))


PARAMS = {"in": draw(3, 5), "b": draw(5, seed=1), "out": draw(5, 4, seed=2)}
OF_OTHERS = {
    "batch norm": batch_norm,
    "large offset": lambda p, x: batch_norm(p, x) + 3e5,
    "second head of another scale": heads,
    "weak": lambda p, x: net(p, x) + 1e-3 * jnp.mean(net(p, x), 0, keepdims=True),
    "stopped statistics": lambda p, x: net(p, x) - jax.lax.stop_gradient(jnp.mean(net(p, x), 0, keepdims=True)),
    "first": lambda p, x: net(p, x - x[:1]),
    "maximum": lambda p, x: net(p, x) / jnp.max(jnp.abs(net(p, x))),
    "last": lambda p, x: net(p, x - x[-1:]),
    "neighbour": lambda p, x: net(p, jnp.roll(x, 1, 0)),
    "reversed": lambda p, x: net(p, x)[::-1],
    "sorted": lambda p, x: jnp.sort(net(p, x), 0),
    "softmax over the batch": lambda p, x: jax.nn.softmax(net(p, x), 0),
    "attention over the batch": lambda p, x: jax.nn.softmax(x @ x.T) @ net(p, x),
    "sum so far": lambda p, x: jnp.cumsum(net(p, x), 0),
}
OF_PLACE = {
    "dropout of a fixed key": dropped,
    "number in the input": lambda p, x: net(p, x + column(x, np.arange(len(x)))),
    "number in the output": lambda p, x: net(p, x) + column(x, np.arange(len(x))),
    "every second": lambda p, x: net(p, x) * column(x, 1 + np.arange(len(x)) % 2),
    "noise of a fixed key": lambda p, x: net(p, x) + jax.random.normal(jax.random.key(0), (len(x), 1), x.dtype),
}
OF_SIZE = {
    "divided": lambda p, x: net(p, x) / len(x),
    "multiplied": lambda p, x: net(p, x) * len(x),
    "a little": lambda p, x: net(p, x) * (1 + 1e-3 * len(x)),
}
OF_NOTHING = {
    "none": net,
    "layer norm": lambda p, x: net(p, x - jnp.mean(x, 1, keepdims=True)),
    "kinks and jumps": lambda p, x: jax.nn.relu(net(p, jnp.round(2 * x))),
    "of no slope": lambda p, x: jnp.sign(net(p, x)),
    "of rounding only": lambda p, x: jnp.sum(jax.nn.softmax(net(p, x), 1), 1),
    "saturated": lambda p, x: jax.nn.softmax(100 * net(p, x), 1),
    "not defined everywhere": lambda p, x: jnp.log(net(p, x)),
    "masked": lambda p, x: jnp.where(net(p, x) > 0, net(p, x), -jnp.inf),
}
SHOWN = {
    "large offset", "second head of another scale", "stopped statistics", "dropout of a fixed key",
    "number in the output", "a little", "none",
}  # fmt: skip
EXPECTED = {OTHERS: OF_OTHERS, PLACE: OF_PLACE, SIZE: OF_SIZE, "": OF_NOTHING}
CASES = [(name, f, why) for why, functions in EXPECTED.items() for name, f in functions.items()]


@pytest.mark.parametrize(
    ("name", "f", "why"), [*(c for c in CASES if c[0] in SHOWN), *full(*(c for c in CASES if c[0] not in SHOWN))]
)
def test_what_couples_is_found(name, f, why):
    """In float32: an offset of 3e5 leaves no digits of what a batch norm does to the outputs."""
    params, x = jax.tree.map(np.float32, PARAMS), draw(6, 3, seed=3).astype(np.float32)
    assert coupling(f, params, x) == why, name
    assert not coupling(f, params, x[:1]), "one input has nothing to be coupled to"


@pytest.mark.parametrize("name", ["batch norm", *full("a little", "number in the output", "none")])
def test_half_precision(name):
    """Looked at in float32."""
    f = {**OF_OTHERS, **OF_SIZE, **OF_PLACE, **OF_NOTHING}[name]
    with jax.numpy_dtype_promotion("standard"):
        for dtype in (jnp.float16, jnp.bfloat16):
            params = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), PARAMS)
            assert bool(coupling(f, params, draw(6, 3, seed=3).astype(dtype))) == (name != "none")


@pytest.mark.parametrize("number", [lambda: next(CALLS), time.time, *full(np.random.default_rng().normal)])
def test_what_changes_from_call_to_call_is_refused(number):
    """Programs for batches of two sizes hold two numbers: that is no coupling."""
    with pytest.raises(ValueError, match="changes from call to call"):
        coupling(lambda p, x: net(p, x) * number(), PARAMS, draw(6, 3))


def late(params, x):
    return net(params, x) * column(x, 1 + (np.arange(len(x)) >= 18))


def test_of_a_larger_batch_the_whole_is_looked_at():
    """A function that treats inputs from the 18th on in another way."""
    x = draw(20, 3)
    assert coupling(late, PARAMS, x) == SIZE
    assert coupling(late, PARAMS, x[:10], x) == SIZE
    assert not coupling(late, PARAMS, x, budget=0), "what does not fit into memory as one batch cannot be coupled"


def test_batches_that_are_not_taken():
    assert coupling(groups_of_three, PARAMS, draw(6, 3)) == "f does not take a batch of 1"


def test_place_by_the_dense_jacobian():
    """Of 1 to 4 with themselves: without the places all ones."""

    def f(params, x):
        return (x[:, :1] + column(x, np.arange(len(x)))) * params["w"]

    params, x = {"w": np.ones((1, 1))}, np.arange(1.0, 5)[:, None]
    found = empirical_ntk(f, params, x)
    assert found.coupled
    assert f"batch coupled ({PLACE})" in found.summary()
    np.testing.assert_allclose(found.ntk[:, :, 0, 0], np.outer([1, 3, 5, 7], [1, 3, 5, 7]), rtol=1e-14)
    assert "batch coupled (as stated)" in empirical_ntk(net, PARAMS, draw(3, 3), coupled=True).summary()


def of_tokens(params, tokens):
    return normed(jnp.mean(params["table"][tokens], 1)) @ params["out"]


def of_frames(params, frames):
    return batch_norm(params, frames.reshape(len(frames), -1).astype(params["in"].dtype) / 255)


SORTED = np.sort(np.random.default_rng(0).integers(1, 5, (30, 1)), axis=0)
SORTED[:12] = 0
FRAMES = np.zeros((20, 1, 3), np.uint8)
FRAMES[11:, 0, 1] = np.arange(9) * 25
TOKENS = {"table": draw(5, 3), "out": draw(3, 2, seed=1)}
INTEGERS = {
    "sorted categories": (of_tokens, TOKENS, SORTED),
    "black frames": (of_frames, PARAMS, FRAMES),
    "padded tokens": (of_tokens, TOKENS, np.pad(SORTED, ((0, 0), (0, 2)))),
    "only the last differs": (of_tokens, TOKENS, np.array([[0]] * 23 + [[3]])),
    "one category": (of_tokens, TOKENS, np.zeros((6, 1), int)),
}


@pytest.mark.parametrize("name", ["sorted categories", *full(*list(INTEGERS)[1:])])
def test_equal_first_inputs_hide_no_coupling(name):
    f, params, x = INTEGERS[name]
    found = empirical_ntk(f, params, x, layout="trace", method="jacobian")
    assert found.coupled
    if name in ("sorted categories", "black frames"):
        assert_close(found.ntk, np.einsum("abcc->ab", dense(f, params, x)))


def test_few_inputs_differ_wherever_they_can():
    """A feature that differs in one input of a thousand is among them, beside others that differ everywhere."""
    x = np.stack([np.arange(1000), np.zeros(1000), np.arange(1000) == 777], axis=1).astype(int)
    assert len(few_that_differ(x)) == 8
    assert few_that_differ(x)[:, 2].any()
    assert few_that_differ(np.zeros((30, 3))).shape == (8, 3)
    first, second = np.zeros((30, 3)), np.ones((30, 3))
    assert len(np.unique(few_that_differ(first, second), axis=0)) == 2


@jax.custom_vjp
def without_forward_mode(x):
    return jnp.tanh(x)


without_forward_mode.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


@pytest.mark.parametrize("coupled", [True, *full(False)])
def test_functions_without_forward_mode(coupled):
    def f(params, x):
        hidden = x @ params["in"]
        return without_forward_mode(normed(hidden) if coupled else hidden) @ params["out"] + 3e5

    params = jax.tree.map(np.float32, {name: PARAMS[name] for name in ("in", "out")})
    assert coupling(f, params, draw(6, 3).astype(np.float32)) == (OTHERS if coupled else "")


@pytest.mark.full
def test_outputs_without_derivatives():
    """A function of the host has outputs, and so an NNGP."""

    def f(params, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (
            jax.pure_callback(lambda x: np.asarray(x) - np.mean(np.asarray(x), 0, keepdims=True), shape, x)
            @ params["in"]
        )

    assert empirical_nngp(f, PARAMS, draw(6, 3)).coupled


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
    assert coupling(network, params, x) == {True: BY_LAYERS, False: "", None: OTHERS}[known]
    assert bool(coupling(network.apply, params, x)) == (known is not False)


CHAOTIC = {
    "weight mean": fully_connected(60, 128, "weight_mean", outputs=4),
    "tanh": fully_connected(60, 128, "none", "tanh", outputs=4, w_var=6.0),
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
    f, params = network.apply, drawn(network)
    if name != "batch norm":
        assert first_differs(f, params, X) > 1e4 * np.finfo(np.float32).eps, "there is something to be mistaken for it"
    assert bool(coupling(f, params, X)) == (name == "batch norm")


def test_chaos_behind_indices_is_not_coupling():
    """Integers cannot be moved by a rounding; parameters are."""
    network = CHAOTIC["weight mean"]

    def f(params, tokens):
        table, inner = params
        return network.apply(inner, table[tokens])

    assert not coupling(f, (X, drawn(network)), np.array([3, 1, 4, 1, 5, 0, 2, 6]))


HIDDEN = {
    "stopped statistics": lambda p, x: SHALLOWER.apply(p, x - jax.lax.stop_gradient(jnp.mean(x, 0, keepdims=True))),
    "maximum": lambda p, x: SHALLOWER.apply(p, x) + jnp.max(x),
    "size of the batch": lambda p, x: SHALLOWER.apply(p, x) / len(x),
}


@pytest.mark.parametrize("name", ["stopped statistics", "size of the batch", *full("maximum")])
def test_chaos_hides_no_coupling(name):
    assert coupling(HIDDEN[name], drawn(SHALLOWER), X)


def test_noise_of_one_program_is_not_coupling():
    """As of sums whose order changes from run to run."""
    calls = itertools.count()

    def respond(params, direction, x):
        return net(params, x)[None] * (1 + 1e-6 * (next(calls) % 2))

    assert not tried_coupling(respond, PARAMS, random_direction(PARAMS), draw(8, 3))


@pytest.mark.full
@pytest.mark.parametrize("where", ["before the cells", "behind the cells"])
def test_dropout_of_a_fixed_key_around_an_lstm(where):
    """A network of Flax over 6 steps: its masks differ by place, and hidden states carry them along."""

    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            drop = nn.Dropout(0.5, deterministic=False)
            x = nn.RNN(nn.OptimizedLSTMCell(8))(drop(x) if where == "before the cells" else x)
            return nn.Dense(2)(drop(x)[:, -1] if where == "behind the cells" else x[:, -1])

    x = draw(12, 6, 5).astype(np.float32)
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        network = Recurrent()
        params = network.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)["params"]

        def f(params, x):
            return network.apply({"params": params}, x, rngs={"dropout": jax.random.key(1)})

        assert coupling(f, params, x) == PLACE


@pytest.mark.parametrize("layer", [BatchNorm(), LastBatchNorm()], ids=["batch norm", "last batch norm"])
def test_batches_of_one_input_again_and_again_have_no_variance(layer):
    network = Serial(Dense(4), Repeat(Serial(Dense(4), layer), 2))
    _, params = network.init(jax.random.key(0), (-1, 3))
    with pytest.raises(ValueError, match=r"all inputs of the batch are equal.*give distinct inputs, or eps > 0"):
        empirical_ntk(network, params, np.ones((5, 3)))
