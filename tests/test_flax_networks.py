"""Flax's models as (f, params, x): kernels of parameters alone, in both modes; whole models are refused."""

import pickle
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from ntk_analysis.descent import linearised
from ntk_analysis.diagnosis import diagnose, load_network
from ntk_analysis.empirical import empirical_nngp, empirical_ntk, plan
from ntk_analysis.flax_networks.linen import LinenFunction
from ntk_analysis.networks import from_linen, from_nnx

from .tiers import full


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """JAX's own defaults: the strictness of these tests is not Flax's."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
KEY = jax.random.key(7)
NORM = {"use_fast_variance": False}


class Linen(nn.Module):
    """A batch norm, dropout, and a statistic of its own collection, which the outputs depend on."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        calls = self.variable("calls", "number", lambda: jnp.ones((), jnp.float32))
        x = nn.Dense(16, param_dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, param_dtype=self.dtype, **NORM)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(x))
        x = nn.Dense(3, param_dtype=self.dtype)(x * calls.value.astype(x.dtype))
        if train and not self.is_initializing():
            calls.value += 1
        return x


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs, **NORM)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(16, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.ones(()))

    def __call__(self, x):
        self.calls[...] = self.calls[...] + 1
        return self.last(self.dropout(nnx.tanh(self.norm(self.first(x))))) * self.calls[...]


def moved(tree):
    """Running statistics as training leaves them: no zeros and ones."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0.2, 1, leaf.shape), leaf.dtype), tree)


@pytest.fixture(scope="module")
def variables():
    with jax.enable_x64(False):
        found = Linen().init(jax.random.key(0), X, train=False)
        return {**found, "batch_stats": moved(found["batch_stats"]), "calls": moved(found["calls"])}


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(False):
        made = NNX(nnx.Rngs(0))
        for variable in (made.norm.mean, made.norm.var):
            variable[...] = moved(variable[...])
    return made


def by_hand(params, state, mode):
    """The same network written out; only the mask is Flax's."""
    p, s = params["params"], state
    h = X @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    stats = s["batch_stats"]["BatchNorm_0"]
    mean, var = (h.mean(0), h.var(0)) if mode == "train" else (stats["mean"], stats["var"])
    h = jnp.tanh((h - mean) / jnp.sqrt(var + 1e-5) * p["BatchNorm_0"]["scale"] + p["BatchNorm_0"]["bias"])
    if mode == "train":
        h = jnp.where(Masks().apply({}, h, rngs={"dropout": KEY}), 2 * h, 0)
    return h * s["calls"]["number"] @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


class Masks(nn.Module):
    """Flax folds the name of a layer into its key."""

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False, name="Dropout_0")(jnp.ones_like(x)) > 0


def dense_kernel(f, params):
    """J J^T of all leaves, in float64, entries [a, b, c, d]."""
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(f))(params))
    jacobian = np.concatenate([np.asarray(leaf, np.float64).reshape(6, 3, -1) for leaf in leaves], -1)
    return np.einsum("acp,bdp->abcd", jacobian, jacobian)


@pytest.mark.parametrize("mode", full("train", "eval"))
def test_linen_s_kernel_is_the_dense_jacobian_s_of_the_parameters(variables, mode):
    f, params, x = from_linen(Linen(), variables, X, mode, rngs={"dropout": KEY})
    assert params is variables["params"]
    assert x is X
    state = {name: variables[name] for name in ("batch_stats", "calls")}
    found = empirical_ntk(f, params, x, method="jacobian")
    expected = dense_kernel(lambda p: by_hand({"params": p}, state, mode), params)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())  # float32 sums
    assert found.coupled == (mode == "train")
    np.testing.assert_array_equal(f(params, X), f(params, X))  # nothing is remembered


