"""One block as a scalar map: golden values of theory.md, brute-force iteration, closed forms written down here."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ntk_analysis.activations import get
from ntk_analysis.meanfield import analyse, critical_line, phase_diagram

from .tiers import full

CENTERED_CHI = math.pi / (math.pi - 1)
SETTLING = [
    ("relu", "weight_mean", 2.4, 0.2),
    ("tanh", "none", 2.4, 0.05),
    *full(
        ("tanh", "none", 0.6, 0.3),
        ("relu", "none", 1.5, 0.1),
        ("erf", "none", 3.0, 0.0),
        ("sine", "none", 2.5, 0.4),
        ("gelu", "none", 1.6, 0.3),
        ("gelu", "weight_mean", 2.0, 0.3),
    ),
]


def erf_variance(q):
    return 2 / math.pi * math.asin(2 * q / (1 + 2 * q))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _kept_variance(name, normalization, q):
    phi = get(name)
    return phi.dual.second_moment(q) - (phi.mean(q) ** 2 if normalization == "weight_mean" else 0)


def kept_variance(name, normalization, q):
    return float(_kept_variance(name, normalization, q))


def test_centered_relu_has_the_values_of_theory_section_2():
    field = analyse("relu", normalization="weight_mean")
    assert field.transition(0.6) == pytest.approx(0.5270, abs=5e-5)
    listed = [0.9, 0.8673, 0.8268, 0.7779, 0.7208, 0.6563, 0.5862, 0.5127, 0.4389, 0.3677, 0.3016, 0.2426]
    assert_allclose(field.trajectory(0.9, 11), listed, atol=5.1e-5)
    assert field.chi_1 == pytest.approx(CENTERED_CHI, rel=1e-14)
    assert (field.q_star, field.phase, field.scale_free) == (1.0, "chaotic", True)
    zero, one = field.fixed_points
    assert (zero.correlation, zero.stable, one.correlation, one.stable) == (0.0, True, 1.0, False)
    assert zero.slope == pytest.approx(0.733471, abs=5e-7)
    assert one.slope == pytest.approx(1.466942, abs=5e-7)
    assert field.correlation_length == pytest.approx(-1 / math.log(zero.slope), rel=1e-14)


def test_a_gain_of_two_under_centering_is_not_theorem_3():
    field = analyse("relu", normalization="weight_mean", w_var=2.0)
    assert field.chi_1 == pytest.approx(1.0, abs=1e-13)
    assert field.q_star == 0
    assert field.variance_slope == pytest.approx(1 - 1 / math.pi, rel=1e-12)  # the variance decays meanwhile


def test_straight_relu_is_critical_and_approaches_one_marginally():
    field = analyse()
    assert (field.w_var, field.q_star, field.chi_1, field.phase) == (2.0, 1.0, 1.0, "critical")
    (one,) = field.fixed_points
    assert (one.correlation, one.slope, one.stable) == (1.0, 1.0, True)
    assert field.correlation_length == math.inf
    # Cho & Saul: (sin t + (pi - t) cos t) / pi
    t = np.linspace(0, math.pi, 41)
    assert_allclose(field.transition(np.cos(t)), (np.sin(t) + (math.pi - t) * np.cos(t)) / math.pi, atol=1e-15)


@pytest.mark.parametrize(("name", "normalization", "w", "b"), SETTLING)
def test_settled_variance_is_where_iteration_ends(name, normalization, w, b):
    before, q = 0.0, 1.0
    while abs(q - before) > 1e-14:
        before, q = q, w * kept_variance(name, normalization, q) + b
    field = analyse(name, normalization=normalization, w_var=w, b_var=b)
    assert field.q_star == pytest.approx(q, rel=1e-12)
    step = 1e-4 * q
    change = w * (kept_variance(name, normalization, q + step) - kept_variance(name, normalization, q - step))
    assert field.variance_slope == pytest.approx(change / (2 * step), abs=1e-7)


@pytest.mark.parametrize(("name", "normalization", "w", "b"), [SETTLING[0], *full(SETTLING[1]), *SETTLING[2:]])
def test_transition_and_fixed_points_against_iteration(name, normalization, w, b):
    field = analyse(name, normalization=normalization, w_var=w, b_var=b)
    phi, q, rho = get(name), field.q_star, np.linspace(-0.95, 0.95, 21)
    mean = jax.jit(phi.mean)(q) if normalization == "weight_mean" else 0.0
    assert_allclose(field.transition(rho), (w * (jax.jit(phi.dual)(q, q, rho) - mean**2) + b) / q, atol=1e-13)
    for point in field.fixed_points:
        assert field.transition(point.correlation) == pytest.approx(point.correlation, abs=1e-13)
        if abs(point.correlation) < 1:
            moved = field.transition(point.correlation + np.array([-1e-5, 1e-5]))
            assert point.slope == pytest.approx((moved[1] - moved[0]) / 2e-5, abs=1e-6)
    # the derivative by Price's theorem against a difference of T at rho = 1
    assert (1 - field.transition(1 - 1e-7)) / 1e-7 == pytest.approx(field.chi_1, abs=1e-3)
    (stable,) = [point for point in field.fixed_points if point.stable]
    ends = field.trajectory(np.linspace(-0.99, 0.99, 14), 600)[-1]
    assert_allclose(ends, stable.correlation, atol=1e-6)
    chaotic = field.chi_1 > 1
    assert field.phase == ("chaotic" if chaotic else "ordered")
    assert (stable.correlation < 1) == chaotic


@pytest.mark.parametrize(("w", "b"), [(3.0, 0.0), (1.2, 0.3), (0.5, 0.1), (6.0, 1.0)])
def test_erf_against_closed_forms_written_here(w, b):
    q = 1.0
    for _ in range(500):
        q = w * erf_variance(q) + b
    field = analyse("erf", w_var=w, b_var=b)
    assert field.q_star == pytest.approx(q, rel=1e-12)
    assert field.chi_1 == pytest.approx(w * 4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-12)


def test_proposition_1_straight_relu_is_never_chaotic():
    diagram = phase_diagram("relu", w_var=np.linspace(0, 3, 31), b_var=np.linspace(0, 1, 11))
    assert diagram.chi_1.shape == (11, 31)
    assert np.all(diagram.chi_1[diagram.bounded] <= 1 + 1e-14)
    ((row, column),) = np.argwhere(diagram.phase == "critical")
    assert (diagram.b_var[row], diagram.w_var[column]) == (0, 2)
    expected = np.where(diagram.b_var[:, None] > 0, diagram.w_var < 2 - 1e-9, diagram.w_var < 2 + 1e-9)
    assert_allclose(diagram.bounded, expected)
    assert set(diagram.phase[~diagram.bounded]) == {"unbounded"}
    assert np.all(np.isinf(diagram.q_star[~diagram.bounded]))
    assert not np.isnan(diagram.chi_1).any()


@pytest.mark.parametrize(("name", "normalization"), [("relu", "weight-mean"), *full(("tanh", "none"))])
def test_phase_diagram_agrees_with_analyse(name, normalization):
    w_var, b_var = np.array([0.5, 1.4, 2.6]), np.array([0.0, 0.2])
    diagram = phase_diagram(name, normalization=normalization, w_var=w_var, b_var=b_var)
    for i, b in enumerate(b_var):
        for j, w in enumerate(w_var):
            field = analyse(name, normalization=normalization, w_var=w, b_var=b)
            assert (diagram.phase[i, j], diagram.chi_1[i, j]) == (field.phase, pytest.approx(field.chi_1, rel=1e-12))
            assert diagram.q_star[i, j] == pytest.approx(field.q_star, rel=1e-12)


@pytest.mark.full
def test_tanh_critical_line():
    line = critical_line("tanh", q=np.linspace(0, 1.5, 16))
    assert (line.w_var[0], line.b_var[0]) == (pytest.approx(1, abs=1e-14), 0.0)
    assert np.all(np.diff(line.w_var) > 0)
    assert np.all(np.diff(line.b_var) > 0)
    # E[phi'^2] = 1 - 2q + 7 q^2 - ... and V = q - 2 q^2 + 17/3 q^3 - ...: w = 1 + 2q - ..., b = 4/3 q^3 - ...
    small = critical_line("tanh", q=np.array([1e-4]))
    assert small.w_var[0] - 1 == pytest.approx(2e-4, rel=1e-3)
    assert small.b_var[0] == pytest.approx(4 / 3 * 1e-12, rel=2e-3)
    assert np.all((line.variance_slope[1:] > 0) & (line.variance_slope[1:] < 1))
    for i in (1, 8, 15):
        field = analyse("tanh", w_var=line.w_var[i], b_var=line.b_var[i])
        assert field.phase == "critical"
        assert field.q_star == pytest.approx(line.q_star[i], rel=1e-9)
        assert field.fixed_points[-1].stable  # marginal: slope 1, and the map bends towards rho = 1
        assert field.correlation_length == math.inf
    i = 8
    above, below = (analyse("tanh", w_var=line.w_var[i] * f, b_var=line.b_var[i]).phase for f in (1.001, 0.999))
    assert (above, below) == ("chaotic", "ordered")


def test_critical_lines_of_relu():
    point = critical_line("relu")
    assert (point.w_var.tolist(), point.b_var.tolist(), point.q_star.tolist()) == ([2.0], [0.0], [1.0])
    line = critical_line("relu", normalization="weight_mean", q=np.array([0.5, 2.0]))
    assert_allclose(line.w_var, 2, rtol=1e-14)
    assert_allclose(line.b_var, line.q_star / math.pi, rtol=1e-13)


@pytest.mark.full
def test_critical_lines_of_gelu_and_cos():
    assert np.all(critical_line("gelu", q=np.linspace(0.1, 3, 9)).variance_slope > 1)
    # E[cos^2] and E[sin^2]: b = q - coth q < 0 below q = 1.2
    with pytest.raises(ValueError, match="no critical line for cos"):
        critical_line(jnp.cos, q=np.array([0.5, 1.0]))
    assert_allclose(critical_line(jnp.cos, q=np.array([0.5, 2.0])).b_var, 2 - 1 / np.tanh(2), rtol=1e-12)


@pytest.mark.parametrize("excess", [1e-2, 1e-4, 1e-6])
def test_cusp_moves_the_fixed_point_by_the_square_of_the_excess(excess):
    """1 - T = chi_1 d - 2 sqrt(2)/(3 pi) w_var/2 d^(3/2): d* = (3 pi (chi_1 - 1) / (2 sqrt 2))^2 to leading order."""
    field = analyse("relu", normalization="weight_mean", w_var=2 * (1 + excess), b_var=0.3)
    inner, one = field.fixed_points
    kept = 3 * math.pi * excess / (2 * math.sqrt(2))
    assert inner.distance == pytest.approx(kept**2, rel=max(10 * excess, 1e-3))
    assert (inner.stable, one.stable, one.correlation) == (True, False, 1.0)
    assert inner.slope == pytest.approx(1 - excess / 2, abs=excess**2 + 1e-3 * excess)


def test_trajectory_keeps_digits_near_one():
    field = analyse("relu", normalization="weight_mean")
    start = 1 - 1e-12
    grown = 1 - field.trajectory(start, 30)[-1]
    distance = np.float64(1 - start)
    for _ in range(30):  # the exact cusp in the angle: sin t - t cos t = t^3/3 - t^5/30 + ...
        t = 2 * math.asin(math.sqrt(distance / 2))
        bend = t**3 / 3 - t**5 / 30 + t**7 / 840 if t < 0.05 else math.sin(t) - t * math.cos(t)
        distance = CENTERED_CHI * (distance - bend / math.pi)
    assert grown == pytest.approx(distance, rel=1e-4)
    assert distance > 1e4 * 1e-12
    assert field.transition_distance(1e-300) == pytest.approx(CENTERED_CHI * 1e-300, rel=1e-12)
    assert np.array_equal(field.trajectory(0.3, 0), [0.3])
    assert field.trajectory(np.zeros((2, 3)), 4).shape == (5, 2, 3)


@pytest.mark.parametrize("name", ["tanh", *full("erf", "sine")])
def test_odd_maps_have_three_fixed_points(name):
    field = analyse(name)
    assert [(point.correlation, point.stable) for point in field.fixed_points] == [(-1, False), (0, True), (1, False)]


@pytest.mark.parametrize(
    ("name", "normalization"),
    [("tanh", "none"), ("relu", "weight_mean"), *full(("gelu", "none"), ("gelu", "weight_mean"))],
)
def test_stable_gain_keeps_exactly_one(name, normalization):
    assert analyse(name, normalization=normalization).q_star == 1.0


@pytest.mark.full
def test_gelu_keeps_one_unstably():
    field = analyse("gelu")
    assert field.variance_slope == pytest.approx(1.1440632, abs=1e-7)
    assert analyse("gelu", w_var=field.w_var * 1.001).q_star is None
    assert analyse("gelu", w_var=field.w_var * 0.999).q_star == 0


@pytest.mark.full
@pytest.mark.full
def test_decaying_variance():
    relu = analyse("relu", w_var=1.0)
    assert (relu.q_star, relu.chi_1, relu.variance_slope, relu.phase) == (0.0, 0.5, 0.5, "ordered")
    assert relu.transition(0.3) == pytest.approx(analyse("relu").transition(0.3), rel=1e-15)
    tanh = analyse("tanh", w_var=0.9)
    assert (tanh.q_star, tanh.phase, tanh.fixed_points, tanh.correlation_length) == (0.0, "ordered", (), None)
    assert tanh.transition(-0.4) == pytest.approx(-0.4, abs=2e-16)
    assert "every correlation is fixed" in tanh.reason
    edge = analyse("tanh", w_var=1.0)
    assert (edge.q_star, edge.phase) == (0.0, "critical")
    assert edge.chi_1 == pytest.approx(1, abs=1e-15)
    # just above, q* = (w - 1)/2 and chi_1 - 1 is of second order
    above = analyse("tanh", w_var=1 + 1e-6)
    assert above.q_star == pytest.approx(5e-7, rel=1e-4)
    assert [point.correlation for point in above.fixed_points] == [-1, 0, 1]


def test_identity_and_nothing_at_all():
    free = analyse("identity")
    assert (free.q_star, free.phase, free.fixed_points, free.scale_free) == (1.0, "critical", (), True)
    assert "every correlation is fixed" in free.reason
    biased = analyse("identity", w_var=0.5, b_var=0.5)
    assert biased.fixed_points[0].slope == pytest.approx(0.5)
    assert biased.correlation_length == pytest.approx(1 / math.log(2))
    constant = analyse("relu", w_var=0.0, b_var=0.2)
    assert (constant.q_star, constant.chi_1, constant.correlation_length) == (0.2, 0.0, 0.0)
    with pytest.raises(ValueError, match="every pre-activation is 0"):
        analyse("tanh", w_var=0.0).transition(0.1)


@pytest.mark.parametrize(
    ("w", "b", "words"),
    [(2.5, 0.0, "a factor 1.25 per layer; a w_var below 2 "), (2.0, 0.1, "by b_var = 0.1 per layer")],
)
def test_unbounded_variance_says_why(w, b, words):
    field = analyse("relu", w_var=w, b_var=b)
    assert (field.q_star, field.chi_1, field.phase, field.fixed_points) == (None, None, None, ())
    assert field.correlation_length is None
    assert words in field.reason
    assert "relu with w_var=" in field.reason
    with pytest.raises(ValueError, match="grows without bound"):
        field.transition(0.5)
    with pytest.raises(ValueError, match="grows without bound"):
        field.trajectory(0.5, 3)


@pytest.mark.full
def test_a_kinked_function_of_the_user_is_no_smooth_one():
    field = analyse(lambda x: jnp.maximum(x, 0), w_var=1.5)
    assert (field.q_star, field.every_correlation_fixed) == (0.0, False)
    assert field.chi_1 == pytest.approx(0.75, rel=1e-12)
    # of a pair, where the largest error that the quadrature states is 8e-9
    assert field.transition(0.3) == pytest.approx(analyse("relu").transition(0.3), abs=8e-9)


def test_quadrature_error_is_reported_and_closed_forms_have_none():
    error = analyse("erf").chi_1_error
    assert error is not None
    assert error < 1e-12
    z = np.arange(-14_000, 14_001) * 1e-3  # a trapezoid rule is spectrally accurate for analytic integrands
    weight = np.exp(-(z**2) / 2)
    steep = phase_diagram("tanh", w_var=256.0, b_var=0.1)
    slopes = np.cosh(np.sqrt(steep.q_star[0, 0]) * z) ** -4.0
    assert abs(256 * np.sum(slopes * weight) / weight.sum() - steep.chi_1) <= steep.chi_1_error < 1e-9


def test_float64_with_the_flag_off():
    reference = analyse("tanh", w_var=1.7, b_var=0.05)
    with jax.enable_x64(False):
        field = analyse("tanh", w_var=1.7, b_var=0.05)
        moved = field.trajectory(0.9, 3)
        line = critical_line("erf", q=np.array([1.0]))
    assert moved.dtype == np.float64
    assert field.q_star == reference.q_star
    assert_allclose(moved, reference.trajectory(0.9, 3), rtol=1e-15)
    assert line.w_var[0] == pytest.approx(math.pi * math.sqrt(5) / 4, rel=1e-14)


@pytest.mark.parametrize(("name", "same"), [("layer", "none"), ("layer_post", "weight_mean")])
def test_layer_norms_name_the_map_that_is_theirs(name, same):
    for call in (analyse, critical_line):
        with pytest.raises(NotImplementedError, match=f"is that of '{same}'"):
            call("relu", normalization=name)


def test_weight_standardization_is_weight_centering():
    assert analyse("relu", normalization="weight_standardization") == analyse("relu", normalization="weight_mean")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"w_var": -1.0}, "got w_var=-1.0, expected finite numbers >= 0"),
        ({"w_var": math.nan}, "got w_var=nan"),
        ({"w_var": 1e-308}, "got w_var=1e-308, expected 0 or at least 1e-290"),
        ({"w_var": 1.0, "b_var": 5e-324}, "got b_var=5e-324, expected 0 or at least"),
        ({"b_var": -0.1}, "got b_var=-0.1"),
        ({"b_var": math.inf}, "got b_var=inf"),
        ({"b_var": 1.0}, "pass w_var explicitly"),
        ({"w_var": np.ones(2)}, "phase_diagram takes arrays"),
        ({"activation": "rlu"}, "unknown activation 'rlu'"),
        ({"normalization": "weights"}, "unknown normalization 'weights'"),
    ],
)
def test_bad_blocks_are_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refusal:
        analyse(**arguments)
    assert words in str(refusal.value)


def test_bad_correlations_and_depths_are_refused():
    field = analyse("relu")
    for rho in (1.1, -1.1, math.nan, np.array([0.0, 2.0])):
        with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
            field.transition(rho)
        with pytest.raises(ValueError, match=r"outside \[-1, 1\]"):
            field.trajectory(rho, 0)
    for depth in (-1, 2.0, 1.5, True):
        with pytest.raises(ValueError, match="expected an integer >= 0"):
            field.trajectory(0.5, depth)
    with pytest.raises(ValueError, match="got w_var="):
        phase_diagram("tanh", w_var=np.array([1.0, -1.0]), b_var=0.0)
