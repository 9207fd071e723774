"""Weight centering behind an optimizer: which weights, how exactly, and what it does not touch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ntk_analysis.training.centering import center, center_weights, selected

from .tiers import full


@pytest.fixture(autouse=True)
def optax_promotes():
    """optax's Adam adds an integer to a float."""
    with jax.numpy_dtype_promotion("standard"):
        yield


SHAPES = {
    "conv": (3, 3, 8, 16),  # fan-in 72
    "first": (3, 3, 3, 16),  # 27
    "depthwise": (3, 3, 1, 64),  # 9
    "dense": (64, 32),
    "head": (64, 10),
    "bias": (64,),
    "scale": (),
}


def tree():
    rng = np.random.default_rng(0)
    return {name: {"w": jnp.asarray(1 + rng.standard_normal(shape), jnp.float32)} for name, shape in SHAPES.items()}


def means(params):
    """Largest mean over the fan-in of each array, relative to its entries."""
    return {
        name: np.abs(np.mean(leaf["w"], axis=tuple(range(leaf["w"].ndim - 1)), dtype=np.float64)).max()
        for name, leaf in params.items()
        if leaf["w"].ndim > 1
    }


@pytest.mark.parametrize(
    ("mask", "centered"),
    [
        (None, {"conv", "dense"}),
        (selected(dense=False), {"conv"}),  # the authors' code
        (selected(convolutions=False), {"dense"}),
        (selected(min_fan_in=1, without=()), {"conv", "first", "depthwise", "dense", "head"}),  # the paper's text
        (selected(min_fan_in=10), {"conv", "first", "dense"}),
        (selected(min_fan_in=64), {"conv", "dense"}),
        (selected(min_fan_in=65), {"conv"}),
        (lambda path, array: path[0] == "head", {"head"}),
        (lambda path, array: True, {"conv", "first", "depthwise", "dense", "head"}),  # never fewer than 2 axes
    ],
)
def test_selection_by_path_and_fan_in(mask, centered):
    before = tree()
    after = center(before, mask)
    changed = {name for name in SHAPES if not np.array_equal(before[name]["w"], after[name]["w"])}
    assert changed == centered
    assert all(mean < 1e-6 for name, mean in means(after).items() if name in centered)


OPTIMIZERS = {
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "lion": optax.lion(1e-3),
    "rmsprop": optax.rmsprop(1e-3),
    "clipped adagrad": optax.chain(optax.clip_by_global_norm(1.0), optax.adagrad(0.1)),
}


@pytest.mark.parametrize("name", full(*OPTIMIZERS))
def test_centered_after_a_thousand_steps_of_any_optimizer(name):
    params = tree()
    chain = optax.chain(OPTIMIZERS[name], center_weights())

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            grads = jax.tree.map(lambda leaf: leaf + 3 * jax.random.normal(key, leaf.shape, leaf.dtype), params)
            updates, state = chain.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, chain.init(params)), jax.random.split(jax.random.key(1), 1000))[0][0]

    trained = train(params)
    found = means(trained)
    assert max(found["conv"], found["dense"]) < 1e-6
    assert min(found["first"], found["head"]) > 1e-3  # what is left out is not centered by chance


def test_vmap_trains_networks_side_by_side():
    chain = optax.chain(optax.sgd(0.1), center_weights(selected(min_fan_in=1)))

    def step(w):
        updates, _ = chain.update({"w": w}, chain.init({"w": w}), {"w": w})
        return optax.apply_updates({"w": w}, updates)["w"]

    w = np.random.default_rng(0).standard_normal((5, 8, 3), np.float32)
    np.testing.assert_array_equal(jax.jit(jax.vmap(step))(w), jnp.stack([jax.jit(step)(one) for one in w]))


def test_flax_nnx():
    model = nnx.Linear(64, 8, rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    optimizer = nnx.Optimizer(model, optax.chain(optax.adam(0.1), center_weights()), wrt=nnx.Param)
    x = jnp.ones((4, 64), jnp.float32)

    @nnx.jit
    def train(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(x) ** 2))(model))

    train(model, optimizer)
    assert model.bias is not None
    assert float(jnp.max(jnp.abs(jnp.mean(model.kernel[...], axis=0)))) < 1e-7
    assert float(jnp.max(jnp.abs(model.bias[...]))) > 0.05


def test_errors():
    with pytest.raises(ValueError, match="selects no weights"):
        center({"w": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="selects no weights"):
        center_weights(lambda path, array: False).init(tree())
    with pytest.raises(ValueError, match="needs the parameters"):
        center_weights().update(tree(), optax.EmptyState())