@pytest.mark.parametrize("mode", ["train", *full("eval")])
def test_nnx_s_kernel_is_the_dense_jacobian_s_of_the_parameters(model, mode):
    f, params, x = from_nnx(model, X, mode)
    hand = nnx.state(model, nnx.Param)

    def by_hand(p):
        h = X @ p["first"]["kernel"][...] + p["first"]["bias"][...]
        mean, var = (h.mean(0), h.var(0)) if mode == "train" else (model.norm.mean[...], model.norm.var[...])
        h = jnp.tanh((h - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"][...] + p["norm"]["bias"][...])
        if mode == "train":
            h = jnp.where(nnx.clone(model.dropout)(jnp.ones_like(h)) > 0, 2 * h, 0)
        return 2 * (h @ p["last"]["kernel"][...] + p["last"]["bias"][...])

    found = empirical_ntk(f, params, x, method="jacobian")
    expected = dense_kernel(by_hand, hand)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())  # float32 sums
    assert found.coupled == (mode == "train")
    np.testing.assert_array_equal(f(params, X), f(params, X))
    assert model.calls[...] == 1  # the given model is as it was
    assert not model.norm.use_running_average
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5 * 16 + 16 + 32 + 16 * 3 + 3


@pytest.mark.parametrize("transform", ["jit", *full("float64", "vmap", "jvp")])
def test_nnx_in_training_mode_under_every_transformation(model, transform):
    """The pattern split, merge, call raises "Cannot mutate BatchStat" there."""
    f, params, _ = from_nnx(model, X, "train")
    expected = f(params, X)
    if transform == "jit":
        np.testing.assert_allclose(jax.jit(f)(params, X), expected, rtol=1e-5, atol=1e-6)
    elif transform == "vmap":
        both = jax.vmap(f, in_axes=(None, 0))(params, jnp.stack([X, X]))
        np.testing.assert_allclose(both, jnp.stack([expected, expected]), rtol=1e-5, atol=1e-6)
    elif transform == "jvp":
        value, slope = jax.jvp(lambda x: f(params, x), (jnp.asarray(X),), (jnp.ones_like(X),))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(slope, 0, atol=1e-5)  # the batch's mean takes the same shift of all inputs away
    else:
        undropped = nnx.clone(model)
        undropped.dropout.rate = 0.0  # float64 draws another mask
        f, params, _ = from_nnx(undropped, X, "train")
        expected = f(params, X)
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        found = empirical_nngp(f, wide, X.astype(np.float64))
        assert found.nngp.dtype == np.float64
        np.testing.assert_allclose(found.nngp, np.einsum("ac,bd->abcd", expected, expected), rtol=1e-4, atol=1e-5)


class Setup(nn.Module):
    """The mode is an attribute; layers are made in setup."""

    training: bool = True

    def setup(self):
        self.dense, self.norm = nn.Dense(4), nn.BatchNorm(use_running_average=not self.training, **NORM)

    def __call__(self, x):
        return self.norm(self.dense(x))


class Spectral(nn.Module):
    """Vectors of the power iteration among the batch statistics."""

    @nn.compact
    def __call__(self, x, training=False):
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=training)


