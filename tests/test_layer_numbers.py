"""The numbers of layers as data: derivatives by them against differences, one program for all values, and what stays.

Differences are central, of order 4, and one-sided where a number is 0 and cannot be negative.
"""

import copy
import pickle
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.activations import functions as activations
from ntk_analysis.empirical.coupling import known_coupling
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    Flatten,
    GlobalAvgPool,
    Layer,
    LayerNorm,
    Repeat,
    Residual,
    ResidualChain,
    Serial,
)
from ntk_analysis.layers.base import SingleLayer
from ntk_analysis.networks.builders import fully_connected

from .tiers import full

RELU, LEAKY = Activation("relu"), Activation("leaky_relu(0.3)")
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((5, 4)) * np.array([1, 2, 0.5, 3, 0.1])[:, None]
IMAGES = RNG.standard_normal((3, 4, 4, 2))
MANY = RNG.standard_normal((520, 4))  # more than a tile; of norms that a difference in b_var does not drown
MANY *= np.exp(0.1 * RNG.standard_normal((520, 1))) / np.linalg.norm(MANY, axis=1, keepdims=True)

NETWORKS = {
    "many numbers": Serial(
        Dense(4, 1.3), LayerNorm(0.1), LEAKY, Dense(4, 1.2, 0.2), Residual(Dense(4, 0.9), 0.7), Dense(2)
    ),
    "centered": Serial(Dense(4, 1.1, 0.3), RELU, Dense(4, 1.2, center=True), Activation("gelu"), Dense(2, 2.0, 0.1)),
    "layer norm at eps = 0": Serial(Dense(4, 1.3, 0.1), RELU, LayerNorm(), Dense(2, 1.2, 0.3)),
    "batch norm": Serial(Dense(4, 1.3, 0.1), BatchNorm(0.3, True, True), LEAKY, Dense(4, 1.2, 0.3)),
    "repeated batch norm": Serial(
        Dense(4), BatchNorm(0.1), Repeat(Serial(RELU, Dense(4, 1.2, 0.3), BatchNorm(0.2)), 2), RELU, Dense(2)
    ),
    "repeated": Serial(Dense(4, 1.3), Repeat(Serial(RELU, Dense(4, 1.5)), 3)),
    "residual chain": Serial(Dense(4), ResidualChain(Serial(RELU, Dense(4, 0.9, 0.1)), (0.3, 0.0, 0.5))),
    "shortcut": Serial(Dense(4), Residual(Serial(RELU, Dense(4, 1.1)), 0.0, Dense(4, 0.7)), RELU, Dense(2)),
    "no weights but a bias": Serial(Dense(4), Activation("erf"), Dense(4, 0.0, 0.2), Activation("erf"), Dense(2)),
    "integrated": Serial(Dense(4, 1.0, 0.3), Activation("tanh"), Dense(4, 1.2)),
    "linear": Serial(Dense(4, 1.3, 0.1), Activation("leaky_relu(1)"), Dense(4, 1.2)),
    "convolution": Serial(
        Conv(3, w_var=1.2, b_var=0.1),
        RELU,
        Conv(3, w_var=1.1, center=True, padding="circular"),
        RELU,
        Flatten(),
        Dense(1),
    ),
    "pooling": Serial(
        Conv(3, w_var=1.2, b_var=0.1), LEAKY, AvgPool(2), Conv(2), LayerNorm(0.1), RELU, GlobalAvgPool(), Dense(1, 1.3)
    ),
    "in tiles": Serial(Dense(4, 1.3, 0.1), Repeat(Serial(RELU, Dense(4, 1.2)), 2)),
}


def inputs_of(name):
    return jnp.asarray({"convolution": IMAGES, "pooling": IMAGES, "in tiles": MANY}.get(name, VECTORS))


def weighted(network, x):
    """A number that depends on every entry of both kernels."""
    kernel = infinite_kernel(network, x)
    weights = np.cos(np.arange(2 * len(x) ** 2)).reshape(2, len(x), len(x)) / len(x)
    return jnp.sum(weights[0] * kernel.nngp) + jnp.sum(weights[1] * kernel.ntk)


