"""Spectra by NTK-vector products: products and bounds against the dense kernel, estimates inside their errors."""

import json
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

from ntk_analysis import cli
from ntk_analysis.common.estimates import estimated
from ntk_analysis.empirical.directions import random_direction
from ntk_analysis.empirical.functions import flattened
from ntk_analysis.empirical.projected import projected_ntk
from ntk_analysis.empirical.tiles import AS_STATED
from ntk_analysis.empirical.vector_products import _largest_chunk, _rematerialised, vector_products
from ntk_analysis.spectrum import matrix_free
from ntk_analysis.spectrum.curvature import weighted
from ntk_analysis.spectrum.lanczos import lanczos
from ntk_analysis.spectrum.probing import fraction_below, krylov_runs, signs, trace_of

from .test_empirical import PARAMS, coupled, dense, draw, plain, without_forward_mode
from .tiers import full

X = draw(7, 3, seed=3)
M = 7 * 4  # rows of the kernel
ROUNDING = 1e-12  # of the largest entry, as in test_empirical.py
REPETITIONS = 200


def matrix(f, x=X):
    """The dense kernel (N C, N C), input by input."""
    m = 4 * len(x)
    return dense(f, PARAMS, x).swapaxes(1, 2).reshape(m, m)


@pytest.fixture(scope="module")
def batch_norm():
    """Products of a network that couples its batch, compiled once."""
    return vector_products(coupled, PARAMS, X, coupled=True)


def test_a_product_is_the_dense_kernels(batch_norm):
    kernel, v = matrix(coupled), draw(M, seed=5)
    assert (batch_norm.size, batch_norm.rows, batch_norm.outputs) == (M, 7, 4)
    assert batch_norm.coupling == AS_STATED
    np.testing.assert_allclose(batch_norm(v), kernel @ v, rtol=0, atol=ROUNDING * np.max(np.abs(kernel)) * M)
    gradients = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(batch_norm.backward(v))])
    np.testing.assert_allclose(gradients @ gradients, v @ kernel @ v, rtol=ROUNDING * M)
    np.testing.assert_allclose(batch_norm.values(), coupled(PARAMS, X), rtol=0, atol=ROUNDING)


@pytest.mark.full
def test_chunks_of_inputs_change_nothing():
    """Seven inputs in chunks of three: the last chunk repeats its last input, which adds nothing."""
    whole = vector_products(plain, PARAMS, X, coupled=False)
    assert (whole.rows, whole.coupling) == (7, "")
    memory = next(memory for memory in range(1000, 9000, 50) if chunk_within(memory) == 3)
    cut = vector_products(plain, PARAMS, X, coupled=False, memory=memory)
    assert cut.rows == 3
    assert cut.memory_bytes < min(memory, whole.memory_bytes)
    kernel, v = matrix(plain), draw(M, seed=5)
    for products in (whole, cut):
        np.testing.assert_allclose(products(v), kernel @ v, rtol=0, atol=ROUNDING * np.max(np.abs(kernel)) * M)


def chunk_within(memory):
    try:
        return _largest_chunk(flattened(plain), PARAMS, X, 4, np.dtype(float), memory)
    except MemoryError:
        return 0


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(MemoryError, match=r"^a product with the tangent kernel on one input needs .*: give memory="):
        vector_products(plain, PARAMS, X, coupled=False, memory=100)


@pytest.mark.full
def test_a_batch_that_does_not_fit_is_refused():
    with pytest.raises(MemoryError, match=r"batch of 7 inputs, coupled \(.*\), needs .*evaluation mode$"):
        vector_products(coupled, PARAMS, X, memory=100)


@pytest.mark.full
def test_a_function_without_forward_mode_is_taken():
    def f(params, x):
        return without_forward_mode(x @ params["in"]) @ params["out"]

    params, v = {name: PARAMS[name] for name in ("in", "out")}, draw(M, seed=5)
    kernel = dense(f, params, X).swapaxes(1, 2).reshape(M, M)
    np.testing.assert_allclose(vector_products(f, params, X)(v), kernel @ v, rtol=1e-10)


