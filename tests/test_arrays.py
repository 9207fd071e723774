"""What every entry point does with arrays that are not plain ones: refuses them in one line, or computes the right."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from ntk_analysis import activations, batch_norm, kernels_by_depth, last_batch_norm, meanfield, spectrum
from ntk_analysis.alignment import alignment, target_alignment
from ntk_analysis.common.arrays import NotRealNumbersError, concrete, real_array
from ntk_analysis.common.precision import float_array
from ntk_analysis.correlation import layer_correlations
from ntk_analysis.data import preprocess
from ntk_analysis.diagnosis import diagnose
from ntk_analysis.diagnosis.checks import chosen_inputs
from ntk_analysis.empirical import empirical_nngp, empirical_ntk, plan
from ntk_analysis.infinite import infinite_kernel
from ntk_analysis.layers import Activation, Dense, Serial
from ntk_analysis.networks import fully_connected
from ntk_analysis.regression import GradientFlow, KernelClassifier, KernelRegressor
from ntk_analysis.spectrum import condition_number
from ntk_analysis.width_study import Convergence, fit_power_law, width_study

from .tiers import full

X = np.array([[0.5, -1, 2], [1.5, 0.25, -0.5], [-2, 1, 0.75], [1, 1, -1], [0.25, 2, 1.5]])  # exact in bfloat16
K = np.round(X @ X.T * 4) / 4 + 2 * np.eye(5)
Y = X[:, 0]
NETWORK = Serial(Dense(4), Activation("relu"), Dense(1))
RNG = np.random.default_rng(0)
PARAMS = ({"w": RNG.standard_normal((3, 4))}, (), {"w": RNG.standard_normal((4, 1))})

REGRESSOR = KernelRegressor(NETWORK, regularization=0.1)
ENTRIES = {
    "infinite_kernel": (X, lambda x: infinite_kernel(NETWORK, x).ntk),
    "spectrum": (K, lambda k: spectrum.eigenvalues(k)),
    "without": (Y, lambda v: spectrum.eigenvalues(K, without=v)),
    "training_curve": (Y, lambda y: spectrum.training_curve(K, y, learning_rate=0.01, steps=2).loss),
    "alignment": (K, lambda k: alignment(k, K + 1)),
    "targets": (Y, lambda y: target_alignment(K, y, labels=False)),
    "empirical_ntk": (X, lambda x: empirical_ntk(NETWORK, PARAMS, x).ntk),
    "empirical_nngp": (X, lambda x: empirical_nngp(NETWORK, PARAMS, X, x).nngp),
    "plan": (X, lambda x: plan(NETWORK, PARAMS, x).n1),
    "fit inputs": (X, lambda x: REGRESSOR.fit(x, Y).flow_.coefficients),
    "fit targets": (Y, lambda y: REGRESSOR.fit(X, y).flow_.coefficients),
    "predict": (X, lambda x: REGRESSOR.fit(X, Y).predict(x)),
    "classifier": (X, lambda x: KernelClassifier(NETWORK, regularization=0.1).fit(x, Y > 0).outputs(X)),
    "precomputed": (K, lambda k: KernelRegressor("precomputed").fit(k, Y).predict(K)),
    "flow": (K, lambda k: GradientFlow.on(k, Y).mean(K, 1.0)),
    "flow test": (K, lambda k: GradientFlow.on(K, Y).mean(k, 1.0)),
    "flow covariance": (K, lambda k: GradientFlow.on(K, Y).covariance(K, k, K, np.diag(K), time=1.0)),
    "layer_correlations": (X, lambda x: layer_correlations(NETWORK, x, [[0, 1]], seed=0).initial),
    "last_batch_norm outputs": (X, lambda x: last_batch_norm.jacobian(x)),
    "last_batch_norm theta": (K, lambda k: last_batch_norm.ntk(k, jnp.asarray(X, float_array(k).dtype))),
    "last_batch_norm matrix": (K, lambda k: last_batch_norm.as_matrix(real_array(k, "k")[:, :, None, None])),
    "batch_norm": (K, lambda k: batch_norm.nngp(k)),
    "meanfield": (Y[3:], lambda w: meanfield.phase_diagram("relu", w_var=w, b_var=0.1).chi_1),
    "width_study": (X, lambda x: width_study(lambda n: Serial(Dense(n), Dense(1)), x, [2, 4], 4).ntk.mean_distance),
    "convergence": (K, lambda k: Convergence.of([2], [np.stack([K, K + 1, K, K])], k).mean_distance),
    "power law": (1 + Y[3:], lambda v: fit_power_law(np.array([2.0, 4]), v, np.ones(2)).exponent),
    "diagnose": (X, lambda x: chosen_inputs(x, None, 0)),
}
SLOW = {"width_study", "meanfield", "layer_correlations", "batch_norm", "classifier", "empirical_nngp"}


def tiers(slow):
    """Names of all entries, of which these are slow, for what they compile."""
    return [*(name for name in ENTRIES if name not in slow), *full(*(name for name in ENTRIES if name in slow))]


@pytest.fixture(autouse=True)
def annotations_unchecked():
    """Where annotations are checked at run time they refuse, or take, before the library does."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def masked(array, *places):
    return np.ma.MaskedArray(array, np.isin(np.arange(array.size).reshape(array.shape), places))