def difference(function, leaves, index, step):
    def at(moved):
        return float(function([leaf + moved * (i == index) for i, leaf in enumerate(leaves)]))

    if leaves[index] == 0:
        step = step / 300  # of one side, where variances of .003 change
        terms = zip((-25, 48, -36, 16, -3), range(5), strict=True)
        return sum(weight * at(n * step) for weight, n in terms) / (12 * step)
    return sum(weight * at(n * step) for weight, n in ((1, -2), (-8, -1), (8, 1), (-1, 2))) / (12 * step)


FULL = ["batch norm", "residual chain", "convolution", "in tiles"]
OTHERS = [name for name in NETWORKS if name not in ("many numbers", *FULL)]


@pytest.mark.parametrize(
    "name", [*full("many numbers", *FULL), *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_derivatives_by_all_numbers(name):
    network, x = NETWORKS[name], inputs_of(name)
    leaves, structure = jax.tree.flatten(network)
    compiled = jax.jit(lambda network, x: weighted(network, x))  # with a cache of its own
    found = jax.jit(jax.grad(weighted))(network, x)
    assert isinstance(found, Serial)
    assert float(compiled(network, x)) == pytest.approx(float(weighted(network, x)), rel=1e-12)
    for index, (path, slope) in enumerate(jax.tree_util.tree_leaves_with_path(found)):
        expected = difference(lambda new: compiled(jax.tree.unflatten(structure, new), x), leaves, index, 1e-3)
        assert slope == pytest.approx(expected, rel=1e-7, abs=1e-8), jax.tree_util.keystr(path)
    programs = compiled._cache_size()  # type: ignore[attr-defined]  # JAX tells it to nobody
    assert programs == 1, "networks that differ in numbers only share one program"


def test_numbers_are_data_and_all_else_is_structure():
    network = NETWORKS["many numbers"]
    paths = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(network)}
    assert paths[".layers[0].w_var"] == 1.3
    assert paths[".layers[1].eps"] == 0.1
    assert paths[".layers[2].function.slope"] == 0.3
    assert paths[".layers[4].scale"] == 0.7
    assert len(paths) == 19
    assert jax.tree.leaves(Serial(RELU, Activation("tanh"), Flatten(), AvgPool(2))) == []
    assert jax.tree.leaves(ResidualChain(Serial(RELU, Dense(1)), (0.5, 0.25))) == [0.5, 0.25, 1.0, 0.0, 1.0, 1.0]
    one, other, wider = (jax.tree.structure(layer) for layer in (Dense(3, 2), Dense(3, 0.5), Dense(4, 2)))
    assert one == other != wider  # type: ignore[operator]  # JAX leaves the type open


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_same_after_a_round_trip(name):
    network = NETWORKS[name]
    for again in (
        jax.tree.map(lambda number: number, network),
        jax.tree.map(jnp.asarray, network),
        jax.tree.map(np.asarray, network),
        pickle.loads(pickle.dumps(network)),
        copy.deepcopy(network),
    ):
        assert again == network
        assert hash(again) == hash(network)
        assert repr(again) == repr(network)


def test_scalars_of_any_kind_become_floats():
    for scalar in (2, np.float32(2), np.float64(2), np.array(2.0), jnp.float32(2)):
        assert repr(Dense(1, scalar)).startswith("Dense(width=1, w_var=2.0, b_var=0.0, center=False")
    chain = ResidualChain(Serial(RELU, Dense(1)), (1, jnp.float32(0.5)))
    assert chain.scales == (1.0, 0.5)
    assert hash(chain) == hash(ResidualChain(Serial(RELU, Dense(1)), (1.0, 0.5)))


def test_a_step_is_a_network_whose_numbers_are_checked_where_it_is_used():
    network, x = Serial(Dense(2, 0.5), BatchNorm(0.1), RELU, Dense(1)), VECTORS
    step = jax.tree.map(lambda number: number - 0.6, network)
    assert hash(step) != hash(network)
    with pytest.raises(ValueError, match=r"got w_var=-0\.\d+, expected a finite variance >= 0"):
        infinite_kernel(step, x)
    with pytest.raises(ValueError, match=r"got w_var=-0\.\d+, expected a finite variance >= 0"):
        Serial(Dense(2, 0.5)).rebuilt(step.layers[:1]).apply(({"w": jnp.ones((4, 2))},), x)
    with pytest.raises(ValueError, match=r"got eps=-0\.5, expected a finite number >= 0"):
        infinite_kernel(Serial(Dense(2), step.layers[1], RELU), x)
    with pytest.raises(ValueError, match=r"the number \.layers\[0\]\.w_var has shape \(2,\), expected one number"):
        infinite_kernel(jax.tree.map(lambda number: jnp.stack([number, number]), network), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda bad: Dense(1, bad), "w_var"),
        (lambda bad: Conv(1, b_var=bad), "b_var"),
        (lambda bad: LayerNorm(bad), "eps"),
        (lambda bad: Residual(Dense(1), bad), "Residual needs a finite number"),
        (lambda bad: ResidualChain(Dense(1), (1.0, bad)), "ResidualChain needs a finite number"),
        (lambda bad: Activation(activations.leaky_relu(bad)), "slope"),
    ],
    ids=["w_var", "b_var", "eps", "scale", "scales", "slope"],
)
def test_bad_numbers_are_refused_unless_they_are_traced(make, message):
    for bad in (np.nan, np.inf, jnp.nan):
        with pytest.raises(ValueError, match=message):
            make(bad)
    jax.eval_shape(lambda number: jax.tree.leaves(make(number)), 0.5)


