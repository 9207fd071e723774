"""Tangent kernels by group of parameters: each is the dense one's, all add up, and shares are inside their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.diagnosis.shares import gradient_squares
from ntk_analysis.empirical import empirical_ntk, empirical_ntk_by, group_names
from ntk_analysis.networks import fully_connected

from .test_empirical import PARAMS, assert_close, coupled, dense, draw, in_layout, plain
from .tiers import full

X = draw(7, 3, seed=3)


def flat(params, x):
    return plain(params, x).reshape(len(x), -1)


def of_group(f, names, x1=X, x2=None):
    """The dense kernel over these arrays, all others held."""
    chosen = {name: PARAMS[name] for name in names}
    return dense(lambda params, x: f(PARAMS | params, x), chosen, x1, x2)


@pytest.mark.parametrize(
    ("f", "layout"), [(plain, "full"), *full((plain, "trace"), (coupled, "diagonal"), (coupled, "full"))]
)
def test_each_group_is_the_dense_kernel_of_its_arrays_and_all_add_up(f, layout):
    found = empirical_ntk_by(f, PARAMS, X, by=lambda path: "read-out" if path == "out" else "hidden", layout=layout)
    assert list(found) == ["hidden", "read-out"]  # in the order of the leaves: b, in, out
    for name, arrays in (("hidden", ("in", "b")), ("read-out", ("out",))):
        assert_close(found[name].ntk, in_layout(of_group(f, arrays), layout))
    assert_close(sum(kernel.ntk for kernel in found.values()), in_layout(dense(f, PARAMS, X), layout))


@pytest.mark.full
def test_two_sets_of_inputs_in_tiles_add_up():
    other = draw(4, 3, seed=4)
    found = empirical_ntk_by(plain, PARAMS, X, other, by="array", memory=20_000)
    assert next(iter(found.values())).plan.count > 1
    assert_close(sum(kernel.ntk for kernel in found.values()), empirical_ntk(plain, PARAMS, X, other).ntk)
    assert_close(found["b"].ntk, of_group(plain, ("b",), X, other))
    cut = empirical_ntk_by(plain, PARAMS, X, memory=20_000)
    assert_close(sum(kernel.ntk for kernel in cut.values()), empirical_ntk(plain, PARAMS, X).ntk)


def test_arrays_are_grouped_by_their_paths():
    tree = {"block": [{"conv": {"kernel": 0.0, "bias": 0.0}}, {"conv": {"kernel": 0.0}}], "value": {"scale": 0.0}}
    assert group_names(tree) == ["block/0/conv", "block/0/conv", "block/1/conv", "value"]
    assert group_names(tree, "kind") == ["bias", "kernel", "kernel", "scale"]
    assert group_names(tree, "array")[0] == "block/0/conv/bias"
    assert group_names(tree, 2) == ["block/0", "block/0", "block/1", "value/scale"]
    assert group_names(tree, lambda path: path[0]) == ["b", "b", "b", "v"]
    assert group_names([0.0, 0.0]) == ["0", "1"]
    assert group_names(0.0) == ["params"]
    for wrong, message in (("block", "got by='block': choose one of layer, kind, array"), (0, "got by=0")):
        with pytest.raises(ValueError, match=message):
            group_names(tree, wrong)


@pytest.mark.full
def test_variables_of_flax_have_the_paths_of_their_modules():
    from flax import nnx

    from ntk_analysis.networks import from_nnx

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
        _, params, _ = from_nnx(model, jnp.ones((2, 3), jnp.float32), mode="eval")
    assert dict.fromkeys(group_names(params)) == {"layers/0": None, "layers/2": None}


@pytest.mark.full
def test_layers_of_ours_are_groups():
    network = fully_connected(2, 6, outputs=2, b_var=0.1)
    params = network.init(jax.random.key(0), X.shape)[1]
    found = empirical_ntk_by(network, params, X, layout="trace")
    total = sum(np.asarray(kernel.ntk) for kernel in found.values())
    np.testing.assert_allclose(total, empirical_ntk(network, params, X, layout="trace").ntk, rtol=1e-5)
    assert len(found) == len({name.rpartition("/")[0] for name in group_names(params, "array")})


def test_shares_of_the_trace_are_the_groups():
    """Within four standard errors of the exact ones, and they sum to 1."""
    shares = gradient_squares(flat, PARAMS, jnp.asarray(X), 0).shares("array")
    exact = [np.einsum("aacc->", of_group(flat, (name,))) for name in shares.names]
    np.testing.assert_array_less(
        np.abs(np.array(shares.shares) - np.array(exact) / sum(exact)), 4 * np.array(shares.errors)
    )
    assert sum(shares.shares) == pytest.approx(1)
    assert max(shares.errors) < 0.1


@pytest.mark.full
def test_shares_are_inside_their_stated_errors():
    """95 % of 200 repetitions of other signs, by Student's quantile of 15."""
    exact = np.array([np.einsum("aacc->", of_group(flat, (name,))) for name in ("b", "in", "out")])
    inside = []
    for seed in range(200):
        shares = gradient_squares(flat, PARAMS, jnp.asarray(X), seed).shares("array")
        inside.append(np.abs(np.array(shares.shares) - exact / exact.sum()) <= 2.131 * np.array(shares.errors))
    assert (np.mean(inside, axis=0) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)).all(), np.mean(inside, axis=0)
