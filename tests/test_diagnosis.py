"""Diagnosis: known phases at finite width, the rule of the verdict, the counting of layers, dead networks."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import data, meanfield
from ntk_analysis.diagnosis import Growth, diagnose, products_in_a_row, spectra, verdict_of
from ntk_analysis.diagnosis import growth as growth_module
from ntk_analysis.diagnosis.correlations import layer_correlations
from ntk_analysis.diagnosis.field import field_of
from ntk_analysis.diagnosis.growth import ENDS, measured_growth
from ntk_analysis.diagnosis.verdict import half_width
from ntk_analysis.empirical.coupling import BY_LAYERS, OTHERS, PLACE
from ntk_analysis.empirical.tiles import AS_STATED
from ntk_analysis.layers import Activation, BatchNorm, Dense, Serial
from ntk_analysis.networks import convolutional, fully_connected, residual

from .tiers import full

DEPTH, WIDTH, OUTPUTS = 30, 256, 10
PHASES = {
    "ordered relu": (("none", "relu", 1.5, 0.1), "ordered"),
    "He relu": (("none", "relu", None, 0.0), "critical"),
    "ordered tanh": (("none", "tanh", 0.6, 0.2), "ordered"),
    "chaotic tanh": (("none", "tanh", 4.0, 0.0), "chaotic"),
    "weight mean": (("weight_mean", "relu", None, 0.0), "chaotic"),
    "batch norm": (("batch", "relu", None, 0.0), "chaotic"),
}


@pytest.fixture
def by_trace(monkeypatch):
    """Full kernels of 300 outputs take most of the time, and the verdict does not look at them."""
    monkeypatch.setattr(spectra, "FULL_SIZE", 0)


@pytest.fixture(scope="module")
def digits():
    return data.preprocess(data.load_digits().subset(32, seed=0).images, image_centering="dataset").astype(np.float32)


def drawn(network, x, seed=0):
    with jax.enable_x64(False):
        return network.init(jax.random.key(seed), x.shape)[1]


def deep(name, depth=DEPTH, width=WIDTH):
    (normalization, activation, w_var, b_var), phase = PHASES[name]
    network = fully_connected(depth, width, normalization, activation, outputs=OUTPUTS, w_var=w_var, b_var=b_var)
    options = {"w_var": w_var, "b_var": b_var} | ({"batch_size": 32} if normalization == "batch" else {})
    return network, meanfield.analyse(activation, normalization=normalization, **options), phase


@pytest.mark.full  # several networks; meanfield's own verdicts are in test_meanfield.py
@pytest.mark.usefixtures("by_trace")
def test_the_verdict_is_mean_fields_beside_it(digits):
    """And chi_1 itself is within the verdict's own interval."""
    depth, width = 12, 64
    network, field, phase = deep("weight mean", depth, width)
    found = diagnose(network, drawn(network, digits), digits)
    assert found.field is not None
    assert found.verdict.phase == found.field.phase == phase == field.phase
    assert_chi_1(found, field, depth)
    assert_correlations(found.layers, depth, width)
    assert "nan" not in found.summary() + json.dumps(found.record(), allow_nan=False)


def assert_correlations(layers, depth, width):
    """As predicted: one network's correlations wander by some sqrt(depth/width) on the way."""
    assert layers is not None
    np.testing.assert_allclose(layers.measured, layers.predicted, atol=math.sqrt(depth / width))
    np.testing.assert_allclose(layers.measured[:2], layers.predicted[:2], atol=3 / math.sqrt(width))


def assert_chi_1(found, field, depth):
    assert found.products == depth + 1
    assert abs(found.log_chi - math.log(field.chi_1)) < half_width(found.growth, depth)


@pytest.mark.usefixtures("by_trace")
@pytest.mark.parametrize(
    ("name", "width"),
    [*full(("weight mean", 64)), *(pytest.param(name, WIDTH, marks=pytest.mark.slow) for name in PHASES)],
)
def test_the_verdict_is_mean_fields(name, width, digits):
    """Measured end to end as of a plain function, and chi_1 itself within the verdict's own interval."""
    network, field, phase = deep(name, width=width)
    found = diagnose(network.apply, drawn(network, digits), digits)
    assert found.verdict.phase == phase == field.phase
    assert_chi_1(found, field, DEPTH)
    assert found.coupled == (name == "batch norm")
    assert found.layers is None
    assert found.field is None


