"""Times of empirical kernels, ours beside neural-tangents': `empirical.py` writes the comparison down."""

import os

import pytest
from empirical import LAYOUTS, kernels
from timing import OURS, THEIRS


@pytest.mark.parametrize("library", [OURS, THEIRS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_of_256_digits(benchmark, layout, library):
    assert "backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""), "XLA's optimizer is lowered"
    call = kernels()[layout, library]
    call()
    benchmark.pedantic(call, rounds=10)
