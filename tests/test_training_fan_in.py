"""Which axes are the fan-in: a centered layer without biases maps inputs that are all alike to 0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from ntk_analysis.layers import Activation, BatchNorm, Conv, Dense, Flatten, Repeat, Residual, ResidualChain, Serial
from ntk_analysis.networks import from_linen, from_nnx
from ntk_analysis.training import Centering, center, center_weights, centering_mask, fan_in_axes, mimic, selected

ALL = selected(min_fan_in=2, without=())


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """JAX's own defaults: the strictness of these tests is not Flax's."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def drawn(init, *args, **options):
    """Weights of these shapes, far from centered; NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init(*args, **options))
    return jax.tree.map(lambda leaf: 1 + rng.standard_normal(leaf.shape, np.float32), shapes)


WITHOUT = {"use_bias": False}
LINEN = {  # a layer, and the shape of its inputs
    "dense": (nn.Dense(3, **WITHOUT), (2, 8)),
    "attention's in-projection": (nn.DenseGeneral((4, 2), **WITHOUT), (2, 8)),
    "attention's out-projection": (nn.DenseGeneral(3, axis=(-2, -1), **WITHOUT), (2, 4, 2)),
    "a batch of layers": (nn.DenseGeneral(3, axis=-1, batch_dims=(0,), **WITHOUT), (2, 5, 8)),
    "convolution of sequences": (nn.Conv(3, (3,), padding="VALID", **WITHOUT), (2, 9, 8)),
    "convolution": (nn.Conv(3, (3, 2), padding="VALID", **WITHOUT), (2, 9, 7, 8)),
    "grouped": (nn.Conv(4, (3,), padding="VALID", feature_group_count=2, **WITHOUT), (2, 9, 8)),
    "transposed": (nn.ConvTranspose(3, (1,), **WITHOUT), (2, 9, 8)),
    "transposed kernel": (nn.ConvTranspose(3, (1,), transpose_kernel=True, **WITHOUT), (2, 9, 8)),
    "a convolution that shares nothing": (nn.ConvLocal(3, (3,), padding="VALID", **WITHOUT), (2, 9, 8)),
    "einsum": (nn.Einsum((2, 8, 4), "bd,hdk->bhk", use_bias=False), (5, 8)),
    "einsum, units first": (nn.Einsum((4, 2, 8), "...d,khd->...kh", use_bias=False), (5, 8)),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    module, shape = LINEN[name]
    ones = jnp.ones(shape)
    params = drawn(module.init, jax.random.key(0), ones)["params"]
    centered = center(params, ALL, axes=fan_in_axes(module, ones))
    before, after = (jnp.max(jnp.abs(module.apply({"params": p}, ones))) for p in (params, centered))
    assert before > 1
    assert after < 1e-5 * before


class Block(nn.Module):
    """What it carries grows by the outputs of layers on inputs that are all alike: by 0 behind centered ones."""

    attention: bool = False

    @nn.compact
    def __call__(self, carry, _):
        y = nn.Dense(6, name="query", **WITHOUT)(jnp.ones_like(carry))
        if self.attention:
            y = nn.DenseGeneral((3, 2), name="key", **WITHOUT)(jnp.ones_like(carry)).reshape(carry.shape)
        self.param("table", nn.initializers.ones, (8,))
        return carry + jnp.abs(y), None


class Model(nn.Module):
    """Layers stacked by scan, along either axis and twice, and by vmap; an embedding; weights of its own."""

    @nn.compact
    def __call__(self, x, train: bool):
        options = {"split_rngs": {"params": True}}
        y = jnp.zeros((2, 6))
        y = nn.scan(Block, variable_axes={"params": 0}, length=5, **options)(True, name="layers")(y, None)[0]
        y = nn.scan(Block, variable_axes={"params": 1}, length=4, **options)(name="second")(y, None)[0]
        inner = nn.scan(Block, variable_axes={"params": 0}, length=3, **options)
        y = nn.scan(inner, variable_axes={"params": 0}, length=2, **options)(True, name="twice")(y, None)[0]
        heads = nn.vmap(nn.Dense, variable_axes={"params": 0}, in_axes=None, out_axes=0, axis_size=5, **options)
        y = y + jnp.abs(heads(6, name="heads")(jnp.ones((2, 8)))).sum(0)
        y = y + jnp.abs(nn.Embed(7, 6)(x))
        y = y + jnp.abs(jnp.ones(8) @ self.param("own", nn.initializers.ones, (8, 6)))
        self.param("pair", nn.initializers.ones, (2, 8, 6))
        return nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(y)


TOKENS = np.array([1, 3], np.int32)
EXPECTED = {  # axes of the fan-in by hand; the stacked biases and scales, the embedding and what nobody knows stay
    "layers/query/kernel": (1,),
    "layers/key/kernel": (1,),
    "second/query/kernel": (0,),
    "twice/query/kernel": (2,),
    "twice/key/kernel": (2,),
    "heads/kernel": (1,),
    "own": (0,),
}


@pytest.fixture(scope="module")
def variables():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return drawn(Model().init, jax.random.key(0), TOKENS, train=False)


def by_name(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_linen_s_stacked_layers(variables):
    params = variables["params"]
    with pytest.warns(
        UserWarning, match=r"not centered, as the fan-in of pair \(2, 8, 6\) is not known: give axes="
    ) as told:
        centered = by_name(center(params, ALL, axes=fan_in_axes(Model(), TOKENS)))
    assert len(told) == 1
    given = by_name(params)
    assert set(EXPECTED) < set(given)
    for name, leaf in given.items():
        expected = leaf - leaf.mean(EXPECTED[name], keepdims=True) if name in EXPECTED else leaf
        np.testing.assert_allclose(centered[name], expected, atol=1e-6, err_msg=name)
    # the same from f of from_linen, and with the collection's name before it
    f, _, _ = from_linen(Model(), variables, TOKENS)
    for axes, tree in ((fan_in_axes(f, TOKENS), {"params": params}), (fan_in_axes(Model().apply, TOKENS), params)):
        with pytest.warns(UserWarning, match="not centered"):
            again = by_name(center(tree, ALL, axes=axes))
        for name, leaf in again.items():
            np.testing.assert_array_equal(leaf, centered[name.removeprefix("params/")], err_msg=name)


def test_attention_of_linen_and_nnx():
    """(16, 4, 2) and (4, 2, 16), their biases of two axes; with Linen and NNX the same arrays by the same names."""
    x = jnp.ones((1, 3, 16))
    linen = nn.MultiHeadDotProductAttention(4, qkv_features=8)
    model = nnx.eval_shape(lambda: nnx.MultiHeadAttention(4, 16, 8, decode=False, rngs=nnx.Rngs(0)))
    for params, axes in (
        (drawn(linen.init, jax.random.key(0), x)["params"], fan_in_axes(linen, x)),
        (drawn(lambda: nnx.to_pure_dict(nnx.state(model, nnx.Param))), model),
    ):
        found, before = by_name(center(params, ALL, axes=axes)), by_name(params)
        for name in ("query", "key", "value"):
            kernel = before[f"{name}/kernel"]
            assert kernel.shape == (16, 4, 2)
            np.testing.assert_allclose(found[f"{name}/kernel"], kernel - kernel.mean(0), atol=1e-6)
            np.testing.assert_array_equal(found[f"{name}/bias"], before[f"{name}/bias"])
        kernel = before["out/kernel"]
        np.testing.assert_allclose(found["out/kernel"], kernel - kernel.mean((0, 1)), atol=1e-6)
        # the fan-in of an in-projection is 16, of the out-projection 8
        some = by_name(center(params, selected(min_fan_in=9), axes=axes))
        np.testing.assert_array_equal(some["out/kernel"], kernel)
        np.testing.assert_array_equal(some["key/kernel"], found["key/kernel"])
        with pytest.raises(ValueError, match="selects no weights"):
            center(params, selected(min_fan_in=2, dense=False), axes=axes)  # none is a convolution


class Stack(nnx.Module):
    """Layers stacked by vmap, one beside them, an embedding and low-rank weights."""

    def __init__(self, rngs):
        keys: dict[str, Any] = {"in_axes": 0, "out_axes": 0}
        made = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.Linear(8, 6, rngs=rngs), **keys))
        images = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.Conv(8, 6, (3,), rngs=rngs), **keys))
        norms = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.LayerNorm(6, rngs=rngs), **keys))
        self.layers, self.images, self.norms = made(rngs), images(rngs), norms(rngs)
        self.linear = nnx.Linear(8, 6, rngs=rngs)
        self.transposed = nnx.ConvTranspose(8, 6, (3,), transpose_kernel=True, rngs=rngs)
        self.general = nnx.LinearGeneral((4, 2), (3, 2), axis=(-2, -1), rngs=rngs)
        self.product = nnx.Einsum("...d,hdk->...hk", (2, 8, 4), None, rngs=rngs)
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.lora = nnx.LoRA(8, 2, 6, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def test_nnx():
    model = nnx.eval_shape(lambda: Stack(nnx.Rngs(0)))
    expected = {
        "layers/kernel": (1,),
        "images/kernel": (1, 2),
        "linear/kernel": (0,),
        "transposed/kernel": (0, 2),
        "general/kernel": (0, 1),
        "product/kernel": (1,),
        "lora/lora_a": (0,),
        "lora/lora_b": (0,),
    }
    params = drawn(lambda: nnx.state(model, nnx.Param))
    f, _, x = from_nnx(model, jnp.ones((2, 8)))
    for axes in (model, fan_in_axes(model), f, fan_in_axes(f, x)):
        found = by_name(nnx.to_pure_dict(center(params, ALL, axes=axes)))
        for name, leaf in by_name(nnx.to_pure_dict(params)).items():
            centered = leaf - leaf.mean(expected[name], keepdims=True) if name in expected else leaf
            np.testing.assert_allclose(found[name], centered, atol=1e-6, err_msg=name)


NETWORK = Serial(
    Conv(4, b_var=0.1),
    Repeat(Serial(Conv(4, 3, b_var=0.1), BatchNorm(0.1, True, True), Residual(Conv(4, 1))), 3),
    Flatten(),
    Dense(6),
    Repeat(Serial(Repeat(Dense(6, 1.0, 0.1), 2), Activation("relu")), 5),
    ResidualChain(Serial(Dense(6)), (1.0, 0.5)),
    Residual(Dense(3), shortcut=Dense(3, 1.0, 0.1)),
)


def test_our_layers():
    """Against every array's mean in NumPy, block by block."""
    params = drawn(lambda: NETWORK.init(jax.random.key(0), (-1, 4, 4, 2))[1])
    found, given = by_name(center(params, ALL, axes=NETWORK)), by_name(params)
    expected = {
        "0/w": (0, 1, 2),
        "1/0/w": (1, 2, 3),
        "1/2/w": (1, 2, 3),
        "3/w": (0,),
        "4/0/w": (2,),
        "5/0/w": (1,),
        "6/0/w": (0,),
        "6/1/w": (0,),
    }
    assert {name for name in given if name.endswith("w")} == set(expected)
    for name, leaf in given.items():
        centered = leaf - leaf.mean(expected[name], keepdims=True) if name in expected else leaf
        np.testing.assert_allclose(found[name], centered, atol=1e-6, err_msg=name)
    dense = by_name(center(params, selected(min_fan_in=2, convolutions=False, without=()), axes=NETWORK))
    assert {name for name in given if not np.array_equal(dense[name], given[name])} == {
        "3/w", "4/0/w", "5/0/w", "6/0/w", "6/1/w",
    }  # fmt: skip


