"""neural-tangents behind its one door: what loading it does and does not do, and our kernels against its."""

import importlib.metadata
import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_analysis import cli, infinite_kernel, reference
from ntk_analysis.layers import (
    Activation,
    AvgPool,
    BatchNorm,
    Conv,
    ConvLocal,
    ConvTranspose,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalSumPool,
    ImageResize,
    Index,
    LayerNorm,
    Parallel,
    Repeat,
    Residual,
    ResidualChain,
    Serial,
    SumPool,
)
from ntk_analysis.networks import convolutional, fully_connected, residual
from ntk_analysis.reference import loading
from ntk_analysis.reference.comparison import as_neural_tangents_expects

from .tiers import full

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed (extra `reference`)"
)

ROUNDING = 1e-12  # 50 layers of a few float64 roundings each, with two orders to spare
ANGLE = 2e-8  # an angle of 0 from a covariance in float64: sqrt(2 eps); neural-tangents' derivative kernels have it
QUADRATURE = 3e-7  # neural-tangents' 64 nodes on tanh, twice the largest seen; ours is exact to 1e-10 there

RNG = np.random.default_rng(0)
X1 = RNG.standard_normal((6, 10))
X1 *= np.sqrt(10) / np.linalg.norm(X1, axis=1, keepdims=True)
X2 = RNG.standard_normal((4, 10)) * np.array([[0.5], [1.0], [1.5], [2.0]])
PICTURES = RNG.standard_normal((3, 5, 4, 2))


@pytest.fixture
def nt():
    with as_neural_tangents_expects():
        yield reference.load()


