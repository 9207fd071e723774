"""Inputs that are dicts of arrays: the kernel of the function of one array that holds the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from ntk_analysis.empirical import empirical_ntk, plan
from ntk_analysis.empirical.trees import as_rows, is_tree
from ntk_analysis.layers import Dense
from ntk_analysis.regression import KernelClassifier, KernelRegressor

RNG = np.random.default_rng(0)
N, K = 6, 3
PARAMS = {"table": RNG.standard_normal((5, 4)), "out": RNG.standard_normal((6, 2))}


def inputs(n):
    """Tokens, a mask and features, in a dict of two storeys."""
    tokens = {"ids": RNG.integers(0, 5, (n, 3)), "mask": RNG.integers(0, 2, (n, 3)).astype(bool)}
    return {"text": tokens, "features": RNG.standard_normal((n, 1, 2))}


X, X2 = inputs(N), inputs(K)


def network(params, x):
    assert x["text"]["mask"].dtype == bool
    embedded = jnp.where(x["text"]["mask"][..., None], jnp.asarray(params["table"])[x["text"]["ids"]], 0)
    joined = jnp.concatenate([embedded.sum(axis=1), x["features"][:, 0]], axis=1)
    return jnp.tanh(joined) @ params["out"]


def kernel(x1, x2):
    """By the definition."""
    rows = [
        np.concatenate([np.asarray(leaf).reshape(2 * len(x["features"]), -1) for leaf in jax.tree.leaves(jacobian)], 1)
        for x in (x1, x2)
        for jacobian in [jax.jacobian(network)(PARAMS, x)]
    ]
    return (rows[0] @ rows[1].T).reshape(len(x1["features"]), 2, -1, 2).transpose(0, 2, 1, 3)


@pytest.mark.full
def test_the_kernel_of_dicts():
    found = empirical_ntk(network, PARAMS, X, X2)
    assert found.values.dtype == np.float64
    assert not found.coupled
    with jax.enable_x64(True):
        expected = kernel(X, X2)
        traced = jax.jit(lambda params, x: empirical_ntk(network, params, x, X2, coupled=False).ntk)(PARAMS, X)
    np.testing.assert_allclose(found.ntk, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(traced, expected, rtol=1e-12, atol=1e-12)
    assert plan(network, PARAMS, X, X2).shape == (N, K, 2, 2)


@pytest.mark.full
def test_estimators_of_dicts():
    y = RNG.standard_normal((N, 2))
    source = functools.partial(empirical_ntk, network, PARAMS)
    model = KernelRegressor(source, regularization=0.1)
    found = model.fit(X, y).predict(X2)
    precomputed = KernelRegressor("precomputed", regularization=0.1).fit(source(X).ntk, y)
    np.testing.assert_allclose(found, precomputed.predict(source(X2, X).ntk), rtol=1e-9)
    weights = np.array([1, 0, 2, 1, 0, 1.0])
    kept = weights > 0
    cut = jax.tree.map(lambda array: array[kept], X)
    np.testing.assert_allclose(
        model.fit(X, y, sample_weight=weights).predict(X2),
        model.fit(cut, y[kept], sample_weight=weights[kept]).predict(X2),
        rtol=1e-9,
    )


def test_a_sparse_matrix_is_no_dict():
    assert is_tree({"a": np.eye(3)})
    assert not is_tree(scipy.sparse.dok_matrix(np.eye(3)))


def test_rows_hold_the_numbers_and_the_dtypes():
    seen = {}

    def function(params, x):
        seen.update(x)
        return x["a"]

    a, b = RNG.standard_normal((4, 2)).astype(np.float32), RNG.integers(0, 9, (4, 3, 2)).astype(np.int32)
    of_rows, rows, none = as_rows(function, {}, {"a": a, "b": b}, None)
    assert none is None
    assert rows.dtype == np.float32  # as that of the floats, by which a network computes
    of_rows({}, jnp.asarray(rows))
    for name, array in (("a", a), ("b", b)):
        assert seen[name].dtype == array.dtype
        np.testing.assert_array_equal(seen[name], array)
    assert as_rows(function, {}, {"b": b}, None)[1].dtype == np.int32
    same = as_rows(function, {}, {"a": 2 * a, "b": b}, None)[0]
    assert same == of_rows  # so that programs are compiled once
    assert hash(same) == hash(of_rows)


def test_a_dict_goes_through_the_estimators():
    def source(x1, x2):
        x2 = x1 if x2 is None else x2
        assert x1["ids"].dtype == np.int64
        return (x1["ids"][:, None] == x2["ids"]).mean(axis=2) + x1["x"] @ x2["x"].T

    given = {"ids": RNG.integers(0, 3, (8, 4)), "x": RNG.standard_normal((8, 8))}
    labels = np.arange(8) % 2
    model = KernelClassifier(source, regularization=1e-3).fit(given, labels)
    np.testing.assert_array_equal(model.predict(given), labels)
    with pytest.raises(ValueError, match="inconsistent"):
        model.fit(given, labels[:-1])
    with pytest.raises(ValueError, match="X is a dict, expected an array: only a function as kernel"):
        KernelRegressor(Dense(1)).fit(given, labels)


@pytest.mark.parametrize(
    ("f", "x1", "x2", "error", "message"),
    [
        (network, {}, None, ValueError, "x1 has arrays of no shape"),
        (network, {"a": np.ones((3, 2)), "b": np.ones((2, 2))}, None, ValueError, r"\(3, 2\), \(2, 2\) shape"),
        (network, {"a": np.ones((3, 2))}, {"b": np.ones((3, 2))}, ValueError, "x2 must have the arrays of x1"),
        (network, {"a": np.array([["a"]])}, None, TypeError, r"x1\['a'\] has dtype <U1"),
        (Dense(1), {"a": np.ones((3, 2))}, None, TypeError, "takes arrays, got a dict"),
        (
            network,
            {"a": np.ones((1, 1), np.float32), "b": np.array([[2**24 + 1]])},
            None,
            ValueError,
            "whole numbers that float32 does not hold",
        ),
    ],
)
def test_trees_that_are_refused(f, x1, x2, error, message):
    with pytest.raises(error, match=message):
        empirical_ntk(f, PARAMS, x1, x2)
