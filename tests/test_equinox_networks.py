"""Equinox's modules as (f, params, x): kernels of parameters alone, in both modes."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.diagnosis import load_network
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.networks import from_equinox
from ntk_analysis.training.fan_in import FanIn, keys
from ntk_analysis.training.module_axes import axes_of

from .tiers import full


@pytest.fixture(autouse=True)
def as_a_user_has_it():
    """JAX's own defaults: the strictness of these tests is not Equinox's."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


X = np.random.default_rng(0).standard_normal((6, 1, 4, 4)).astype(np.float32)
KEY = jax.random.key(7)
AXIS = "images"


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(1, 4, 3, key=first)
        self.norm = eqx.nn.BatchNorm(4, AXIS, mode="batch", dtype=jnp.float32)
        self.dropout = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(16, 2, key=last)

    def __call__(self, x, state, *, key=None):
        h, state = self.norm(self.conv(x), state)
        return self.out(self.dropout(jnp.tanh(h).reshape(-1), key=key)), state


@pytest.fixture(scope="module")
def made():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        module, state = eqx.nn.make_with_state(Net)(jax.random.key(0))
        statistics = jnp.asarray([0.1, -0.2, 0.3, 0.0]), jnp.asarray([0.5, 1.0, 1.5, 2.0])  # as training leaves them
        state = state.set(module.norm.batch_counter, jnp.asarray(3)).set(module.norm.batch_state_index, statistics)
        return module, state


def by_hand(module, state, mode):
    """The same network written out, as a function of the parameters; only the masks are Equinox's."""
    counter, (mean, var) = state.get(module.norm.batch_counter), state.get(module.norm.batch_state_index)

    def outputs(p):
        h = jax.lax.conv_general_dilated(X, p.conv.weight, (1, 1), "VALID") + p.conv.bias
        correction = 1 - 0.99**counter
        m, v = (h.mean((0, 2, 3)), h.var((0, 2, 3))) if mode == "train" else (mean / correction, var / correction)
        h = (h - m[:, None, None]) / jnp.sqrt(v[:, None, None] + 1e-5)
        h = jnp.tanh(h * p.norm.weight[:, None, None] + p.norm.bias[:, None, None]).reshape(6, -1)
        if mode == "train":
            masks = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (16,)))(jax.random.split(KEY, 6))
            h = jnp.where(masks, 2 * h, 0)
        return h @ p.out.weight.T + p.out.bias

    return outputs


@pytest.mark.parametrize("mode", ["train", *full("eval")])
def test_outputs_and_gradients_are_those_written_out(made, mode):
    module, state = made
    f, params, x = from_equinox(module, X, mode, state=state, key=KEY)
    assert x is X
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 * 9 + 4 + 4 + 4 + 16 * 2 + 2
    expected, weights = by_hand(module, state, mode), np.random.default_rng(2).standard_normal((6, 2))

    @jax.jit
    def both(params):
        return [
            jax.value_and_grad(lambda p, g=g: jnp.sum(g(p) * weights))(params) for g in (lambda p: f(p, X), expected)
        ]

    for one, other in zip(*map(jax.tree.leaves, both(params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # float32 sums
    assert not module.norm.inference


@pytest.mark.full
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_kernel_is_the_dense_jacobian_s_of_the_parameters(made, mode):
    module, state = made
    f, params, _ = from_equinox(module, X, mode, state=state, key=KEY)
    found = empirical_ntk(f, params, X, method="jacobian")
    leaves = jax.tree.leaves(jax.jit(jax.jacrev(by_hand(module, state, mode)))(params))
    jacobian = np.concatenate([np.asarray(leaf, np.float64).reshape(6, 2, -1) for leaf in leaves], -1)
    expected = np.einsum("acp,bdp->abcd", jacobian, jacobian)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())  # float32 sums
    assert found.coupled == (mode == "train")
    np.testing.assert_array_equal(f(params, X), f(params, X))  # nothing is remembered


def test_float64_and_pickles(made):
    """Running statistics in float32 are taken along in float64."""
    module, state = made
    f, params, _ = from_equinox(module, X, "train", state=state, key=KEY)
    again = pickle.loads(pickle.dumps(f))
    np.testing.assert_array_equal(*jax.jit(lambda p: (again(p, X), f(p, X)))(params))
    assert "mode='train'" in repr(f)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        assert jax.eval_shape(f, wide, X.astype(np.float64)).dtype == np.float64


def test_an_mlp_from_the_command_line(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(
        "import equinox as eqx, jax, numpy as np\n"
        "def network():\n    return eqx.nn.MLP(3, 2, 8, 1, key=jax.random.key(0)), np.ones((4, 3), np.float32)\n"
        "def state():\n    return eqx.nn.BatchNorm(3, 'a', mode='batch'), np.ones((4, 3), np.float32)\n"
    )
    f, params, x = load_network(f"{file}:network")
    first, last = params.layers
    w1, b1, w2, b2 = map(np.asarray, (first.weight, first.bias, last.weight, last.bias))
    expected = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(f(params, x), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"BatchNorm has layers with a state: give state=, as equinox.nn.make_with_state"
    ):
        load_network(f"{file}:state")


def test_units_come_first(made):
    """Centering and scale invariance of `check --network` need the fan-in."""
    module, state = made
    f, params, x = from_equinox(module, X, state=state)
    axes, leaves = axes_of(f, x), jax.tree_util.tree_leaves_with_path(params)
    found = {keys(path): axes(keys(path), leaf) for path, leaf in leaves}
    assert found == {
        ("conv", "weight"): FanIn((1, 2, 3), True),
        ("out", "weight"): FanIn((1,)),
        **{
            (layer, name): FanIn(())
            for layer, name in [("conv", "bias"), ("norm", "weight"), ("norm", "bias"), ("out", "bias")]
        },
    }


def test_refusals(made):
    module, state = made
    with pytest.raises(TypeError, match=r"got dict, expected an equinox.Module"):
        from_equinox({}, X)
    with pytest.raises(ValueError, match="unknown mode 'test': choose one of eval, train"):
        from_equinox(module, X, "test", state=state)
    with pytest.raises(ValueError, match=r"mode 'train': Dropout requires a key .*: give key=jax.random.key\(0\)"):
        from_equinox(module, X, "train", state=state)
    with pytest.raises(ValueError, match="Net cannot be called with x in mode 'eval': "):
        from_equinox(module, X[:, 0], state=state)
    with pytest.raises(ValueError, match="Dropout has no arrays of floats"):
        from_equinox(eqx.nn.Dropout(), X)
    norms = [eqx.nn.BatchNorm(1, name, mode="batch", dtype=jnp.float32) for name in "ab"]
    with pytest.raises(ValueError, match=r"batch norms of Sequential name the axes \['a', 'b'\], expected one"):
        from_equinox(eqx.nn.Sequential(norms), X, state=state)