BRANCH = Serial(Activation("relu"), Dense(8, 2.0, 0.1), Activation("erf"), Dense(8, 1.5, 0.2))
RESIDUAL_CONV = Serial(
    Conv(4),
    Residual(Serial(Activation("relu"), Conv(4, stride=2, w_var=2.0)), 0.5, shortcut=Conv(4, 1, stride=2, b_var=0.1)),
    Activation("erf"),
    GlobalAvgPool(),
    Dense(1),
)
VECTORS = {
    "one layer": fully_connected(1, 1),
    "biased": fully_connected(3, 1, w_var=1.7, b_var=0.3),
    "50 layers": fully_connected(50, 1),
    "leaky relu": fully_connected(3, 1, activation="leaky_relu(0.2)", b_var=0.05),
    "abs": fully_connected(3, 1, activation="abs", b_var=0.05),
    "identity": fully_connected(3, 1, activation="identity", b_var=0.05),
    "erf": fully_connected(3, 1, activation="erf", w_var=1.3, b_var=0.05),
    "sine": fully_connected(3, 1, activation="sine", w_var=1.3, b_var=0.05),
    "gelu": fully_connected(3, 1, activation="gelu", w_var=1.9, b_var=0.05),
    "layer norm": fully_connected(3, 1, "layer", b_var=0.1),
    "layer norm with eps": Serial(Dense(8), LayerNorm(0.3), Activation("erf"), Dense(1)),
    "residual": Serial(Dense(8), Repeat(Residual(BRANCH, 0.3), 2), Activation("relu"), Dense(1)),
    "residual chain": Serial(Dense(8), ResidualChain(BRANCH, (1.0, 0.5)), Activation("relu"), Dense(1)),
    "branches, sum": Serial(Dense(8), Parallel(Serial(Activation("erf"), Dense(8, 1.5, 0.1)), Dense(8)), Dense(1)),
    "branches, product": Serial(
        Parallel(Serial(Dense(8), Activation("relu")), Dense(8, 1.5, 0.1), fan="product"), Dense(1)
    ),
    "branches, side by side": Serial(
        Dense(8), Parallel(Activation("relu"), Serial(Activation("erf"), Dense(8, 1.5)), fan="concatenate"), Dense(1)
    ),
    "dropout": Serial(
        Dense(8), Activation(), Dropout(0.3), Dense(8, 1.5, 0.1), Activation("erf"), Dropout(0.2), Dense(1)
    ),
    "dropout, in use": Serial(Dense(8), Activation(), Dropout(0.3, training=False), Dense(1)),
    "residual, weight mean": residual(2, 1, "weight_mean"),
    "weight mean": fully_connected(3, 1, "weight_mean"),
    "weight mean, straight read-out": fully_connected(2, 1, "weight_mean", center_readout=False),
    "weight mean, biased": fully_connected(2, 1, "weight_mean", w_var=2.2, b_var=0.2),
    "weight mean, leaky relu": fully_connected(2, 1, "weight_mean", "leaky_relu(0.3)"),
    "weight mean, erf": fully_connected(2, 1, "weight_mean", "erf"),
    "weight standardization": fully_connected(2, 1, "weight_standardization"),
}
IMAGES = {
    "convolutional, flat": convolutional(2, 1, b_var=0.1),
    "convolutional, pooled": convolutional(2, 1, activation="erf", padding="circular", readout="pool"),
    "convolutional, layer norm": convolutional(2, 1, "layer", kernel_size=2, padding="valid"),
    "strides and pools": Serial(
        Conv(1, 2, stride=2, padding="circular"), Activation(), AvgPool((2, 1), 1, "same"), Flatten(), Dense(1)
    ),
    "residual, shortcut": RESIDUAL_CONV,
    "transposed, pooled": Serial(
        ConvTranspose(4, 3, 2, "same", b_var=0.1), Activation(), AvgPool(2), Conv(4, 2), GlobalAvgPool(), Dense(1)
    ),
    "transposed, flat": Serial(
        Conv(4, 2, 2),
        Activation(),
        ConvTranspose(4, (3, 1), (2, 3), "circular"),
        Activation("erf"),
        Flatten(),
        Dense(1),
    ),
    "local, pooled": Serial(
        ConvLocal(4, 3, 2, b_var=0.1), Activation(), ConvLocal(4, 2, 1, "valid"), GlobalAvgPool(), Dense(1)
    ),
    "local, flat": Serial(Conv(4), Activation(), ConvLocal(4, (2, 1), padding="circular"), Flatten(), Dense(1)),
    "dropout, images": Serial(
        Conv(4), Activation(), Dropout(0.3), Conv(4, 2), Activation("erf"), Dropout(0.2), GlobalAvgPool(), Dense(1)
    ),
    "some positions": Serial(
        Conv(4),
        Activation(),
        Index((slice(None, None, 2),)),
        Conv(4),
        Activation("erf"),
        Index((..., 1)),
        Flatten(),
        Dense(1),
    ),
    # neural-tangents takes height for width in a resizing behind an odd number of convolutions, see the page on it
    "resized": Serial(
        Conv(4, 2),
        Activation(),
        Conv(4),
        Activation("erf"),
        ImageResize((3, 6)),
        ImageResize((2, -1)),
        Flatten(),
        Dense(1),
    ),
    "resized, nearest": Serial(ImageResize((7, 3), "nearest"), Conv(4), Activation(), GlobalAvgPool(), Dense(1)),
    "sums over positions": Serial(
        Conv(4), Activation("erf"), SumPool(2, 1), Conv(4), Activation(), GlobalSumPool(), Dense(1)
    ),
}
SEQUENCES = {
    "sequences": Serial(
        Conv(4, (3,), (2,), "same", b_var=0.1),
        Activation(),
        AvgPool((2,), (1,)),
        Conv(4, (2,)),
        GlobalAvgPool(),
        Dense(1),
    ),
}
VOLUMES = {
    "volumes": Serial(
        Conv(4, (2, 2, 1), padding="circular"), Activation("erf"), Conv(4, (1, 2, 2), (2, 1, 1)), Flatten(), Dense(1)
    ),
}
NETWORKS = {name: (network, X1) for name, network in VECTORS.items()}
NETWORKS |= {name: (network, PICTURES) for name, network in IMAGES.items()}
NETWORKS |= {name: (network, PICTURES.reshape(3, 20, 2)[:, :9]) for name, network in SEQUENCES.items()}
NETWORKS |= {name: (network, PICTURES.reshape(3, 5, 2, 2, 2)) for name, network in VOLUMES.items()}


# what each adds to the others is compared with loops over positions in test_convolution.py
DEFAULT = {"convolutional, flat"}
SLOW = {"convolutional, pooled", "convolutional, layer norm", "strides and pools", "residual, shortcut"}
FULL = NETWORKS.keys() - DEFAULT - SLOW


