"""Numbers whose squares leave float64, and differences of which rounding is all that is left: right, or told."""

import math
import re
import sys
import warnings

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from ntk_analysis import alignment, cli, last_batch_norm
from ntk_analysis.common.norms import norm
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.width_study import Convergence

RNG = np.random.default_rng(0)
A = RNG.standard_normal((6, 6))
K, L = A @ A.T, A @ A.T + np.eye(6)
OUTPUTS = RNG.standard_normal((6, 2))
SIZES = (1e300, 1e200, 1e-200, 1e-300)


@pytest.mark.parametrize("size", [*SIZES, 1.0, 5e-324])
def test_a_length_is_that_of_arbitrary_precision(size):
    values = (A * size).ravel()
    exact = float(mpmath.sqrt(sum(mpmath.mpf(float(x)) ** 2 for x in values)))
    assert norm(A * size) == pytest.approx(exact, rel=1e-14)


def test_lengths_without_a_number():
    assert norm(np.zeros((2, 3))) == norm(np.zeros(0)) == 0
    assert norm(np.array([1, -np.inf])) == math.inf
    assert math.isnan(norm(np.array([1, np.nan])))
    assert norm(np.full(4, 1.7e308)) == math.inf
    assert norm(np.array([3, 4], np.float32)) == 5


@pytest.mark.parametrize("size", SIZES)
def test_kernels_of_any_size_are_compared(size):
    """Neither result depends on a common factor; a change by a factor is this factor less 1."""
    np.testing.assert_allclose(
        alignment.relative_change(size * K, size * L), alignment.relative_change(K, L), rtol=1e-13
    )
    np.testing.assert_allclose(alignment.relative_change(K, size * K), max(size, 1), rtol=1e-13)
    np.testing.assert_allclose(alignment.relative_change(size * K, K), max(1 / size, 1), rtol=1e-13)
    for compared in (alignment.alignment, alignment.kernel_distance, alignment.centered_alignment):
        np.testing.assert_allclose(compared(size * K, L), compared(K, L), rtol=1e-12)
    np.testing.assert_allclose(last_batch_norm.ntk(size * K, OUTPUTS) / size, last_batch_norm.ntk(K, OUTPUTS))


def test_changes_that_float64_does_not_hold():
    with pytest.raises(OverflowError, match=r"after is exp\(1381\.6\) times before, which float64 does not hold"):
        alignment.relative_change(1e-300 * K, 1e300 * K)


@pytest.mark.parametrize("size", SIZES)
def test_convergence_to_limits_of_any_size(size):
    draws = [K + RNG.standard_normal((5, 6, 6)) / width for width in (4, 8)]
    found, scaled = (Convergence.of((4, 8), [s * one for one in draws], s * K) for s in (1.0, size))
    for name in ("bias_squared", "bias_squared_error", "fluctuation", "fluctuation_error", "mean_distance"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(found, name), rtol=1e-10)


def test_a_store_knows_a_function_by_large_numbers(tmp_path):
    """The largest constant has a square beyond float64: another one, which no output has, is another function."""
    params, x = {"w": A[:, :2]}, K

    def closing_over(table):
        return lambda p, x: jnp.minimum(x @ p["w"], jnp.asarray(table)[None])

    call = {"layout": "trace", "method": "jacobian", "coupled": False}
    empirical_ntk(closing_over(np.array([1e200, 2e200])), params, x, store=tmp_path / "k", **call)
    with pytest.raises(ValueError, match="f is another function"):
        empirical_ntk(closing_over(np.array([1e200, 2.1e200])), params, x, store=tmp_path / "k", **call)


# ---- what is left of a kernel that is nearly the same for all inputs

NOISE = RNG.standard_normal((6, 6))
LEFT = {
    "rounding of float64": (1 + 1e-14 * (NOISE + NOISE.T), OUTPUTS),
    "another on each side": (1 + 1e-14 * NOISE, OUTPUTS),
    "nothing": (np.ones((6, 6)), OUTPUTS),
    "of a large kernel": (1e200 * (1 + 1e-14 * K), OUTPUTS),
    "rounding of float32": ((1 + 1e-7 * K).astype(np.float32), OUTPUTS.astype(np.float32)),
    "of all outputs": ((1 + 1e-14 * K)[:, :, None, None] * np.ones((2, 2)), OUTPUTS),
}


@pytest.mark.parametrize("name", LEFT)
def test_rounding_is_no_kernel(name):
    theta, outputs = LEFT[name]
    with pytest.raises(ValueError, match=r"theta is nearly the same for all inputs: .* which has no digit") as caught:
        last_batch_norm.ntk(theta, outputs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e-3])
def test_what_is_left_and_has_digits_is_right(size):
    """Beside 1, which the last batch norm takes away."""
    found, exact = last_batch_norm.ntk(1 + size * K, OUTPUTS), last_batch_norm.ntk(size * K, OUTPUTS)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-15 * 20 / size * np.max(np.abs(exact)))
    assert not last_batch_norm.ntk(np.zeros((6, 6)), OUTPUTS).any(), "a kernel of 0 is 0"


def test_a_result_beyond_the_dtype():
    with pytest.raises(OverflowError, match="the kernel behind the last batch normalisation leaves float64: rescale"):
        last_batch_norm.ntk(1e200 * K, 1e-100 * OUTPUTS)


# ---- precision that the environment asks for


@pytest.mark.full
def test_claims_do_not_depend_on_the_flag_of_jax(monkeypatch, capsys):
    """Of one claim that measures in the default precision, but for its seconds; the flag is told."""
    monkeypatch.setattr(sys, "argv", ["ntk-analysis", "check", "--only", "decor"])
    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for flag in (False, True):
            with jax.enable_x64(flag), pytest.raises(SystemExit) as ended:
                cli.main()
            assert not ended.value.code
            shown.append(capsys.readouterr())
    first, second = (re.sub(r" +\d+\.\d+ s", "", one.out) for one in shown)
    assert first == second
    assert shown[0].err == ""
    assert shown[1].err == "warning: JAX_ENABLE_X64 is left aside: each claim states its precision\n"