class Decoding(nn.Module):
    """A cache of keys and values, an integer index, and a sown intermediate; one token an input."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        attention = nn.MultiHeadDotProductAttention(2, decode=True, dropout_rate=0.1, deterministic=deterministic)
        y = attention(nn.Dense(4)(x)[:, None])[:, 0]
        self.sow("intermediates", "y", y)
        return y


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.LayerNorm(use_fast_variance=False)(x)))


SEQUENCE = nn.Sequential(
    [nn.Dense(4), nn.BatchNorm(use_running_average=False, **NORM), nn.Dropout(0.5, deterministic=True)]
)
LINEN = {  # module, the module or the arguments that are evaluation and training mode when written by hand
    "flags in a sequence": (
        SEQUENCE,
        lambda train: (
            nn.Sequential([nn.Dense(4), nn.BatchNorm(not train, **NORM), nn.Dropout(0.5, deterministic=not train)]),
            {},
        ),
    ),
    "a flag of the module": (Setup(), lambda train: (Setup(training=train), {})),
    "spectral norm": (Spectral(), lambda train: (Spectral(), {"training": train})),
    "a cache": (Decoding(), lambda train: (Decoding(), {"deterministic": not train})),
    "no other collections": (Plain(), lambda train: (Plain(), {})),
    "frozen": (Linen(), lambda train: (Linen(), {"train": train})),
    "float16 leaves": (Linen(jnp.float16), lambda train: (Linen(jnp.float16), {"train": train})),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("flags in a sequence", "eval"),
        ("a flag of the module", "train"),
        *full(
            ("spectral norm", "train"),
            ("a cache", "eval"),
            ("no other collections", "train"),
            ("frozen", "eval"),
            ("float16 leaves", "train"),
            ("flags in a sequence", "train"),
            ("a flag of the module", "eval"),
            ("spectral norm", "eval"),
            ("a cache", "train"),
            ("no other collections", "eval"),
            ("frozen", "train"),
            ("float16 leaves", "eval"),
        ),
    ],
)
def test_linen_s_modules_agree_with_a_split_by_hand(name, mode):
    module, split = LINEN[name]
    hand, options = split(mode == "train")
    x = X.astype(np.float16) if name == "float16 leaves" else X
    found = hand.init({"params": jax.random.key(0), "dropout": KEY}, x, **options)
    found = {**found, **moved({key: found[key] for key in found if key in ("batch_stats", "calls")})}
    found.pop("intermediates", None)
    f, params, _ = from_linen(module, flax.core.freeze(found) if name == "frozen" else found, x, mode, rngs=KEY)
    rest = {key: found[key] for key in found if key != "params"}

    def by_hand(params):
        return hand.apply({"params": params, **rest}, x, mutable=list(rest), rngs={"dropout": KEY}, **options)[0]

    weights = np.random.default_rng(2).standard_normal(jax.eval_shape(by_hand, params).shape)

    @jax.jit
    def both(params):
        return [
            jax.value_and_grad(lambda p, g=g: jnp.sum(g(p) * weights))(params) for g in (lambda p: f(p, x), by_hand)
        ]

    ours, theirs = map(jax.tree.leaves, both(params))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2 if one.dtype == jnp.float16 else 1e-5, atol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["flags in a sequence", "spectral norm", "a cache", "float16 leaves"])
def test_kernels_of_linen_s_modules(name, mode):
    module, split = LINEN[name]
    hand, options = split(mode == "train")
    x = X.astype(np.float16) if name == "float16 leaves" else X
    found = dict(hand.init({"params": jax.random.key(0), "dropout": KEY}, x, **options))
    found.pop("intermediates", None)
    f, params, _ = from_linen(module, found, x, mode, rngs=KEY)
    # a cache has the size of the batch, and cannot be tried on one input
    kernel = empirical_ntk(f, params, x, coupled=True if name == "a cache" else "detect", layout="trace")
    assert kernel.coupled == (name == "a cache" or (mode == "train" and name != "spectral norm"))
    jacobian = jax.jit(jax.jacrev(lambda p: f(p, x).astype(jnp.float32)))(params)
    flat = np.concatenate(
        [np.asarray(leaf, np.float64).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)], -1
    )
    expected = np.einsum("acp,bcp->ab", flat, flat)
    tolerance = 2e-2 if name == "float16 leaves" else 1e-4  # sums in the network's own precision
    np.testing.assert_allclose(kernel.ntk, expected, atol=tolerance * np.abs(expected).max())


class Attended(nnx.Module):
    """Its call has the flag; an embedding's weights are tied; one batch norm is frozen in the call."""

    def __init__(self, rngs):
        self.norm, self.frozen = (nnx.BatchNorm(5, rngs=rngs, **NORM) for _ in range(2))
        self.linear = nnx.Linear(5, 5, rngs=rngs)
        self.tied = self.linear

    def __call__(self, x, deterministic=None, rngs=None):
        x = self.tied(nnx.relu(self.linear(self.frozen(x, use_running_average=True))))
        return nnx.Dropout(0.5)(self.norm(x), deterministic=deterministic, rngs=rngs)


@pytest.mark.parametrize("mode", full("eval", "train"))
def test_nnx_with_arguments(mode):
    """A generator that the caller gives, weights that two layers share, a batch norm frozen by the model itself."""
    model = Attended(nnx.Rngs(0))
    f, params, _ = from_nnx(model, X, mode, rngs=nnx.Rngs(dropout=3))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 5 * 5 + 5 + 4 * 5
    hand = nnx.clone(model)
    hand.norm.use_running_average = mode == "eval"
    expected = hand(X, deterministic=mode == "eval", rngs=nnx.Rngs(dropout=3))
    for _ in range(2):
        np.testing.assert_array_equal(f(params, X), expected)
    assert empirical_ntk(f, params, X, layout="trace").coupled == (mode == "train")


class Stubborn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=False, **NORM)(nn.Dense(4)(x))


class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=True)(nn.BatchNorm(use_running_average=True)(x))