@pytest.mark.parametrize(
    ("network", "x"),
    [
        pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name in SLOW) + [pytest.mark.full] * (name in FULL))
        for name, row in NETWORKS.items()
    ],
)
def test_closed_forms_agree_to_rounding(network, x):
    try:
        result = reference.compare(network, x)
    except NotImplementedError as error:
        pytest.skip(str(error))
    assert max(result.nngp, result.ntk_off_diagonal) < ROUNDING
    layers = 50 if "times=49" in repr(network) else 6
    assert result.ntk < layers * ANGLE


@pytest.mark.full
@pytest.mark.parametrize("name", ["biased", "residual", "weight mean"])
def test_two_sets_of_inputs_agree_to_rounding(name):
    result = reference.compare(VECTORS[name], X1, X2)
    assert max(result.nngp, result.ntk) < ROUNDING
    assert result.ntk_off_diagonal == result.ntk


@pytest.mark.full
def test_quadrature_agrees_to_its_error():
    network = fully_connected(3, 1, activation="tanh", w_var=1.2, b_var=0.05)
    result = reference.compare(network, X1)
    assert max(result.nngp, result.ntk) < QUADRATURE
    swish = Serial(Dense(8), Activation(jax.nn.silu), Dense(1))
    assert max(vars(reference.compare(swish, X1)).values()) < QUADRATURE


@pytest.mark.full
def test_weight_mean_is_the_standardised_relu(nt):
    """At unit variance, centered ReLU at its stable gain = straight network of (relu - mean) / std, gain 1."""
    mean, second_moment = 1 / np.sqrt(2 * np.pi), 0.5
    deviation = np.sqrt(second_moment - mean**2)

    def dual(k, q1, q2):  # Cho & Saul's arc-cosine kernel of order 1, less the means
        c = jnp.clip(k / jnp.sqrt(q1 * q2), -1, 1)
        plain = jnp.sqrt(q1 * q2) * (jnp.sqrt(1 - c**2) + (jnp.pi - jnp.arccos(c)) * c) / (2 * jnp.pi)
        return (plain - mean**2) / deviation**2

    def derivative_dual(k, q1, q2):
        return (jnp.pi - jnp.arccos(jnp.clip(k / jnp.sqrt(q1 * q2), -1, 1))) / (2 * jnp.pi) / deviation**2

    standardised = nt.stax.Elementwise(lambda x: (jnp.maximum(x, 0) - mean) / deviation, dual, derivative_dual)
    layers = [nt.stax.Dense(1), standardised] * 4 + [nt.stax.Dense(1)]
    theirs = nt.stax.serial(*layers)[2](X1[:3], X1[3:], get=("nngp", "ntk"))
    ours = infinite_kernel(fully_connected(4, 1, "weight_mean"), X1[:3], X1[3:])
    np.testing.assert_allclose(ours.nngp, theirs.nngp, atol=1e-9)
    np.testing.assert_allclose(ours.ntk, theirs.ntk, rtol=1e-9)


@pytest.mark.parametrize(
    ("changed", "smallest"),
    full(({"w_var": 2.002}, 1e-3), ({"b_var": 1e-6}, 1e-7), ({"activation": "leaky_relu(0.01)"}, 1e-4)),
    ids=["gain", "bias", "activation"],
)
def test_a_wrong_network_is_caught(monkeypatch, changed, smallest):
    wrong = fully_connected(4, 1, **{"w_var": 2.0} | changed)
    right = fully_connected(4, 1, w_var=2.0)
    monkeypatch.setattr("ntk_analysis.reference.comparison.translate", lambda _: reference.translate(wrong))
    result = reference.compare(right, X1)
    assert min(result.nngp, result.ntk, result.ntk_off_diagonal) > smallest


@pytest.mark.full
def test_the_flag_and_the_dtype_do_not_matter():
    with jax.enable_x64(False):
        x = X1.astype(np.float32)
        result = reference.compare(fully_connected(3, 1), x, X2)
        assert not jax.config.read("jax_enable_x64")
    assert max(result.nngp, result.ntk) < ROUNDING


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Serial(Dense(4), BatchNorm(), Activation(), Dense(1)), "no BatchNorm"),
        (Serial(Dense(4), Activation("gelu"), Dense(1, center=True)), "gelu has no closed form"),
        (Serial(Dense(4), LayerNorm(), Dense(1, center=True)), "only in a Dense right after an Activation"),
        (Serial(Conv(4), Activation(), Conv(4, center=True)), "no weight centering"),
        (Conv(4, dilation=2), "no groups and no dilation"),
        (Residual(Serial(Dense(4), Activation())), "ends in Dense"),
    ],
)
def test_what_neural_tangents_lacks_is_named(network, words):
    with pytest.raises(NotImplementedError, match=words):
        reference.translate(network)


