"""Whole programs for neural-tangents, of the kinds that its examples and notebooks show, run by changing the import.

Each takes the two modules that it would import and returns numbers, which are compared with neural-tangents' own.
"""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis.compat.neural_tangents as ours
from ntk_analysis import reference
from ntk_analysis.reference.comparison import as_neural_tangents_expects

RNG = np.random.default_rng(0)
LINE = np.linspace(-3, 3, 9)[:, None]
TRAIN_X = np.array([[-2.0], [-0.7], [0.4], [1.8]])
TRAIN_Y = np.sin(TRAIN_X)
IMAGES = RNG.standard_normal((3, 8, 8, 2))
LABELS = np.eye(2)[[0, 1, 0]] - 0.5

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed (extra `reference`)"
)


def ensemble_of_wide_networks(nt, stax):
    """Regression on a line: prior, posterior, and training of the ensemble at several times with its spread."""
    _, _, kernel_fn = stax.serial(
        stax.Dense(64, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(64, W_std=1.5, b_std=0.05),
        stax.Erf(),
        stax.Dense(1, W_std=1.5, b_std=0.05),
    )
    prior = jnp.sqrt(jnp.diag(kernel_fn(LINE, LINE, "nngp")))
    predict_fn = nt.predict.gradient_descent_mse_ensemble(kernel_fn, TRAIN_X, TRAIN_Y, diag_reg=1e-4)
    mean, covariance = predict_fn(x_test=LINE, get="ntk", compute_cov=True)
    both = predict_fn(t=100.0, x_test=LINE, get=("nngp", "ntk"), compute_cov=True)
    mse = [0.5 * jnp.mean(predict_fn(t=t, get="ntk") ** 2) for t in (1.0, 10.0, 100.0)]
    return prior, mean, covariance, both.nngp.mean, both.ntk.covariance, mse


def training_in_weight_space(nt, stax):
    """A network and its linearisation trained side by side by gradient descent."""
    init_fn, apply_fn, _ = stax.serial(stax.Dense(32, 1.0, 0.1), stax.Relu(), stax.Dense(1, 1.0, 0.1))
    _, params = init_fn(jax.random.PRNGKey(0), (-1, 1))
    params = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    linear = nt.linearize(apply_fn, params)

    @jax.jit
    def step(both):
        def loss(f, p):
            return 0.5 * jnp.mean((f(p, TRAIN_X) - TRAIN_Y) ** 2)

        gradients = jax.grad(lambda p: loss(apply_fn, p))(both[0]), jax.grad(lambda p: loss(linear, p))(both[1])
        return jax.tree.map(lambda p, g: p - 0.5 * g, both, gradients)

    both = params, params
    for _ in range(10):
        both = step(both)
    return apply_fn(both[0], LINE), linear(both[1], LINE)


def training_in_function_space(nt, stax):
    """Outputs under the empirical kernel, batched, against classes: the loss is cross-entropy."""
    init_fn, apply_fn, _ = stax.serial(stax.Dense(32, 1.0, 0.1), stax.Erf(), stax.Dense(2, 1.0, 0.1))
    _, params = init_fn(jax.random.PRNGKey(1), (-1, 3))
    params = jax.tree.map(lambda leaf: jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    x, x_test = RNG_X, RNG_X[:2] + 0.3
    ntk = nt.batch(nt.empirical_ntk_fn(apply_fn), batch_size=2, device_count=0)
    g_dd, g_td = ntk(x, None, params), ntk(x_test, x, params)

    def loss(outputs, targets):
        return -jnp.mean(jax.nn.log_softmax(outputs) * targets)

    predictor = nt.predict.gradient_descent(loss, g_dd, CLASSES)
    start, start_test = apply_fn(params, x), apply_fn(params, x_test)
    return predictor(5.0, start, start_test, g_td)


def myrtle_kernel(nt, stax):
    """A convolutional kernel with pooling on images, batched, and its predictions."""
    conv = stax.serial(stax.Conv(16, (3, 3), strides=(1, 1), padding="SAME", W_std=np.sqrt(2)), stax.Relu())
    pool = stax.AvgPool((2, 2), strides=(2, 2))
    _, _, kernel_fn = stax.serial(conv, conv, pool, conv, pool, conv, stax.GlobalAvgPool(), stax.Dense(2))
    kernel_fn = nt.batch(kernel_fn, device_count=0, batch_size=1)
    kernel = kernel_fn(IMAGES, None, "ntk")
    predict_fn = nt.predict.gradient_descent_mse(kernel, LABELS, diag_reg=1e-3)
    return kernel, predict_fn(3.0)


def kernels_layer_by_layer(nt, stax):
    """Kernel functions applied to what others returned, and the fields of a Kernel."""
    _, _, first = stax.serial(stax.Dense(8, 1.2, 0.3), stax.Relu())
    _, _, second = stax.serial(stax.Dense(8, 1.1), stax.Erf(), stax.Dense(1))
    kernel = first(RNG_X, RNG_X[:2] + 0.5)
    whole = second(kernel)
    return kernel.nngp, kernel.cov1, kernel.cov2, whole.nngp, whole.ntk, second(first(RNG_X)).ntk


RNG_X = RNG.standard_normal((4, 3))
CLASSES = np.eye(2)[[0, 1, 1, 0]]
PROGRAMS = {
    program.__name__: program
    for program in (
        ensemble_of_wide_networks,
        training_in_weight_space,
        training_in_function_space,
        myrtle_kernel,
        kernels_layer_by_layer,
    )
}


def test_kernels_go_on_from_those_that_were_returned():
    whole = ours.stax.serial(ours.stax.Dense(8, 1.2, 0.3), ours.stax.Relu(), ours.stax.Dense(8, 1.1))[2](RNG_X)
    first, second = ours.stax.serial(ours.stax.Dense(8, 1.2, 0.3), ours.stax.Relu()), ours.stax.Dense(8, 1.1)
    kernel = first[2](RNG_X)
    np.testing.assert_allclose(second[2](kernel).ntk, whole.ntk, rtol=1e-14)
    with pytest.raises(NotImplementedError, match="whose fields were changed"):
        second[2](kernel.replace(nngp=2 * kernel.nngp))


@contextlib.contextmanager
def both():
    """This library's names and neural-tangents itself."""
    with as_neural_tangents_expects():
        yield ours, reference.load()


@pytest.mark.full
@needs_reference
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_have_the_numbers_of_neural_tangents(name):
    with both() as (mine, theirs):
        found, wanted = (PROGRAMS[name](nt, nt.stax) for nt in (mine, theirs))
        for here, there in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(here, there, rtol=2e-6, atol=2e-6)
