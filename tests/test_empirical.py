"""Empirical kernels: every method and layout against the dense Jacobian, tiles, budgets, errors."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.common.cost import program_cost
from ntk_analysis.common.memory import memory_budget
from ntk_analysis.empirical import Tiles, empirical_nngp, empirical_ntk, plan
from ntk_analysis.empirical.functions import Side, flattened
from ntk_analysis.empirical.layouts import LAYOUTS, symmetric
from ntk_analysis.empirical.methods import products_method
from ntk_analysis.empirical.plans import MARGIN
from ntk_analysis.empirical.tiles import tile_programs
from ntk_analysis.networks import fully_connected
from ntk_analysis.spectrum import condition_number
from ntk_analysis.stores.grid import mirrored

from .tiers import full

ROUNDING = 1e-12  # of the largest entry, float64: sums of a few thousand products in another order
METHODS = ("jacobian", "products")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def drawn(network, features, count=4, other=4):
    """Parameters of a network of layers, and two batches: a kernel's identities hold at any numbers."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (-1, *features))[1])
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes)
    return params, rng.standard_normal((count, *features)), rng.standard_normal((other, *features))


@functools.lru_cache(maxsize=32)
def derivative_of(f):
    """As one program: op by op, compiling takes longer than all else; kept, as several tests ask for it."""
    return jax.jit(lambda params, x: jax.jacrev(lambda p: f(p, x).reshape(len(x), -1))(params))


def dense(f, params, x1, x2=None):
    """Brute force: the Jacobian of the whole batch, all of it."""

    def rows(x):
        jacobian = derivative_of(f)(params, jnp.asarray(x))
        return np.concatenate([np.asarray(leaf).reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)], 2)

    return np.einsum("ack,bdk->abcd", rows(x1), rows(x1 if x2 is None else x2))


def in_layout(full, layout):
    return np.einsum({"full": "abcd->abcd", "diagonal": "abcc->abc", "trace": "abcc->ab"}[layout], full)


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ROUNDING * np.max(np.abs(expected)))


def plain(params, x):
    hidden = jnp.tanh(x @ params["in"] + params["b"][None])
    return (hidden @ params["out"]).reshape(len(x), 2, -1)  # axes behind the first are flattened into C


def coupled(params, x):
    hidden = x @ params["in"]
    hidden = (hidden - jnp.mean(hidden, 0, keepdims=True)) / jnp.std(hidden, 0, keepdims=True)
    return jnp.tanh(hidden + params["b"][None]) @ params["out"]


PARAMS = {"in": draw(3, 5), "b": draw(5, seed=1), "out": draw(5, 4, seed=2)}


EVERY = list(itertools.product((plain, coupled), METHODS, LAYOUTS))
TELLING = [
    (plain, "jacobian", "full"),
    (plain, "products", "diagonal"),
    (plain, "products", "trace"),
    (coupled, "jacobian", "trace"),
    (coupled, "products", "full"),
]


@pytest.mark.parametrize(("f", "method", "layout"), [*TELLING, *full(*(each for each in EVERY if each not in TELLING))])
def test_every_method_and_layout_is_the_dense_jacobian(f, method, layout):
    x1, x2 = draw(5, 3, seed=3), draw(4, 3, seed=4)
    options = {"layout": layout, "method": method}
    found = empirical_ntk(f, PARAMS, x1, **options)
    assert (found.method, found.layout, found.coupled) == (method, layout, f is coupled)
    assert_close(found.ntk, in_layout(dense(f, PARAMS, x1), layout))
    assert_close(empirical_ntk(f, PARAMS, x1, x2, **options).ntk, in_layout(dense(f, PARAMS, x1, x2), layout))


@jax.custom_jvp
def with_forward_mode(x):
    return jnp.tanh(x)


@jax.custom_vjp
def without_forward_mode(x):
    return jnp.tanh(x)


with_forward_mode.defjvps(lambda tangent, y, x: tangent * (1 - y**2))
without_forward_mode.defvjp(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, cotangent: (cotangent * (1 - y**2),))


