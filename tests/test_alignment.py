"""Distance, change and alignments of kernels: known values, invariances, agreement with the definitions."""

import math
import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntk_analysis.alignment import (
    UnresolvedAlignmentWarning,
    alignment,
    centered_alignment,
    centered_one_hot,
    kernel_distance,
    relative_change,
    target_alignment,
)
from ntk_analysis.empirical import empirical_ntk
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.networks import fully_connected

ROUNDING = 1e-13  # sums of a few hundred products of float64
COMPARISONS = (kernel_distance, relative_change, alignment, centered_alignment)


def random_kernel(seed, n=8, rank=5):
    features = np.random.default_rng(seed).standard_normal((n, rank))
    return features @ features.T


def full(kernel, outputs=3):
    """Independent outputs of one kernel, in the layout (n, n, C, C)."""
    return np.einsum("ab,cd->abcd", kernel, np.eye(outputs))


def test_definitions():
    a, b = random_kernel(0) + 1, random_kernel(1) + 1
    H = np.eye(8) - 1 / 8
    cosine = np.trace(a @ b) / math.sqrt(np.trace(a @ a) * np.trace(b @ b))
    assert alignment(a, b) == pytest.approx(cosine, rel=ROUNDING)
    assert kernel_distance(a, b) == pytest.approx(1 - cosine, rel=ROUNDING)
    ca, cb = H @ a @ H, H @ b @ H
    centered = np.trace(ca @ cb) / math.sqrt(np.trace(ca @ ca) * np.trace(cb @ cb))
    assert centered_alignment(a, b) == pytest.approx(centered, rel=ROUNDING)
    assert abs(centered - cosine) > 0.01  # the wrong one would be seen
    assert relative_change(a, b) == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=ROUNDING)


def test_known_values():
    identity, ones = np.eye(4), np.ones((4, 4))
    assert alignment(identity, ones) == pytest.approx(0.5, rel=ROUNDING)
    assert kernel_distance(np.diag([1.0, 0.0]), np.diag([0.0, 1.0])) == pytest.approx(1, rel=ROUNDING)
    assert kernel_distance(identity, -identity) == pytest.approx(2, rel=ROUNDING)
    assert relative_change(identity, 3 * identity) == pytest.approx(2, rel=ROUNDING)
    assert centered_alignment(identity, identity + 7 * ones) == pytest.approx(1, rel=ROUNDING)


def test_same_kernel_is_at_distance_zero_exactly_and_small_distances_keep_their_digits():
    a = random_kernel(2)
    assert kernel_distance(a, a) == relative_change(a, a) == 0
    off = np.zeros((8, 8))
    off[0, 1] = off[1, 0] = 1.0
    off -= np.sum(off * a) / np.sum(a * a) * a  # orthogonal to a: the angle is its length over that of a
    step = 1e-9 * np.linalg.norm(a) / np.linalg.norm(off)
    assert kernel_distance(a, a + step * off) == pytest.approx(0.5e-18, rel=1e-5)  # 1 - cosine would be 0 or 1e-16


@given(seed=st.integers(0, 1000), log_scale=st.floats(-200, 200))
def test_invariances(seed, log_scale):
    a, b = random_kernel(seed), random_kernel(seed + 1)
    scale = math.exp(log_scale)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((8, 8)))[0]
    order = np.random.default_rng(seed).permutation(8)
    for compare in (kernel_distance, alignment, centered_alignment):
        value = compare(a, b)
        assert compare(b, a) == pytest.approx(value, abs=ROUNDING)
        assert compare(scale * a, b) == pytest.approx(value, abs=ROUNDING)
        assert compare(a[np.ix_(order, order)], b[np.ix_(order, order)]) == pytest.approx(value, abs=ROUNDING)
    for turned in (kernel_distance, alignment, relative_change):  # centering singles out the vector of ones
        assert turned(Q @ a @ Q.T, Q @ b @ Q.T) == pytest.approx(turned(a, b), rel=1e-10)
    assert centered_alignment(a + 5 * a.max(), b) == pytest.approx(centered_alignment(a, b), abs=1e-11)
    assert relative_change(scale * a, scale * b) == pytest.approx(relative_change(a, b), rel=1e-10)


@pytest.mark.parametrize("compare", COMPARISONS)
def test_full_layout_of_independent_outputs_says_the_same(compare):
    a, b = random_kernel(3), random_kernel(4)
    assert compare(full(a), full(b)) == pytest.approx(compare(a, b), rel=1e-12)


