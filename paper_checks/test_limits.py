"""Limits that are extrapolated: within the stated error of what is known, also where the rate is not quite right."""

import numpy as np
import pytest

from ntk_analysis.paper_checks.limits import limit
from ntk_analysis.paper_checks.tolerances import Source

DEPTHS = np.unique(np.geomspace(50, 1000, 30).round())
LAYERS = np.arange(1, 41.0)
NOISE = np.random.default_rng(0).standard_normal(80) * 1e-6
TRUE = 2.0


@pytest.mark.parametrize("c", [0.3, -2.0, 5.0])
@pytest.mark.parametrize(
    ("rate", "sequence"),
    [
        ("1/l", lambda at, c: 3 / at + c / at**2 - 4 / at**3),
        ("1/l", lambda at, c: 3 / (at + c)),
        ("1/l", lambda at, c: 3 / at + NOISE[:30] * c),
        ("1/l", lambda at, c: 3 * np.log(at) / at + c / at),  # the rate is another
        ("1/l", lambda at, c: c * at**-0.5),  # and another
        ("log l / l", lambda at, c: (3 * np.log(at) + c) / at + (2 * np.log(at) ** 2 + np.log(at)) / at**2 + 5 / at**3),
        ("power", lambda at, c: 3 * at**-0.5 + c * at**-1.5 + at**-2.5),
        ("power", lambda at, c: 3 * at**-0.5 + c * at**-0.8),  # the second order is another
        ("power", lambda at, c: 3 * (at + c) ** -2),
    ],
)
def test_the_limit_is_within_its_error(rate, sequence, c):
    found = limit(TRUE + sequence(DEPTHS, c), DEPTHS, rate)
    assert abs(found.value - TRUE) < found.tolerance.size < 0.2
    assert found.tolerance.source is Source.EXTRAPOLATION


@pytest.mark.parametrize("q", [0.5, 0.8, 0.85])
def test_an_exponential_approach(q):
    far = np.arange(1, 81.0)
    for sequence in (
        0.7 * q ** (2 * far) - q**far,
        0.7 * (0.95 * q) ** far - q**far,
        -far * q**far,
        NOISE - q**far,
    ):
        found = limit(TRUE + sequence, far, "exponential")
        assert abs(found.value - TRUE) < found.tolerance.size
    assert limit(TRUE - q**far, far, "exponential").rate == pytest.approx(q, rel=5e-3)
    assert limit(TRUE + 3 * DEPTHS**-0.7, DEPTHS, "power").rate == pytest.approx(0.7, rel=1e-3)


@pytest.mark.parametrize("q", [0.94, 0.96, 0.98, 0.99])
def test_an_approach_that_is_not_at_its_end(q):
    """After 40 layers from .08 to .67 of the way is left."""
    found = limit(TRUE - q**LAYERS, LAYERS, "exponential")
    assert abs(found.value - TRUE) < found.tolerance.size


@pytest.mark.parametrize(
    ("values", "at", "rate", "words"),
    [
        (DEPTHS[:9], DEPTHS[:9], "1/l", "18 at least"),
        (DEPTHS[:-1], DEPTHS, "1/l", "one length"),
        (DEPTHS, DEPTHS[::-1], "1/l", "grow from one to the next"),
        (DEPTHS * np.nan, DEPTHS, "1/l", "finite values"),
        (DEPTHS, DEPTHS, "1/sqrt(l)", "is not a valid Rate"),
        (np.log(DEPTHS), DEPTHS, "1/l", "another rate"),  # it has no limit
    ],
)
def test_what_has_no_limit_is_refused(values, at, rate, words):
    with pytest.raises(ValueError, match=words):
        limit(values, at, rate)
