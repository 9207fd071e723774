"""Analyses that read a kernel some rows at a time: the numbers of those in memory, from a store of either kind."""

import tracemalloc

import jax
import numpy as np
import pytest

from ntk_analysis import alignment, any_kernel, empirical_ntk, infinite_kernel, networks, regression, spectrum
from ntk_analysis.any_kernel import Rows, rows_of

X = np.random.default_rng(0).standard_normal((36, 5))
Y = np.random.default_rng(1).standard_normal((36, 2))
NETWORK = networks.fully_connected(1, 4, b_var=0.1, outputs=2)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """By name, path and matrix of a store: of an infinite kernel in 10 tiles, of a finite network's trace."""
    folder = tmp_path_factory.mktemp("stores")
    infinite = infinite_kernel(NETWORK, X, store=folder / "infinite", memory=6 * 8 * 10**2)
    assert infinite.plan.count == 10
    params = jax.tree.map(np.float64, NETWORK.init(jax.random.key(0), X.shape)[1])
    trace = empirical_ntk(NETWORK, params, X, layout="trace", store=folder / "empirical", method="layerwise")
    return {"infinite": (folder / "infinite", infinite.ntk), "empirical": (folder / "empirical", trace.ntk / 2)}


@pytest.fixture(params=["infinite", "empirical"])
def both(request, stores):
    return stores[request.param]


def test_rows_are_those_of_the_matrix(both, monkeypatch):
    path, matrix = both
    rows = rows_of(path)
    assert rows.shape == (36, 36)
    np.testing.assert_array_equal(np.concatenate([values for _, values in rows]), matrix)
    np.testing.assert_allclose(rows.product(Y), matrix @ Y, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(rows.held().read(slice(3, 9)), matrix[3:9])
    monkeypatch.setattr(any_kernel, "host_bytes", lambda: 36 * 36 * 8)
    assert rows.held() is rows
    with pytest.raises(ValueError, match="the kernel has 2 outputs, expected one matrix"):
        rows_of(np.ones((3, 3, 2, 2)))


def test_what_is_not_finite_is_told():
    bad = Rows((2, 2), np.dtype(float), 0.0, 1, lambda rows: np.full((1, 2), np.nan))
    with pytest.raises(ValueError, match="NaN or infinite entries in rows 0 to 0"):
        bad.product(np.ones(2))


def test_largest_eigenvalues(both):
    path, matrix = both
    found = spectrum.largest_eigenvalues(path, 4, tolerance=0)
    wanted = np.linalg.eigvalsh(matrix)[::-1][:4]
    np.testing.assert_allclose(found.eigenvalues, wanted, rtol=1e-11)
    assert np.abs(found.eigenvalues - wanted).max() <= found.error + 36 * 2.3e-16 * wanted[0]  # rounding of both
    np.testing.assert_allclose(np.abs(found.vectors.T @ found.vectors), np.eye(4), atol=1e-12)
    with pytest.raises(ValueError, match="got count=36, expected 1 to 35"):
        spectrum.largest_eigenvalues(path, 36)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), expected \(n, n\)"):
        spectrum.largest_eigenvalues(np.ones((3, 2)), 1)


def test_regression_is_that_of_gradient_flow_at_its_end(both):
    path, matrix = both
    found = regression.solve(path, Y, regularization=1e-3, tolerance=1e-11)
    flow = regression.GradientFlow.on(matrix, Y, regularization=1e-3)
    test = matrix[:7] + 0.1
    np.testing.assert_allclose(found.predict(test), flow.mean(test), rtol=1e-7, atol=1e-8)
    r = 1e-3 * np.trace(matrix) / 36
    exact = np.linalg.solve(matrix + r * np.eye(36), Y)
    off = np.linalg.norm(found.coefficients_scaled * np.exp(-found.log_scale) - exact, axis=0)
    rounding = 36 * 2.3e-16 * np.linalg.norm(matrix) / r * np.linalg.norm(exact, axis=0)
    assert (off <= found.error_scaled + rounding).all()
    assert (found.residual <= 2e-11).all()
    one = regression.solve(path, Y[:, 0], regularization=1e-3, tolerance=1e-11)
    np.testing.assert_allclose(one.coefficients_scaled, found.coefficients_scaled[:, 0], rtol=1e-7)


@pytest.mark.full
def test_estimators_take_kernels_in_stores(tmp_path):
    """Of a training batch and of new points, each in a store of its own."""

    def kernel(x1, x2=None):
        return infinite_kernel(NETWORK, x1, x2, store=tmp_path / f"{len(x1)} {x2 is None}", memory=6 * 8 * 10**2)

    call = {"regularization": 1e-3}
    wanted = regression.KernelRegressor(NETWORK, **call).fit(X[:30], Y[:30]).predict(X[30:])
    for solver in ("modes", "conjugate_gradients"):
        found = regression.KernelRegressor(kernel, solver=solver, **call).fit(X[:30], Y[:30])
        mean, error = found.predict(X[30:], return_error=True)
        np.testing.assert_allclose(mean, wanted, rtol=1e-6, atol=1e-7)
        assert (np.abs(mean - wanted) <= error + 1e-12).all()
    assert (found.solution_.residual <= 2e-8).all()
    for option in ({"time": 1.0}, {"return_std": True}):
        with pytest.raises(ValueError, match="knows the mean at the end of training only"):
            found.predict(X[30:], **option)
    with pytest.raises(ValueError, match="got solver='lu', expected 'modes' or 'conjugate_gradients'"):
        regression.KernelRegressor(kernel, solver="lu").fit(X[:30], Y[:30])


