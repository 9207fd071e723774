"""Correlations by layer against plain NumPy networks, the predicted band, and the measured numbers of theory.md."""

import itertools
import math
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ntk_analysis.correlation import (
    OBSERVABLES,
    ChannelDistributions,
    CorrelationByLayer,
    UndefinedCorrelationWarning,
    channel_distributions,
    layer_correlations,
    predicted_spread,
    random_pairs,
)
from ntk_analysis.layers import Activation, BatchNorm, Dense, LayerNorm, Repeat, Residual, ResidualChain, Serial
from ntk_analysis.networks import fully_connected

from .tiers import full

GAIN = 2 / (1 - 1 / math.pi)
PAIRS = np.array([[0, 1], [2, 0], [3, 5]])


def inputs(count, features=12, seed=0):
    """Rows with |x|^2 = features, independent directions."""
    x = np.random.default_rng(seed).normal(size=(count, features))
    return x * math.sqrt(features) / np.linalg.norm(x, axis=1, keepdims=True)


def standardize(h, axis):
    return (h - h.mean(axis=axis, keepdims=True)) / h.std(axis=axis, keepdims=True)


def numpy_layers(network, key, x, normalization):
    """[(dense output, pre-activation, activation)] of a fully connected ReLU network, from its own parameters."""
    first, *rest = jax.tree.leaves(network.init(key, x.shape)[1])
    weights = [np.asarray(first), *(np.asarray(w) for w in rest[0])]  # the read-out's matrix, rest[1], is not needed
    y, layers = x, []
    for number, w in enumerate(weights):
        fan_in, gain = len(w), 1.0 if number == 0 else GAIN if normalization == "weight_mean" else 2.0
        if number and normalization == "weight_mean":
            w, fan_in = w - w.mean(axis=0), fan_in - 1
        dense = y @ w * math.sqrt(gain / fan_in)
        axis = {"batch": 0, "layer": 1}.get(normalization)
        before = dense if axis is None else standardize(dense, axis)
        activation = np.maximum(before, 0)
        y = standardize(activation, 1) if normalization == "layer_post" else activation
        layers.append((dense, before, activation))
    return layers


def observed(layers, observable, pairs):
    dense, before, activation = layers
    if observable == "cosine":
        unit = activation / np.linalg.norm(activation, axis=1, keepdims=True)
        return (unit @ unit.T)[pairs[:, 0], pairs[:, 1]]
    h = {"activation": activation, "pre_activation": before, "before_normalization": dense}[observable]
    return np.corrcoef(h)[pairs[:, 0], pairs[:, 1]]


DEFAULT = {("batch", observable) for observable in OBSERVABLES} | {("weight_mean", "activation")}
NORMALIZATIONS = ("none", "weight_mean", "batch", "layer", "layer_post")


@pytest.mark.parametrize(
    ("normalization", "observable"),
    [*sorted(DEFAULT), *full(*sorted(set(itertools.product(NORMALIZATIONS, OBSERVABLES)) - DEFAULT))],
)
def test_every_observable_of_every_draw_is_that_of_a_plain_numpy_network(normalization, observable):
    x, network = inputs(6), fully_connected(4, 20, normalization)
    result = layer_correlations(network, x, PAIRS, seed=3, draws=2, observable=observable)
    keys = jax.random.split(jax.random.key(3), 2)
    expected = [
        [observed(layers, observable, PAIRS) for layers in numpy_layers(network, key, x, normalization)] for key in keys
    ]
    assert result.values.shape == (2, 4, 3)
    assert_allclose(result.values, expected, rtol=0, atol=1e-12)
    assert_allclose(result.initial, (x @ x.T / 12)[PAIRS[:, 0], PAIRS[:, 1]], atol=1e-14)


@pytest.mark.full
def test_the_four_observables_differ_where_they_should():
    x = inputs(6)
    batch, straight = (
        {name: layer_correlations(fully_connected(4, 20, n), x, PAIRS, seed=0, observable=name) for name in OBSERVABLES}
        for n in ("batch", "none")
    )
    for first in range(4):
        for second in range(first):
            a, b = batch[OBSERVABLES[first]].values, batch[OBSERVABLES[second]].values
            assert np.abs(a - b).max() > 0.01
    assert np.array_equal(straight["pre_activation"].values, straight["before_normalization"].values)


BRANCH = Serial(BatchNorm(), Activation("relu"), Dense(12, 2.0))


