"""Diagnosis: known phases at finite width, the rule of the verdict, the counting of layers, a user's mistakes."""

import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import cli, data, diagnosis, meanfield
from ntk_analysis.diagnosis import Growth, diagnose, load_network, products_in_a_row, verdict_of
from ntk_analysis.networks import convolutional, fully_connected, residual

DEPTH, WIDTH, OUTPUTS = 30, 256, 10
PHASES = {
    "ordered relu": (("none", "relu", 1.5, 0.1), "ordered"),
    "He relu": (("none", "relu", None, 0.0), "critical"),
    "ordered tanh": (("none", "tanh", 0.6, 0.2), "ordered"),
    "chaotic tanh": (("none", "tanh", 4.0, 0.0), "chaotic"),
    "weight mean": (("weight_mean", "relu", None, 0.0), "chaotic"),
    "batch norm": (("batch", "relu", None, 0.0), "chaotic"),
}


QUICK = ("ordered relu", "weight mean")  # the others run with -m slow: each compiles for 15 s


@pytest.fixture
def by_trace(monkeypatch):
    """Full kernels of 300 outputs take most of the time, and the verdict does not look at them."""
    monkeypatch.setattr(diagnosis, "FULL_SIZE", 0)


@pytest.fixture(scope="module")
def digits():
    return data.preprocess(data.load_digits().subset(32, seed=0).images).astype(np.float32)


def drawn(network, x, seed=0):
    with jax.enable_x64(False):
        return network.init(jax.random.key(seed), x.shape)[1]


def deep(name):
    (normalization, activation, w_var, b_var), phase = PHASES[name]
    network = fully_connected(DEPTH, WIDTH, normalization, activation, OUTPUTS, w_var, b_var)
    options = {"w_var": w_var, "b_var": b_var} | ({"batch_size": 32} if normalization == "batch" else {})
    return network, meanfield.analyse(activation, normalization=normalization, **options), phase


@pytest.mark.usefixtures("by_trace")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in PHASES]
)
def test_the_verdict_is_mean_fields(name, digits):
    """Measured end to end as of a plain function, and chi_1 itself within the verdict's own interval."""
    network, field, phase = deep(name)
    found = diagnose(network.apply, drawn(network, digits), digits)
    assert found.verdict.phase == phase == field.phase
    assert found.products == DEPTH + 1
    half = (diagnosis.QUANTILE * found.growth.estimate[1] + diagnosis.ENDS) / DEPTH
    assert abs(found.log_chi - math.log(field.chi_1)) < half
    # chaos makes float32 rounding look like coupling to `couples_batch` (weight mean); never the other way round
    assert found.coupled or name != "batch norm"
    assert found.layers is None
    assert found.field is None


@pytest.mark.usefixtures("by_trace")
def test_the_evidence_tells_the_phases_apart(digits):
    ordered, critical, chaotic = (
        diagnose(network, drawn(network, digits), digits)
        for network in (deep(name)[0] for name in ("ordered relu", "He relu", "weight mean"))
    )
    assert ordered.ntk_ratio > 0.9 > critical.ntk_ratio > 0.15 > abs(chaotic.ntk_ratio)
    assert ordered.growth.outputs > 0.99 > critical.growth.outputs > 0.5 > abs(chaotic.growth.outputs)
    assert ordered.trace.condition_number > critical.trace.condition_number > 3 * chaotic.trace.condition_number
    for found in (ordered, critical, chaotic):
        # one network's correlations wander by some sqrt(depth/width) on the way
        np.testing.assert_allclose(found.layers.measured, found.layers.predicted, atol=math.sqrt(DEPTH / WIDTH))
        np.testing.assert_allclose(found.layers.measured[:2], found.layers.predicted[:2], atol=3 / math.sqrt(WIDTH))
        assert found.field.phase == found.verdict.phase


@pytest.mark.usefixtures("by_trace")
def test_without_biases_relu_keeps_its_correlations_at_any_gain(digits):
    """Where chi_1 and the fate of correlations differ, both are said."""
    network = fully_connected(DEPTH, WIDTH, "none", "relu", OUTPUTS, 1.5)
    found = diagnose(network, drawn(network, digits), digits)
    assert found.verdict.phase == "critical"
    assert found.field.phase == "ordered"
    assert found.growth.scale < 0.01
    assert "relative to it 1" in found.summary()