@pytest.mark.parametrize("which", ["one number", *full("a network")])
def test_mapped_over_numbers(which):
    network, x = Serial(Dense(1, 1.5), RELU, Dense(1, 2.0)), jnp.asarray(VECTORS)
    values = jnp.array([0.5, 2.0])
    if which == "one number":
        found = jax.vmap(lambda w_var: infinite_kernel(Serial(Dense(1, w_var), *network.layers[1:]), x).ntk)(values)
    else:
        several = jax.tree.map(lambda number: jnp.array([number, number]), network)
        first = replace(several.layers[0], w_var=values)
        found = jax.vmap(lambda net: infinite_kernel(net, x).ntk)(several.rebuilt([first, *several.layers[1:]]))
    expected = infinite_kernel(Serial(Dense(1), *network.layers[1:]), x, exact=True).ntk
    np.testing.assert_allclose(found, values[:, None, None] * expected[None], rtol=1e-12)


@pytest.mark.full
def test_second_derivatives_and_numbers_shared_by_layers():
    x = jnp.asarray(VECTORS)

    def curve(w_var):
        layer = Dense(3, w_var, w_var / 2)
        return weighted(Serial(layer, Activation("erf"), layer, Activation("erf"), layer), x)

    curve = jax.jit(curve)
    step = 1e-3
    expected = (curve(0.7 + step) - 2 * curve(0.7) + curve(0.7 - step)) / step**2
    assert float(jax.hessian(curve)(0.7)) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.full
def test_where_derivatives_by_numbers_are_infinite_they_are_nan():
    x = jnp.asarray(np.vstack([VECTORS, np.zeros((1, 4))]))

    def by_bias(b_var, x):
        return infinite_kernel(Serial(Dense(3, 1.2, b_var), RELU, Dense(3)), x).nngp

    slopes = jax.jit(jax.jacfwd(by_bias))(0.0, x)
    assert np.isnan(slopes[-1]).all()
    assert np.isfinite(slopes[:-1, :-1]).all()
    by_inputs = jax.jit(jax.grad(lambda b_var, x: jnp.sum(by_bias(b_var, x)), argnums=1))(0.0, x)
    np.testing.assert_allclose(by_inputs, jax.grad(lambda x: jnp.sum(by_bias(0.0, x)))(x), rtol=1e-12)
    no_weights = jax.jacfwd(lambda w_var: infinite_kernel(Serial(Dense(3, w_var), RELU), x[:2]).nngp)(0.0)
    assert np.isnan(no_weights).all()


