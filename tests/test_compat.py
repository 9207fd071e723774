"""neural-tangents' names: programs written for it, run with both, and what is refused in one line."""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis as ntk
import ntk_analysis.compat.neural_tangents as ours
from ntk_analysis import reference
from ntk_analysis.layers import Activation, Dense, Parallel, Serial
from ntk_analysis.reference.comparison import as_neural_tangents_expects

X = np.random.default_rng(0).standard_normal((5, 4))
Y = np.random.default_rng(1).standard_normal((3, 4))
TARGETS = np.random.default_rng(2).standard_normal((5, 2))
IMAGES = np.random.default_rng(3).standard_normal((3, 4, 4, 2))
TOLERANCE = 3e-7  # neural-tangents' derivative kernels on the diagonal, see test_reference

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed (extra `reference`)"
)


def mlp(nt):
    return nt.stax.serial(
        nt.stax.Dense(16, W_std=1.5, b_std=0.1), nt.stax.Erf(), nt.stax.Dense(16, 1.2), nt.stax.Relu(), nt.stax.Dense(2)
    )


def branched(nt):
    stax = nt.stax
    block = stax.serial(
        stax.FanOut(2), stax.parallel(stax.serial(stax.Relu(), stax.Dense(8, 1.4)), stax.Identity()), stax.FanInSum()
    )
    return stax.serial(stax.Dense(8), stax.repeat(block, 2), stax.LayerNorm(), stax.LeakyRelu(0.1), stax.Dense(2))


def standard_network(nt):
    stax = nt.stax
    standard = {"parameterization": "standard"}
    return stax.serial(
        stax.Conv(4, (3, 3), padding="SAME", b_std=0.2, **standard),
        stax.Relu(),
        stax.Conv(6, (2, 2), W_std=1.3, **standard),
        stax.Erf(),
        stax.Flatten(),
        stax.Dense(5, 1.4, 0.3, **standard),
        stax.Relu(),
        stax.Dense(2),
    )


def image_network(nt):
    stax = nt.stax
    return stax.serial(
        stax.Conv(4, (3, 3), padding="SAME", b_std=0.2),
        stax.Gelu(),
        stax.AvgPool((2, 2), (2, 2)),
        stax.Conv(4, (2, 2)),
        stax.ABRelu(-0.3, 1.1),
        stax.Dropout(0.8),
        stax.GlobalSumPool(),
        stax.Dense(2),
    )


def sequence_network(nt):
    stax = nt.stax
    return stax.serial(
        stax.Conv(4, (3,), padding="CIRCULAR", b_std=0.2),
        stax.Relu(),
        stax.SumPool((2,), (2,)),
        stax.ConvTranspose(4, (2,), (2,), padding="SAME", parameterization="standard"),
        stax.Erf(),
        stax.Index(stax.Slice[:, ::-1]),
        stax.ImageResize((-1, 3, -1), "linear"),
        stax.ConvLocal(4, (2,), b_std=0.1, parameterization="standard"),
        stax.Relu(),
        stax.Flatten(),
        stax.Dense(2),
    )


def joined(nt):
    stax = nt.stax
    branches = stax.parallel(stax.serial(stax.Dense(8), stax.Abs()), stax.Dense(8, b_std=0.3))
    return stax.serial(stax.FanOut(2), branches, stax.FanInProd(), stax.Dense(8), stax.Sin(), stax.Dense(1))


def test_a_triple_is_of_the_layer_that_the_names_say():
    init_fn, apply_fn, kernel_fn = mlp(ours)
    network = Serial(Dense(16, 2.25, 0.1**2), Activation("erf"), Dense(16, 1.2**2), Activation("relu"), Dense(2, 1.0))
    assert mlp(ours).layer == network
    assert joined(ours).layer.layers[0] == Parallel(
        Serial(Dense(8), Activation("abs")), Dense(8, 1.0, 0.3**2), fan="product"
    )
    shape, params = init_fn(jax.random.PRNGKey(0), X.shape)
    assert shape == (5, 2)
    np.testing.assert_array_equal(apply_fn(params, X), network.apply(params, X))
    kernel = ntk.infinite_kernel(network, X, Y)
    np.testing.assert_array_equal(kernel_fn(X, Y, "ntk"), kernel.ntk)
    both = kernel_fn(X, Y, ("nngp", "ntk"))
    np.testing.assert_array_equal(both.nngp, kernel.nngp)
    whole = kernel_fn(X, Y)
    assert (whole.shape1, whole.shape2, whole.x1_is_x2, whole.is_gaussian) == ((5, 4), (3, 4), False, True)
    np.testing.assert_array_equal(whole.replace(ntk=2 * whole.ntk).ntk, 2 * kernel.ntk)
    # what is compiled here anyway
    found = ours.empirical_ntk_fn(apply_fn)(X, Y, params)
    np.testing.assert_allclose(found, ntk.empirical_ntk(network, params, X, Y, layout="trace").ntk / 2, rtol=1e-12)