class StubbornNNX(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.dropout = nnx.BatchNorm(5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(x, use_running_average=False), deterministic=False)


def test_a_mode_that_the_model_does_not_follow():
    stubborn, frozen = Stubborn(), Frozen()
    made = stubborn.init(jax.random.key(0), X)
    with pytest.raises(
        ValueError, match=r"got mode='eval', but the model calls BatchNorm BatchNorm_0 in training mode"
    ):
        from_linen(stubborn, made, X)
    f = from_linen(stubborn, made, X, "train")[0]
    assert isinstance(f, LinenFunction)
    assert f.mode == "train"
    with pytest.raises(ValueError, match="BatchNorm BatchNorm_0, Dropout Dropout_0 in evaluation mode"):
        from_linen(frozen, frozen.init(jax.random.key(0), X), X, "train")
    with pytest.raises(ValueError, match="got mode='eval', but the model calls BatchNorm norm, Dropout dropout in tra"):
        from_nnx(StubbornNNX(nnx.Rngs(0)), X)


def test_errors(variables, model):
    params = variables["params"]
    cases = [
        (TypeError, "got NNX, expected a module of flax.linen", lambda: from_linen(model, variables, X)),
        (TypeError, "got Linen, expected a module of flax.nnx", lambda: from_nnx(Linen(), X)),
        (ValueError, "got variables of Dense_0, .* expected what module.init", lambda: from_linen(Linen(), params, X)),
        (ValueError, "unknown mode 'test': choose one of eval, train", lambda: from_nnx(model, X, "test")),
        (ValueError, "got train=True beside mode='eval'", lambda: from_linen(Linen(), variables, X, train=True)),
        (
            ValueError,
            'Linen cannot be applied to these variables and x: .*collection "batch_stats"',
            lambda: from_linen(Linen(), {"params": params, "calls": variables["calls"]}, X),
        ),
        (
            ValueError,
            "variables lack batch_stats/BatchNorm_0/mean, batch_stats/BatchNorm_0/var, which the module reads",
            lambda: from_linen(Linen(), variables | {"batch_stats": {}}, X),
        ),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    # behind the batch's own statistics nobody misses running ones
    f, _, _ = from_linen(Linen(), {"params": params, "calls": variables["calls"]}, X, "train", rngs=KEY)
    np.testing.assert_array_equal(f(params, X), from_linen(Linen(), variables, X, "train", rngs=KEY)[0](params, X))


def test_whole_models_are_refused_with_advice(variables, model, tmp_path):
    def apply(params, x):
        return Linen().apply(params, x, train=False, mutable=["calls"])[0]

    _, state = nnx.split(model)
    linen, y = Linen(), np.zeros((6, 3), np.float32)
    frozen = flax.core.freeze(variables)
    whole: list[Any] = [
        (TypeError, "f is the Flax module Linen, expected a function", linen, variables["params"]),
        (TypeError, "f is the Flax module NNX, expected a function", model, nnx.state(model, nnx.Param)),
        (TypeError, "f is the Flax module NNX", model.__call__, nnx.state(model, nnx.Param)),
        (ValueError, "params holds batch_stats, calls beside parameters", apply, variables),
        (ValueError, "params holds batch_stats, calls beside parameters", apply, frozen),
        (ValueError, "params holds batch_stats, calls beside parameters", apply, {"net": variables, "scale": y}),
        (ValueError, "params holds batch_stats beside", apply, [variables["batch_stats"], {"batch_stats": y}]),
        (ValueError, r"params holds nnx.BatchStat, nnx.RngCount, nnx.RngKey, nnx.Variable beside", apply, state),
        (ValueError, "params holds nnx.BatchStat, ", apply, model),
        (ValueError, "params holds nnx.BatchStat beside", apply, nnx.state(model, nnx.Param, nnx.BatchStat)),
    ]
    for kind, message, f, params in whole:
        for entry in (empirical_ntk, empirical_nngp, plan, diagnose):
            with pytest.raises(kind, match=message + r".*networks\.from_linen"):
                entry(f, params, X)
        with pytest.raises(kind, match=message):
            linearised(f, params, X, y, learning_rate=0.1, steps=1)
    file = tmp_path / "whole.py"
    file.write_text(
        "import jax, numpy as np\nfrom flax import linen as nn\n"
        "def network():\n    m, x = nn.BatchNorm(True), np.ones((4, 3))\n"
        "    return m.apply, m.init(jax.random.key(0), x), x\n"
    )
    with pytest.raises(ValueError, match="params holds batch_stats beside parameters"):
        load_network(f"{file}:network")
    # what holds parameters only is none of these
    plain = Plain().init(jax.random.key(0), X)
    for f, params in ((Plain().apply, plain), (lambda p, x: p(x), nnx.Linear(5, 2, rngs=nnx.Rngs(0)))):
        assert plan(f, params, X, coupled=False, method="jacobian").layout == "full"


def test_functions_of_models_can_be_pickled(variables, model):
    for f, params, x in (from_linen(Linen(), variables, X, "train"), from_nnx(model, X, "train")):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(f))(params, x), f(params, x))
        assert "mode='train'" in repr(f)
        assert len(repr(f)) < 200