@pytest.mark.usefixtures("by_trace")
def test_a_shallow_network_is_not_decidable(digits):
    network = fully_connected(2, WIDTH, "weight_mean", outputs=OUTPUTS)
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
        (growth(3), 31, 0.2, "not decidable", "across a boundary"),
        (growth(9, error=15), 31, 0.1, "not decidable", "contains"),
        (growth(1), 4, 0.1, "not decidable", "too shallow"),
        (growth(9), 1, 0.1, "not decidable", "no layer between"),
        (growth(9), 0, 0.1, "not decidable", "no layer between"),
        (growth(9, outputs=0.99), 31, 0.1, "not decidable", "outputs are all alike"),
        (growth(9), 31, 0.9, "not decidable", "rank one"),
        (growth(-9, inputs=0.5), 31, 0.9, "not decidable", "less alike"),
        (growth(-9, outputs=1.0), 31, 0.1, "not decidable", "nearly diagonal"),
    ],
)
def test_the_rule_of_the_verdict(measured, products, ratio, phase, words):
    verdict = verdict_of(measured, products, ratio)
    assert verdict.phase == phase
    assert words in verdict.reason


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def linear(params, x):
    return x @ params["w"]


def test_a_linear_map_has_gain_one():
    """|J|^2 / |f|^2 |x|^2 / d is 1 on average over weights, up to the likeness of |w x|^2 over inputs and outputs."""
    found = diagnose(linear, {"w": draw(40, 200)}, draw(9, 40, seed=1))
    assert abs(found.growth.log_gain) < 3 * math.sqrt(2 / 40 / 9 + 2 / 200)
    np.testing.assert_allclose(found.growth.outputs, found.growth.inputs, atol=3 / math.sqrt(200))


def test_gain_does_not_see_units():
    one = diagnose(linear, {"w": draw(5, 3)}, draw(9, 5, seed=1))
    other = diagnose(lambda p, x: 1e3 * linear(p, x), {"w": draw(5, 3)}, 1e-2 * draw(9, 5, seed=1))
    np.testing.assert_allclose(one.growth.log_gain, other.growth.log_gain, rtol=0, atol=1e-9)


def test_spectra_and_learning_rate_are_the_dense_kernels():
    """NTK of a linear map: x.x' at equal outputs, so a stable step is 2 / largest eigenvalue of the inputs' Gram."""
    x = draw(6, 8, seed=1)
    found = diagnose(linear, {"w": draw(8, 3)}, x)
    eigenvalues = np.linalg.eigvalsh(x @ x.T)
    for spectrum in (found.trace, found.full):
        np.testing.assert_allclose(spectrum.condition_number, eigenvalues[-1] / eigenvalues[0], rtol=1e-9)
    np.testing.assert_allclose(found.spectrum.learning_rate, 2 / eigenvalues[-1], rtol=1e-12)
    gram = x @ x.T
    off = (gram.sum() - np.trace(gram)) / 30
    np.testing.assert_allclose(found.ntk_ratio, off / np.mean(np.diag(gram)), rtol=1e-12)


def test_a_large_kernel_goes_by_its_trace(monkeypatch):
    monkeypatch.setattr(diagnosis, "FULL_SIZE", 10)
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

    found = diagnosis._growth(f, params, jnp.asarray(draw(12, 32, seed=1)), 0)
    assert found.log_gain < 0 < found.shuffled
    assert not found.typical
    assert found.estimate == (found.log_gain, found.error)