@pytest.mark.full
def test_a_translated_finite_network_has_our_law(nt):
    """Covariance of the outputs over draws of the parameters: our NNGP, exactly, with one hidden layer."""
    network = Serial(Dense(8, 1.3, 0.2), Activation("relu"), Dense(1, 1.5, 0.1))
    init_fn, apply_fn, _ = reference.translate(network)
    keys = jax.random.split(jax.random.key(0), 20_000)
    outputs = jax.jit(jax.vmap(lambda key: apply_fn(init_fn(key, X1.shape)[1], X1[:3])))(keys)[:, :, 0]
    products = outputs[:, :, None] * outputs[:, None, :]
    standard_error = products.std(axis=0) / len(keys) ** 0.5
    assert np.all(np.abs(products.mean(axis=0) - infinite_kernel(network, X1[:3]).nngp) < 5 * standard_error)
    assert np.all(standard_error < 0.03)  # small enough that a wrong gain would show


def test_weight_mean_has_no_finite_translation(nt):
    init_fn, apply_fn, _ = reference.translate(fully_connected(1, 4, "weight_mean"))
    _, params = init_fn(jax.random.key(0), X1.shape)
    with pytest.raises(NotImplementedError, match="only kernel_fn"):
        apply_fn(params, X1)


@pytest.fixture
def small_network(nt):
    """neural-tangents' apply function of a small MLP, its parameters, and the NTK from the dense Jacobian."""
    init_fn, apply_fn, _ = reference.translate(
        Serial(Dense(8, 1.0, 0.1), Activation("relu"), Dense(8, 2.0, 0.1), Activation("gelu"), Dense(3))
    )
    params = jax.jit(lambda key: init_fn(key, X1.shape)[1])(jax.random.key(0))

    def jacobian(x):
        leaves = jax.tree.leaves(jax.jit(jax.jacobian(apply_fn))(params, x))
        return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)

    return apply_fn, params, jnp.einsum("iap,jbp->ijab", jacobian(X1), jacobian(X2))


@pytest.mark.parametrize("implementation", [1, 2, 3, 0], ids=["contraction", "vector products", "structured", "auto"])
@pytest.mark.parametrize(
    ("vmap_axes", "compiled"), [pytest.param(None, False, marks=pytest.mark.slow), *full((0, True))]
)
def test_empirical_kernels(nt, small_network, implementation, vmap_axes, compiled, capsys):
    apply_fn, params, want = small_network
    empirical = nt.empirical_ntk_fn(apply_fn, trace_axes=(), vmap_axes=vmap_axes, implementation=implementation)
    got = (jax.jit(empirical) if compiled else empirical)(X1, X2, params)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.max(np.abs(want)))
    assert capsys.readouterr().out.count("flops") == (3 if implementation == 0 else 0)  # AUTO compares the three


def test_structured_derivatives_of_awkward_programs(nt):
    """Parameters that are returned, shared, unused, or go through a convolution, a mean and a reshape."""

    def f(params, x):
        w, b, _, kernel = params
        image = jax.lax.conv(x.reshape(len(x), 1, 2, 5), kernel, (1, 1), "SAME")
        h = jnp.sin(x @ w) @ w.T + jnp.mean(image, axis=1).reshape(len(x), -1)
        return jnp.concatenate([h[:, :3], jnp.broadcast_to(b, (len(x), 2))], axis=1) * jnp.exp(b[0])

    params = [jnp.asarray(RNG.standard_normal(shape)) for shape in ((10, 10), (2,), (3,), (4, 1, 2, 2))]
    want, got = (
        jax.jit(nt.empirical_ntk_fn(f, trace_axes=(), implementation=implementation))(X1, X2, params)
        for implementation in (1, 3)
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.max(np.abs(want)))