@pytest.mark.full
def test_reverse_mode_keeps_products_only(capsys):
    """A coupled batch's backward pass keeps the results of matrix products, and not what lies between them."""

    def deep(params, x):
        for _ in range(3):
            x = jnp.tanh(jnp.sin(jnp.exp(-(x**2)))) @ params["w"]
        return x

    def kept(f):
        print_saved_residuals(f, {"w": draw(5, 5)}, draw(7, 5))
        return sum("argument" not in line for line in capsys.readouterr().out.splitlines())

    assert kept(_rematerialised(deep)) <= 3 < kept(deep)


def with_eigenvalues(values, seed=0):
    q, _ = np.linalg.qr(draw(len(values), len(values), seed=seed))
    return (q * values) @ q.T


EIGENVALUES = np.concatenate([np.geomspace(1e-3, 2.0, 37), [9.0, 20.0, 40.0]])


def test_lanczos_bounds_hold_and_its_basis_is_orthonormal():
    kernel = with_eigenvalues(EIGENVALUES)
    run = lanczos(lambda v: kernel @ v, signs(40, 0, 0), 12)
    values, vectors = run.ritz()
    np.testing.assert_allclose(run.basis.T @ run.basis, np.eye(12), atol=1e-14)
    residuals = np.linalg.norm(kernel @ run.basis @ vectors - run.basis @ vectors * values, axis=0)
    np.testing.assert_allclose(run.bounds, residuals, atol=1e-12)
    distances = np.min(np.abs(values[:, None] - EIGENVALUES[None]), axis=1)
    assert (distances <= run.bounds + 1e-12).all()
    np.testing.assert_allclose(values[:3], EIGENVALUES[::-1][:3], rtol=1e-4)
    assert (values <= EIGENVALUES[::-1][:12] + 1e-12).all()


def test_lanczos_ends_where_the_span_is_invariant():
    """Four different eigenvalues of ten: four steps, exact."""
    kernel = with_eigenvalues(np.array([5.0, 3.0, 1.0, *[0.0] * 7]))
    run = lanczos(lambda v: kernel @ v, signs(10, 1, 0), 9)
    assert (len(run.diagonal), run.residual) == (4, 0.0)
    np.testing.assert_allclose(run.ritz()[0], [5, 3, 1, 0], atol=1e-13)
    whole = krylov_runs(lambda v: kernel @ v, 10, steps=9, probes=2, probe_steps=9, seed=1)
    assert float(trace_of(whole).value) == pytest.approx(9, abs=30 * float(trace_of(whole).half_width) + 1e-9)