@pytest.mark.usefixtures("by_trace")
@pytest.mark.slow
def test_the_evidence_tells_the_phases_apart(digits):
    ordered, critical, chaotic = (
        diagnose(network, drawn(network, digits), digits)
        for network in (deep(name)[0] for name in ("ordered relu", "He relu", "weight mean"))
    )
    assert ordered.ntk_ratio > 0.9 > critical.ntk_ratio > 0.15 > abs(chaotic.ntk_ratio)
    assert ordered.growth.outputs_alike > 0.99 > critical.growth.outputs_alike > 0.5 > abs(chaotic.growth.outputs_alike)
    assert ordered.trace.condition_number > critical.trace.condition_number > 3 * chaotic.trace.condition_number
    for found in (ordered, critical, chaotic):
        assert_correlations(found.layers, DEPTH, WIDTH)
        assert found.field is not None
        assert found.field.phase == found.verdict.phase


@pytest.mark.full
@pytest.mark.usefixtures("by_trace")
def test_without_biases_relu_keeps_its_correlations_at_any_gain(digits):
    """Where chi_1 and the fate of correlations differ, both are said."""
    network = fully_connected(DEPTH, 64, "none", "relu", outputs=OUTPUTS, w_var=1.5)
    found = diagnose(network, drawn(network, digits), digits)
    assert found.verdict.phase == "critical"
    assert found.field is not None
    assert found.field.phase == "ordered"
    assert found.growth.scale < 0.01
    assert "relative to it 1" in found.summary()


@pytest.mark.full
@pytest.mark.usefixtures("by_trace")
def test_a_shallow_network_is_not_decidable(digits):
    network = fully_connected(2, 64, "weight_mean", outputs=OUTPUTS)
    found = diagnose(network, drawn(network, digits), digits)
    assert found.verdict.phase == "not decidable"
    assert "too shallow" in found.verdict.reason


def growth(log_gain=0.0, error=0.1, inputs=0.0, outputs=0.0):
    return Growth(log_gain, error, log_gain, 1.0, inputs, outputs, 0.05)


@pytest.mark.parametrize(
    ("measured", "products", "ratio", "phase", "words"),
    [
        (growth(-9, outputs=1.0), 31, 0.9, "ordered", "die"),
        (growth(9), 31, 0.1, "chaotic", "grow"),
        (growth(math.inf), 31, 0.1, "chaotic", "grow"),
        (growth(0, outputs=0.6), 31, 0.3, "critical", "neither"),
        (growth(3), 31, 0.2, "chaotic", "above 0"),
        (growth(-1.5, outputs=1.0), 13, 0.9, "ordered", "below 0"),
        (growth(0.4, error=0.3), 13, 0.3, "critical", "neither"),
        (growth(9, error=15), 31, 0.1, "not decidable", "shuffles of the weights, or layers 2 times as wide"),
        (growth(0.5), 4, 0.1, "not decidable", "at 3 layers, but about 5 layers like these would decide it"),
        (growth(0.0), 2, 0.1, "not decidable", "at 1 layer, but about 8 layers like these would decide it"),
        (
            growth(0.0, error=1e3),
            31,
            0.1,
            "not decidable",
            "too shallow for any width and any number of shuffles at 30",
        ),
        (growth(9), 1, 0.1, "not decidable", "no layer between"),
        (growth(9), 0, 0.1, "not decidable", "no layer between"),
        (growth(9, outputs=0.99), 31, 0.1, "not decidable", "outputs are all alike"),
        (growth(9), 31, 0.9, "not decidable", "rank one"),
        (growth(-9, inputs=0.5), 31, 0.9, "not decidable", "less alike"),
        (growth(-9, outputs=1.0), 31, 0.1, "not decidable", "nearly diagonal"),
        (growth(-math.inf), 31, 0.1, "not decidable", "saturated or dead"),
        (growth(math.nan, outputs=math.nan), 31, 0.1, "not decidable", "outputs are zero"),
    ],
)
def test_the_rule_of_the_verdict(measured, products, ratio, phase, words):
    verdict = verdict_of(measured, products, ratio)
    assert verdict.phase == phase
    assert words in verdict.reason


