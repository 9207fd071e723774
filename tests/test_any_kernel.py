"""One kernel for every analysis: infinite, empirical in any layout, in a file or store, an array."""

import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_analysis as ntk
from ntk_analysis import alignment, last_batch_norm, spectrum
from ntk_analysis.any_kernel import entries
from ntk_analysis.layers import Activation, Conv, Dense, GlobalAvgPool, Serial
from ntk_analysis.regression import GradientFlow

C = 2
X = np.random.default_rng(0).standard_normal((6, 3))
NETWORK = Serial(Dense(8), Activation("relu"), Dense(C))
ONE = Serial(Dense(8), Activation("relu"), Dense(1))


@pytest.fixture(scope="module")
def infinite():
    return ntk.infinite_kernel(NETWORK, X)


@pytest.fixture(scope="module")
def empirical():
    """Of a layout, the kernel of one network; "one" is that of a network with one output."""

    def kernel(layout):
        network = ONE if layout == "one" else NETWORK
        params = network.init(jax.random.key(0), X.shape)[1]
        return ntk.empirical_ntk(network, params, X, layout="full" if layout == "one" else layout)

    return {layout: kernel(layout) for layout in ("full", "diagonal", "trace", "one")}


@pytest.fixture(scope="module")
def everywhere(infinite, empirical, tmp_path_factory):
    """Name -> a kernel of one output or the mean over outputs, and its matrix."""
    folder = tmp_path_factory.mktemp("kernels")
    infinite.save(folder / "infinite.npz")
    params = ONE.init(jax.random.key(0), X.shape)[1]
    ntk.empirical_ntk(ONE, params, X, store=folder / "store")
    matrix, one = np.asarray(infinite.ntk), empirical["one"].ntk[:, :, 0, 0]
    return {
        "infinite": (infinite, matrix),
        "file": (folder / "infinite.npz", matrix),
        "array": (matrix, matrix),
        "jax": (jnp.asarray(matrix), matrix),
        "one output": (empirical["one"], one),
        "trace": (empirical["trace"], empirical["trace"].ntk / C),
        "store": (str(folder / "store"), one),
    }