def gauss_newton(f):
    """J^T H J / N of the cross-entropy, by the Jacobian and the Hessian of the loss by automatic differentiation."""
    jacobian = jax.jacrev(lambda params: f(params, X))(PARAMS)
    flat = np.concatenate([np.reshape(leaf, (M, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    hessian = jax.vmap(jax.hessian(lambda y: jax.nn.logsumexp(y) - y[0]))(coupled(PARAMS, X))
    blocks = np.zeros((7, 4, 7, 4))
    blocks[np.arange(7), :, np.arange(7), :] = hessian
    return flat.T @ blocks.reshape(M, M) @ flat / 7


@pytest.mark.parametrize("name", ["fisher", *full("gauss_newton", "ntk")])
def test_each_matrix_has_the_eigenvalues_of_the_dense_one(batch_norm, name):
    """Those of the Gauss-Newton matrix in the space of the parameters, from the Hessian of the loss itself."""
    wanted = {"ntk": matrix(coupled), "fisher": matrix(coupled) / 7}.get(name)
    expected = np.linalg.eigvalsh(gauss_newton(coupled) if wanted is None else wanted)[::-1][:5]
    found = lanczos(weighted(batch_norm, name), signs(M, 0, 0), M).ritz()[0][:5]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "products"


def test_the_spectrum_of_a_network_is_that_of_its_dense_kernel(kept):
    told = list[str]()
    options = {"steps": 12, "probes": 3, "probe_steps": 4, "coupled": True}
    found = matrix_free(coupled, PARAMS, X, **options, folder=kept, tell=told.append)
    true = np.linalg.eigvalsh(matrix(coupled))[::-1]
    assert found.largest == pytest.approx(true[0], abs=found.largest_error)
    assert found.largest_error < 1e-6 * true[0]
    assert abs(found.trace.value - true.sum()) < found.trace.half_width
    below = found.fraction_below(true.mean())
    assert abs(below.value - np.mean(true <= true.mean())) < below.half_width < 1
    assert 1 < found.condition_number < true[0] / true[-1]
    assert found.learning_rate == pytest.approx(2 / true[0])
    assert found.products == 12 + 3 * 4 + 2 == len(list(kept.glob("*.npz"))) + 1  # that of rounding is not kept
    assert re.fullmatch(r"a product takes .* s: about .* min for 25 of 26 products", told[0])
    assert "coupled (" in found.summary()
    assert "condition number  > " in str(found)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["trace"]["draws"] == 3


@pytest.mark.full
def test_a_run_goes_on_with_the_products_that_are_there(kept, monkeypatch):
    """Killed behind any product, the same call ends with the same bits; only what is missing is computed."""
    options = {"steps": 12, "probes": 3, "probe_steps": 4, "folder": kept}
    whole = matrix_free(coupled, PARAMS, X, **options)
    files = sorted(kept.glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
    files[-1].unlink()
    files[5].write_bytes(files[5].read_bytes()[:-40])  # damaged: computed again
    told = list[str]()
    again = matrix_free(coupled, PARAMS, X, **options, tell=told.append)
    np.testing.assert_array_equal(again.eigenvalues, whole.eigenvalues)
    assert again.trace.value == whole.trace.value
    assert len(list(kept.glob("*.npz"))) == len(files)

    def other(params, x):
        return 2.0 * coupled(params, x)

    other.__module__, other.__qualname__ = coupled.__module__, coupled.__qualname__
    with pytest.raises(ValueError, match="products of another function f: give another folder"):
        matrix_free(other, PARAMS, X, **options)
    with pytest.raises(ValueError, match="products of another matrix, with other matrix: give another folder"):
        matrix_free(coupled, PARAMS, X, **options, matrix="fisher")
    with pytest.raises(FileExistsError, match=r"has no facts\.json: give a path that does not exist yet"):
        matrix_free(coupled, PARAMS, X, **options | {"folder": kept.parent})
    with pytest.raises(FileExistsError, match="is a file"):
        matrix_free(coupled, PARAMS, X, **options | {"folder": kept / "facts.json"})
    (kept / "facts.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged: give another folder"):
        matrix_free(coupled, PARAMS, X, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": "hessian"}, "got matrix='hessian': choose one of ntk, fisher, gauss_newton"),
        ({"steps": 1}, "got steps=1, expected at least 2"),
        ({"probes": 1}, "got probes=1, expected at least 2"),
        ({"probe_steps": 0}, "got probe_steps=0, expected at least 1"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        matrix_free(plain, PARAMS, X, **options)


@pytest.mark.full
def test_a_dead_network_and_one_that_overflows_are_told():
    with pytest.raises(ValueError, match="the ntk is zero: no parameter moves any output"):
        matrix_free(lambda p, x: 0.0 * plain(p, x), PARAMS, X, coupled=False)
    with pytest.raises(ValueError, match="is NaN or infinite: check parameters and inputs"):
        matrix_free(lambda p, x: jnp.inf * plain(p, x), PARAMS, X, coupled=False)


@pytest.mark.full
@pytest.mark.parametrize("name", ["a network's", "an outlier's", "a ReLU's"])
def test_estimates_are_inside_their_stated_errors(name):
    """95 % of 200 repetitions of other signs; three standard deviations of 200 such repetitions are 4.6 %."""
    kernel = {
        "a network's": lambda: matrix(coupled, draw(20, 3, seed=3)),
        "an outlier's": lambda: with_eigenvalues(EIGENVALUES),
        "a ReLU's": lambda: relu_kernel(60),
    }[name]()
    true = np.linalg.eigvalsh(kernel)
    grid = np.quantile(true, [0.2, 0.5, 0.9])
    inside = []
    for seed in range(REPETITIONS):
        runs = krylov_runs(partial(np.matmul, kernel), len(kernel), steps=8, probes=4, probe_steps=5, seed=seed)
        trace, below = trace_of(runs), fraction_below(runs, grid)
        counted = np.mean(true[:, None] <= grid[None], axis=0)
        largest = abs(runs[0].ritz()[0][0] - true[-1]) <= runs[0].bounds[0] + 1e-12 * true[-1]
        inside.append(
            [
                abs(trace.value - true.sum()) <= trace.half_width,
                largest,
                *(np.abs(below.value - counted) <= below.half_width),
            ]
        )
    share = np.mean(inside, axis=0)
    assert (share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS)).all(), share
    assert share[1] == 1


def relu_kernel(count):
    """The NTK of one hidden ReLU layer of infinite width on random inputs (theory.md, arc-cosine kernels)."""
    x = draw(count, 5, seed=8)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    angle = np.arccos(np.clip(x @ x.T, -1, 1))
    return (np.sin(angle) + 2 * (np.pi - angle) * np.cos(angle)) / np.pi


def test_projections_give_the_kernel_within_their_error():
    found = projected_ntk(coupled, PARAMS, X, directions=60, exact=3, coupled=True)
    kernel = dense(coupled, PARAMS, X)
    assert found.values.shape == kernel.shape == found.estimate.standard_error.shape
    scaled = (found.values - kernel) / found.estimate.standard_error
    assert 0.5 < np.sqrt(np.mean(scaled**2)) < 1.5
    assert 0.5 < found.error / found.expected_error < 1.5
    whole = np.linalg.norm(found.values - kernel) / np.linalg.norm(kernel)
    assert whole == pytest.approx(found.error, rel=0.5)


@pytest.mark.full
def test_projected_entries_are_inside_their_stated_errors():
    """95 % of 200 repetitions, at entries on and off the diagonal, and on average the kernel itself."""
    kernel = matrix(plain)
    products = vector_products(plain, PARAMS, X, coupled=False)
    inside, values = [], []
    for seed in range(REPETITIONS):
        columns = [products.forward(random_direction(products.params, seed * 30 + number)) for number in range(30)]
        g = np.stack(columns, axis=1)
        estimate = g @ g.T / 30
        diagonal = np.diag(estimate)
        error = np.sqrt((np.outer(diagonal, diagonal) + estimate**2) / 30)
        inside.append(np.abs(estimate - kernel) <= 2.05 * error)  # Student's t of 29
        values.append(estimate)
    assert np.mean(inside) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / REPETITIONS)
    mean = estimated(values)
    assert np.mean(np.abs(mean.value - kernel) <= mean.half_width) > 0.9


COMMAND = """
import jax.numpy as jnp, numpy as np
def f(p, x): return jnp.tanh(x @ p["in"]) @ p["out"]
def network():
    draw = np.random.default_rng(0).standard_normal
    return f, {"in": draw((3, 5)), "out": draw((5, 4))}, draw((9, 3))
"""


@pytest.mark.full
def test_the_command_tells_its_time_and_goes_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.py").write_text(COMMAND)
    monkeypatch.chdir(tmp_path)
    arguments = ["spectrum", "small.py:network", "--count", "7", "--steps", "6", "--store", "kept"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", *arguments, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    status, out, err = run("--out", "found.json")
    assert status == 0
    assert re.match(r"a product takes .* s: about .* min for 27 of 28 products\n", err)
    for words in ("ntk, 7 inputs x 4 outputs, 35 parameters, float64", "largest  ", "trace  ", "learning rate     < "):
        assert words in out
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["network"] == "small.py:network"
    assert run()[1].splitlines()[2:] == out.splitlines()[2:-1]  # but for the seconds
    monkeypatch.setattr("ntk_analysis.spectrum.matrix_free", interrupted)
    status, _, err = run()
    assert (status, err) == (130, "interrupted: 27 products are in kept; repeat the command to go on\n")
    status, _, err = run("--matrix", "hessian")
    assert status == 2
    assert err.count("\n") == 1


def interrupted(*_, **__):
    raise KeyboardInterrupt