def test_targets():
    labels = np.array([0, 1, 0, 2, 1, 2])
    Y = centered_one_hot(labels)
    np.testing.assert_allclose(Y.sum(axis=1), 0, atol=1e-15)
    assert target_alignment(Y @ Y.T, labels) == pytest.approx(1, rel=ROUNDING)
    a = random_kernel(5, n=6)
    assert target_alignment(a, labels) == pytest.approx(target_alignment(a, 3 * Y), rel=ROUNDING)
    assert target_alignment(a, labels) == pytest.approx(centered_alignment(a, Y @ Y.T), rel=ROUNDING)
    assert target_alignment(a, labels, centered=False) == pytest.approx(alignment(a, Y @ Y.T), rel=ROUNDING)
    # Cristianini et al. 2001, equation 2: y'Ky / (n |K|) for labels -1 and 1
    y = np.array([1.0, -1, 1, 1, -1, -1])
    known = y @ a @ y / (6 * np.linalg.norm(a))
    assert target_alignment(a, y, centered=False) == pytest.approx(known, rel=ROUNDING)
    assert target_alignment(a, (y > 0).astype(int), centered=False) == pytest.approx(known, rel=ROUNDING)
    perfect = np.einsum("ac,bd->abcd", Y, Y)
    assert target_alignment(perfect, labels) == pytest.approx(1, rel=ROUNDING)


def test_labels_in_any_form():
    labels, a = np.array([0, 1, 0, 2, 1, 2]), random_kernel(5, n=6)
    expected = target_alignment(a, labels)
    numbers = target_alignment(a, labels.astype(float)[:, None], labels=False)
    assert numbers != pytest.approx(expected, rel=1e-2)
    for these in (labels[:, None], np.array(list("abc"))[labels]):
        assert target_alignment(a, these) == pytest.approx(expected, rel=ROUNDING)
    for these in (labels.astype(float), labels.astype(np.float32)[:, None]):
        assert target_alignment(a, these, labels=True) == pytest.approx(expected, rel=ROUNDING)
        with pytest.raises(ValueError, match=r"targets are 3 whole numbers in float\d\d.* labels=True or labels=False"):
            target_alignment(a, these)
    # two values are the same either way, and more values than half of the inputs are no classes
    assert target_alignment(a, labels == 1) == pytest.approx(target_alignment(a, (labels == 1) * 1.0), rel=ROUNDING)
    assert np.isfinite(target_alignment(a, np.array([3.0, 1.0, 2.0, 7.0, 5.0, 1.0])))
    with pytest.raises(ValueError, match=r"labels have shape \(6, 2\), expected \(6,\)"):
        target_alignment(a, np.ones((6, 2)), labels=True)


def test_centering_takes_out_the_constant_mode_that_aligns_any_two_kernels():
    a, b = (random_kernel(seed) + 1000 for seed in (6, 7))
    assert alignment(a, b) > 0.999
    assert centered_alignment(a, b) < 0.9


def offset_kernels(dtype, offset, n=32):
    """The same kernel in float64 without an offset, and of features with it, rounded to a dtype."""
    features = np.random.default_rng(0).standard_normal((n, 8))
    far = features + offset
    return features @ features.T, (far @ far.T).astype(dtype)