SHAPES = {
    "dense": {"kernel": (64, 32), "bias": (32,)},
    "conv": {"kernel": (3, 3, 8, 16)},
    "stack": {"kernel": (6, 64, 32), "bias": (6, 32)},
    "images": {"kernel": (5, 3, 3, 8, 16)},
    "query": {"kernel": (64, 4, 16)},
    "deep": {"key": {"kernel": (6, 64, 4, 16)}},
    "embed": {"embedding": (100, 64)},
    "torch": {"0.weight": (32, 64)},
}


def tree():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda shape: 1 + rng.standard_normal(shape, np.float32),
        SHAPES,
        is_leaf=lambda s: isinstance(s, tuple),
    )


def changed(before, after):
    before, after = by_name(before), by_name(after)
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_without_a_module_what_is_not_known_stays_and_is_named_once():
    params = tree()
    skipped = "deep/key/kernel (6, 64, 4, 16), embed/embedding (100, 64), images/kernel (5, 3, 3, 8, 16), "
    skipped += "query/kernel (64, 4, 16), stack/bias (6, 32), stack/kernel (6, 64, 32), torch/0/weight (32, 64)"
    message = f"not centered, as the fan-in of {skipped} is not known: give axes=, as fan_in_axes(model, x)"
    for mask in (None, selected(), lambda path, array: True):
        with pytest.warns(UserWarning, match="not centered") as told:
            centered = center(params, mask)
        assert [str(one.message) for one in told] == [message]
        assert changed(params, centered) == {"dense/kernel", "conv/kernel"}
    chain = optax.chain(optax.sgd(0.1), center_weights())
    with pytest.warns(UserWarning, match="not centered") as told:
        state = chain.init(params)
    assert len(told) == 1
    for _ in range(2):  # no step says it again: warnings are errors here
        updates, state = chain.update(jax.tree.map(np.ones_like, params), state, params)
        params = jax.tree.map(np.add, params, updates)
    assert np.abs(params["dense"]["kernel"].mean(0)).max() < 1e-6


