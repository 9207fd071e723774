"""Batch norm whose statistics come from some of the samples: golden values, Monte Carlo, adjointness, what exists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import activations, batch_norm
from ntk_analysis.batch_norm import FINE, nngp, propagate, pull, push, quadrature_error, rule_error

from .tiers import full

N, TRAIN = 10, 8
APART = np.abs(np.subtract.outer(np.arange(N), np.arange(N)))
SIGMA, THETA, M = np.exp(-APART / 3) + np.eye(N) / 2, 1 / (1 + APART), np.cos(APART)


def first(count, of=N):
    """Equal weights of the first samples, 0 for the others."""
    return np.where(np.arange(of) < count, 1 / count, 0.0)


def drawn(seed, without=()):
    p = np.random.default_rng(seed).uniform(0.2, 1, N)
    p[list(without)] = 0
    return p / p.sum()


# second derivation: an unoptimised prototype of theory.md section 9, checked there against 3e6 draws
GOLDEN = {
    0.0: (
        [0.5710717873, 0.2185536897, 1.0775146349, 0.6839702480],
        [0.4509891783, -0.0265262460, 0.9446491885, 0.3818086181, 5.2436616055],
        [0.4475098351, 0.5627964249],
    ),
    0.1: (
        [0.5007935912, 0.1853197216, 0.8842756405, 0.5620893419],
        [0.3705320748, -0.0256023594, 0.6706515525, 0.2500627977, 4.0596155236],
        [0.4183109052, 0.5184194192],
    ),
}


@pytest.mark.parametrize("eps", [0.0, 0.1], ids=["eps=0", "eps=.1"])
def test_golden_values(eps):
    """Golden values of theory.md section 9: Sigma = exp(-d/3) + I/2, Theta = 1/(1 + d); 8 samples train, 2 test."""
    together = propagate(SIGMA, THETA, eps=eps, weights=first(TRAIN))
    moments, pushed, mean = GOLDEN[eps]
    for computed in (together.nngp, nngp(SIGMA, eps=eps, weights=first(TRAIN))):
        np.testing.assert_allclose(computed[[0, 0, 8, 8], [0, 8, 8, 9]], moments, rtol=0, atol=6e-11)
    for computed in (together.pushed, push(SIGMA, THETA, eps=eps, weights=first(TRAIN))):
        found = [*computed[[0, 0, 8, 8], [0, 8, 8, 9]], np.trace(computed)]
        np.testing.assert_allclose(found, pushed, rtol=0, atol=6e-11)
    np.testing.assert_allclose(together.mean[[0, 8]], mean, rtol=0, atol=6e-11)


@pytest.mark.parametrize("name", ["relu", *full("abs", "leaky_relu(0.2)", "identity")])
@pytest.mark.parametrize("eps", [0.0, *full(0.1)])
def test_equal_weights_are_no_weights(name, eps):
    equal = np.full(N, 1 / N)
    for weighted, plain in (
        (nngp(SIGMA, name, eps, weights=equal), nngp(SIGMA, name, eps)),
        (push(SIGMA, THETA, name, eps, weights=equal), push(SIGMA, THETA, name, eps)),
        (pull(SIGMA, M, name, eps, weights=equal), pull(SIGMA, M, name, eps)),
        *zip(propagate(SIGMA, THETA, name, eps, weights=equal), propagate(SIGMA, THETA, name, eps), strict=True),
    ):
        np.testing.assert_allclose(weighted, plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize("eps", [0.0, *full(0.1)])
def test_samples_without_a_weight_leave_the_others_alone(eps):
    """The training block is the kernel of the training batch by itself."""
    joined = propagate(SIGMA, THETA, eps=eps, weights=first(TRAIN))
    alone = propagate(SIGMA[:TRAIN, :TRAIN], THETA[:TRAIN, :TRAIN], eps=eps)
    for part, expected in zip(joined, alone, strict=True):
        cut = part[:TRAIN, :TRAIN] if part.ndim == 2 else part[:TRAIN]
        np.testing.assert_allclose(cut, expected, rtol=0, atol=2e-13)


@pytest.mark.parametrize(("name", "eps"), [("relu", 0.0), *full(("relu", 0.1), ("identity", 0.0), ("abs", 0.3))])
def test_pull_is_the_adjoint_of_push(name, eps):
    rng = np.random.default_rng(2)
    for p in (first(TRAIN), drawn(0, without=(3, 7)), drawn(1)):
        theta, cotangent = (A + A.T for A in rng.standard_normal((2, N, N)))
        left = np.sum(push(SIGMA, theta, name, eps, weights=p) * cotangent)
        assert left == pytest.approx(np.sum(theta * pull(SIGMA, cotangent, name, eps, weights=p)), rel=1e-12)


@functools.partial(jax.jit, static_argnames="phi")
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None))
def one_draw(x, theta, p, eps, phi):
    """y, y y^T and J theta J^T of one draw, J by automatic differentiation, and the products of slopes."""

    def xhat(x):
        centered = x - jnp.sum(p * x)
        return centered / jnp.sqrt(jnp.sum(p * centered**2) + eps)

    y, J = phi(xhat(x)), jax.jacobian(lambda x: phi(xhat(x)))(x)
    slope = jax.jvp(phi, (xhat(x),), (jnp.ones_like(x),))[1]
    return y[:, None] * y[None, :], J @ theta @ J.T, y, slope[:, None] * slope[None, :]


@pytest.mark.parametrize(
    ("p", "name", "eps"),
    [
        # at eps = 0 the draws of test points have a finite variance from rank 9 on: E|z|^-8
        pytest.param(first(TRAIN), "relu", 0.1, id="train and test"),
        pytest.param(drawn(0), "relu", 0.0, id="any weights"),
        pytest.param(drawn(1, without=(3, 7)), "relu", 0.3, id="any weights and test"),
        *full(
            (drawn(1, without=(3, 7)), "leaky_relu(0.2)", 0.3),
            (first(TRAIN), "abs", 0.1),
            (drawn(2), "identity", 0.0),
            (drawn(3, without=(0,)), "relu", 0.05),
        ),
    ],
)
def test_agrees_with_monte_carlo(p, name, eps):
    draws = 20_000
    x = np.random.default_rng(0).multivariate_normal(np.zeros(N), SIGMA, draws, method="cholesky")
    samples = one_draw(jnp.asarray(x), jnp.asarray(THETA), jnp.asarray(p), eps, activations.get(name))
    together = propagate(SIGMA, THETA, name, eps, weights=p)
    found = together.nngp, together.pushed, together.mean, together.slope
    for sample, exact in zip(samples, found, strict=True):
        standard_error = np.std(sample, axis=0) / np.sqrt(draws)
        assert np.all(np.abs(np.mean(sample, axis=0) - exact) <= 4 * standard_error + 1e-12)
        assert np.max(standard_error) < 0.02 * max(np.max(np.abs(exact)), 0.5)  # else the line above shows nothing
    # a wrong theory fails: statistics of all samples
    joint = propagate(SIGMA, THETA, name, eps)
    assert np.max(np.abs(joint.nngp - together.nngp)) > 0.03


@pytest.mark.full
def test_test_points_at_eps_0_agree_with_monte_carlo():
    """12 samples train, of rank 11."""
    sigma, theta, p, draws = np.eye(14) + SIGMA[0, 3], 1 / (1 + np.eye(14)), first(12, of=14), 100_000
    x = np.random.default_rng(1).multivariate_normal(np.zeros(14), sigma, draws, method="cholesky")
    samples = one_draw(jnp.asarray(x), jnp.asarray(theta), jnp.asarray(p), 0.0, activations.relu)
    together = propagate(sigma, theta, weights=p)
    for sample, exact in zip(samples[:3], (together.nngp, together.pushed, together.mean), strict=True):
        standard_error = np.std(sample, axis=0) / np.sqrt(draws)
        assert np.all(np.abs(np.mean(sample, axis=0) - exact) <= 4 * standard_error + 1e-12)


@pytest.mark.parametrize("B", [9, *full(4, 5, 16, 64)])
def test_second_moment_of_a_test_point_has_a_closed_form(B):
    """Orthogonal inputs: z_test^2 is (1 + 1/B) chi^2, the batch variance an independent chi^2 of B - 1 degrees."""
    moments = np.diag(nngp(np.eye(B + 1), weights=first(B, of=B + 1)))
    np.testing.assert_allclose(moments[:-1], 1 / 2, rtol=1e-11)
    np.testing.assert_allclose(moments[-1], (B + 1) / (B - 3) / 2, rtol=rule_error(B - 3))


@pytest.mark.full
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize("train", [6, 8, 9])
def test_rule_error_is_a_bound(train, eps):
    """Test points take 2 from the rank: their integrands fall more slowly."""
    p, wide = first(train), SIGMA + np.diag(np.where(np.arange(N) < train, 0, 100.0))
    for sigma in (SIGMA, wide):
        assert quadrature_error(sigma, eps=eps, weights=p) < rule_error(train - 3)
        assert quadrature_error(sigma, THETA, eps=eps, weights=p) < rule_error(train - 3)


def copies(train):
    """Gram matrix of some training inputs and copies of them."""
    X = np.random.default_rng(4).standard_normal((train, 12))[np.arange(N) % train]
    return X @ X.T


@pytest.mark.parametrize("train", [TRAIN, *full(4, 5)])
def test_copies_of_training_points_have_their_kernel(train):
    """They lie in the span of the training points, and need no larger rank than these."""
    sigma = copies(train)
    together = propagate(sigma, sigma, weights=first(train))
    alone = propagate(sigma[:train, :train], sigma[:train, :train])
    index = np.arange(N) % train
    for part, expected in zip(together, alone, strict=True):
        wanted = expected[np.ix_(index, index)] if part.ndim == 2 else expected[index]
        np.testing.assert_allclose(part, wanted, rtol=0, atol=1e-12 * np.max(np.abs(expected)))
    assert np.all(together.distance[np.arange(N), index] == 0)


@pytest.mark.full
def test_near_copies_keep_their_digits():
    """The distance of a test point from a training point scales like their squared distance."""
    X = np.random.default_rng(5).standard_normal((N, 12))
    found = []
    for gap in (1e-3, 1e-5, 1e-7):
        X[TRAIN] = X[0] + gap * np.eye(12)[0]
        apart = np.sum((X[:, None] - X[None, :]) ** 2, axis=-1)
        found.append(propagate(X @ X.T, X @ X.T, apart=apart, weights=first(TRAIN), rule=FINE).distance[0, TRAIN])
    assert found[1] / found[0] == pytest.approx(1e-4, rel=1e-2)
    assert found[2] / found[1] == pytest.approx(1e-4, rel=1e-4)


def test_the_scale_and_a_common_part_cancel():
    p = drawn(0, without=(3, 7))
    np.testing.assert_allclose(nngp(1e9 * SIGMA + 5, weights=p), nngp(SIGMA, weights=p), rtol=1e-11)
    pushed = push(SIGMA, THETA, weights=p)
    np.testing.assert_allclose(push(1e9 * SIGMA, THETA + 3, weights=p), pushed / 1e9, rtol=0, atol=1e-19)
    np.testing.assert_allclose(push(SIGMA, np.ones((N, N)), weights=p), 0, atol=1e-12)


def test_weights_move_continuously_towards_0():
    """A sample with a tiny weight is almost one without; the eigenvalue that it adds is tiny, too."""
    p = first(TRAIN)
    moved = np.where(np.arange(N) == TRAIN, 1e-7, p)
    for function, args in ((nngp, ()), (push, (THETA,))):
        limit = function(SIGMA, *args, weights=p)
        np.testing.assert_allclose(function(SIGMA, *args, weights=moved / moved.sum()), limit, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("train", "function", "words"),
    [
        pytest.param(
            3, "nngp", r"3 samples with a weight .*rank 2.* as sample 3, .* from rank 3.* 4 distinct", id="nngp"
        ),
        pytest.param(5, "push", r"5 samples with a weight .*rank 4.* from rank 5.* 6 distinct .*eps > 0", id="push"),
        pytest.param(5, "pull", r"rank 4.* from rank 5: give at least 6 distinct .*eps > 0", id="pull"),
        pytest.param(5, "propagate", r"rank 4.* from rank 5: give at least 6 distinct .*eps > 0", id="propagate"),
        pytest.param(
            3, "push", r"3 samples with a weight have .* rank 2, .* rank 3: use .*eps > 0", id="too few to train"
        ),
        pytest.param(2, "nngp", r"2 samples with a weight .*rank 1.* from rank 3", id="two"),
    ],
)
def test_too_few_training_samples_are_refused(train, function, words):
    arguments = (SIGMA,) if function == "nngp" else (SIGMA, THETA)
    with pytest.raises(ValueError, match=words) as caught:
        getattr(batch_norm, function)(*arguments, weights=first(train))
    assert "\n" not in str(caught.value)


@pytest.mark.full
def test_what_suffices_is_computed():
    assert np.all(np.isfinite(nngp(SIGMA, weights=first(4))))
    assert np.all(np.isfinite(push(SIGMA, THETA, weights=first(6))))
    assert all(np.all(np.isfinite(part)) for part in propagate(SIGMA, THETA, eps=1e-3, weights=first(2)))


@pytest.mark.parametrize(
    ("p", "words"),
    [
        pytest.param(first(TRAIN)[:-1], r"weights have shape \(9,\), expected \(10,\)|Type-check error", id="shape"),
        pytest.param(first(TRAIN)[:, None], r"weights have shape \(10, 1\)|Type-check error", id="axes"),
        pytest.param(first(TRAIN) * 2, "the sum 2.0, expected 1: divide", id="sum"),
        pytest.param(np.zeros(N), "the sum 0.0, expected 1", id="zeros"),
        pytest.param(np.where(np.arange(N) == 9, -0.1, first(9) * 1.1), r"weights\[9\] is -0.1", id="negative"),
        pytest.param(np.where(np.arange(N) == 2, np.nan, 0.1), r"weights\[2\] is nan", id="NaN"),
        pytest.param(np.where(np.arange(N) == 2, np.inf, 0.1), r"weights\[2\] is inf", id="infinite"),
        pytest.param(first(1), "sample 0 has all the weight", id="one sample"),
        pytest.param(
            np.where(np.arange(N) == 9, 1e-12, first(9) - 1e-12 / 9), r"weights\[9\] is 9e-12 of the largest", id="tiny"
        ),
        pytest.param(["a"] * N, "weights", id="text"),
    ],
)
def test_bad_weights_are_named(p, words):
    for function, args in ((nngp, ()), (propagate, (THETA,))):
        with pytest.raises(Exception, match=words) as caught:
            function(SIGMA, *args, weights=p)
        assert "Type-check" in str(caught.value) or "\n" not in str(caught.value)


def test_an_input_at_the_mean_of_the_training_batch_is_on_the_kink():
    sigma = np.pad(np.kron(np.eye(4), [[1.0, -1], [-1, 1]]), (0, 2))
    sigma[9, 9] = 1.0
    with pytest.raises(ValueError, match="input 8 is the mean of its batch"):
        push(sigma, THETA, eps=0.1, weights=first(TRAIN))


compiled = jax.jit(propagate)


def test_precision_and_transformations():
    """Under a trace the weights may be an argument of the program, too; float32 in, float32 out."""
    expected = propagate(SIGMA, THETA, weights=first(TRAIN))
    for part, exact in zip(compiled(SIGMA, THETA, weights=first(TRAIN)), expected, strict=True):
        np.testing.assert_allclose(part, exact, rtol=0, atol=1e-12)
    with jax.enable_x64(False):
        arrays = (jnp.asarray(A, jnp.float32) for A in (SIGMA, THETA))
        single = compiled(*arrays, weights=jnp.asarray(first(TRAIN), jnp.float32))
        assert propagate(jnp.asarray(SIGMA, jnp.float32), THETA, weights=first(TRAIN)).nngp.dtype == np.float64
    for part, exact in zip(single, expected, strict=True):
        assert part.dtype == jnp.float32
        np.testing.assert_allclose(part, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("p", "undefined"),
    [
        pytest.param(first(5), ["pushed"], id="rank 4"),
        pytest.param(first(3), ["nngp", "distance", "pushed", "mean"], id="rank 2"),
        pytest.param(first(1), ["nngp", "distance", "pushed", "mean", "slope"], id="one sample"),
    ],
)
def test_nan_stands_for_an_error_under_a_trace(p, undefined):
    parts = compiled(SIGMA, THETA, weights=p)._asdict().items()
    assert all(np.all(np.isnan(part)) or np.all(np.isfinite(part)) for _, part in parts)
    assert [field for field, part in parts if np.all(np.isnan(part))] == undefined


def test_weights_that_are_known_under_a_trace_are_checked():
    def kernel(p):
        return jax.jit(lambda sigma: push(sigma, THETA, weights=p))(SIGMA)

    with pytest.raises(ValueError, match="3 samples with a weight have"):
        kernel(first(3))
    with pytest.raises(ValueError, match="the sum 2"):
        kernel(first(8) * 2)


@pytest.mark.full
@pytest.mark.parametrize("operation", [push, nngp, propagate], ids=["push", "nngp", "propagate"])
@pytest.mark.parametrize("equal", [False, True], ids=["SIGMA", "equal eigenvalues"])
def test_gradients_match_finite_differences(operation, equal):
    """At equal eigenvalues too, where the derivative of an eigendecomposition is infinite."""
    theta = () if operation is nngp else (jnp.asarray(THETA),)
    direction = np.random.default_rng(5).standard_normal((N, N))
    direction = direction + direction.T

    def loss(sigma):
        found = jax.tree.leaves(operation(sigma, *theta, weights=first(TRAIN)))
        return sum(jnp.sum(jnp.asarray(M if part.ndim == 2 else M[0]) * part) for part in found)

    sigma = np.eye(N) / 2 + 0.5 if equal else SIGMA
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    gradient = value_and_gradient(jnp.asarray(sigma))[1]
    step = 1e-5
    above, below = (float(value_and_gradient(jnp.asarray(sigma + by * direction))[0]) for by in (step, -step))
    assert np.sum(gradient * direction) == pytest.approx((above - below) / (2 * step), rel=1e-6)
