"""Kernels behind every layer in one pass against kernels of the networks that end there."""

import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis.layers import Activation, Conv, Dense, GlobalAvgPool, LastBatchNorm, Repeat, Residual, Serial
from ntk_analysis.networks import fully_connected

X = np.random.default_rng(0).standard_normal((4, 3))
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 3, 1))
BLOCK = Serial(Activation("relu"), Dense(1, 2.0, 0.1))


def fields_agree(found, expected):
    for name in ("nngp", "ntk", "distance", "mean1"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-13, atol=1e-15)
    assert found.law == expected.law


@pytest.mark.full
def test_of_a_repeated_block_and_a_residual():
    network = Serial(Dense(1, 1.0, 0.1), Repeat(BLOCK, 2), Residual(BLOCK, 0.5))
    found = list(ntk.kernels_by_depth(network, X, X[:2]))
    parts = [Dense(1, 1.0, 0.1), *BLOCK.layers, *BLOCK.layers, Residual(BLOCK, 0.5)]
    assert [layer for layer, _ in found] == parts
    for depth, (_, kernel) in enumerate(found, 1):
        assert isinstance(kernel.distance, np.ndarray)
        fields_agree(kernel, ntk.infinite_kernel(Serial(*parts[:depth]), X, X[:2]))


def test_shallower_networks_are_read_out_on_the_way():
    dense = [kernel for layer, kernel in ntk.kernels_by_depth(fully_connected(3, 1), X) if isinstance(layer, Dense)]
    for depth, kernel in enumerate(dense[1:], 1):
        assert kernel.joint
        fields_agree(kernel, ntk.infinite_kernel(fully_connected(depth, 1), X))


def test_images_whose_positions_are_paired():
    network = Serial(Conv(1, 2), Activation("relu"), GlobalAvgPool())
    *_, (_, kernel) = ntk.kernels_by_depth(network, IMAGES)
    fields_agree(kernel, ntk.infinite_kernel(network, IMAGES))


@pytest.mark.parametrize(
    ("x", "network", "error", "words"),
    [
        (np.array([[1.0, np.nan]]), Dense(1), ValueError, "NaN or infinite values"),
        (np.ones(3), Dense(1), ValueError, "must have shape"),
        (X, Serial(Dense(1), LastBatchNorm()), NotImplementedError, "no kernel of the inputs alone"),
    ],
    ids=["nan", "shape", "last norm"],
)
def test_what_has_no_kernels(x, network, error, words):
    with pytest.raises(error, match=words):
        list(ntk.kernels_by_depth(network, x))