STATED = {
    "stack/kernel": 1,
    "stack/bias": (),
    "images/kernel": (1, 2, 3),
    "query/kernel": (0,),
    "key/kernel": (-3,),
    "embedding": (),
    "weight": 1,
}


@pytest.mark.parametrize("place", ["center", "mask"])
def test_axes_that_are_stated(place):
    params, names = (
        tree(),
        {"dense/kernel": (0,), "conv/kernel": (0, 1, 2), "deep/key/kernel": (1,), "torch/0.weight": (1,)},
    )
    names |= {"stack/kernel": (1,), "images/kernel": (1, 2, 3), "query/kernel": (0,)}
    mask, axes = (None, STATED) if place == "center" else (selected(axes=STATED), None)
    centered = by_name(center(params, mask, axes=axes))
    for name, leaf in by_name(params).items():
        expected = leaf - leaf.mean(names[name], keepdims=True) if name in names else leaf
        np.testing.assert_allclose(centered[name], expected, atol=1e-6, err_msg=name)
    rule = center_weights(mask, axes=axes)
    zero = jax.tree.map(np.zeros_like, params)
    moved = jax.tree.map(np.add, params, rule.update(zero, rule.init(params), params)[0])
    for name, leaf in by_name(moved).items():
        np.testing.assert_allclose(leaf, centered[name], atol=1e-6, err_msg=name)