def test_regressions_that_cannot_be(stores):
    path, _ = stores["infinite"]
    with pytest.raises(ArithmeticError, match=r"the residual is .* after 2 iterations, expected 1e-08"):
        regression.solve(path, Y, iterations=2)
    with pytest.raises(ValueError, match="not positive definite"):
        regression.solve(np.diag([1.0, -1.0, 2.0]), np.ones(3))
    with pytest.raises(ValueError, match=r"targets have shape \(5,\), expected finite \(36,\)"):
        regression.solve(path, np.ones(5))
    with pytest.raises(ValueError, match="regularization=-1, expected a finite number"):
        regression.solve(path, Y, regularization=-1)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(k, 36\)"):
        regression.solve(path, Y, regularization=0.1).predict(np.ones((2, 3)))


def test_alignments_of_stores(both):
    path, matrix = both
    for found, wanted in (
        (alignment.alignment(path, X @ X.T), alignment.alignment(matrix, X @ X.T)),
        (alignment.alignment(X @ X.T, path), alignment.alignment(matrix, X @ X.T)),
        (alignment.centered_alignment(path, X @ X.T), alignment.centered_alignment(matrix, X @ X.T)),
        (alignment.target_alignment(path, Y), alignment.target_alignment(matrix, Y)),
        (
            alignment.target_alignment(path, Y, centered=False),
            alignment.target_alignment(matrix, Y, centered=False),
        ),
        (alignment.target_alignment(path, Y, unbiased=True), alignment.target_alignment(matrix, Y, unbiased=True)),
        *(
            (
                alignment.centered_alignment(*pair, unbiased=True),
                alignment.centered_alignment(matrix, X @ X.T, unbiased=True),
            )
            for pair in ((path, X @ X.T), (X @ X.T, path))
        ),
    ):
        assert found == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(ValueError, match="kernel is not symmetric"):
        alignment.centered_alignment(path, X @ np.roll(X, 1, axis=0).T, unbiased=True)
    with pytest.raises(ValueError, match=r"shapes \(36, 36\) and \(5, 5\)"):
        alignment.alignment(path, X[:5] @ X[:5].T)
    with pytest.raises(ValueError, match="zero everywhere"):
        alignment.alignment(path, np.zeros((36, 36)))
    for unbiased in (False, True):
        with pytest.raises(ValueError, match="a kernel is zero once centered"):
            alignment.centered_alignment(path, np.ones((36, 36)), unbiased=unbiased)


def test_unbiased_alignments_of_stores_hold_no_whole_kernel(both, monkeypatch):
    path, matrix = both
    wanted = alignment.target_alignment(matrix, Y, unbiased=True)
    monkeypatch.setattr("ntk_analysis.alignment.entries", None)
    assert alignment.target_alignment(path, Y, unbiased=True) == pytest.approx(wanted, rel=1e-12)
    assert alignment.centered_alignment(path, path, unbiased=True) == pytest.approx(1, rel=1e-12)


def test_all_eigenvalues_of_a_store(both, monkeypatch):
    path, matrix = both
    monkeypatch.setattr("ntk_analysis.spectrum.matrix.AT_ONCE", 10)
    wanted = np.linalg.eigvalsh(matrix)[::-1]
    found = spectrum.eigenvalues(path)  # those that are 0 have a negative rounding in one of the two
    np.testing.assert_allclose(found, wanted, rtol=0, atol=36 * np.finfo(float).eps * wanted[0])
    monkeypatch.setattr("ntk_analysis.common.memory.available_bytes", lambda: 36 * 36 * 8 - 1)
    with pytest.raises(MemoryError, match=r"all eigenvalues of 36 inputs .* by spectrum\.largest_eigenvalues"):
        spectrum.analyse(path)


@pytest.mark.full
def test_all_eigenvalues_of_a_store_take_one_copy(tmp_path, monkeypatch):
    monkeypatch.setattr("ntk_analysis.spectrum.matrix.AT_ONCE", 50)
    x = np.random.default_rng(0).standard_normal((800, 5)).astype(np.float32)
    stored = infinite_kernel(networks.fully_connected(1, 1, b_var=0.1), x, store=tmp_path / "k", memory=6 * 4 * 100**2)
    tracemalloc.start()
    spectrum.eigenvalues(stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * 800**2 < peak < 1.6 * 8 * 800**2
