"""Few nodes for large batches: against the exact kernels, on the constant mode, and what they say of their error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ntk_analysis import infinite, infinite_kernel, kernels_by_depth, networks
from ntk_analysis.activations import relu
from ntk_analysis.batch_norm import LARGE_BATCH, FewNodes, nngp, propagate, push, quadrature_error
from ntk_analysis.meanfield import analyse
from ntk_analysis.regression import KernelRegressor, UnresolvedPredictionWarning

from .tiers import full


def drawn(seed):
    """Sigma and Theta of 64 inputs: features of equal or of falling variance, one large one, or close groups."""
    rng = np.random.default_rng(seed)
    M, kind = 64, seed % 4
    if kind == 0:
        x = rng.standard_normal((M, int(rng.integers(7, 3 * M))))
    elif kind == 1:
        x = rng.standard_normal((M, M)) * np.arange(1, M + 1) ** -rng.uniform(0.25, 1.25)
    elif kind == 2:
        x = rng.standard_normal((M, 2 * M))
        x[:, 0] *= rng.uniform(3, 100)
    else:
        x = np.repeat(rng.standard_normal((M // 8, 20)), 8, axis=0) + rng.uniform(0.05, 1) * rng.standard_normal(
            (M, 20)
        )
    sigma = x @ x.T / x.shape[1]
    return sigma, sigma + rng.uniform() * np.eye(M)


def statistics_of(seed):
    """Every batch with an odd number of tens has four new points."""
    return np.where(np.arange(64) < 60, 1 / 60, 0) if seed // 10 % 2 else None


@pytest.mark.parametrize("seeds", full(range(100)), ids=["100 batches"])
def test_twice_the_change_by_one_node_bounds_the_error(seeds):
    """The largest is .84 of the bound in 300 other batches of 16 to 128."""
    for seed in seeds:
        (sigma, theta), eps = drawn(seed), (0.0, 0.1)[seed // 4 % 2]
        exact, fewer, found = (
            propagate(sigma, theta, eps=eps, weights=statistics_of(seed), rule=rule)
            for rule in (None, FewNodes(LARGE_BATCH.count - 1), LARGE_BATCH)
        )
        for name in ("nngp", "distance", "pushed"):
            true, moved = (np.max(np.abs(getattr(a, name) - getattr(found, name))) for a in (exact, fewer))
            assert true <= 2 * moved, (seed, name)
        # inputs one by one take all nodes; tolerances: rounding, and the exact rule where the rank is 7 less 2
        np.testing.assert_allclose(found.mean, exact.mean, rtol=1e-9)
        np.testing.assert_allclose(np.diag(found.nngp), np.diag(exact.nngp), rtol=1e-9)
        assert np.linalg.eigvalsh(found.nngp)[0] > -1e-12


def missing(B, count):
    """What this number of nodes leaves out of push(I, G), G = I - 1/B, for ReLU.

    With t = 2s/(1 + 2s) and N = B - 1, u = N t/2 has a Jacobi weight, (1 - t)^(N/2 - 1). The integrand is a polynomial
    of degree 1 in t and c/(1 - t), c = N V/4 + E o G/4 - 3/2 N_ij at kappa = G/2. Gauss quadrature takes a polynomial
    exactly, and of 1/(1 - t) it leaves out the part 1/C(count + N/2 - 1, count)^2.
    """
    N, G = B - 1, np.eye(B) - 1 / B
    q, distance = np.diag(G), 1 - G / np.diag(G)
    V = relu.dual.at_distance(q[:, None], q[None, :], distance) / 2
    E = relu.derivative_dual.at_distance(q[:, None], q[None, :], distance)
    bend = np.sqrt(np.maximum(np.outer(q, q) - G**2, 0)) / (4 * np.pi)
    return B / (N - 2) * (N * V / 4 + E * G / 4 - 1.5 * bend) / scipy.special.binom(count + N / 2 - 1, count) ** 2


def test_the_error_for_independent_inputs():
    """Expectations in the place of statistics, one node, are wrong on the constant mode."""
    B = 64
    exact, one = push(np.eye(B), np.eye(B)), np.ones(B)
    for count in (1, 2, 3):
        left_out = missing(B, count)
        found = push(np.eye(B), np.eye(B), rule=FewNodes(count))
        # tolerance: rounding of a sum of B products
        np.testing.assert_allclose(found + left_out, exact, rtol=0, atol=B * np.finfo(float).eps)
        assert (one @ left_out @ one > 0.5 * (one @ exact @ one)) == (count == 1)
    field = analyse("relu", normalization="batch", batch_size=B)
    other = np.eye(B)[0] - one / B
    fixed_point = (1 - field.c_star) * np.eye(B) + field.c_star
    tangent = push(fixed_point, np.eye(B) - 1 / B, rule=LARGE_BATCH) + missing(B, 3) / (1 - field.c_star)
    # in closed form
    assert 2 * other @ tangent @ other / (other @ other) == pytest.approx(field.chi_1, rel=1e-12)


def test_error_falls_by_the_node():
    sigma, theta = drawn(0)
    errors = [quadrature_error(sigma, theta, rule=FewNodes(count)) for count in (1, 2, 3)]
    assert errors[2] < errors[1] / 3 < errors[0] / 9
    fewer, found, exact = (nngp(sigma, rule=rule) for rule in (FewNodes(2), LARGE_BATCH, None))
    assert 0 < np.max(np.abs(found - exact)) < 2 * np.max(np.abs(found - fewer))


NETWORKS = {
    "one layer": (networks.fully_connected(1, 1, "batch"), (12, 12)),
    "vectors": (networks.fully_connected(3, 1, "batch", eps=0.1), (24, 8)),
    "images": (networks.convolutional(2, 1, "batch", b_var=0.1), (9, 3, 3, 2)),
    "pooled": (networks.residual(2, 1, "batch", kernel_size=3, readout="pool"), (9, 3, 3, 2)),
}


@pytest.mark.parametrize("training", [None, *full(7)], ids=["joint", "training batch"])
@pytest.mark.parametrize("name", ["one layer", *full("vectors", "images", "pooled")])
def test_networks_tell_their_error(name, training):
    network, shape = NETWORKS[name]
    x = np.random.default_rng(1).standard_normal(shape)
    new = {} if training is None else {"x2": x[training:], "statistics": "x1"}
    exact = infinite_kernel(network, x[:training], **new)
    found = infinite_kernel(network, x[:training], **new, batch_norm="large_batch")
    error = found.approximation_error
    assert 0 < error < 1
    assert np.max(np.abs(found.distance - exact.distance)) <= error
    assert np.max(np.abs(found.ntk - exact.ntk)) <= error * np.max(exact.ntk)
    assert np.max(np.abs(found.variance1 / exact.variance1 - 1)) <= error
    assert found.relative_error > exact.relative_error


def test_networks_without_batch_norm_have_no_such_choice_to_make():
    network, x = networks.fully_connected(1, 1), np.random.default_rng(1).standard_normal((4, 3))
    assert infinite_kernel(network, x, batch_norm="large_batch").approximation_error == 0


@pytest.mark.full
def test_by_depth_they_tell_their_error():
    network, shape = NETWORKS["vectors"]
    x = np.random.default_rng(1).standard_normal(shape)
    by_layer = [kernel for _, kernel in kernels_by_depth(network, x, batch_norm="large_batch")]
    whole = infinite_kernel(network, x, batch_norm="large_batch")
    assert by_layer[0].approximation_error == 0
    assert by_layer[-1].approximation_error == pytest.approx(whole.approximation_error, rel=1e-6)
    np.testing.assert_allclose(by_layer[-1].ntk, whole.ntk, rtol=1e-11)
    for found, (_, exact) in zip(by_layer, kernels_by_depth(network, x), strict=True):
        assert np.max(np.abs(found.distance - exact.distance)) <= found.approximation_error
        assert np.max(np.abs(found.ntk - exact.ntk)) <= found.approximation_error * np.max(np.abs(exact.ntk)) + 1e-12


@pytest.mark.full
def test_regression_takes_them():
    network, shape = NETWORKS["vectors"]
    x = np.random.default_rng(1).standard_normal(shape)
    train, new, y = x[:18], x[18:], np.sin(np.arange(18.0))
    model = KernelRegressor(network, regularization=0.1, batch_norm="large_batch").fit(train, y)
    mean, covariance, error = model.predict(new, return_cov=True, return_error=True)
    kernel = infinite_kernel(network, train, new, statistics="x1", batch_norm="large_batch")
    own, cross = kernel.train.ntk, kernel.cross.ntk
    ridge = 0.1 * np.mean(np.diag(own)) * np.eye(18)
    np.testing.assert_allclose(mean, cross @ np.linalg.solve(own + ridge, y), rtol=0, atol=1e-10)
    assert covariance.shape == (6, 6)
    assert 0 < model.approximation_error_ < 1
    exact = KernelRegressor(network, regularization=0.1).fit(train, y)
    assert exact.approximation_error_ == 0
    apart = np.abs(exact.predict(new) - mean)
    assert np.max(apart) > 0
    assert np.all(apart <= error)
    with pytest.warns(UnresolvedPredictionWarning, match="as the kernel and the solver are"):
        model.predict(new)  # so few inputs leave the kernel to half a per cent of its largest entry


@pytest.mark.full
def test_a_plan_counts_both_passes():
    network, x = NETWORKS["vectors"][0], np.zeros((600, 8))
    exact, large = (infinite.plan(network, x, batch_norm=way, measure=False).flops for way in ("exact", "large_batch"))
    assert large < exact / 3


def test_bad_input_is_one_clear_line():
    network, x = NETWORKS["one layer"][0], np.ones((8, 3))
    with pytest.raises(ValueError, match="got batch_norm='fast', expected 'exact' or 'large_batch'"):
        infinite_kernel(network, x, batch_norm="fast")
    with pytest.raises(ValueError, match="expected 'exact' or 'large_batch'"):
        list(kernels_by_depth(network, x, batch_norm="fast"))
    for kernel in ("precomputed", networks.fully_connected(1, 1)):
        with pytest.raises(ValueError, match="batch_norm='large_batch' has no effect on this kernel"):
            KernelRegressor(kernel, batch_norm="large_batch").fit(np.eye(8), np.arange(8.0))
    with pytest.raises(NotImplementedError, match="outside jit, grad and vmap"):
        jax.eval_shape(lambda x: infinite_kernel(network, x, batch_norm="large_batch"), x)
    with pytest.raises(NotImplementedError, match="few nodes has no derivatives"):
        jax.grad(lambda sigma: jnp.sum(nngp(sigma, rule=LARGE_BATCH)))(jnp.eye(6))
    with pytest.raises(ValueError, match="count"):
        FewNodes(0)
