"""What `check_layer` finds: each statement of a layer that is not true fails, and those that are true hold."""

import math
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis.infinite import divided
from ntk_analysis.layers import Dense, LayerNorm, Serial, SingleLayer


@dataclass(frozen=True)
class Plain(SingleLayer):
    """A layer that hands its inputs on, and says so; each class below says one thing that is not so."""

    couples_batch = False

    def init(self, key, input_shape):
        del key
        return input_shape, ()

    def compute(self, params, x):
        del params
        return x


@dataclass(frozen=True)
class OverTheBatch(Plain):
    couples_batch = False

    def compute(self, params, x):
        del params
        return x - jnp.mean(x, axis=0, keepdims=True)


@dataclass(frozen=True)
class OtherShape(Plain):
    couples_batch = False

    def compute(self, params, x):
        del params
        return x[:, 1:]


@dataclass(frozen=True)
class Infinite(Plain):
    couples_batch = False

    def compute(self, params, x):
        del params
        return jnp.log(x)


@dataclass(frozen=True)
class NotHomogeneous(Plain):
    couples_batch = False
    homogeneous = True

    def compute(self, params, x):
        del params
        return x**2


@dataclass(frozen=True)
class Integers(Plain):
    couples_batch = False

    def init(self, key, input_shape):
        del key
        return input_shape, {"n": jnp.zeros(2, int)}


@dataclass(frozen=True)
class AbsoluteNorm(SingleLayer):
    """x over the mean of |x|, which is sqrt(2 q / pi) at infinite width."""

    factor: float = math.sqrt(2 / math.pi)

    couples_batch = False

    def init(self, key, input_shape):
        del key
        return input_shape, ()

    def compute(self, params, x):
        del params
        return x / jnp.mean(jnp.abs(x), axis=-1, keepdims=True)

    def kernel(self, kernel):
        if kernel.law != "gaussian":
            raise NotImplementedError("the mean of |x| is known of Gaussian units: put a Dense layer before it")
        return divided(kernel, *(self.factor * jnp.sqrt(q) for q in (kernel.variance1, kernel.variance2)))


@dataclass(frozen=True)
class KeepsMeans(LayerNorm):
    """A layer norm whose kernel forgets that no mean is left, which only centered weights behind it see."""

    couples_batch = False

    def kernel(self, kernel):
        return replace(super().kernel(kernel), mean1=kernel.mean1, mean2=kernel.mean2)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (OverTheBatch(), r"FAILS: couples_batch is False: its outputs depend on the other inputs of the batch"),
        (OtherShape(), r"FAILS: `init` tells the shape of the output: \(4, 3\) is \(4, 2\)"),
        (Infinite(), "FAILS: outputs on normal inputs are finite: some are NaN or infinite"),
        (NotHomogeneous(), "FAILS: it is homogeneous: on 2 x its output is twice that on x: it is not"),
        (Integers(), "FAILS: its parameters are arrays of floats: others are among them"),
    ],
)
def test_what_is_not_true_of_the_finite_layer(layer, told):
    with pytest.raises(AssertionError, match=told):
        ntk.check_layer(layer, (4, 3))


def test_a_layer_without_a_kernel_is_refused_where_one_is_asked_for():
    with pytest.raises(
        NotImplementedError, match=r"Plain\(\) has no infinite-width kernel: monte_carlo_kernel averages"
    ):
        ntk.infinite_kernel(Serial(Dense(4), Plain()), np.ones((1, 2)))


def test_refusals():
    with pytest.raises(ValueError, match="expected \\(n, features\\) or"):
        ntk.check_layer(Plain(), (2, 3))
    with pytest.raises(TypeError, match="expected a layer: a frozen dataclass"):
        ntk.check_layer(lambda width: width, (4, 3))


@pytest.mark.full
def test_a_layer_without_a_kernel_holds_what_it_says():
    found = ntk.check_layer(Plain(), (4, 3))
    assert (len(found.failed), len(found.left)) == (0, 2)
    assert "holds: couples_batch is False" in found.summary()
    assert "not checked: its kernel behind a layer of weights" in found.summary()


@pytest.mark.parametrize(
    ("right", "wrong", "shape", "told"),
    [
        pytest.param(
            AbsoluteNorm(),
            AbsoluteNorm(1.0),
            (4, 5),
            r"DIFFERS \(the average is 1\.5\d* times the theory, at best\)",
            marks=pytest.mark.full,
        ),
        pytest.param(
            LayerNorm(0.1),
            KeepsMeans(0.1),
            (4, 5),
            "FAILS: its kernel behind an activation, before centered weights",
            marks=pytest.mark.full,
        ),
        pytest.param(LayerNorm(0.1), LayerNorm(0.1), (3, 4, 3, 2), "", marks=pytest.mark.slow),
        pytest.param(lambda n: Dense(n, 1.0, 0.2), lambda n: Dense(n, 1.0, 0.2), (4, 5), "", marks=pytest.mark.slow),
    ],
)
def test_kernels(right, wrong, shape, told):
    found = ntk.check_layer(right, shape)
    assert not found.failed
    assert any("is that of finite networks" in line for line in found.held)
    if told:
        with pytest.raises(AssertionError, match=told):
            ntk.check_layer(wrong, shape)