def test_numpy_in_float64_and_halves_keep_their_precision():
    w = np.random.default_rng(0).standard_normal((64, 8)) + 1e3
    found = center({"w": w})["w"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-12)  # 1e3 eps
    half = center({"w": jnp.asarray(w - 1e3, jnp.float16)})["w"]
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(half, np.float64).mean(0), 0, atol=1e-3)


def test_other_ways_to_state_axes_and_errors():
    stack = {"w": tree()["stack"]["kernel"]}
    expected = stack["w"] - stack["w"].mean(1, keepdims=True)
    for axes in (1, (1,), (-2,), {"w": 1}, lambda path, array: 1, lambda path, array: (array.ndim - 2,)):
        np.testing.assert_array_equal(center(stack, axes=axes)["w"], expected)
    for kind, wrong, message in (
        (TypeError, "w", "got axes='w': expected axes of the fan-in"),
        (TypeError, nn.Dense(3), r"axes=fan_in_axes\(module, x\)"),
        (ValueError, 3, r"got axes 3 for w \(6, 64, 32\)"),
        (ValueError, (1, -2), r"got axes \(1, -2\) for w"),
        (ValueError, {"w": ()}, "selects no weights"),
        (ValueError, None, r"selects no weights .* the fan-in of w \(6, 64, 32\) is not known: give axes="),
    ):
        with pytest.raises(kind, match=message):
            center(stack, axes=wrong)
    with pytest.raises(TypeError, match="got function, expected a network"):
        fan_in_axes(tree)
    with pytest.raises(ValueError, match="the module Dense of Flax Linen is traced with inputs: give x"):
        fan_in_axes(nn.Dense(3))
    # 64 stacked layers of 64 units: any axis may be the stack
    stacked = nnx.split_rngs(splits=4)(nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs), in_axes=0, out_axes=0))
    square = nnx.eval_shape(lambda: stacked(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"the fan-in of kernel \(4, 4, 4\) is not known"):
        center(drawn(lambda: nnx.state(stacked(nnx.Rngs(0)), nnx.Param)), ALL, axes=square)


class Scanned(nnx.Module):
    """Dense layers in a scan, and a read-out."""

    def __init__(self, rngs):
        stack = nnx.split_rngs(splits=5)(nnx.vmap(lambda rngs: nnx.Linear(8, 8, rngs=rngs), in_axes=0, out_axes=0))
        self.layers, self.head = stack(rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(
            nnx.scan(lambda x, layer: nnx.relu(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.layers)
        )


@pytest.mark.full  # draws and compiles a scanned network
def test_the_model_s_own_mask_and_mimic_see_stacked_layers():
    """Five layers of fan-in 8, not one of 40: too small for a bound of 9, and each unit centered by itself."""
    model = Scanned(nnx.Rngs(0))
    params = drawn(lambda: nnx.state(model, nnx.Param))
    centered = center(params, centering_mask(model, Centering(8)))
    kernel = params["layers"]["kernel"][...]
    np.testing.assert_allclose(centered["layers"]["kernel"][...], kernel - kernel.mean(1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(centered["head"]["kernel"][...], params["head"]["kernel"][...])
    with pytest.raises(ValueError, match="selects no weights"):
        center(params, centering_mask(model, Centering(9)))
    new, report = mimic(model, rngs=nnx.Rngs(1), centering=Centering(8), gain=2.0)
    assert "layers: centered weights of gain 2, fan-in 8" in str(report)
    kernel = np.asarray(new.model.layers.kernel[...])
    np.testing.assert_allclose(kernel.mean(1), 0, atol=1e-7)
    np.testing.assert_allclose(np.mean(kernel**2), 2 / 8, rtol=5 * (2 / 320) ** 0.5)  # of 320 normal numbers
