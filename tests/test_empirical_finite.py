"""Results that are not finite: one error for kernels, stores and regressors, with the pair and the cause."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.common.finite import all_finite, require_finite
from ntk_analysis.empirical import empirical_nngp, empirical_ntk, open_kernel, plan
from ntk_analysis.layers import Activation, Conv, Dense, Flatten, Layer, Serial
from ntk_analysis.regression import KernelRegressor

from .test_empirical_store import MEMORY, OPTIONS
from .tiers import full


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(params, x):
    return x @ params["w"]


def log(params, x):
    return jnp.log(linear(params, x))


def dead_unit(params, x):
    centered = params["w"] - jnp.mean(params["w"], 0, keepdims=True)
    return x @ (centered / jnp.std(centered, 0, keepdims=True))


PARAMS = {"w": np.abs(draw(3, 2)) + 0.1}
POSITIVE = np.abs(draw(6, 3, seed=1)) + 0.1
NEGATIVE = np.where(np.arange(6)[:, None] == 4, -1.0, 1.0) * POSITIVE
ZERO = np.where(np.arange(6)[:, None] == 4, 0.0, 1.0) * POSITIVE
HALF, SMALL = ({"w": np.full((3, 2), value, np.float16)} for value in (1, 0.0133))
LARGE = np.where(np.arange(6)[:, None] == 4, 300, 1).astype(np.float16) * np.ones((6, 3), np.float16)
FAULTS = {
    "log of a negative number": (
        log,
        PARAMS,
        NEGATIVE,
        r"inputs \(0, 4\).* f\(params, x\) is nan at x1\[4\].*from log",
    ),
    "overflow of outputs": (lambda p, x: jnp.exp(linear(p, x)) * 0.1, SMALL, LARGE, "beyond float16 and finite in"),
    "overflow of products": (linear, HALF, LARGE, "derivatives are finite there and their products leave float16"),
    "dead unit": (dead_unit, {"w": np.ones((3, 2))}, POSITIVE, r"inputs \(0, 0\).*division by zero, as .* is dead"),
    "root at zero": (
        lambda p, x: jnp.sqrt(linear(p, x)),
        PARAMS,
        ZERO,
        r"\(0, 4\).*the derivative of f by params\['w'\] is (nan|inf) at x1\[4\].*root at 0",
    ),
    "arccos beyond 1": (lambda p, x: jnp.arccos(1 + linear(p, x)), PARAMS, POSITIVE, r"is nan at x1\[0\].*acos"),
    "norm of zero": (
        lambda p, x: linear(p, x) * jnp.linalg.norm(linear(p, x), axis=1, keepdims=True),
        PARAMS,
        ZERO,
        r"the derivative of f by params\['w'\] is nan at x1\[4\]",
    ),
    "coupled": (
        lambda p, x: log(p, x) - jnp.mean(linear(p, x), 0, keepdims=True),
        PARAMS,
        NEGATIVE,
        r"x1\[4\].*from log",
    ),
}
SHOWN = ("overflow of products", "dead unit")  # those of log are shown below


@pytest.mark.parametrize("name", [*SHOWN, *full(*(name for name in FAULTS if name not in SHOWN))])
def test_faults_are_told(name):
    """Of which function, at which pair, and why."""
    f, params, x, message = FAULTS[name]
    with jax.numpy_dtype_promotion("standard"), pytest.raises(ValueError, match=message) as caught:
        empirical_ntk(f, params, x, layout="trace", method="jacobian")
    assert "\n" not in str(caught.value)
    assert f.__qualname__ in str(caught.value)


@pytest.mark.parametrize(
    ("method", "layout"), [("products", "diagonal"), *full(("products", "full"), ("jacobian", "full"))]
)
def test_every_method_and_layout_tells(method, layout):
    """In the last of many tiles, and of second inputs."""
    few = {"method": method, "layout": layout, "coupled": False, "memory": 4 * MEMORY}
    for x2, name in ((None, "x1"), (NEGATIVE, "x2")):
        with pytest.raises(ValueError, match=rf"\(0, 4\) and output.*f\(params, x\) is nan at {name}\[4\].*from log"):
            empirical_ntk(log, PARAMS, NEGATIVE if x2 is None else POSITIVE, x2, **few)


def test_outputs_tell():
    with pytest.raises(ValueError, match=r"the NNGP of .*:log is nan at inputs \(0, 4\) and outputs 0, 0.*from log"):
        empirical_nngp(log, PARAMS, NEGATIVE, coupled=False)


def test_infinite_outputs_of_no_slope_have_a_tangent_kernel():
    """As of masked logits."""

    def masked(params, x):
        return jnp.where(x[:, :1] > 1, linear(params, x), -jnp.inf)

    found = empirical_ntk(masked, PARAMS, POSITIVE, layout="trace", method="jacobian", coupled=False).ntk
    slopes = np.where(POSITIVE[:, :1] > 1, POSITIVE, 0)
    np.testing.assert_allclose(found, 2 * slopes @ slopes.T, rtol=1e-14)


def test_a_store_keeps_what_was_finite(tmp_path):
    """And takes no tile that is not, however often it is asked."""
    small: dict[str, Any] = OPTIONS | {"coupled": False}
    memory = plan(log, PARAMS, NEGATIVE[:2], NEGATIVE[:2], **small).memory_bytes
    small |= {"memory": memory, "store": tmp_path / "k"}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"inputs \(0, 4\), .*from log"):
            empirical_ntk(log, PARAMS, NEGATIVE, **small)
        done = {path.name for path in (tmp_path / "k" / "done").iterdir()}
        assert done == {"0-0", "0-1"}


NEVER = {
    "all entries are infinite": lambda p, x: 1e200 * linear(p, x),
    "outputs are NaN, derivatives are not": lambda p, x: linear(p, x) + jnp.nan,
    "all derivatives are NaN, outputs are not": lambda p, x: linear(p, x) + jnp.sqrt(jnp.sum(p["w"] - p["w"])),
}


@pytest.mark.parametrize("method", ["jacobian", *full("products")])
@pytest.mark.parametrize("name", NEVER)
def test_no_tile_that_is_not_finite_reaches_a_store(name, method, tmp_path):
    """Neither as data nor as a mark, and the store is not taken for a finished one."""
    call = OPTIONS | {"coupled": False, "method": method, "store": tmp_path / "k"}
    for _ in range(2):
        with pytest.raises(ValueError, match=r"the NTK of .* is (nan|inf) at inputs \(0, 0\).*expected finite numbers"):
            empirical_ntk(NEVER[name], PARAMS, POSITIVE, **call)
        assert not list((tmp_path / "k" / "done").iterdir())
        assert not (tmp_path / "k" / "kernel" / "c").exists()
    with pytest.raises(ValueError, match=r"tiles of store .*k are not computed yet"):
        open_kernel(tmp_path / "k")


def test_regressors_tell():
    def between(x1, x2):
        kernel = x1 @ (x1 if x2 is None else x2).T
        return kernel + np.eye(len(x1)) if x2 is None else np.log(np.minimum(kernel, 1) - 1)

    fitted = KernelRegressor(between).fit(draw(4, 3), draw(4))
    with (
        np.errstate(invalid="ignore", divide="ignore"),
        pytest.raises(ValueError, match=r"the kernel of .*between is -?(nan|inf) at inputs \(0, 0\)"),
    ):
        fitted.predict(draw(2, 3, seed=1))
    with pytest.raises(ValueError, match=r"the NTK of .*log is nan at inputs \(0, 4\)"):
        KernelRegressor(functools.partial(empirical_ntk, log, PARAMS, layout="trace", coupled=False)).fit(
            NEGATIVE, draw(6)
        )


def test_the_rule_itself():
    require_finite(np.arange(6).reshape(2, 3), "integers")
    require_finite(np.ones((2, 3), np.float16), "a kernel")
    for array in (np.array, jnp.array):
        assert all_finite(array([[1.0, -2.0]]))
        assert not all_finite(array([[1.0, np.nan]]))
        assert not all_finite(array([[1.0, -np.inf]]))
    kernel = np.ones((2, 3, 2, 2))
    kernel[1, 2, 0, 1] = -np.inf
    with pytest.raises(
        ValueError, match=r"K is -inf at inputs \(11, 22\) and outputs 0, 1, expected .*: because 11 22"
    ):
        require_finite(kernel, "K", rows=10, columns=20, why=lambda a, b: f"because {a} {b}")
    with pytest.raises(ValueError, match=r"y is nan at input 1, expected finite numbers: check the inputs"):
        require_finite(np.array([0, np.nan]), "y")


DEAD: dict[str, tuple[Dense | Conv, tuple[int, ...], tuple[Layer, ...]]] = {
    "Dense": (Dense(4, b_var=0.1, standardize=True), (5, 10), ()),
    "Conv": (Conv(4, 3, standardize=True), (5, 6, 6, 2), (Flatten(),)),
}


def with_dead_units(layer, shape, dtype=np.float64):
    """Weights, of which two units' are equal: to 0.1, whose mean rounds, and to 0."""
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)[1])
    params = jax.tree.map(lambda leaf: draw(*leaf.shape).astype(dtype), params)
    params["w"][..., 1] = 0.1
    params["w"][..., 2] = 0
    return params, draw(*shape, seed=1).astype(dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("Dense", np.float32), *full(("Dense", np.float64), ("Conv", np.float32), ("Conv", np.float64))],
)
def test_standardised_units_of_equal_weights_are_dead(name, dtype):
    """0 before the bias, forward and backward, and what the others were."""
    layer, shape, _ = DEAD[name]
    params, x = with_dead_units(layer, shape, dtype)

    def loss(params, x):
        y = layer.apply(params, x)
        return jnp.sum(y**2), (y, layer.weights.deviation(params))

    (_, (y, deviation)), gradient = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    bias = np.sqrt(np.asarray(0.1, dtype)) * params["b"] if "b" in params else np.zeros(4, dtype)
    np.testing.assert_allclose(y[..., 1:3], np.broadcast_to(bias[1:3], y[..., 1:3].shape), rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert not np.asarray(gradient[0]["w"])[..., 1:3].any()
    assert np.asarray(gradient[0]["w"])[..., [0, 3]].all()
    w = params["w"].reshape(-1, 4)[:, [0, 3]].astype(float)
    np.testing.assert_allclose(deviation, [w[:, 0].std(), 0, 0, w[:, 1].std()], rtol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("name", DEAD)
def test_kernels_of_networks_with_dead_units(name):
    """Layer by layer as by the Jacobian."""
    layer, shape, between = DEAD[name]
    network = Serial(layer, *between, Activation("tanh"), Dense(2))
    params, x = with_dead_units(layer, shape)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), shape)[1])
    params = (params, *jax.tree.map(lambda leaf: draw(*leaf.shape), shapes[1:]))
    found, expected = (empirical_ntk(network, params, x, method=method).ntk for method in ("layerwise", "jacobian"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.max(expected))