@pytest.mark.parametrize("blocks", [ResidualChain(BRANCH, (1.0, 1.0, 1.0)), *full(Repeat(Residual(BRANCH), 3))])
def test_residual_and_activation_first_networks_see_what_enters_the_activation(blocks):
    x = inputs(6)
    network = Serial(Activation("relu"), Dense(12), blocks)
    params = network.init(jax.random.split(jax.random.key(1), 1)[0], x.shape)[1]
    stream, streams = np.maximum(x, 0) @ np.asarray(params[1]["w"]) / math.sqrt(12), []
    for w in np.asarray(params[2][2]["w"]):
        streams.append(stream)
        stream = stream + np.maximum(standardize(stream, 0), 0) @ w * math.sqrt(2 / 12)
    i, j = PAIRS.T
    before = [np.corrcoef(s)[i, j] for s in (x, *streams)]
    pre = [np.corrcoef(s)[i, j] for s in (x, *(standardize(s, 0) for s in streams))]
    for observable, expected in (("before_normalization", before), ("pre_activation", pre)):
        result = layer_correlations(network, x, PAIRS, seed=1, observable=observable)
        assert_allclose(result.values[0], expected, atol=1e-12)


def test_pearson_is_the_cosine_of_centered_layers_and_ignores_scale_and_shift():
    h = np.random.default_rng(0).normal(size=(6, 9))
    pearson = layer_correlations(lambda key, x: [h, 3e30 * h - 1e30], inputs(6), PAIRS, seed=0)
    centered = h - h.mean(axis=1, keepdims=True)
    cosine = layer_correlations(
        lambda key, x: [centered, 1e-200 * centered], inputs(6), PAIRS, seed=0, observable="cosine"
    )
    assert pearson.observable == "given"
    assert_allclose(pearson.values, cosine.values, atol=1e-12)


def test_a_function_gets_one_key_a_draw_and_may_yield_layers_of_different_widths():
    x = inputs(6)
    network = fully_connected(4, 20)

    def layers(key, x):
        for _, _, activation in numpy_layers(network, key, x, "none"):
            yield activation
            yield jnp.asarray(activation[:, :15], jnp.float32)

    mine = layer_correlations(layers, x, PAIRS, seed=5, draws=3)
    ready = layer_correlations(network, x, PAIRS, seed=5, draws=3)
    assert mine.values.shape == (3, 8, 3)
    assert_allclose(mine.values[:, ::2], ready.values, atol=1e-12)
    assert np.abs(mine.values[0] - mine.values[1]).max() > 1e-3


def test_an_integer_seed_is_the_key_of_that_seed():
    x, network = inputs(6), fully_connected(4, 20)
    by_seed, by_key = (layer_correlations(network, x, PAIRS, seed=s) for s in (7, jax.random.key(7)))
    assert np.array_equal(by_seed.values, by_key.values)


@pytest.mark.parametrize("flag", [False, True])
def test_float64_inputs_are_computed_in_float64_whatever_the_flag(flag):
    x, network = inputs(6), fully_connected(4, 20)
    expected = layer_correlations(network, x, PAIRS, seed=0).values
    with jax.enable_x64(flag):
        assert_allclose(layer_correlations(network, x, PAIRS, seed=0).values, expected, rtol=0, atol=0)


@pytest.mark.full
def test_float32_networks_give_float64_results_right_to_rounding():
    x = inputs(6).astype(np.float32)
    with jax.enable_x64(False):
        network, key = fully_connected(4, 20), jax.random.split(jax.random.key(0), 1)[0]
        result = layer_correlations(network, x, PAIRS, seed=0)
        layers = numpy_layers(network, key, x, "none")
    assert result.values.dtype == np.float64
    expected = [observed([a.astype(np.float64) for a in layer], "activation", PAIRS) for layer in layers]
    assert_allclose(result.values[0], expected, atol=5e-6)
    assert not np.array_equal(result.values[0], expected)  # it was float32 indeed


def test_pairs_in_several_chunks_are_the_pairs_one_by_one():
    x, h, pairs = inputs(60), np.random.default_rng(0).normal(size=(60, 7)), random_pairs(60, 1500, 0)
    result, again = (layer_correlations(lambda key, x: [h], x, some, seed=0) for some in (pairs, pairs[1400:]))
    assert_allclose(result.values[..., 1400:], again.values, atol=1e-15)