def rows(make):
    """A list of what `make` makes of each row; of a vector, of all of it."""
    return lambda a: [make(row) for row in a] if a.ndim > 1 else make(a)


REFUSED = {
    "masked": lambda a: masked(a, 1),
    "mask of False": lambda a: masked(a),
    "no mask": np.ma.MaskedArray,
    "masked rows": rows(lambda row: masked(row, 0)),
    "masked in objects": lambda a: _with(a, np.ma.masked),
    "complex128": lambda a: a + 0j,
    "complex64": lambda a: (a + 1j).astype(np.complex64),
    "complex JAX": lambda a: jnp.asarray(a, jnp.complex64),
    "complex rows": lambda a: list(a + 0j),
    "complex objects": lambda a: _with(a, 1 + 0j),
    "None": lambda a: _with(a, None),
    "pandas missing": lambda a: pd.DataFrame(_with(a, pd.NA)) if a.ndim > 1 else pd.Series(_with(a, pd.NA)),
    "text": lambda a: a.astype(str),
    "dates": lambda a: a.astype(int).astype("datetime64[D]"),
    "durations": lambda a: a.astype(int).astype("timedelta64[s]"),
    "sparse": lambda a: scipy.sparse.csr_matrix(a),
    "ragged": lambda a: [list(np.ravel(a)), [1.0]],
}


def _with(array, entry):
    """The array as objects, one of which is another."""
    objects = array.astype(object)
    objects[(1,) * array.ndim] = entry
    return objects


@pytest.mark.parametrize("name", tiers(SLOW))
def test_what_is_no_array_of_real_numbers_is_refused_everywhere(name):
    array, entry = ENTRIES[name]
    for kind, make in REFUSED.items():
        try:
            entry(make(array))
        except NotRealNumbersError as refused:
            assert "\n" not in str(refused), kind  # noqa: PT017
        else:
            pytest.fail(f"{name} takes {kind}")


TAKEN = {
    "rows": (lambda a: list(a), 1e-12),
    "objects": (lambda a: a.astype(object), 1e-12),
    "longdouble": (lambda a: a.astype(np.longdouble), 1e-12),
    "pandas": (lambda a: pd.DataFrame(a) if a.ndim > 1 else pd.Series(a), 1e-12),
    "pandas nullable": (
        lambda a: pd.DataFrame(a).astype("Float64") if a.ndim > 1 else pd.Series(a, dtype="Float64"),
        1e-12,
    ),
    "float16": (lambda a: a.astype(np.float16), 1e-5),
    "bfloat16": (lambda a: a.astype(jnp.bfloat16), 1e-5),
    "bfloat16 JAX": (lambda a: jnp.asarray(a, jnp.bfloat16), 1e-5),
}


@pytest.mark.parametrize(
    "name", tiers({"empirical_ntk", "plan", "last_batch_norm outputs", "last_batch_norm theta", *SLOW})
)
def test_numbers_of_every_kind_give_the_same(name):
    array, entry = ENTRIES[name]
    for kind, (convert, tolerance) in TAKEN.items():
        # float32 draws other networks than float64
        expected = np.asarray(entry(array.astype(np.float32) if "float" in kind else array), np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # narrow kernels say that they resolve little
            found = np.asarray(entry(convert(array)), np.float64)
        atol = tolerance * np.max(np.abs(expected))
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=atol, err_msg=kind)