@pytest.mark.parametrize(
    ("activation", "method"),
    [
        (with_forward_mode, "products"),
        (without_forward_mode, "products"),
        *full(
            (without_forward_mode, "auto"),
            (with_forward_mode, "jacobian"),
            (without_forward_mode, "jacobian"),
            (with_forward_mode, "auto"),
        ),
    ],
)
def test_derivatives_of_ones_own(activation, method):
    """jax.custom_vjp leaves no forward mode: "auto" does without, the method by its name says so."""

    def f(params, x):
        scanned = jax.lax.scan(lambda c, _: (activation(c), None), x @ params["in"], None, length=2)[0]
        return jax.jit(activation)(scanned) @ params["out"]

    params, x = {"in": PARAMS["in"], "out": PARAMS["out"]}, draw(5, 3, seed=3)
    if activation is without_forward_mode and method == "products":
        with pytest.raises(NotImplementedError, match=r"jax\.custom_vjp .*: use method='jacobian'") as caught:
            empirical_ntk(f, params, x, method=method)
        assert "\n" not in str(caught.value)
        return
    assert_close(empirical_ntk(f, params, x, method=method).ntk, dense(f, params, x))


def test_other_type_errors_are_not_taken_for_a_missing_forward_mode():
    def f(params, x):
        raise TypeError("of the user's own")

    with pytest.raises(TypeError, match="of the user's own"):
        empirical_ntk(f, PARAMS, draw(5, 3), coupled=False)


def test_products_run_a_coupled_batch_forward_once():
    """The loop over its rows is left with derivatives: no tanh in its body."""
    side = Side(jnp.asarray(draw(5, 3)), jnp.arange(5))
    contract = products_method(flattened(coupled), "full").contract
    program = jax.make_jaxpr(contract)(jax.tree.map(jnp.asarray, PARAMS), side, side)
    (loop,) = (eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    assert "tanh" in str(program)
    assert "tanh" not in str(loop)


@pytest.mark.full
def test_importing_does_without_scipys_statistics():
    """They take half of the time; only sampling behind an activation needs them."""
    code = "import sys, ntk_analysis.empirical; sys.exit('scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("f", "layout"),
    [
        (plain, "full"),
        (plain, "trace"),
        (coupled, "diagonal"),
        *full((plain, "diagonal"), (coupled, "full"), (coupled, "trace")),
    ],
)
def test_products_of_outputs(f, layout):
    x1, x2 = draw(5, 3, seed=3), draw(4, 3, seed=4)
    y1, y2 = (np.asarray(jax.jit(f)(PARAMS, x)).reshape(len(x), -1) for x in (x1, x2))
    products = np.einsum("ac,bd->abcd", y1, y2)
    assert_close(empirical_nngp(f, PARAMS, x1, x2, layout=layout).nngp, in_layout(products, layout))


def test_one_output_per_input():
    def f(params, x):
        return jnp.sum(jnp.tanh(x @ params["in"]), 1)

    params, x = {"in": PARAMS["in"]}, draw(3, 3)
    expected = dense(lambda p, x: f(p, x)[:, None], params, x)
    assert empirical_ntk(f, params, x, method="jacobian").ntk.shape == (3, 3, 1, 1)
    assert_close(empirical_ntk(f, params, x, layout="trace", method="jacobian").ntk, expected[:, :, 0, 0])


@pytest.mark.parametrize(
    ("f", "layout"),
    [
        (plain, "full"),
        *full((plain, "diagonal"), (plain, "trace"), (coupled, "full"), (coupled, "diagonal"), (coupled, "trace")),
    ],
)
def test_tiles_agree_with_the_whole_and_are_exactly_symmetric(f, layout):
    # to rounding, not bit for bit: the order of sums in a matrix product depends on its shape
    x = draw(11, 3, seed=3)
    whole = empirical_ntk(f, PARAMS, x, layout=layout, method="jacobian")
    least = budget_of(f, x, layout, 2)
    tiled = empirical_ntk(f, PARAMS, x, layout=layout, method="jacobian", memory=least)
    assert 1 < tiled.plan.rows < 6, "11 inputs do not divide into tiles"
    assert tiled.memory_bytes <= least
    assert_close(tiled.ntk, whole.ntk)
    for kernel in (whole.ntk, tiled.ntk):
        np.testing.assert_array_equal(kernel, mirrored(kernel))
    other = draw(7, 3, seed=4)
    oblong = empirical_ntk(f, PARAMS, x, other, layout=layout, method="jacobian", memory=least)
    assert oblong.plan.count > 1
    assert_close(oblong.ntk, empirical_ntk(f, PARAMS, x, other, layout=layout, method="jacobian").ntk)


def budget_of(f, x, layout, size):
    """Bytes of a tile of that many inputs."""
    some = x if f is coupled else x[:size]
    few = plan(f, PARAMS, some, some, layout=layout, method="jacobian")
    return few.memory_bytes // 2 if f is coupled else few.memory_bytes


