"""Averages in NumPy, against closed forms."""

import numpy as np
import pytest

from ntk_analysis.paper_checks.averages import fixed_point, mean_of, product_of


def test_means_of_powers_and_waves():
    assert mean_of(np.square, 3.0) == pytest.approx(3, rel=1e-14)
    assert mean_of(np.cos, 3.0) == pytest.approx(np.exp(-1.5), rel=1e-13)
    assert mean_of(lambda u: np.maximum(u, 0), 1.0) == pytest.approx(1 / np.sqrt(2 * np.pi), abs=1e-4)


@pytest.mark.parametrize("rho", [-1.0, 0.0, 0.4, 1.0])
def test_products(rho):
    assert product_of(np.sin, 2.0, rho) == pytest.approx(np.exp(-2) * np.sinh(2 * rho), abs=1e-14)


def test_a_map_settles():
    assert fixed_point(np.cos, 1.0) == pytest.approx(0.7390851332151607, rel=1e-13)
    with pytest.raises(ValueError, match="still moves"):
        fixed_point(lambda x: x + 1, 0.0, steps=3)