@pytest.mark.parametrize("gain", [0.0, 0.4, -0.4, 0.6], ids=str)
@pytest.mark.parametrize("error", [0.05, 0.6], ids=str)
def test_what_is_said_to_decide_decides(gain, error):
    """The depth, the shuffles and the width of the advice, at the same rate: decided; a little less of each: not."""
    products = 6
    undecided = verdict_of(growth(gain, error), products, 0.5)
    assert undecided.phase == "not decidable"
    layers = int(re.findall(r"about (\d+) layers", undecided.reason)[0])
    for depth, decided in ((layers, True), (layers - 1, False)):
        scale = depth / (products - 1)
        found = verdict_of(growth(gain * scale, error * math.sqrt(scale)), depth + 1, 0.5)
        assert (found.phase != "not decidable") == decided, found
    if wider := re.search(r"layers ([.\d]+) times as wide", undecided.reason):
        found = verdict_of(growth(gain, error / math.sqrt(1.05 * float(wider[1]))), products, 0.5)
        assert found.phase != "not decidable"
    if shuffles := re.search(r"(\d+) shuffles", undecided.reason):
        found = verdict_of(growth(gain, error)._replace(shuffles=int(shuffles[1])), products, 0.5)
        assert found.phase != "not decidable"


def test_a_critical_network_stays_within_what_happens_once():
    """Mean-field theory's ln G of tanh on the edge of chaos, at any depth, inputs of mean square 1 or not.

    Layers after layers: ln G is the sum of ln chi(q_l), with the weights' part of the variance first, and the variance
    of the outputs last.
    """
    t = np.linspace(-9, 9, 4001)
    weights = np.exp(-(t**2) / 2) / np.sum(np.exp(-(t**2) / 2))

    def variance(q):
        return weights @ np.tanh(np.sqrt(q) * t) ** 2

    def slope(q):
        return weights @ np.cosh(np.sqrt(q) * t) ** -4.0

    largest = 0.0
    for settled in (0.01, 0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 3.0):
        w_var = 1 / slope(settled)
        b_var = settled - w_var * variance(settled)
        for size in (0.5, 1.0, 2.0):
            q, log = w_var * size + b_var, math.log(w_var * size)
            for _ in range(60):
                log += math.log(w_var * slope(q))
                q = w_var * variance(q) + b_var
                largest = max(largest, abs(log - math.log(q)))
    assert largest < 0.65 < ENDS


@pytest.mark.parametrize("size", [1.0, 100.0], ids=str)
def test_inputs_of_another_size_count_as_what_happens_once(size):
    """tanh saturates on inputs of mean square 1e4, which changes ln G once: the first layer, not one a layer."""
    params, x = {"w": draw(16, 16) / 4, "v": draw(16, 16) / 4}, jnp.asarray(size * draw(9, 16, seed=1))

    def f(params, x):
        return jnp.tanh(x @ params["w"]) @ params["v"]

    found = measured_growth(f, params, x, 0)
    unit = measured_growth(f, params, x / math.sqrt(float(jnp.mean(x**2))), 0)
    assert (found.ends == ENDS) == (size == 1)
    if size != 1:
        np.testing.assert_allclose(found.ends, ENDS + abs(found.log_gain - unit.log_gain), rtol=1e-6)


def test_more_shuffles_make_the_error_smaller():
    found = {
        shuffles: measured_growth(linear, {"w": draw(40, 20)}, jnp.asarray(draw(9, 40, seed=1)), 0, shuffles=shuffles)
        for shuffles in (2, 32)
    }
    assert found[32].quantile < found[2].quantile
    assert half_width(found[32], 3) < half_width(found[2], 3)
    with pytest.raises(ValueError, match="got shuffles=1, expected at least 2"):
        diagnose(linear, {"w": draw(40, 20)}, draw(9, 40), shuffles=1)