KINDS = ["infinite", "file", "array", "jax", "one output", "trace", "store"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_analysis_takes_every_kernel(everywhere, kind):
    kernel, matrix = everywhere[kind]
    outputs = np.random.default_rng(1).standard_normal((len(X), C))
    y = outputs[:, 0]
    for analysis in (
        spectrum.condition_number,
        spectrum.eigenvalues,
        spectrum.effective_rank,
        lambda kernel: spectrum.training_curve(kernel, y, learning_rate=0.1, steps=3).loss,
        lambda kernel: alignment.centered_alignment(kernel, X @ X.T),
        lambda kernel: alignment.target_alignment(kernel, y),
        lambda kernel: last_batch_norm.ntk(kernel, outputs),
        lambda kernel: GradientFlow.on(kernel, y).mean(kernel),
    ):
        np.testing.assert_allclose(analysis(kernel), analysis(matrix), rtol=1e-9, atol=1e-12)


def test_full_kernels_of_several_outputs(empirical):
    full = empirical["full"]
    matrix = full.ntk.transpose(2, 0, 3, 1).reshape(C * len(X), -1)
    np.testing.assert_array_equal(spectrum.eigenvalues(full), spectrum.eigenvalues(matrix))
    y = np.random.default_rng(2).standard_normal(C * len(X))
    outputs = y.reshape(C, -1).T
    np.testing.assert_allclose(GradientFlow.on(full, outputs).mean(full), outputs)
    found = spectrum.training_curve(full, y, learning_rate=0.1, steps=2, loss="mean")
    expected = spectrum.training_curve(matrix, y, learning_rate=0.1, steps=2)
    assert found.loss[0] == pytest.approx(expected.loss[0] / len(X))
    assert spectrum.analyse(full, loss="mean").learning_rate == pytest.approx(
        len(X) * spectrum.analyse(matrix).learning_rate
    )
    np.testing.assert_allclose(last_batch_norm.ntk(full, outputs), last_batch_norm.ntk(full.ntk, outputs))


def test_the_diagonal_over_outputs_has_no_matrix_but_alignments(empirical):
    with pytest.raises(ValueError, match=r"diagonal over 2 outputs, expected one matrix: take one output"):
        spectrum.condition_number(empirical["diagonal"])
    values = empirical["diagonal"].ntk
    assert entries(empirical["diagonal"]).values.shape == (6, 6, C)
    assert alignment.alignment(empirical["diagonal"], empirical["diagonal"]) == pytest.approx(1)
    y = np.random.default_rng(3).standard_normal((6, C))
    products = np.einsum("ac,bc->abc", y, y)
    expected = np.sum(values * products) / np.linalg.norm(values) / np.linalg.norm(products)
    assert alignment.target_alignment(empirical["diagonal"], y, centered=False) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kernel", "error", "words"),
    [
        ("nowhere.npz", FileNotFoundError, "no kernel at nowhere.npz"),
        (np.ones((2, 2, 3, 4)), ValueError, r"shape \(2, 2, 3, 4\), expected \(n1, n2\)"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), ValueError, r"NaN or infinite entries, as kernel\[0, 1\] = nan"),
        (np.zeros((0, 0)), ValueError, r"shape \(0, 0\)"),
        (np.ma.masked_array(np.eye(2)), TypeError, "masked"),
    ],
    ids=["path", "axes", "nan", "empty", "masked"],
)
def test_what_is_no_kernel(kernel, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for analysis in (spectrum.condition_number, lambda kernel: alignment.alignment(kernel, kernel)):
        with pytest.raises(error, match=words):
            analysis(kernel)


def test_a_kernel_is_an_array_and_a_line(infinite):
    np.testing.assert_array_equal(np.asarray(infinite), infinite.ntk)
    assert np.asarray(infinite, np.float32).dtype == np.float32
    assert repr(infinite) == "<Kernel of 6 inputs with themselves, float64, units gaussian>"
    pooled = ntk.infinite_kernel(Conv(1), np.ones((2, 3, 2, 1)), np.ones((1, 3, 2, 1)))
    assert repr(pooled) == "<Kernel of 2 x 1 inputs at 3 x 2 positions, float64, units gaussian>"
    lines = []

    def told(x):
        lines.append(repr(ntk.infinite_kernel(NETWORK, x)))
        return x

    jax.eval_shape(told, X)
    assert lines == [repr(infinite)], "inside a transformation too"
    huge = replace(infinite, log_scale=np.float64(1e4))
    with pytest.raises(OverflowError, match=r"use \.ntk_scaled"):
        np.asarray(huge)


@pytest.mark.full
def test_a_kernel_is_cut_by_inputs(infinite):
    few = infinite[:3, :3]
    assert few.joint
    assert not infinite[:3].joint
    np.testing.assert_array_equal(few.ntk, infinite.ntk[:3, :3])
    np.testing.assert_array_equal(infinite[[4, 1], 2:].nngp, infinite.nngp[[4, 1], 2:])
    np.testing.assert_array_equal(infinite[X[:, 0] > 0].ntk, infinite.ntk[X[:, 0] > 0])
    assert spectrum.condition_number(few) == pytest.approx(spectrum.condition_number(infinite.ntk[:3, :3]))
    for wrong in (2, (1, slice(None)), (slice(1), slice(1), slice(1))):
        with pytest.raises(TypeError, match=r"one input is a slice, kernel\[3:4\]"):
            infinite[wrong]
    with pytest.raises(TypeError, match="one input is a slice"):
        list(infinite)
    images = np.random.default_rng(4).standard_normal((3, 2, 2, 1))
    paired = Serial(Conv(1, 2), Activation("relu"), GlobalAvgPool())
    before = ntk.infinite_kernel(paired, images)
    np.testing.assert_allclose(before[1:, 1:].ntk, ntk.infinite_kernel(paired, images[1:]).ntk, rtol=1e-12)


def test_saved_and_read_again(infinite, tmp_path):
    infinite.save(tmp_path / "k.npz")
    found = ntk.open_kernel(tmp_path / "k.npz")
    assert found.joint
    assert (found.law, found.approximation_error) == (infinite.law, infinite.approximation_error)
    for name in ("nngp", "ntk", "mean1", "distance", "relative_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(infinite, name))
    assert found.ntk.dtype == np.float64
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found)).ntk, infinite.ntk)


def test_files_that_hold_no_kernel(infinite, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        infinite.save(tmp_path / "k.json")
    infinite.save(tmp_path / "k.npz")
    whole = (tmp_path / "k.npz").read_bytes()
    np.savez(tmp_path / "other.npz", x=X)
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "words.npz").write_text("kernel")
    for name in ("other", "cut", "words"):
        with pytest.raises(ValueError, match="cannot be read as a kernel"):
            ntk.open_kernel(tmp_path / f"{name}.npz")
    refused = 0
    for place in range(50, len(whole), len(whole) // 40):
        flipped = bytearray(whole)
        flipped[place] ^= 255
        (tmp_path / "flipped.npz").write_bytes(flipped)
        try:  # what no checksum covers, such as a date, changes no number
            np.testing.assert_array_equal(ntk.open_kernel(tmp_path / "flipped.npz").ntk, infinite.ntk)
        except ValueError as error:
            refused += "cannot be read as a kernel" in str(error)
    assert refused > 20
    with pytest.raises(OSError, match="File exists"):
        infinite.save(tmp_path / "k.npz" / "nothing.npz")