def test_integers_and_booleans_are_numbers():
    whole = np.array([[3, 0, 1], [0, 2, 5], [1, 1, 0], [0, 4, 1]])
    expected = infinite_kernel(NETWORK, whole.astype(np.float64)).ntk
    for given in (whole, whole.astype(np.uint8), whole.astype(object), whole.tolist(), pd.DataFrame(whole)):
        np.testing.assert_array_equal(infinite_kernel(NETWORK, given).ntk, expected)
    np.testing.assert_array_equal(
        infinite_kernel(NETWORK, whole > 0).ntk, infinite_kernel(NETWORK, (whole > 0).astype(np.float64)).ntk
    )
    large = np.array([[2**40, 1], [3, 2**40]])
    with jax.enable_x64(False):  # where int64 would become int32
        np.testing.assert_array_equal(float_array(large), large.astype(np.float32))


def test_narrow_floats_become_float32_without_loss_and_tracers_pass():
    for dtype in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(X, dtype)
        kernel = infinite_kernel(NETWORK, x)
        assert kernel.ntk.dtype == jnp.float32
        np.testing.assert_array_equal(kernel.ntk, infinite_kernel(NETWORK, x.astype(jnp.float32)).ntk)
        assert jax.eval_shape(lambda x: infinite_kernel(NETWORK, x).ntk, x).dtype == jnp.float32
    with pytest.raises(NotRealNumbersError, match="complex64"):
        jax.eval_shape(lambda x: infinite_kernel(NETWORK, x).ntk, jnp.ones((2, 3), jnp.complex64))
    with pytest.raises(TypeError, match="x is a JAX tracer, expected concrete arrays"):
        jax.eval_shape(lambda x: concrete([x, x], "x"), 1.0)


def test_second_inputs_are_asked_too():
    for make in REFUSED.values():
        for call in (infinite_kernel, lambda network, *x: empirical_ntk(network, PARAMS, *x)):
            with pytest.raises(NotRealNumbersError):
                call(NETWORK, X, make(X))


def test_the_error_is_one_of_type_and_of_value():
    assert issubclass(NotRealNumbersError, TypeError)
    assert issubclass(NotRealNumbersError, ValueError)


def test_single_numbers_are_asked_too():
    for bad in (2 + 0j, np.complex64(1), np.ma.masked, np.ma.MaskedArray(2.0), "2", None):
        with pytest.raises(NotRealNumbersError):
            meanfield.analyse("relu", w_var=2.0, b_var=bad)
        with pytest.raises(NotRealNumbersError):
            float_array(bad)
    for good in (0.5, np.float32(0.5), np.longdouble(0.5), jnp.asarray(0.5), np.array(0.5), jnp.bfloat16(0.5), True):
        assert float_array(good) == (1.0 if good is True else 0.5)


def test_a_bfloat16_kernel_keeps_its_rounding():
    kernel = np.eye(4) * 1e-3 + 1
    for narrow in (kernel.astype(jnp.bfloat16), kernel.astype(np.float16)):
        with pytest.warns(spectrum.UnresolvedSpectrumWarning, match=narrow.dtype.name):
            spectrum.analyse(narrow)
        with pytest.raises(ValueError, match=f"{narrow.dtype.name} resolves"):
            KernelRegressor("precomputed").fit(narrow, np.arange(4.0))
        assert last_batch_norm.as_matrix(narrow[:, :, None, None]).dtype == narrow.dtype


def test_parameters_are_asked_by_name():
    for make, message in [
        (masked, r"params\[0\]\['w'\] is a masked array"),
        (lambda a: a + 0j, r"params\[0\]\['w'\] is complex128, expected an array of floats"),
        (lambda a: a.astype(np.longdouble), r"params\[0\]\['w'\] is (float128|longdouble)"),
        (scipy.sparse.csr_matrix, r"params\[0\]\['w'\] is a sparse matrix"),
    ]:
        params = [{"w": make(PARAMS[0]["w"])}, *PARAMS[1:]]
        with pytest.raises(TypeError, match=message):
            empirical_ntk(NETWORK, params, X)