def test_tiles_are_the_same_bits_in_any_order():
    x = draw(9, 3, seed=3)
    cut = plan(plain, PARAMS, x, memory=budget_of(plain, x, "full", 2), method="jacobian")
    forward = {tile: Tiles(plain, PARAMS, x, None, plan=cut)(*tile) for tile in cut.tiles}
    tiles = Tiles(plain, PARAMS, x, None, plan=cut)
    kernel = np.full(cut.shape, np.nan)
    for tile in reversed(list(cut.tiles)):
        np.testing.assert_array_equal(tiles(*tile), forward[tile])
        cut.place(kernel, *tile, forward[tile])
    assert_close(kernel, dense(plain, PARAMS, x))


def test_symmetric_keeps_the_upper_triangle():
    for shape in ((4, 4), (4, 4, 3), (4, 4, 3, 3)):
        kernel = draw(*shape)
        result = symmetric(kernel)
        np.testing.assert_array_equal(result, mirrored(result))
        np.testing.assert_array_equal(result[0, 1:], kernel[0, 1:])
        np.testing.assert_array_equal(symmetric(result), result)


def test_integer_inputs_are_indices():
    def f(params, tokens):
        return jnp.mean(params["table"][tokens], 1)

    params, tokens = {"table": draw(6, 2)}, np.array([[0, 1, 5], [2, 2, 3], [5, 4, 0]])
    found = empirical_ntk(f, params, tokens)
    assert not found.coupled
    assert_close(found.ntk, dense(f, params, tokens))


def test_stated_coupling_takes_the_batch_whole():
    x = draw(4, 3)
    found = empirical_ntk(plain, PARAMS, x, coupled=True)
    assert found.coupled
    assert_close(found.ntk, empirical_ntk(plain, PARAMS, x, coupled=False).ntk)


@pytest.mark.parametrize("flag", [False, *full(True)])
def test_dtypes(flag):
    x, options = draw(3, 3), {"layout": "trace", "method": "jacobian"}
    with jax.enable_x64(flag):
        found = empirical_ntk(plain, PARAMS, x, **options)
        assert found.ntk.dtype == np.float64
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
        single = empirical_ntk(plain, params, jnp.asarray(x, jnp.float32), **options)
    assert isinstance(single.ntk, np.ndarray)
    assert single.ntk.dtype == np.float32
    np.testing.assert_allclose(single.ntk, found.ntk, rtol=0, atol=1e-5 * np.max(found.ntk))  # 100 roundings


@pytest.mark.full  # traces every size of a tile
def test_plan_of_inputs_not_at_hand():
    network = fully_connected(2, 512, outputs=10)
    shape = jax.ShapeDtypeStruct((1_000_000, 784), np.float32)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), (1, 784))[1])
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32), params)
    far = plan(network, params, shape, layout="trace", memory="4GiB", coupled=False)
    assert far.method == "layerwise"
    assert far.storage_bytes == 4 * 10**12
    assert far.memory_bytes <= far.budget_bytes == 4 * 2**30
    # Grams of 3 layers' activations and signals, of half the pairs; signals and padding come on top
    units = 2 * 512
    grams = 10**12 / 2 * 2 * (784 + units + 10 * (units + 10))
    assert grams < far.flops < 1.5 * grams
    assert "1000000" in far.summary()


def test_measured_plan_has_a_time():
    timed = plan(plain, PARAMS, draw(6, 3), measure=True)
    assert timed.seconds is not None
    assert timed.seconds > 0
    assert "s" in timed.summary()