def outcome(exact, rounded, unbiased):
    """Whether an alignment is refused, or as good as is stated: by the warning, and without one to 0.01."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error = abs(1 - centered_alignment(exact, rounded, unbiased=unbiased))
        except ValueError as reason:
            return "refused" if "zero once centered, up to the rounding of" in str(reason) else str(reason)
    stated = float(str(caught[0].message).split("off by ")[1].split(",")[0]) if caught else 0.01
    return f"wrong by {error}" if error > stated else "stated" if caught else "good"


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64], ids=lambda t: t.__name__)
def test_what_rounding_leaves_of_a_centered_kernel_is_refused_or_stated_or_good(dtype):
    limits = jnp.finfo(dtype)
    offsets = np.geomspace(1e-2, 4, 9) / float(limits.eps) ** 0.5  # entries of offset^2 against a spread of about 1
    held = [offset_kernels(dtype, offset) for offset in offsets if 32 * offset**2 < float(limits.max)]
    outcomes = {outcome(exact, rounded, unbiased) for exact, rounded in held for unbiased in (False, True)}
    assert outcomes == {"stated", "refused"} | ({"good"} if limits.bits > 16 else set())  # too few digits on 32 inputs


def test_the_float32_kernels_that_were_noise():
    features = np.random.default_rng(0).standard_normal((32, 8)) + 1e4
    exact, narrow = features @ features.T, features.astype(np.float32) @ features.astype(np.float32).T
    assert centered_alignment(exact, (features - 1e4) @ (features - 1e4).T) == pytest.approx(1, abs=1e-6)
    for kernels in ((exact, narrow), (narrow, exact), (narrow, narrow)):
        with pytest.raises(ValueError, match=r"rounding of float32.*compute it in float64"):
            centered_alignment(*kernels)
    for targets in (features[:, 0], np.arange(32) % 2):
        with pytest.raises(ValueError, match="rounding of float32"):
            target_alignment(narrow, targets)


@pytest.mark.full
def test_the_float32_kernel_of_a_network_to_which_all_inputs_are_one():
    x = np.random.default_rng(0).standard_normal((32, 8))
    ordered = fully_connected(40, 1, activation="erf", w_var=0.8, b_var=0.3)
    exact, narrow = infinite_kernel(ordered, x), infinite_kernel(ordered, x.astype(np.float32))
    for which in ("ntk", "nngp"):
        with pytest.raises(ValueError, match="rounding of float32"):
            centered_alignment(exact, narrow, which=which)
        assert centered_alignment(exact, exact, which=which) == pytest.approx(1, abs=1e-12)


def test_targets_are_centered_before_they_are_squared():
    a = random_kernel(5)
    y = np.random.default_rng(0).standard_normal((8, 2))
    known = target_alignment(a, y)
    assert target_alignment(a, y + 1e9) == pytest.approx(known, abs=1e-6)  # 1e9 rounds the targets by 1e-7
    assert target_alignment(a, (y + 1e3).astype(np.float32)) == pytest.approx(known, abs=1e-3)
    with pytest.warns(UnresolvedAlignmentWarning, match="may be off by 0"):
        target_alignment(a, (y + 3e4).astype(np.float32))
    for constant in (np.full(8, 5.1), np.full((8, 2), 1 / 3), (y + 1e9).astype(np.float32)):
        with pytest.raises(ValueError, match="targets is zero once centered"):
            target_alignment(a, constant)
    assert target_alignment(a, y[:, 0] > 0) == target_alignment(a, (y[:, 0] > 0).astype(int))  # booleans are labels


def song(first, second):
    """Unbiased estimate of the Hilbert-Schmidt independence criterion: Song et al. 2012, equation 5, as it stands."""
    n, ones = len(first), np.ones(len(first))
    K, L = (kernel - np.diag(np.diag(kernel)) for kernel in (first, second))
    sums = (ones @ K @ ones) * (ones @ L @ ones) / ((n - 1) * (n - 2))
    return (np.trace(K @ L) + sums - 2 / (n - 2) * ones @ K @ L @ ones) / (n * (n - 3))


@pytest.mark.parametrize("n", [4, 8, 31])
def test_unbiased_alignment_is_that_of_unbiased_estimates(n):
    a, b = random_kernel(0, n) + 1, random_kernel(1, n, rank=3) + np.diag(np.arange(n))
    known = song(a, b) / math.sqrt(song(a, a) * song(b, b))
    found = centered_alignment(a, b, unbiased=True)
    assert found == pytest.approx(known, abs=1e-12)
    assert abs(found - centered_alignment(a, b)) > 0.01
    labels = np.arange(n) % 3
    Y = centered_one_hot(labels)
    wanted = song(a, Y @ Y.T) / math.sqrt(song(a, a) * song(Y @ Y.T, Y @ Y.T))
    assert target_alignment(a, labels, unbiased=True) == pytest.approx(wanted, abs=1e-12)
    # neither scale, nor constants, nor the diagonal, nor the order of inputs
    order = np.random.default_rng(0).permutation(n)
    for other in (3 * a, a + 7, a + np.diag(np.arange(n)), a.astype(np.float32)):
        assert centered_alignment(other, b, unbiased=True) == pytest.approx(known, abs=1e-5)
    shuffled = (kernel[np.ix_(order, order)] for kernel in (a, b))
    assert centered_alignment(*shuffled, unbiased=True) == pytest.approx(known, abs=1e-12)
    assert centered_alignment(a, a, unbiased=True) == pytest.approx(1, abs=ROUNDING)


def test_unbiased_alignment_is_zero_on_average_where_there_is_nothing_to_align():
    pairs = [(random_kernel(2 * draw, 8, 100), random_kernel(2 * draw + 1, 8, 100)) for draw in range(200)]
    biased, unbiased = (np.array([centered_alignment(*pair, unbiased=u) for pair in pairs]) for u in (False, True))
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 200**0.5
    assert biased.mean() == pytest.approx(0.93, abs=0.01)


@pytest.mark.full
def test_kernels_of_networks_in_any_scale():
    x = np.random.default_rng(0).standard_normal((6, 4))
    network = fully_connected(2500, 1, "weight_mean")
    shallow = replace(infinite_kernel(network, x[::-1] + 0.5), log_scale=np.float64(2.0))
    deep = infinite_kernel(network, x)
    with pytest.raises(OverflowError):
        _ = deep.ntk
    assert 0 < kernel_distance(shallow, deep) < 1
    assert kernel_distance(shallow, deep) == pytest.approx(
        kernel_distance(shallow.ntk, np.asarray(deep.ntk_scaled)), rel=ROUNDING
    )
    assert kernel_distance(shallow, deep, which="nngp") != kernel_distance(shallow, deep)
    assert relative_change(shallow, shallow) == 0
    with pytest.raises(OverflowError, match="compare directions"):
        relative_change(shallow, deep)


@pytest.mark.full
def test_change_of_an_empirical_kernel():
    import jax

    network = fully_connected(2, 16, outputs=2)
    x = np.random.default_rng(0).standard_normal((5, 3))
    params = jax.jit(lambda key: network.init(key, (-1, 3))[1])(jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf * 1.1, params)
    before, after = (empirical_ntk(network.apply, p, x) for p in (params, moved))
    assert kernel_distance(before, before) == 0
    # 3 layers, each derivative a product of the 2 others: the kernel grows by 1.1^4 and does not turn
    assert kernel_distance(before, after) < 1e-12
    assert relative_change(before, after) == pytest.approx(1.1**4 - 1, rel=1e-10)
    with pytest.raises(AttributeError, match="empirical_nngp"):
        kernel_distance(before, after, which="nngp")


@pytest.mark.parametrize("compare", COMPARISONS)
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.eye(3), np.eye(4), "shapes"),
        (np.eye(3), np.zeros((3, 3)), "zero"),
        (np.eye(3), np.full((3, 3), np.nan), "NaN"),
        (np.ones(3), np.ones(3), "expected \\(n1, n2\\)"),
        (np.ones((2, 2, 3, 4)), np.ones((2, 2, 3, 4)), "expected \\(n1, n2\\)"),
        (np.ones((0, 0)), np.ones((0, 0)), "expected \\(n1, n2\\)"),
    ],
)
def test_bad_kernels(compare, first, second, message):
    with pytest.raises(ValueError, match=message):
        compare(first, second)


def test_bad_input():
    a = random_kernel(0)
    with pytest.raises(ValueError, match="not a kernel"):
        alignment(a, a, which="gram")
    with pytest.raises(ValueError, match="zero once centered"):
        centered_alignment(a, np.ones((8, 8)))
    with pytest.raises(ValueError, match=r"at least 4 inputs, got shape \(3, 3\)"):
        centered_alignment(a[:3, :3], a[:3, :3], unbiased=True)
    for other in (full(a), a[:4]):
        with pytest.raises(ValueError, match="one set of inputs against itself"):
            centered_alignment(other, other, unbiased=True)
    with pytest.raises(ValueError, match="not symmetric"):
        centered_alignment(a, np.triu(a), unbiased=True)
    with pytest.raises(ValueError, match="zero once centered"):
        centered_alignment(a, np.eye(8), unbiased=True)  # nothing but a diagonal
    with pytest.raises(ValueError, match="unbiased=True with centered=False"):
        target_alignment(a, np.arange(8) % 2, centered=False, unbiased=True)
    for targets, message in [
        (np.zeros(7), "one row per input"),
        (np.zeros(8, int), "at least 2"),
        (np.full(8, np.nan), "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            target_alignment(a, targets)
    with pytest.raises(ValueError, match="itself"):
        target_alignment(a[:4], np.arange(4.0))
    with pytest.raises(ValueError, match="expected as many"):
        target_alignment(full(a), np.ones((8, 2)))
    with pytest.raises(TypeError, match="real numbers"):
        alignment(a, a.astype(complex))