def test_predicted_spread_has_the_numbers_of_theory_section_2():
    assert predicted_spread(300) == pytest.approx(0.085, abs=5e-4)
    assert predicted_spread(300, observable="pre_activation") == pytest.approx(0.103, abs=5e-4)
    assert predicted_spread(10**6) == pytest.approx(1.471e-3, rel=1e-3)
    slope = 0.25 / (0.5 - 1 / (2 * math.pi))  # phihat'(0) / (phihat(1) - phihat(0))
    assert predicted_spread(300) == pytest.approx(1 / math.sqrt(300 * (1 - slope**2)), rel=1e-12)
    assert predicted_spread(300, activation="abs") == pytest.approx(1 / math.sqrt(300), rel=1e-6)  # even: lam = 0


@pytest.fixture(scope="module")
def weight_mean():
    """Width 300, depth 50, 200 pairs of 50 inputs, 5 networks."""
    x, pairs = inputs(50), random_pairs(50, 200, 1)
    network = fully_connected(50, 300, "weight_mean")
    return {
        observable: layer_correlations(network, x, pairs, seed=2, draws=5, observable=observable)
        for observable in ("activation", "pre_activation", "cosine")
    }


@pytest.mark.full
@pytest.mark.parametrize(("observable", "excluded"), [("activation", 1.0), ("pre_activation", 2.0)])
def test_weight_mean_spread_is_the_predicted_one_and_not_that_without_memory(weight_mean, observable, excluded):
    result = weight_mean[observable]
    measured, error = result.standard_deviation()[-1], result.standard_deviation_error()[-1]
    assert error < 0.003
    # first order in 1/n: theory.md section 2 measured 0.089 and 0.107, 5 % above, so 0.004 is allowed beside 3 errors
    assert abs(measured - predicted_spread(300, observable=observable)) < 0.004 + 3 * error
    assert measured - math.sqrt(excluded / 300) > 5 * error + 0.004  # lam = 0: one layer's noise only


@pytest.mark.full
def test_weight_mean_numbers_of_the_table_in_theory_section_2(weight_mean):
    # means .002 and .320, deviation .087; the means there have no stated error: 0.006 allowed (T_bar is convex,
    # so the mean is 0.2335 * 0.085^2 / (1 - 0.7335) = 0.0063 above 0 to first order in 1/n)
    cosine, activation = weight_mean["cosine"], weight_mean["activation"]
    assert abs(cosine.mean()[-1] - 0.320) < 0.006 + 3 * cosine.mean_error()[-1]
    assert abs(activation.mean()[-1] - 0.0063) < 3 * activation.mean_error()[-1] + 0.002
    assert abs(activation.standard_deviation()[-1] - 0.087) < 0.0005 + 3 * activation.standard_deviation_error()[-1]


@pytest.mark.full
def test_batch_norm_at_depth_50_is_wider_than_the_weight_mean_band_as_in_the_table():
    x, pairs = inputs(400), random_pairs(400, 1000, 1)
    network = fully_connected(50, 300, "batch")
    result = layer_correlations(network, x, pairs, seed=2, draws=4, observable="activation")
    spread, error = result.standard_deviation(), result.standard_deviation_error()
    assert abs(spread[-1] - 0.105) < 0.0005 + 3 * error[-1]  # theory.md section 2: .105, x1.06 at 15, x1.25 at 50
    assert abs(spread[14] / predicted_spread(300) - 1.06) < 0.03 + 3 * error[14] / predicted_spread(300)
    assert spread[-1] - predicted_spread(300) > 5 * error[-1]


@pytest.mark.full
def test_straight_networks_rise_towards_one():
    result = layer_correlations(fully_connected(50, 100), inputs(50), random_pairs(50, 200, 1), seed=2, draws=4)
    mean, error = result.mean(), result.mean_error()
    assert mean[-1] > 0.95 > mean[4]
    assert (np.diff(mean[:20]) > -error[1:20]).all()
    assert result.standard_deviation()[-1] < result.standard_deviation()[5] / 2


def some_result(values):
    values = np.asarray(values, np.float64)
    pairs = random_pairs(10, values.shape[2], 0)
    return CorrelationByLayer(values, np.zeros(len(pairs)), pairs, "activation")


def test_statistics_pool_pairs_and_draws_and_errors_are_over_draws():
    values = np.random.default_rng(0).uniform(-1, 1, size=(5, 3, 7))
    result = some_result(values)
    assert_allclose(result.mean(), values.mean(axis=(0, 2)))
    assert_allclose(result.standard_deviation(), values.std(axis=(0, 2)))
    assert_allclose(result.mean_error(), values.mean(axis=2).std(axis=0, ddof=1) / math.sqrt(5))
    assert_allclose(result.quantiles((0.1, 0.5)), np.quantile(values, (0.1, 0.5), axis=(0, 2)))