@pytest.mark.full
def test_prediction_and_batching(nt):
    kernel_fn = reference.translate(fully_connected(2, 1))[2]
    k_train, k_test = kernel_fn(X1, None, "ntk"), kernel_fn(X2, X1, "ntk")
    y = jnp.asarray(RNG.standard_normal((6, 1)))
    predict = nt.predict.gradient_descent_mse(k_train, y)
    _, converged = predict(None, 0.0, 0.0, k_test)
    np.testing.assert_allclose(converged, k_test @ jnp.linalg.solve(k_train, y), rtol=1e-8)
    train, _ = predict(1e-3, jnp.zeros((6, 1)), jnp.zeros((4, 1)), k_test)
    decay = jax.scipy.linalg.expm(-1e-3 * k_train / 6)
    np.testing.assert_allclose(train, y - decay @ y, rtol=1e-8)
    rate = nt.predict.max_learning_rate(k_train, momentum=0.0)
    np.testing.assert_allclose(rate, 2 * 6 / jnp.linalg.eigvalsh(k_train)[-1], rtol=1e-9)
    batched = nt.batch(kernel_fn, batch_size=2, device_count=0)
    np.testing.assert_allclose(batched(X1, X2, "ntk"), kernel_fn(X1, X2, "ntk"), rtol=1e-13)


LOAD = """
import importlib, sys, warnings
import jax, jax.core, jax.extend.core, jax.interpreters.ad
warnings.simplefilter("error")
from ntk_analysis import reference
assert "neural_tangents" not in sys.modules, "imported before load()"
places = jax.core, jax.interpreters.ad, jax.extend.core, jax.extend.core.Primitive
def state():
    names = [{k: id(v) for k, v in vars(place).items()} for place in places]
    return names, dict(jax.config.values), list(warnings.filters)
before = state()
module = reference.load()
assert state() == before, "load() left something behind"
assert module is reference.load()
assert not {"jax.util", "neural_tangents.experimental", "tensorflow", "tf2jax"} & set(sys.modules)
assert not hasattr(module, "experimental") and not hasattr(jax, "util")
"""


@pytest.mark.full
def test_load_is_silent_and_leaves_jax_as_it_was():
    done = subprocess.run([sys.executable, "-c", LOAD], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def fail(error):
    def raise_it(*_):
        raise error

    return raise_it


@pytest.mark.parametrize(
    ("name", "replacement", "words"),
    [
        ("importlib.metadata.version", fail(importlib.metadata.PackageNotFoundError("x")), "is not installed"),
        ("importlib.metadata.version", lambda _: "0.7.0", "got neural-tangents 0.7.0"),
        ("ntk_analysis.reference.loading.mend", fail(AttributeError("no linearize")), "cannot be imported on JAX"),
    ],
    ids=["absent", "other version", "JAX has moved on"],
)
def test_errors_of_load_are_one_line(monkeypatch, name, replacement, words):
    monkeypatch.setattr(name, replacement)
    with pytest.raises(ImportError, match=words) as caught:
        loading.load.__wrapped__()
    message = str(caught.value)
    assert "\n" not in message
    for fact in ("0.6.5", "JAX 0.10 to 0.12", "uv sync --extra reference", "by uv only"):
        assert fact in message


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_command_line(run):
    status, out, err = run("--depth", 2, "--count", 5)
    assert (status, err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert float(lines["NNGP"].split()[0]) < ROUNDING
    assert float(lines["NTK"].split()[0]) < 2 * ANGLE
    assert lines["images"] == "5 of digits"
    assert f"neural-tangents 0.6.5, jax {jax.__version__}" in lines["versions"]


@pytest.mark.full
def test_command_line_on_images_of_a_file(run, tmp_path):
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (3, 5, 5), dtype=np.uint8))
    status, out, _ = run(tmp_path / "x.npy", "--depth", 2, "--activation", "erf", "--b-var", 0.1)
    assert status == 0
    assert "3 of" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--normalization", "batch"], "no BatchNorm"),
        *full((["--normalization", "layer_post", "--depth", 1], "neural-tangents refuses this network: LayerNorm")),
        (["--depth", 0], "got depth=0, expected 1 to"),
        (["absent.npy"], "absent.npy"),
        (["--count", 0], "--count"),
    ],
)
def test_command_line_errors_are_one_line(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_help(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "neural-tangents" in out