PHASES_OF_TWELVE = {
    "ordered tanh": (("tanh", 1.0, 0.05), "ordered"),  # ln chi_1 = -0.276
    "critical tanh": (("tanh", 1.0, 0.0), "critical"),
    "tanh on the line": (("tanh", 2.153, 0.151), "critical"),
    "chaotic tanh": (("tanh", 2.0, 0.0), "chaotic"),  # ln chi_1 = 0.100
    "He relu": (("relu", 2.0, 0.0), "critical"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", PHASES_OF_TWELVE)
def test_twelve_layers_are_decided(name, digits, monkeypatch):
    """Twenty draws of width 128: the wrong verdicts are rarer than 1 in 20, and most draws are decided."""
    (activation, w_var, b_var), phase = PHASES_OF_TWELVE[name]
    network = fully_connected(12, 128, "none", activation, outputs=OUTPUTS, w_var=w_var, b_var=b_var)
    compiled = jax.jit(network.apply)  # once for all draws
    pulled = jax.jit(lambda params, x, key: growth_module._pulled(compiled, params, x, key))
    monkeypatch.setattr(jax, "jit", lambda function: pulled)
    found = [
        verdict_of(measured_growth(compiled, drawn(network, digits, seed), jnp.asarray(digits), seed), 13, 0.5).phase
        for seed in range(20)
    ]
    assert {*found} <= {phase, "not decidable"}
    assert found.count(phase) >= 15


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(params, x):
    return x @ params["w"]


def test_a_linear_map_has_gain_one():
    """|J|^2 / |f|^2 |x|^2 / d is 1 on average over weights, up to the likeness of |w x|^2 over inputs and outputs."""
    found = measured_growth(linear, {"w": draw(40, 200)}, jnp.asarray(draw(9, 40, seed=1)), 0)
    assert abs(found.log_gain) < 3 * math.sqrt(2 / 40 / 9 + 2 / 200)
    np.testing.assert_allclose(found.outputs_alike, found.inputs_alike, atol=3 / math.sqrt(200))


def test_gain_does_not_see_units():
    params, x = {"w": draw(5, 3)}, jnp.asarray(draw(9, 5, seed=1))
    one = measured_growth(linear, params, x, 0)
    other = measured_growth(lambda p, x: 1e3 * linear(p, x), params, 1e-2 * x, 0)
    np.testing.assert_allclose(one.log_gain, other.log_gain, rtol=0, atol=1e-9)


def test_spectra_and_learning_rate_are_the_dense_kernels():
    """NTK of a linear map: x.x' at equal outputs, so a stable step is 2 / largest eigenvalue of the inputs' Gram."""
    x = draw(6, 8, seed=1)
    found = diagnose(linear, {"w": draw(8, 3)}, x)
    eigenvalues = np.linalg.eigvalsh(x @ x.T)
    assert found.full is not None
    for spectrum in (found.trace, found.full):
        np.testing.assert_allclose(spectrum.condition_number, eigenvalues[-1] / eigenvalues[0], rtol=1e-9)
    np.testing.assert_allclose(found.spectrum.learning_rate, 2 / eigenvalues[-1], rtol=1e-12)
    gram = x @ x.T
    off = (gram.sum() - np.trace(gram)) / 30
    np.testing.assert_allclose(found.ntk_ratio, off / np.mean(np.diag(gram)), rtol=1e-12)


def test_a_large_kernel_goes_by_its_trace(monkeypatch):
    monkeypatch.setattr(spectra, "FULL_SIZE", 10)
    found = diagnose(linear, {"w": draw(8, 3)}, draw(6, 8, seed=1))
    assert found.full is None
    assert "upper bound" in found.learning_rate_convention
    assert found.record()["ntk"].keys() == {"trace"}


def test_structured_weights_are_seen():
    """Layers of rank one saturate and are ordered; the same entries in another order are a chaotic network."""
    u = np.sign(draw(32))
    params = np.stack([np.outer(u, u)] * 10) * 2 / math.sqrt(32)

    def f(params, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0]

    found = measured_growth(f, params, jnp.asarray(draw(12, 32, seed=1)), 0)
    assert found.log_gain < 0 < found.shuffled
    assert not found.typical
    assert found.estimate == (found.log_gain, found.error)


@pytest.mark.parametrize(
    ("network", "shape", "products"),
    [
        (fully_connected(7, 6), (5, 4), 8),
        *full((convolutional(3, 4), (2, 5, 5, 1), 4), (residual(4, 6), (5, 4), 6)),
    ],
)
def test_products_in_a_row(network, shape, products):
    x = jnp.asarray(draw(*shape))
    assert products_in_a_row(network.apply, network.init(jax.random.key(0), shape)[1], x) == products


def test_products_are_counted_in_branches_and_loops():
    def both(params, x):
        short = jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ params @ params, lambda x: x @ params, x)
        _, kept = jax.lax.scan(lambda c, _: (jax.jit(lambda c: c @ params)(c), None), x, None, length=5)[::-1]
        return short + kept @ (params @ params)  # the product of parameters is none of the inputs'

    assert products_in_a_row(both, jnp.eye(3), jnp.ones((2, 3))) == 6


@pytest.mark.parametrize(
    ("network", "chi_1", "words"),
    [
        (convolutional(3, 4), 1.0, ""),
        (fully_connected(3, 6, "layer"), None, "normalisation of each input"),
        (residual(4, 6), None, "no chain"),
        (fully_connected(1, 6).apply, None, "plain function"),
    ],
)
def test_mean_field_theory_of_chains_only(network, chi_1, words):
    """He's ReLU is critical, whatever pools or flattens its outputs."""
    field, reason = field_of(network, 4)
    assert (field and round(field.chi_1, 12)) == chi_1
    assert words in reason


def test_coupling_may_be_stated():
    params, x = {"w": draw(5, 3)}, draw(9, 5, seed=1)
    detected, stated = diagnose(linear, params, x), diagnose(linear, params, x, coupled=True)
    assert (detected.coupled, stated.coupled) == (False, True)
    assert "9 inputs, not coupled" in detected.summary()
    assert f"9 inputs, coupled ({AS_STATED})" in stated.summary()
    np.testing.assert_allclose(stated.ntk_ratio, detected.ntk_ratio, rtol=1e-12)
    with pytest.raises(ValueError, match="got coupled='maybe': choose True, False or 'detect'"):
        diagnose(linear, params, x, coupled="maybe")


@pytest.mark.full  # that it is printed shows the test above
@pytest.mark.parametrize("reason", [PLACE, OTHERS, BY_LAYERS])
def test_the_report_says_what_couples_the_batch(reason):
    normed = Serial(Dense(4), BatchNorm(), Activation("relu"), Dense(2))
    params, x = {"w": draw(5, 3)}, draw(9, 5, seed=1)
    functions = {
        PLACE: (lambda params, x: (x @ params["w"]) * (1.0 + np.arange(len(x)))[:, None], params),
        OTHERS: (lambda params, x: (x - jnp.mean(x, 0, keepdims=True)) @ params["w"], params),
        BY_LAYERS: (normed, drawn(normed, x)),
    }
    found = diagnose(*functions[reason], x)
    assert found.coupling == found.record()["coupling"] == reason
    assert f"9 inputs, coupled ({reason})" in found.summary()


def altered(network, x, weights=1.0, bias=None):
    """Parameters with weights this many times as large, and these biases."""

    def alter(path, leaf):
        if path[-1].key == "w":
            return leaf * np.asarray(weights, leaf.dtype)
        return leaf if bias is None else jnp.full_like(leaf, bias)

    return jax.tree_util.tree_map_with_path(alter, drawn(network, x))


TANH = fully_connected(4, 32, "none", "tanh", outputs=3, w_var=1.5, b_var=0.1)
RELU = fully_connected(4, 32, "none", "relu", outputs=3, w_var=2.0, b_var=0.1)


@pytest.mark.usefixtures("by_trace")
@pytest.mark.parametrize(
    ("network", "changes", "likeness"), full((RELU, {"bias": -1e3}, 1.0), (TANH, {"weights": 1e3}, None))
)
def test_saturated_and_dead_networks_are_reported(network, changes, likeness, digits):
    """The read-out still learns, on constant features: the kernel has a spectrum, the phase cannot be told."""
    found = diagnose(network, altered(network, digits, **changes), digits)
    assert found.growth.log_gain == -math.inf
    assert found.verdict.phase == "not decidable"
    assert "saturated or dead" in found.verdict.reason
    assert found.trace.largest > 0
    assert likeness is None or math.isclose(found.growth.outputs_alike, likeness, abs_tol=1e-6)  # float32 roundings
    text = found.summary()
    assert "derivatives by the inputs are zero" in text
    assert "nan" not in text + json.dumps(found.record(), allow_nan=False)


@pytest.mark.full
def test_a_dead_read_out_has_the_kernel_of_its_biases(digits):
    """Outputs zero for all inputs, all of which a bias moves alike: NTK 11^T, and a step of 2 / N is the largest."""

    def f(params, x):
        return jax.nn.relu(x @ params["w"] - np.float32(1e3)) @ params["v"] + params["b"][None]

    params = {"w": draw(digits.shape[1], 8), "v": draw(8, 2), "b": np.zeros(2)}
    found = diagnose(f, jax.tree.map(np.float32, params), digits)
    assert found.verdict == (
        "not decidable",
        "outputs are zero for all inputs: a dead network, as by large negative biases",
    )
    assert math.isclose(found.spectrum.learning_rate, 2 / len(digits), rel_tol=1e-6)
    assert found.ntk_ratio == 1
    assert found.summary().count("not defined, outputs are zero") == 2
    assert json.loads(json.dumps(found.record(), allow_nan=False))["growth"]["log_gain"] is None


def scaled(scale, digits):
    """A linear map, kernel entries of some scale^2; float32 ends at 1e-38, and has its digits from 1e-31 on."""

    def f(params, x):
        return np.asarray(scale, params["w"].dtype) * (x @ params["w"])

    return f, {"w": np.float32(draw(digits.shape[1], 2)) / 8}


@pytest.mark.parametrize(("scale", "words"), [(1e-30, "is zero in float32"), (2e-18, "underflows float32")])
def test_kernels_that_underflow_say_so(scale, words, digits):
    f, params = scaled(scale, digits)
    with pytest.raises(ValueError, match=words) as caught:
        diagnose(f, params, digits)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", full(1e-30, 2e-18, 1e-14))
def test_float64_mends_kernels_that_underflow(scale, digits):
    f, params = scaled(scale, digits)
    wide = diagnose(f, jax.tree.map(np.float64, params), np.float64(digits))
    assert abs(wide.growth.log_gain) < 1
    if scale == 1e-14:
        narrow = diagnose(f, params, digits)
        np.testing.assert_allclose(narrow.growth.log_gain, wide.growth.log_gain, atol=1e-4)  # float32 sums


def test_layers_of_zeros_have_no_correlation(digits):
    """Not even a warning: conftest makes it an error."""
    network = fully_connected(3, 8, "none", "relu", outputs=2)
    measured, predicted = layer_correlations(network, altered(network, digits, weights=0.0), digits, field=None, seed=0)
    assert np.isnan(measured).all()
    assert predicted is None


@pytest.mark.full
def test_what_is_undefined_is_said_to_be(digits):
    biased = fully_connected(3, 8, "none", "relu", outputs=2, w_var=1.0, b_var=0.5)
    found = diagnose(biased, altered(biased, digits, weights=0.0, bias=0.0), digits)
    assert "1: undefined (" in found.summary()
    assert "nan" not in found.summary() + json.dumps(found.record(), allow_nan=False)


def test_inputs_of_zeros_have_no_phase():
    with pytest.raises(ValueError, match="x is zero in all inputs"):
        diagnose(linear, {"w": draw(4, 3)}, np.zeros((3, 4)))