def test_the_error_of_the_standard_deviation_is_that_of_repeated_experiments():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 8, 2, 10)) * rng.uniform(0.5, 1.5, size=(200, 8, 1, 1))  # draws differ in width
    results = [some_result(v) for v in values]
    spread = np.std([r.standard_deviation() for r in results], axis=0)
    claimed = np.sqrt(np.mean([r.standard_deviation_error() ** 2 for r in results], axis=0))
    assert_allclose(claimed, spread, rtol=0.15)  # 200 experiments know a deviation to 1/sqrt(400) = 5 %


def test_one_draw_has_no_standard_error():
    result = some_result(np.zeros((1, 2, 3)))
    for error in (result.mean_error, result.standard_deviation_error):
        with pytest.raises(ValueError, match="draws >= 2"):
            error()


def test_dead_layers_are_nan_with_a_warning_and_left_out_of_statistics():
    h = np.random.default_rng(0).normal(size=(6, 5))
    dead = np.where(np.arange(6)[:, None] == 1, 0.1, h)  # input 1: the same value in every channel, not a power of 2
    with pytest.warns(UndefinedCorrelationWarning, match="4 of 9 .* hidden layer 2 of draw 0"):
        result = layer_correlations(lambda key, x: [h, dead, 0 * h + 0.1], inputs(6), PAIRS, seed=0)
    assert np.isnan(result.values[0]).tolist() == [[False] * 3, [True, False, False], [True] * 3]
    assert_allclose(result.mean()[1], np.asarray(np.corrcoef(h))[PAIRS[1:, 0], PAIRS[1:, 1]].mean())
    assert np.isnan(result.mean()[2])
    assert np.isnan(result.standard_deviation()[2])
    assert np.isnan(result.quantiles()[:, 2]).all()


@pytest.mark.full
def test_dead_rectifiers_of_a_network_are_announced():
    with pytest.warns(UndefinedCorrelationWarning):
        layer_correlations(fully_connected(30, 2), inputs(6), PAIRS, seed=0, observable="cosine")


def test_chosen_channels_are_channels_of_the_numpy_network():
    x, network = inputs(6), fully_connected(4, 20, "batch")
    layers = numpy_layers(network, jax.random.split(jax.random.key(3))[0], x, "batch")
    for observable, which in (("pre_activation", 1), ("activation", 2), ("before_normalization", 0)):
        result = channel_distributions(network, x, (4, 2), 15, seed=3, observable=observable)
        assert isinstance(result, ChannelDistributions)
        assert result.values.shape == (2, 15, 6)
        assert result.values.dtype == np.float64
        for values, number in zip(result.values, (4, 2), strict=True):
            distance = np.abs(values[:, None] - layers[number - 1][which].T[None]).max(axis=2)
            assert distance.min(axis=1).max() < 1e-12
            if observable != "activation":  # dead ReLU channels are all alike
                assert len(set(distance.argmin(axis=1))) == 15
    assert_allclose(result.quantiles()[2], np.median(result.values, axis=2))
    other = channel_distributions(network, x, (4, 2), 15, seed=4)
    assert not np.allclose(other.values, result.values)


@pytest.mark.full
def test_straight_channels_freeze_over_the_batch_and_weight_mean_channels_do_not():
    x = inputs(50)
    within = {}
    for normalization in ("none", "weight_mean"):
        values = channel_distributions(fully_connected(50, 64, normalization), x, (50,), seed=0).values[0]
        assert values.shape == (30, 50)
        within[normalization] = values.var(axis=1).mean() / (values**2).mean()
    assert within["none"] < 0.25  # one draw at width 64
    assert within["weight_mean"] > 0.8


def test_a_function_s_channels():
    h = np.random.default_rng(0).normal(size=(6, 5))
    result = channel_distributions(lambda key, x: [h], inputs(6), (1,), 5, seed=0)
    assert_allclose(np.sort(result.values[0], axis=0), np.sort(h.T, axis=0))


def test_random_pairs_are_distinct_ordered_and_cover_all_pairs():
    every = random_pairs(50, 1225, 0)
    assert every.shape == (1225, 2)
    assert sorted(map(tuple, every)) == [(i, j) for i in range(50) for j in range(i + 1, 50)]
    some = random_pairs(3_000_000_000, 1000, 1)  # numbers up to 4.5e18, beyond float64's integers
    assert (some[:, 0] >= 0).all()
    assert (some[:, 0] < some[:, 1]).all()
    assert (some[:, 1] < 3_000_000_000).all()
    assert np.array_equal(some, random_pairs(3_000_000_000, 1000, 1))
    assert not np.array_equal(some, random_pairs(3_000_000_000, 1000, 2))