@pytest.mark.full
@pytest.mark.parametrize(
    ("size", "finite"), [(4, (True, False)), (5, (True, False)), (6, (True, True))], ids=["4", "5", "6"]
)
def test_derivatives_by_the_eps_of_a_batch_norm_at_0(size, finite):
    """E[1/|Gx|^2] needs rank 3, E[1/|Gx|^4] rank 5: the derivative by eps takes one more moment than the value."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((size, 20)))

    def entries(eps):
        kernel = infinite_kernel(Serial(Dense(1), BatchNorm(eps), RELU, Dense(1)), x)
        return jnp.stack([kernel.nngp[0, 1], kernel.ntk[0, 1]])

    entries = jax.jit(entries)
    found = jax.jacfwd(entries)(0.0)
    assert tuple(np.isfinite(found)) == finite
    steps = np.array([1e-6, 1e-7])
    near, nearer = ((entries(step) - entries(0.0)) / step for step in steps)
    for slope, fine, coarse in zip(found, nearer, near, strict=True):
        if np.isfinite(slope):
            assert slope == pytest.approx(float(fine), abs=3 * abs(float(coarse - fine)) + 1e-6)


@dataclass(frozen=True)
class Scaled(SingleLayer):
    """A layer of the user's, with a number, a number that is structure, and a name."""

    factor: float
    power: float = field(default=2.0, metadata={"static": True})
    label: str = "mine"

    couples_batch = False

    def init(self, key, input_shape):
        return input_shape, ()

    def compute(self, params, x):
        return self.factor ** (self.power / 2) * x

    def kernel(self, kernel):
        factor = self.factor**self.power
        sides = {name: factor * getattr(kernel, name) for name in ("variance1", "variance2", "ntk_scaled")}
        return replace(kernel, **sides)


@dataclass(frozen=True)
class Shifted(Scaled):
    """Its class computes anew and does not say whether that couples the batch."""

    def compute(self, params, x):
        return super().compute(params, x) - jnp.mean(x, 0)


def test_a_layer_of_the_users_takes_part():
    network, x = Serial(Dense(1), Scaled(3.0)), jnp.asarray(VECTORS)
    assert jax.tree.leaves(network) == [1.0, 0.0, 1.0, 1.0, 3.0]
    slope = jax.grad(lambda net: infinite_kernel(net, x).nngp[0, 1])(network)
    assert slope.layers[1].factor == pytest.approx(float(2 / 3 * infinite_kernel(network, x).nngp[0, 1]), rel=1e-12)
    assert slope.layers[1].power == 2.0


@pytest.mark.parametrize(
    ("layer", "known"),
    [(Scaled(1.0), False), (Shifted(1.0), None), (BatchNorm(), True), (Residual(Shifted(1.0)), None)],
    ids=["stated", "not stated", "batch norm", "within"],
)
def test_whether_a_layer_couples_the_batch(layer, known):
    assert layer.couples_batch is known
    assert known_coupling(Serial(Dense(1), layer)) is known
    assert Serial(layer, BatchNorm()).couples_batch is True


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_rebuilt_of_its_parts(name):
    def again(layer):
        return layer.rebuilt([again(part) for part in layer.parts])

    network = NETWORKS[name]
    assert again(network) == network
    doubled = network.rebuilt([*network.parts[:-1], Dense(7)])
    assert isinstance(doubled, Layer)
    assert doubled.parts[-1] == Dense(7)
    with pytest.raises(TypeError, match="is not made of layers"):
        Dense(1).rebuilt([RELU])


def test_gains_of_traced_slopes_and_biases():
    def gain(slope, b_var):
        return activations.leaky_relu(slope).stable_gain(b_var, centered=True)

    assert gain(0.3, 0.1) == pytest.approx(0.9 / ((1 + 0.09) / 2 - 0.49 / (2 * np.pi)), rel=1e-14)
    found = jax.grad(gain, argnums=(0, 1))(0.3, 0.1)
    step = 1e-6
    expected = [(gain(0.3 + step, 0.1) - gain(0.3 - step, 0.1)) / (2 * step), -gain(0.3, 0.1) / 0.9]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_ready_networks_of_traced_numbers():
    def ready(slope):
        return fully_connected(2, 4, "weight_mean", activations.leaky_relu(slope), b_var=0.1)

    found, expected = jax.jit(ready)(0.3), ready(0.3)
    assert jax.tree.structure(found) == jax.tree.structure(expected)  # type: ignore[operator]  # JAX leaves the type open
    np.testing.assert_allclose(jax.tree.leaves(found), jax.tree.leaves(expected), rtol=1e-14)


def test_parameters_do_not_depend_on_whether_numbers_are_traced():
    network, x = NETWORKS["many numbers"], jnp.asarray(VECTORS)
    params = network.init(jax.random.key(0), (-1, 4))[1]
    traced = jax.jit(lambda net: net.apply(params, x))(network)
    np.testing.assert_allclose(traced, network.apply(params, x), rtol=1e-12)