@pytest.mark.parametrize(
    ("network", "shape", "products"),
    [
        (fully_connected(7, 6), (5, 4), 8),
        (convolutional(3, 4), (2, 5, 5, 1), 4),
        (residual(4, 6), (5, 4), 6),
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


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "diagnose", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


MODULE = """
import sys
import numpy as np
import jax.numpy as jnp
import sibling

X = np.random.default_rng(0).standard_normal((9, 4))
P = {"w": np.random.default_rng(1).standard_normal((4, 3))}
def f(p, x): return jnp.tanh(x @ p["w"])
def index(p, x): return {}["missing"]
def good(): return f, P, X
def raises(): return {}["missing"]
def leaves(): sys.exit("bye")
def single(): return f
def two(): return f, P
def lists(): return f, P, [[1.0]]
def text(): return f, P, np.array(["a"])
def integers(): return f, P, np.arange(8).reshape(2, 4)
def nan(): return f, {"w": P["w"] * np.nan}, X
def whole(): return f, {"w": np.ones((4, 3), int)}, X
def shapes(): return f, P, X[:, :3]
def several(): return lambda p, x: (f(p, x), x), P, X
def scalar(): return lambda p, x: jnp.sum(f(p, x)), P, X
def broken(): return index, P, X
def infinite(): return lambda p, x: f(p, x) / 0.0, P, X
def zero(): return lambda p, x: 0.0 * f(p, x), P, X
def number(): return 3, P, X
def one(): return f, P, X[:1]
def badx(): return f, P, np.where(X > 2, np.nan, X) * np.nan
value = 3
"""


@pytest.fixture
def user(tmp_path):
    (tmp_path / "sibling.py").write_text("")
    (tmp_path / "user_network.py").write_text(MODULE)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    (tmp_path / "needs.py").write_text("import no_such_library\n")
    (tmp_path / "stops.py").write_text("raise SystemExit(3)\n")
    yield tmp_path
    for name in ("user_network", "_diagnosed_user_network", "sibling", "syntax", "needs", "stops"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", ["user_network:good", "user_network.py:good"])
def test_the_command_reports_and_writes(run, user, target):
    status, out, err = run(target, "--count", 6, "--out", "deeper/d.json", "--memory", "1GiB")
    assert (status, err) == (0, "")
    for words in ("condition number", "learning rate", "6 inputs", "not available", "verdict", "not decidable"):
        assert words in out
    record = json.loads((user / "deeper/d.json").read_text())
    assert record["network"] == target
    assert record["inputs"] == 6
    assert len(record["ntk"]["full"]["eigenvalues"]) == 18
    assert record["verdict"]["phase"] == "not decidable"


BAD = [
    (["user_network"], "expected MODULE:FUNCTION"),
    (["user_network:"], "expected MODULE:FUNCTION"),
    (["absent_module:good"], "no module 'absent_module'"),
    (["absent.py:good"], "absent.py: no such file"),
    (["user_network:absent"], "no function 'absent'"),
    (["user_network:value"], "no function 'value'"),
    (["syntax.py:f"], "SyntaxError"),
    (["needs.py:f"], "no_such_library"),
    (["stops.py:f"], "SystemExit"),
    (["user_network:raises"], "raised KeyError: 'missing'"),
    (["user_network:leaves"], "raised SystemExit: bye"),
    (["user_network:single"], "returned function, expected the tuple"),
    (["user_network:two"], "a tuple of 2"),
    (["user_network:lists"], "x of type list"),
    (["user_network:text"], "x has dtype <U1"),
    (["user_network:integers"], "x has dtype int64"),
    (["user_network:nan"], "params['w'] has NaN"),
    (["user_network:whole"], "params['w'] is int64"),
    (["user_network:shapes"], "f(params, x) raised TypeError"),
    (["user_network:several"], "must return one array of floats"),
    (["user_network:scalar"], "put the batch first"),
    (["user_network:broken"], "f(params, x) raised KeyError"),
    (["user_network:infinite"], "NaN or infinite values for 9 of 9 inputs"),
    (["user_network:zero"], "returned zero for all"),
    (["user_network:number"], "f of type int"),
    (["user_network:one"], "at least 2"),
    (["user_network:badx"], "x has NaN or infinite values in 9 of 9"),
    (["user_network:good", "--count", "1"], "at least 2"),
    (["user_network:good", "--count", "10"], "got 10 of 9"),
    (["user_network:good", "--memory", "much"], "memory='much'"),
    (["user_network:good", "--memory", "16B"], "more memory"),
    (["user_network:good", "--out", "d.txt"], ".json"),
    ([], "MODULE:FUNCTION"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_errors_are_one_line_and_status_2(run, user, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(user.glob("*.json"))


def test_help_needs_no_jax(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "MODULE:FUNCTION" in out


def test_sys_path_is_left_as_it_was(user, monkeypatch):
    monkeypatch.chdir(user)
    before = list(sys.path)
    load_network(f"{Path('user_network.py')}:good")
    assert sys.path == before
