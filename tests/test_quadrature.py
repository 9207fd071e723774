"""The quadrature of functions unknown to it against duals in many digits: the stated error bounds the true one."""

import json
from pathlib import Path

import pytest
from exact_duals import CATALOGUE, judged

RECORD = Path(__file__).parents[1] / "benchmarks" / "results" / "quadrature.json"
# at unequal variances: coefficients are off by 1e-13, more than is stated; for slopes of elu so is what they leave out
UNTRUE = {"tanh", "elu"}


def every():
    untrue = pytest.mark.xfail(strict=True, reason="the stated error is too small")
    return [
        pytest.param(name, None, marks=[pytest.mark.full, *([untrue] if name in UNTRUE else [])]) for name in CATALOGUE
    ]


@pytest.mark.parametrize(("name", "count"), [("gelu", 50), *every()])
def test_the_stated_error_bounds_the_true_one(name, count):
    found = judged(name, count)
    assert found.ratio <= 1
    assert found.stated < 1e-8
    assert (found.refused > 0) == (name == "cosine")  # which oscillates: known up to a variance of 27


def test_the_record_is_of_these_functions():
    record = json.loads(RECORD.read_text())
    assert list(record) == CATALOGUE
    assert {name for name, entry in record.items() if entry["worst ratio of true to stated error"] > 1} == UNTRUE