@pytest.mark.parametrize(("count", "pairs"), [(5, 11), (5, 0), (1, 1), (5, -1)])
def test_random_pairs_refuses_what_does_not_exist(count, pairs):
    with pytest.raises(ValueError, match=f"pairs={pairs}"):
        random_pairs(count, pairs, 0)


@dataclass(frozen=True)
class Refusal:
    message: str
    network: object = fully_connected(2, 8)
    x: object = None
    pairs: object = None
    draws: int = 1
    observable: str | None = None
    error: type = ValueError


def with_entry(value):
    x = inputs(6)
    x[2] = value
    return x


REFUSALS = {
    "pair out of range": Refusal("0 to 5", pairs=np.array([[0, 6]])),
    "negative pair": Refusal("0 to 5", pairs=np.array([[-1, 2]])),
    "the same input twice": Refusal("with itself", pairs=np.array([[0, 1], [2, 2]])),
    "no pairs": Refusal("P >= 1", pairs=np.zeros((0, 2), int)),
    "unknown observable": Refusal("before_normalization, cosine", observable="spearman"),
    "a network's observable of a function": Refusal(
        "given, cosine", network=lambda key, x: [x], observable="pre_activation"
    ),
    "NaN inputs": Refusal("first in row 2", x=with_entry(np.nan)),
    "a zero input": Refusal("is zero", x=with_entry(0.0), pairs=np.array([[0, 2]])),
    "no inputs": Refusal("none of them 0", x=np.zeros((0, 3))),
    "no draws": Refusal("draws=0", draws=0),
    "one channel": Refusal("layer 1 has 1 channels", network=fully_connected(2, 1)),
    "no activation": Refusal("no hidden layer", network=Serial(Dense(3), LayerNorm())),
    "a function without layers": Refusal("no hidden layer", network=lambda key, x: []),
    "a function's shape": Refusal("layer 1 has shape", network=lambda key, x: [x.T]),
    "a network that overflows": Refusal(
        "gain is too large", network=fully_connected(4, 20, w_var=1e300), error=OverflowError
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_refusals_name_what_was_wrong(refusal):
    x = inputs(6) if refusal.x is None else refusal.x
    pairs = PAIRS if refusal.pairs is None else refusal.pairs
    with pytest.raises(refusal.error, match=refusal.message):
        layer_correlations(refusal.network, x, pairs, seed=0, draws=refusal.draws, observable=refusal.observable)


def test_what_is_neither_network_nor_function_is_refused():
    with pytest.raises(TypeError, match=r"Layer"):  # by the annotation here, by the function's own check in production
        layer_correlations(3, inputs(6), PAIRS, seed=0)


def test_a_function_must_return_as_many_layers_in_every_draw():
    lengths = iter((2, 3))
    with pytest.raises(ValueError, match="draw 1 has 3 layers"):
        layer_correlations(lambda key, x: [x] * next(lengths), inputs(6), PAIRS, seed=0, draws=2)


def test_one_channel_has_a_cosine():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedCorrelationWarning)
        result = layer_correlations(fully_connected(1, 1), inputs(6), PAIRS, seed=0, observable="cosine")
    assert set(result.values[~np.isnan(result.values)]) <= {1.0}


@pytest.mark.parametrize(
    ("layers", "channels", "observable", "message"),
    [
        ((3,), 4, None, "no hidden layer 3: .* 1 to 2"),
        ((0,), 4, None, "no hidden layer 0"),
        ((1, 2), 9, None, "layer 1 has 8 channels, expected at least 9"),
        ((1,), 0, None, "got 0 channels"),
        ((), 4, None, "at least 1 of each"),
        ((1,), 4, "cosine", "no 'cosine'"),
        ((1,), 4, "median", "unknown observable"),
    ],
)
def test_channels_that_do_not_exist_are_refused(layers, channels, observable, message):
    with pytest.raises(ValueError, match=message):
        channel_distributions(fully_connected(2, 8), inputs(6), layers, channels, seed=0, observable=observable)


@pytest.mark.parametrize(
    ("width", "observable", "activation", "message"),
    [
        (1, "activation", "relu", "width 1"),
        (300, "cosine", "relu", "no prediction"),
        (300, "activation", "identity", "slope below 1"),
    ],
)
def test_predictions_that_do_not_exist_are_refused(width, observable, activation, message):
    with pytest.raises(ValueError, match=message):
        predicted_spread(width, observable=observable, activation=activation)
