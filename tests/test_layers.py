"""Layers: averages over finite networks against infinite-width kernels, and the finite side by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis import layers
from ntk_analysis.kernel import infinite_kernel
from ntk_analysis.layers import Activation, BatchNorm, Dense, LastBatchNorm, Layer, LayerNorm, Repeat, Residual, Serial
from ntk_analysis.networks import fully_connected

FEATURES = 6
STANDARD_ERRORS = 5


def pairs(seed=0):
    """Four inputs of different norms: two generic, a duplicate, an antiparallel one of another length."""
    a, b = np.random.default_rng(seed).standard_normal((2, FEATURES))
    return np.stack([a, 1.4 * b, a, -0.8 * b])


def finite_average(network, x, draws, seed=0, batch=1000):
    """Mean and standard error over draws of finite networks: NNGP over all outputs, NTK of the first; (2, n, n) both.

    Outputs of one draw share their hidden units, so only the draws count as independent.
    """

    def one_draw(params):
        y = network.apply(params, x)
        jacobian = jax.jacrev(lambda p: network.apply(p, x)[:, 0])(params)
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        return jnp.stack([y @ y.T / y.shape[1], sum(leaf @ leaf.T for leaf in flat)])

    keys = jax.random.split(jax.random.key(seed), draws)
    params = jax.vmap(lambda key: network.init(key, x.shape)[1])(keys)
    # compiling takes longer than running here: leave the expensive passes out
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    average = jax.jit(lambda p: jax.lax.map(one_draw, p, batch_size=min(batch, draws)), compiler_options=options)
    samples = average(params)
    return np.mean(samples, axis=0), np.std(samples, axis=0) / np.sqrt(draws)


def deviation(expected, mean, error):
    """Worst entry of |mean - expected| in standard errors; entries without spread count their rounding."""
    return np.max(np.abs(mean - expected) / (error + 1e-12 * np.max(np.abs(expected))))


def both(kernel):
    return np.stack([kernel.nngp, kernel.ntk])


CONFORMANCE = [
    ("Dense", Dense(5, 1.3)),
    ("Dense", Dense(5, 1.3, 0.2)),
    ("Dense", Serial(Dense(7, 1.0, 0.3), Dense(5, 1.3, 0.2, center=True))),
    ("Activation", Serial(Dense(8, 1.0, 0.1), Activation("relu"), Dense(5, 1.5, 0.1))),
    ("Serial", Serial(Serial(Dense(8), Activation("gelu")), Serial(Dense(5, 1.5, center=True)))),
    ("Repeat", Repeat(Dense(FEATURES, 0.9, 0.2), 3)),
    ("Repeat", Serial(Dense(FEATURES), Repeat(Dense(FEATURES, 0.9, 0.2, center=True), 3))),
    ("Residual", Serial(Dense(7, 1.0, 0.1), Residual(Serial(Activation("relu"), Dense(7, 1.5, 0.2)), 0.5))),
    ("Residual", Serial(Residual(Dense(FEATURES, 1.5), 0.7), Dense(5))),
    ("Residual", Serial(Dense(7), Activation("relu"), Residual(Dense(7, 1.5), 0.7), Dense(5, 2.0, center=True))),
    ("BatchNorm", "not implemented yet"),
    ("LayerNorm", "not implemented yet"),
    ("LastBatchNorm", "no kernel of the inputs alone"),
    ("Layer", "abstract"),
]


@pytest.mark.parametrize(("name", "network"), CONFORMANCE)
def test_conformance_of_finite_average_and_kernel(name, network):
    """One row per layer: networks whose average is exact at every width (one hidden layer, or linear), or a reason."""
    x = pairs()
    if isinstance(network, Layer):
        mean, error = finite_average(network, x, draws=10_000)
        assert deviation(both(infinite_kernel(network, x)), mean, error) < STANDARD_ERRORS
    elif network == "abstract":
        with pytest.raises(TypeError, match="abstract"):
            getattr(layers, name)()
    else:
        with pytest.raises(NotImplementedError, match=network):
            infinite_kernel(Serial(Dense(4), getattr(layers, name)()), x)


def test_centering_the_inputs_layer_is_refused():
    with pytest.raises(NotImplementedError, match="needs an activation before it"):
        infinite_kernel(Dense(5, center=True), np.eye(3))


def test_conformance_table_has_a_row_for_every_layer():
    exported = {name for name, kind in vars(layers).items() if isinstance(kind, type) and issubclass(kind, Layer)}
    assert exported == {name for name, _ in CONFORMANCE}


BLOCKS = {
    "hidden": Serial(Dense(5, 1.8, 0.1), Activation("relu")),
    "centered": Serial(Dense(5), Activation("relu"), Dense(5, 2.9, center=True), Activation("relu")),
    "pre-activation residual": Residual(Serial(Dense(5, 1.1), Activation("erf"), Dense(5, 1.0)), 0.5),
    "nested": Repeat(Serial(Dense(5, 1.5), Activation("gelu")), 2),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("times", [1, 4])
def test_repeat_equals_the_unrolled_network(block, times):
    x = np.random.default_rng(1).standard_normal((4, 5))
    repeated, unrolled = Repeat(block, times), Serial(*[block] * times)
    for field in ("nngp", "ntk", "distance", "mean1", "relative_error"):
        values = getattr(infinite_kernel(repeated, x), field), getattr(infinite_kernel(unrolled, x), field)
        np.testing.assert_allclose(*values, rtol=1e-12, atol=1e-14)
    shape, params = repeated.init(jax.random.key(0), x.shape)
    single = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(times)]
    assert shape == x.shape
    np.testing.assert_allclose(repeated.apply(params, x), unrolled.apply(tuple(single), x), rtol=1e-11, atol=1e-13)
    for ours, theirs in zip(
        repeated.walk(repeated.activations(params, x)), unrolled.walk(unrolled.activations(single, x)), strict=True
    ):
        assert ours[0] == theirs[0]
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12, atol=1e-14)


def test_repeat_of_a_law_changing_block_once():
    """One pass is one pass: it may end in a law that the block could not start from."""
    x = pairs()
    once = Serial(Dense(5), Repeat(Activation("relu"), 1))
    np.testing.assert_array_equal(
        infinite_kernel(once, x).nngp, infinite_kernel(Serial(Dense(5), Activation("relu")), x).nngp
    )
    with pytest.raises(NotImplementedError, match="put a Dense layer before it"):
        infinite_kernel(Serial(Dense(5), Repeat(Activation("relu"), 2)), x)


def test_repeat_draws_different_parameters():
    _, params = Repeat(Dense(3, 1.0, 0.1), 2).init(jax.random.key(0), (-1, 3))
    assert params["w"].shape == (2, 3, 3)
    assert params["b"].shape == (2, 3)
    assert np.abs(params["w"][0] - params["w"][1]).min() > 0


def test_residual_stays_residual_at_infinite_width():
    """y = x + s W x: K (1 + s^2 w), and the NTK is that of the branch alone."""
    x = pairs()
    kernel = infinite_kernel(Residual(Dense(FEATURES, 1.5), 0.5), x)
    np.testing.assert_allclose(kernel.nngp, x @ x.T / FEATURES * (1 + 0.25 * 1.5), rtol=1e-13)
    np.testing.assert_allclose(kernel.ntk, x @ x.T / FEATURES * 0.25 * 1.5, rtol=1e-13)
    assert kernel.law == "activated"
    with pytest.raises(NotImplementedError, match="ends in a Dense layer"):
        infinite_kernel(Serial(Dense(4), Residual(Activation("relu"))), x)


def test_dense_forward_by_hand():
    x = pairs()
    for center in (False, True):
        dense = Dense(3, 1.7, 0.4, center=center)
        shape, params = dense.init(jax.random.key(0), (-1, FEATURES))
        assert shape == (-1, 3)
        w = np.asarray(params["w"])
        w, n = (w - w.mean(0), FEATURES - 1) if center else (w, FEATURES)
        by_hand = x @ w * np.sqrt(1.7 / n) + np.sqrt(0.4) * np.asarray(params["b"])
        np.testing.assert_allclose(dense.apply(params, x), by_hand, rtol=1e-12)
    assert set(Dense(3).init(jax.random.key(0), (-1, 2))[1]) == {"w"}


@given(shift=st.floats(-100, 100))
def test_centered_weights_do_not_see_a_common_shift(shift):
    x = pairs()
    dense = Dense(4, 2.0, center=True)
    _, params = dense.init(jax.random.key(1), x.shape)
    np.testing.assert_allclose(dense.apply(params, x + shift), dense.apply(params, x), atol=1e-11)
    centered = x - x.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(dense.apply(params, centered), dense.apply(params, x), atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize(("layer", "axis"), [(BatchNorm, 0), (LastBatchNorm, 0), (LayerNorm, 1)])
def test_normalization_standardizes(layer, axis, eps):
    x = np.random.default_rng(0).standard_normal((7, 5)) * 3 + 2
    y = np.asarray(layer(eps).apply((), x))
    variance = x.var(axis=axis)
    np.testing.assert_allclose(y.mean(axis=axis), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=axis), variance / (variance + eps), rtol=1e-12)
    assert layer(eps).init(jax.random.key(0), (-1, 5)) == ((-1, 5), ())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("layer", "axis"), [(BatchNorm, 0), (LayerNorm, 1)])
@pytest.mark.parametrize("constant", [3.0, 0.0, 0.25])
def test_a_constant_channel_becomes_zero(layer, axis, dtype, constant):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), dtype)
    x = x.at[:, 1].set(constant) if axis == 0 else x.at[1].set(constant)
    y, gradient = jax.value_and_grad(lambda z: jnp.sum(layer().apply((), z) ** 3))(x)
    standardized = layer().apply((), x)
    assert np.all(np.asarray(standardized[:, 1] if axis == 0 else standardized[1]) == 0)
    assert np.isfinite(y)
    assert np.all(np.isfinite(gradient))


def test_batch_norm_needs_a_batch():
    for layer in (BatchNorm(), LastBatchNorm(1e-3)):
        with pytest.raises(ValueError, match="at least 2 inputs, got 1"):
            layer.apply((), np.ones((1, 3)))
    assert LayerNorm().apply((), np.arange(3.0)[None]).shape == (1, 3)


def test_last_batch_norm_kernel_names_the_way_out():
    with pytest.raises(NotImplementedError, match=r"last_batch_norm\.ntk"):
        infinite_kernel(Serial(Dense(3), LastBatchNorm()), pairs())


def test_activations_and_walk_are_the_forward_pass():
    x = jnp.asarray(pairs())
    network = Serial(
        Dense(5, 1.0, 0.1),
        Activation("relu"),
        Repeat(Serial(Residual(Dense(5, 1.2), 0.5), BatchNorm(), Activation("tanh")), 2),
        Dense(2),
    )
    _, params = network.init(jax.random.key(0), x.shape)
    y, by_hand = x, []
    order = [network.layers[0], network.layers[1]]
    y = order[0].apply(params[0], y)
    by_hand += [y, jnp.maximum(y, 0)]
    y = by_hand[-1]
    residual, norm, tanh = network.layers[2].block.layers
    for i in range(2):
        w = params[2][0]["w"][i]
        branch = y @ w * np.sqrt(1.2 / 5)
        total = y + 0.5 * branch
        normal = (total - total.mean(0, keepdims=True)) / total.std(0, keepdims=True)
        y = jnp.tanh(normal)
        by_hand += [branch, total, normal, y]
        order += [residual.branch, residual, norm, tanh]
    by_hand.append(network.layers[3].apply(params[3], y))
    order.append(network.layers[3])
    walked = list(network.walk(network.activations(params, x)))
    assert [layer for layer, _ in walked] == order
    for (_, output), expected in zip(walked, by_hand, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(walked[-1][1], network.apply(params, x))


def test_layers_are_values():
    make = lambda: fully_connected(3, 16, "weight_mean", b_var=0.1)  # noqa: E731
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != fully_connected(4, 16, "weight_mean", b_var=0.1)
    assert Dense(3) != Dense(3, center=True)
    assert BatchNorm() != LastBatchNorm()
    assert repr(Serial(Dense(2), Activation("relu"))) == (
        "Serial(Dense(width=2, w_var=1.0, b_var=0.0, center=False), Activation(function='relu'))"
    )
    namespace = {name: getattr(layers, name) for name, _ in CONFORMANCE}
    assert eval(repr(make()), namespace) == make()
    with pytest.raises(AttributeError):
        make().layers = ()


def test_triple_is_the_network():
    network, x = fully_connected(2, 8), pairs()
    init_fn, apply_fn, kernel_fn = network.triple
    shape, params = init_fn(jax.random.key(3), (-1, FEATURES))
    assert shape == (-1, 1)
    np.testing.assert_array_equal(apply_fn(params, x), network.apply(params, x))
    np.testing.assert_array_equal(kernel_fn(x).ntk, infinite_kernel(network, x).ntk)
    np.testing.assert_array_equal(kernel_fn(x, x[:2]).ntk, infinite_kernel(network, x, x[:2]).ntk)


def test_finite_networks_compute_in_the_dtype_of_their_parameters():
    network = fully_connected(2, 8)
    with jax.enable_x64(False):
        _, single = network.init(jax.random.key(0), (-1, FEATURES))
    assert network.apply(single, pairs()).dtype == jnp.float32
    _, double = network.init(jax.random.key(0), (-1, FEATURES))
    assert network.apply(double, pairs().astype(np.float32)).dtype == jnp.float64
    assert network.apply(double, np.ones((2, FEATURES), int)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dense(0), "got width 0"),
        (lambda: Dense(3, -1.0), "w_var=-1.0"),
        (lambda: Dense(3, 1.0, -0.1), "b_var=-0.1"),
        (lambda: Dense(3, float("nan")), "w_var=nan"),
        (lambda: Dense(3, float("inf")), "w_var=inf"),
        (lambda: BatchNorm(-1.0), "eps=-1.0"),
        (lambda: Activation("rleu"), "choose one of relu"),
        (lambda: Serial(), "at least one layer"),
        (lambda: Repeat(Dense(3), 0), "times >= 1, got 0"),
        (lambda: Dense(3, center=True).init(jax.random.key(0), (-1, 1)), "fan-in of 1"),
        (lambda: Repeat(Dense(3), 2).init(jax.random.key(0), (-1, 4)), "keeps the shape"),
        (lambda: Residual(Dense(3)).init(jax.random.key(0), (-1, 4)), "keeps the shape"),
        (lambda: Dense(3).apply({"w": jnp.ones((4, 3))}, np.ones(4)), "flattens"),
        (lambda: Dense(3).apply({"w": jnp.ones((4, 3))}, np.ones((2, 2, 4))), "flattens"),
        (lambda: BatchNorm().apply((), np.ones((2, 2, 4))), "flattens"),
    ],
)
def test_bad_layers_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_activation_needs_gaussian_units():
    for network in (Activation("relu"), Serial(Dense(3), Activation("relu"), Activation("relu"))):
        with pytest.raises(NotImplementedError, match="put a Dense layer before it"):
            infinite_kernel(network, pairs())