def test_pairs_of_inputs_may_not_be_masked():
    with pytest.raises(NotRealNumbersError, match="pairs is a masked array"):
        layer_correlations(NETWORK, X, np.ma.MaskedArray([[0, 1]]), seed=0)
    with pytest.raises(NotRealNumbersError, match="y is a masked array"):
        KernelClassifier(NETWORK).fit(X, np.ma.MaskedArray(np.arange(5) % 2))


def test_tables_keep_the_names_of_their_columns():
    table = pd.DataFrame(X, columns=list("abc"))
    model = KernelRegressor(NETWORK, regularization=0.1).fit(table, pd.Series(Y))
    assert list(model.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(model.predict(table), REGRESSOR.fit(X, Y).predict(X))


DEEP = fully_connected(2, 8)
POINTS = np.random.default_rng(0).standard_normal((5, 4))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: infinite_kernel(POINTS, DEEP), "network is a ndarray, expected a network of layers"),  # type: ignore[call-overload]
        (lambda: infinite_kernel(DEEP, POINTS, DEEP), "x2 is a Serial, expected an array of numbers"),  # type: ignore[call-overload]
        (lambda: infinite_kernel(lambda params, x: x, POINTS), "a function has an empirical_ntk"),  # type: ignore[call-overload]
        (lambda: next(kernels_by_depth(POINTS, DEEP)), "network is a ndarray, expected a network of layers"),
        (
            lambda: empirical_ntk(lambda params, x: x, POINTS, {"w": POINTS}),
            "f must return one array of floats, got dict",
        ),
        (lambda: empirical_ntk({"w": POINTS}, lambda params, x: x, POINTS), "f must be a function of"),
        (lambda: empirical_ntk(DEEP, POINTS, [(), {"w": POINTS}]), "x1 is not read as an array"),
        (lambda: diagnose(lambda params, x: x, POINTS, {"w": POINTS}), "x is a dict, expected an array of numbers"),
        (lambda: condition_number(DEEP), "kernel is a Serial, expected an array of numbers"),
        (lambda: preprocess(DEEP), "images is a Serial, expected an array of numbers"),
        (lambda: fully_connected(POINTS, 3), "got depth: ndarray, expected a whole number"),
        (lambda: fully_connected("none", 3), "got depth='none', expected a whole number"),
        (lambda: preprocess(np.ma.masked_array(POINTS, mask=POINTS > 1)), "images is a masked array"),
        (lambda: preprocess(POINTS + 1j), "images has dtype complex128"),
        (lambda: preprocess(np.array([[None, 1.0]])), r"images\[0, 0\] is a NoneType"),
        (lambda: preprocess(np.array([["a"]])), "images has dtype <U1"),
        (lambda: preprocess(np.array(["2020"], "datetime64[Y]")), "images has dtype datetime64"),
        (
            lambda: activations.get("leaky_relu(1e308)"),
            "got slope 1e\\+308 for leaky_relu, expected a finite number of at",
        ),
        (lambda: activations.leaky_relu(-1e200), "got slope -1e\\+200 for leaky_relu"),
        (lambda: activations.get("leaky_relu(nan)"), "expected a finite number as the slope"),
    ],
    ids=[
        *("infinite_kernel", "second inputs", "function", "by depth", "empirical", "no function", "tree as inputs"),
        *("diagnose", "spectrum", "preprocess", "depth", "word as depth", "masked", "complex", "none", "text", "dates"),
        *("slope", "negative slope", "nan"),
    ],
)
def test_what_is_swapped_or_no_number_is_told_in_our_words(call, words):
    with pytest.raises((TypeError, ValueError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_images_as_lists_objects_and_in_short_floats():
    exact = preprocess(POINTS)
    np.testing.assert_array_equal(preprocess(POINTS.tolist()), exact)
    np.testing.assert_array_equal(preprocess(POINTS.astype(object)), exact)
    short = jnp.asarray(POINTS, jnp.bfloat16)
    assert preprocess(short).dtype == np.float64
    np.testing.assert_allclose(preprocess(short), exact, atol=0.02)


def test_the_steepest_leaky_relu_is_computed():
    kernel = infinite_kernel(fully_connected(2, 8, "none", "leaky_relu(1e99)"), POINTS)
    mirrored = infinite_kernel(fully_connected(2, 8, "none", "leaky_relu(1e20)"), POINTS)
    np.testing.assert_allclose(kernel.ntk, mirrored.ntk, rtol=1e-10)