@pytest.mark.full
def test_dropout_takes_its_masks_from_rng():
    init_fn, apply_fn, _ = ours.stax.Dropout(0.5)
    _, params = init_fn(jax.random.PRNGKey(0), X.shape)
    first, again, other = (apply_fn(params, X, rng=jax.random.PRNGKey(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    np.testing.assert_array_equal(ours.stax.Dropout(0.5, "test")[1](params, X), X)


def test_taylor_polynomials_of_a_polynomial():
    def f(params, x):
        return (x @ params) ** 3

    start, end = jnp.asarray([0.5, -1.0, 0.3, 0.2]), jnp.asarray([1.0, 0.7, -0.4, 0.1])
    x = jnp.asarray(X)
    here, step = x @ start, x @ (end - start)
    wanted = {1: here**3 + 3 * here**2 * step, 2: here**3 + 3 * here**2 * step + 3 * here * step**2, 3: f(end, x)}
    for degree, values in wanted.items():
        np.testing.assert_allclose(ntk.taylor_expand(f, start, degree)(end, x), values, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(ntk.linearize(f, start)(end, x), ntk.taylor_expand(f, start, 1)(end, x))
    with pytest.raises(ValueError, match="expected 1 to 32"):
        ntk.taylor_expand(f, start, 0)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda stax: stax.Aggregate, AttributeError, "stax.Aggregate is not here yet: monte_carlo_kernel_fn"),
        (lambda stax: stax.Index(stax.Slice[:2, 0]), NotImplementedError, "take some of the inputs beforehand"),
        (lambda stax: stax.ImageResize((-1, 4, 4, 2), "linear"), NotImplementedError, "and for the channels"),
        (lambda stax: stax.Dropout(0.5, "eval"), ValueError, "expected 'train' or 'test'"),
        (lambda stax: stax.Danse, AttributeError, "has no attribute 'Danse'"),
        (
            lambda stax: stax.Dense(3, parameterization="mup"),
            NotImplementedError,
            "got parameterization='mup', expected 'ntk' or 'standard'",
        ),
        (lambda stax: stax.Dense(3, s=(1, 2)), NotImplementedError, "got s, which is not here"),
        (lambda stax: stax.LayerNorm(axis=(1, 2)), NotImplementedError, "expected the channels"),
        (lambda stax: stax.FanInConcat(2), NotImplementedError, "expected the last one"),
        (lambda stax: stax.AvgPool((2, 2), normalize_edges=True), NotImplementedError, "normalize_edges"),
        (lambda stax: stax.serial(stax.Dense(3), 7), TypeError, "got 7 in serial"),
        (lambda stax: stax.serial(stax.FanOut(2), stax.Dense(3)), TypeError, "expected FanOut\\(n\\), parallel of n"),
        (lambda stax: stax.Dense(3)[2](X, None, "replace"), ValueError, "got get='replace': choose of nngp, ntk"),
        (lambda stax: stax.Dense(3)[2](X, None, "ntkk"), ValueError, "got get='ntkk': choose of nngp, ntk"),
    ],
)
def test_what_is_not_here_says_so(call, error, told):
    with pytest.raises(error, match=told):
        call(ours.stax)


def test_other_axes_are_refused():
    with pytest.raises(NotImplementedError, match="outputs are one axis here"):
        ours.empirical_ntk_fn(lambda p, x: x, trace_axes=(1, 2))
    with pytest.raises(NotImplementedError, match="expected \\(-1,\\) and \\(\\)"):
        ours.monte_carlo_kernel_fn(mlp(ours)[0], mlp(ours)[1], jax.random.PRNGKey(0), 8, trace_axes=())


@contextlib.contextmanager
def both():
    """This library's names and neural-tangents itself."""
    with as_neural_tangents_expects():
        yield ours, reference.load()


@pytest.mark.full
@needs_reference
@pytest.mark.parametrize(
    ("make", "x", "other"),
    [
        (mlp, X, Y),
        (branched, X, Y),
        (joined, X, Y),
        (image_network, IMAGES, IMAGES[:2] + 0.5),
        (standard_network, IMAGES, IMAGES[:2] + 0.5),
        (sequence_network, IMAGES[:, 0], IMAGES[:2, 1]),
    ],
)
def test_kernels_are_those_of_neural_tangents(make, x, other):
    with both() as (mine, theirs):
        for x2 in (None, other):
            found, wanted = make(mine)[2](x, x2, ("nngp", "ntk")), make(theirs)[2](x, x2, ("nngp", "ntk"))
            np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=TOLERANCE, atol=1e-9)
            np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=TOLERANCE, atol=1e-9)


SMOOTH = {
    "Erf": (0.7, 1.3, 0.2),
    "Sin": (0.7, 1.3, 0.2),
    "Cos": (1.2, 0.8, 0.1),
    "Exp": (0.5, 0.3),
    "Gaussian": (1.1, -0.7),
    "Sigmoid_like": (),
    "Monomial": (3,),
    "RectifiedMonomial": (2,),
    "Polynomial": ((0.3, -0.5, 0.2, 0.1),),
    "Hermite": (3,),
    "Sign": (),
    "Gabor": (),
    "Rbf": (0.6,),
    "ExpNormalized": (0.8, -0.7),
    "Gelu": (),
}