def test_cost_counts_products_and_repeats():
    x, w = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert program_cost(jnp.matmul, x, w)[0].flops == 2 * 3 * 4 * 5
    scanned, _ = program_cost(lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, length=7)[0], jnp.ones((4, 4)))
    assert scanned.flops == 7 * 2 * 4**3
    image, kernel = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 5))
    convolved, _ = program_cost(
        lambda a, b: jax.lax.conv_general_dilated(a, b, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        image,
        kernel,
    )
    assert convolved.flops == 2 * 2 * 4 * 4 * 5 * 27
    assert program_cost(lambda a: (a + 1) * 2, x)[0].memory_bytes == 3 * x.nbytes  # argument, sum, product


@pytest.mark.parametrize("layout", ["full", *full("diagonal", "trace")])
def test_planned_memory_is_no_less_than_what_xla_takes(layout):
    x = draw(6, 3)
    programs = tile_programs(plain, "jacobian", layout)
    params, side = jax.tree.map(jnp.asarray, (PARAMS, Side(x)))
    left = programs.prepare(params, side)
    assert isinstance(programs.contract, jax.stages.Wrapped)
    assert isinstance(programs.square, jax.stages.Wrapped)
    for counted, program in (
        (
            plan(plain, PARAMS, x, x, layout=layout, method="jacobian").memory_bytes,
            programs.contract.lower(params, left, left),
        ),
        (MARGIN * program_cost(programs.square, params, side)[0].memory_bytes, programs.square.lower(params, side)),
    ):
        taken = program.compile().memory_analysis()
        assert taken is not None
        total = taken.temp_size_in_bytes + taken.argument_size_in_bytes + taken.output_size_in_bytes
        assert total <= counted


def test_memory_budgets():
    assert memory_budget("4GiB") == 4 * 2**30
    assert memory_budget("1.5 MB") == 1_500_000
    assert memory_budget(12) == 12
    assert memory_budget(None) > 0
    with pytest.raises(MemoryError, match=r"1 x 1 inputs .* needs .* GiB, the budget is 9\.31e-09 GiB"):
        empirical_ntk(plain, PARAMS, draw(3, 3), memory=10)


def test_result_says_what_it_is():
    found = empirical_ntk(plain, PARAMS, draw(3, 3))
    assert "layerwise" not in repr(found)
    assert all(word in repr(found) for word in (found.method, "full", "(3, 3, 4, 4)", "FLOPs"))
    assert found.flops > 0
    assert condition_number(found) >= 1
    with pytest.raises(AttributeError, match="empirical_nngp"):
        _ = found.nngp


X = draw(3, 3)
BAD = {
    "several outputs": (lambda p, x: (x, x), PARAMS, X, None, {}, TypeError, "one array of floats, got tuple"),
    "integer outputs": (lambda p, x: jnp.zeros(x.shape, int), PARAMS, X, None, {}, TypeError, "got int64"),
    "batch lost": (lambda p, x: jnp.sum(plain(p, x), 0), PARAMS, X, None, {}, ValueError, "put the batch first"),
    "scalar": (lambda p, x: jnp.sum(plain(p, x)), PARAMS, X, None, {}, ValueError, "put the batch first"),
    "integer parameter": (plain, PARAMS | {"step": np.array(3)}, X, None, {}, TypeError, r"params\['step'\] is int64"),
    "boolean parameter": (plain, PARAMS | {"on": np.array(True)}, X, None, {}, TypeError, r"params\['on'\] is bool"),
    "Python parameter": (plain, PARAMS | {"on": 1.0}, X, None, {}, TypeError, r"params\['on'\] is float"),
    "NaN parameter": (plain, PARAMS | {"b": np.full(5, np.nan)}, X, None, {}, ValueError, r"params\['b'\] has NaN"),
    "no parameters": (plain, {}, X, None, {}, ValueError, "no arrays"),
    "x2": (plain, PARAMS, X, draw(3, 4), {}, ValueError, r"got \(4,\) against \(3,\)"),
    "NaN input": (plain, PARAMS, np.where(np.eye(3) > 0, np.nan, 1.0), None, {}, ValueError, "in 3 of 3 inputs, first"),
    "no inputs": (plain, PARAMS, X[:0], None, {}, ValueError, "at least one input"),
    "layout": (plain, PARAMS, X, None, {"layout": "sum"}, ValueError, "full, diagonal, trace"),
    "method": (plain, PARAMS, X, None, {"method": "fast"}, ValueError, "auto, jacobian, products, layerwise"),
    "layerwise": (plain, PARAMS, X, None, {"method": "layerwise"}, ValueError, "needs a network of layers"),
    "coupled": (plain, PARAMS, X, None, {"coupled": "no"}, ValueError, "True, False or 'detect'"),
    "memory": (plain, PARAMS, X, None, {"memory": "a lot"}, ValueError, "'4GiB'"),
    "no memory": (plain, PARAMS, X, None, {"memory": 0}, ValueError, "'4GiB'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    f, params, x1, x2, options, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        empirical_ntk(f, params, x1, x2, **options)
    assert "\n" not in str(caught.value)


def test_no_tracers():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: plan(plain, PARAMS, x).flops)(jnp.asarray(X))
