"""Networks and fitted regressors with functions as activations: pickled by name, or refused in one line."""

import copy
import functools
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis.layers import Activation
from ntk_analysis.networks import fully_connected
from ntk_analysis.regression import KernelRegressor


def square(x):
    return x**2


@jax.jit
def decorated(x):
    return x**2


wrapped = jax.jit(square)  # whose own name is that of another function


def made():
    def inner(x):
        return x

    return inner


IMPORTABLE = [
    jnp.tanh,
    jnp.abs,
    jax.nn.relu,
    jax.nn.silu,
    jax.nn.gelu,
    jax.lax.tanh,
    square,
    decorated,
    wrapped,
    "relu",
]


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("function", IMPORTABLE, ids=lambda f: getattr(f, "__name__", f))
def test_importable_functions_come_back_as_themselves(function, dumps):
    network = fully_connected(2, 4, activation=function, w_var=1.0)
    again = pickle.loads(dumps(network))
    assert again == network
    assert hash(again) == hash(network)
    assert again.layers[1].function is function or function == "relu"
    first = network.layers[1]
    assert isinstance(first, Activation)
    assert again.layers[1].activation == first.activation


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol):
    assert pickle.loads(pickle.dumps(Activation(jnp.tanh), protocol)) == Activation(jnp.tanh)


def test_a_partial_comes_back_with_its_arguments():
    leaky = functools.partial(jax.nn.leaky_relu, negative_slope=0.3)
    again = pickle.loads(pickle.dumps(Activation(leaky))).function
    assert again.func is jax.nn.leaky_relu
    assert again.keywords == {"negative_slope": 0.3}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x, "<lambda>"),
        (jax.jit(lambda x: x), "<lambda>"),
        (made(), "inner"),
        (jax.jit(made()), "inner"),
        (functools.partial(made()), "inner"),
    ],
    ids=["lambda", "jitted lambda", "local", "jitted local", "partial"],
)
def test_what_cannot_be_imported_is_refused_in_one_line(function, name):
    network = fully_connected(2, 4, activation=function, w_var=1.0)
    with pytest.raises(
        pickle.PicklingError, match=f"{name} of tests.test_importable cannot be pickled.*top level"
    ) as refused:
        pickle.dumps(network)
    assert "\n" not in str(refused.value)
    assert copy.deepcopy(network) == copy.copy(network) == network  # as scikit-learn's clone does


def test_cloudpickle_takes_functions_along():
    again = pickle.loads(cloudpickle.dumps(fully_connected(1, 4, activation=made(), w_var=1.0)))
    assert again.layers[1].function(3.0) == 3.0


@pytest.mark.full
def test_a_fitted_regressor_predicts_the_same():
    x = np.eye(4)
    model = KernelRegressor(fully_connected(1, 1, activation=decorated), regularization=0.1).fit(x, np.arange(4.0))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(x), model.predict(x))