@pytest.mark.full
@needs_reference
@pytest.mark.parametrize("name", SMOOTH)
def test_activations_are_those_of_neural_tangents(name):
    """Hermite polynomials are defined at variance 1 only: the inputs have it."""
    x = X / np.linalg.norm(X, axis=1, keepdims=True) * 2

    def network(nt):
        return nt.stax.serial(nt.stax.Dense(4), getattr(nt.stax, name)(*SMOOTH[name]), nt.stax.Dense(1))

    with both() as (mine, theirs):
        found, wanted = (network(nt)[2](x, None, ("nngp", "ntk")) for nt in (mine, theirs))
    # neural-tangents' rectified monomials are NaN of an input with itself
    there = np.isfinite(wanted.nngp) if name == "RectifiedMonomial" else np.full(found.nngp.shape, True)
    assert there[~np.eye(len(x), dtype=bool)].all()
    np.testing.assert_allclose(found.nngp[there], np.asarray(wanted.nngp)[there], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.ntk[there], np.asarray(wanted.ntk)[there], rtol=TOLERANCE, atol=1e-8)


@pytest.mark.full
@needs_reference
def test_predictions_are_those_of_neural_tangents():
    with both() as (mine, theirs):
        kernels = {nt: mlp(nt)[2] for nt in (mine, theirs)}

        def gaussian_process(predict, kernel_fn):
            train, cross, test = (kernel_fn(*inputs) for inputs in ((X, None), (Y, X), (Y, None)))
            posterior = predict.gp_inference(train, TARGETS, diag_reg=1e-3)
            absolute = predict.gp_inference(train, TARGETS, 0.1, diag_reg_absolute_scale=True)
            spread = absolute(("nngp", "ntk", "ntkgp"), cross, test)
            means = [posterior(get=get, k_test_train=cross) for get in ("nngp", "ntk", "ntkgp")]
            return [*means, posterior("nngp"), *spread.nngp, *spread.ntk, *spread.ntkgp]

        def ensembles(predict, kernel_fn):
            """Means and covariances, with and without regularisation, at finite times and at infinity."""
            found = []
            for options in ({}, {"diag_reg": 0.02}, {"diag_reg": 0.1, "diag_reg_absolute_scale": True}):
                ensemble = predict.gradient_descent_mse_ensemble(kernel_fn, X, TARGETS, learning_rate=0.5, **options)
                for times, test in ((3.0, Y), (3.0, None), (None, Y)):
                    for get in ("nngp", "ntk"):
                        found += ensemble(t=times, x_test=test, get=get, compute_cov=True)
                        found.append(ensemble(t=times, x_test=test, get=get))
            return found

        def predictions(nt):
            predict, kernel_fn = nt.predict, kernels[nt]
            k_train, k_test = kernel_fn(X, None, "ntk"), kernel_fn(Y, X, "ntk")
            trained = predict.gradient_descent_mse(k_train, TARGETS, 0.7)
            decayed = predict.gradient_descent_mse(k_train, TARGETS, 0.7, 0.1, True)
            start, end = np.ones((5, 2)), np.zeros((3, 2))
            return [
                *trained(5.0, start, end, k_test),
                *decayed(5.0, start, end, k_test),
                decayed(np.array([0.5, 5.0]), start),
                predict.max_learning_rate(k_train, y_train_size=10, momentum=0.5),
                *gaussian_process(predict, kernel_fn),
                *ensembles(predict, kernel_fn),
            ]

        for found, wanted in zip(predictions(mine), predictions(theirs), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.full
@needs_reference
def test_finite_networks_are_those_of_neural_tangents():
    def f(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    params = {"w": jnp.asarray(Y.T), "v": jnp.asarray(np.random.default_rng(4).standard_normal((3, 2)))}
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    with both() as (mine, theirs):
        for axes in ({}, {"trace_axes": ()}, {"trace_axes": (), "diagonal_axes": (-1,)}):
            found, wanted = (nt.empirical_ntk_fn(f, **axes)(X, Y, params) for nt in (mine, theirs))
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
        found, wanted = (nt.empirical_kernel_fn(f)(X, Y, ("nngp", "ntk"), params) for nt in (mine, theirs))
        np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-10, atol=1e-12)
        for expand in (lambda nt: nt.linearize(f, params), lambda nt: nt.taylor_expand(f, params, 3)):
            found, wanted = (expand(nt)(moved, X) for nt in (mine, theirs))
            np.testing.assert_allclose(found, wanted, rtol=1e-10)


@pytest.mark.full
def test_averages_over_draws():
    init_fn, apply_fn, kernel_fn = mlp(ours)
    found = ours.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(7), 16)(X, Y)
    wanted = ntk.monte_carlo_kernel(mlp(ours).layer, X, Y, draws=16, seed=7)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-10)
    growing = ours.monte_carlo_kernel_fn(init_fn, apply_fn, jax.random.PRNGKey(7), (8, 16))(X, Y, "ntk")
    np.testing.assert_allclose([*growing][-1], found.ntk, rtol=1e-12)
    assert ours.batch(kernel_fn, batch_size=2) is kernel_fn
