"""Networks to train: published parameter counts, shapes of every combination, initial laws, and MimicNorm's form."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ntk_analysis.training.centering import center, center_weights
from ntk_analysis.training.conversion import mimic
from ntk_analysis.training.initialization import (
    CENTERED_GAIN,
    VGG_GAIN,
    Centering,
    centered_init,
    centering_mask,
    he_normal,
    read_out_path,
)
from ntk_analysis.training.models import MODELS, RESIDUAL, ResNet, build
from ntk_analysis.training.models.layers import Layers
from ntk_analysis.training.models.selection import max_pool
from ntk_analysis.training.normalization import (
    NORMALIZATIONS,
    LastBatchNorm,
    SkipScale,
    Standardized,
    hidden_norm,
    start_fixup,
)

from .tiers import full


def abstract(name, **options):
    """The model with shapes for arrays."""
    return nnx.eval_shape(lambda: build(name, rngs=nnx.Rngs(0), **options))


def parameters(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


TORCHVISION = {
    ("resnet18", "batch_norm"): 11_689_512,
    ("resnet34", "batch_norm"): 21_797_672,
    ("resnet50", "batch_norm"): 25_557_032,
    ("resnet101", "batch_norm"): 44_549_160,
    ("vgg11", "batch_norm"): 132_868_840,
    ("vgg13", "batch_norm"): 133_053_736,
    ("vgg16", "batch_norm"): 138_365_992,
    ("vgg19", "batch_norm"): 143_678_248,
    ("vgg11", "none"): 132_863_336,
    ("vgg16", "none"): 138_357_544,
    ("squeezenet1_0", "none"): 1_248_424,
    ("squeezenet1_1", "none"): 1_235_496,
    ("shufflenet_v2_x0_5", "batch_norm"): 1_366_792,
    ("shufflenet_v2_x1_0", "batch_norm"): 2_278_604,
    ("shufflenet_v2_x1_5", "batch_norm"): 3_503_624,
    ("shufflenet_v2_x2_0", "batch_norm"): 7_393_996,
}


# one of each kind of block; the others repeat it
PUBLISHED = [
    ("resnet18", "batch_norm"),
    ("resnet50", "batch_norm"),
    ("vgg11", "batch_norm"),
    ("vgg11", "none"),
    ("squeezenet1_1", "none"),
    ("shufflenet_v2_x0_5", "batch_norm"),
]


@pytest.mark.parametrize(
    ("name", "normalization"), [*PUBLISHED, *full(*(each for each in TORCHVISION if each not in PUBLISHED))]
)
def test_parameters_are_those_torchvision_publishes(name, normalization):
    model = abstract(name, normalization=normalization, classes=1000, stem="imagenet")
    assert parameters(model) == TORCHVISION[name, normalization]


# the 3 x 3 stem has 9408 - 1728 weights fewer; VGG16's 13 convolutions with biases and batch norm are 14,723,136
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_220_132),
        ("vgg16", 14_723_136 + 512 * 100 + 100),
        ("mlp", 3073 * 512 + 4 * 513 * 512 + 513 * 100),
    ],
)
def test_parameters_at_cifar_size(name, count):
    options = {"normalization": "none" if name == "mlp" else "batch_norm"}
    assert parameters(abstract(name, classes=100, **options)) == count


# a convolution has 9 weights for each pair of channels, and a VGG biases; those of 64 channels are in the tables above
@pytest.mark.parametrize(("name", "width"), [("vgg11", 8), ("resnet18", 4)])
def test_parameters_of_other_widths(name, width):
    pairs, units = {
        "vgg11": ([(3, 1), (1, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 8), (8, 8)], [1, 2, 4, 4, 8, 8, 8, 8]),
        "resnet18": ([(3, 1)] + 4 * [(1, 1)] + [(1, 2), (2, 4), (4, 8)] + 3 * [(2, 2), (4, 4), (8, 8)], []),
    }[name]
    weights = sum(9 * a * b * width**2 for a, b in pairs[1:])
    stem = 9 * 3 * width + sum(units) * width
    projections = 0 if units else (1 * 2 + 2 * 4 + 4 * 8) * width**2
    read_out = 8 * width * 10 + 10
    model = abstract(name, classes=10, width=width, normalization="none")
    assert parameters(model) == stem + weights + projections + read_out


# one of each kind of block
FAMILIES: dict[str, dict[str, Any]] = {
    "mlp": {"depth": 2},
    "vgg11": {},
    "resnet18": {"blocks": (1, 1)},
    "resnet50": {"blocks": (1, 1)},
    "squeezenet1_0": {},
    "shufflenet_v2_x0_5": {"channels": (48, 96, 64), "counts": (2, 1)},
}


COMBINATIONS = [(name, normalization) for name in FAMILIES for normalization in NORMALIZATIONS]
CROSS = [(name, way) for name, way in COMBINATIONS if name in ("mlp", "resnet18") or way == "mimic_norm"]


@pytest.mark.parametrize(
    ("name", "normalization"), [*CROSS, *full(*(each for each in COMBINATIONS if each not in CROSS))]
)
def test_every_combination_gives_logits_or_says_why_not(name, normalization):
    def logits(images):
        return build(name, classes=7, normalization=normalization, rngs=nnx.Rngs(0), **FAMILIES[name])(images)

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    if NORMALIZATIONS[normalization].residual and name not in RESIDUAL:
        with pytest.raises(ValueError, match="residual networks: choose one of resnet18"):
            jax.eval_shape(logits, images)
        return
    assert jax.eval_shape(logits, images) == jax.ShapeDtypeStruct((2, 7), jnp.float32)


@pytest.mark.parametrize(
    "name", ["squeezenet1_0", *full(*(name for name in FAMILIES if name not in ("mlp", "squeezenet1_0")))]
)
def test_imagenet_size(name):
    def logits(images):
        options = FAMILIES[name] | {"normalization": "mimic_norm", "stem": "imagenet"}
        return build(name, classes=7, rngs=nnx.Rngs(0), **options)(images)

    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(logits, images).shape == (2, 7)


# PyTorch's pooling with ceil_mode: ceil((length - 3) / 2) + 1
@pytest.mark.parametrize(("length", "pooled"), [(32, 16), (109, 54), (111, 55), (54, 27), (27, 13), (13, 6)])
def test_pooling_that_keeps_an_incomplete_window(length, pooled):
    images = jax.ShapeDtypeStruct((1, length, length, 4), jnp.float32)
    assert jax.eval_shape(partial(max_pool, size=3, ceil=True), images).shape == (1, pooled, pooled, 4)


def test_scalars_of_fixup():
    """Two convolutions: 4 shifts and a multiplier a block, 1 more where it projects; stem 2, read-out 1; no norms."""
    plain = parameters(abstract("resnet18", normalization="none", classes=10))
    assert parameters(abstract("resnet18", normalization="fixup", classes=10)) - plain == 8 * 5 + 3 * 2 + 3


# ---- initial laws


@pytest.mark.parametrize(
    ("law", "gain"),
    [
        (centered_init(), 2 / (1 - 1 / np.pi)),
        (centered_init(VGG_GAIN), 2.8),
        (he_normal(), 2.0),
        (he_normal(1.0), 1.0),
    ],
)
@pytest.mark.parametrize("shape", [(3, 20_000), *full(((3, 3, 8, 20_000),))])
def test_initial_variance(law, gain, shape):
    """At a fan-in of 3 the factor n/(n - 1) is 1.5: without it, the test fails."""
    weights = np.asarray(law(jax.random.key(1), shape, jnp.float32), np.float64).reshape(-1, shape[-1])
    n = len(weights)
    squares = n / gain * np.mean(weights**2, 0)  # one number a unit, with mean 1
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - 1) < 4 * error


def test_centered_to_rounding():
    weights = np.asarray(centered_init()(jax.random.key(0), (3, 3, 64, 100), jnp.float32), np.float64)
    scale = math.sqrt(CENTERED_GAIN / 576)
    assert np.abs(weights.mean((0, 1, 2))).max() < np.finfo(np.float32).eps * scale * 4
    np.testing.assert_allclose(math.sqrt(CENTERED_GAIN / 2), 1.2112, atol=5e-5)


@pytest.mark.parametrize("fan_in", [5, *full(72)])
def test_a_centered_layer_keeps_the_second_moment_behind_a_relu(fan_in):
    """E (w.relu(h))^2 over weights and Gaussian h is gain (1/2 - 1/(2 pi)) = 1: exactly, at every fan-in."""
    draws = 10_000
    key, other = jax.random.split(jax.random.key(2))
    weights = centered_init()(key, (fan_in, draws), jnp.float32)
    outputs = jnp.sum(weights * nnx.relu(jax.random.normal(other, (fan_in, draws), jnp.float32)), 0)
    squares = np.asarray(outputs, np.float64) ** 2
    assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(draws)


def test_standardised_weights():
    weights = 3 + 5 * jax.random.normal(jax.random.key(0), (72, 4), jnp.float32)
    used = Standardized(lambda inputs, weights: weights, 1.5)(weights, weights)
    np.testing.assert_allclose(np.mean(used, 0), 0, atol=1e-6)  # rounding of 72 entries of size 0.14 + mean 3
    np.testing.assert_allclose(np.sum(np.square(used), 0), 1.5, rtol=1e-5)


@pytest.mark.parametrize("fan_in", [(7,), *full(((3,),), ((1000,),), ((3, 3, 7),))])
def test_a_unit_of_equal_weights_is_standardised_to_zero(fan_in):
    """Its mean rounds, by which the others of the layer are not touched, forward or backward."""
    layer = Standardized(lambda inputs, weights: weights, 1.5)
    alive = jax.random.normal(jax.random.key(0), (*fan_in, 1), jnp.float32)
    values = jnp.array([0.1, -0.3, 1e-3, 1.0, 0.0, 1e4], jnp.float32)
    weights = jnp.concatenate([jnp.broadcast_to(values, (*fan_in, len(values))), alive], -1)

    def loss(weights):
        used = layer(weights, weights)
        return jnp.sum(used * jax.random.normal(jax.random.key(1), weights.shape, weights.dtype))

    used, gradient = layer(weights, weights), jax.grad(loss)(weights)
    np.testing.assert_array_equal(used[..., :-1], 0)
    np.testing.assert_array_equal(gradient[..., :-1], 0)
    np.testing.assert_allclose(used[..., -1:], layer(alive, alive), rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(gradient[..., -1])) > 0


# ---- normalisation


def test_last_batch_norm():
    norm = LastBatchNorm(3, momentum=0.75, eps=0.1)
    normal = np.asarray(jax.random.normal(jax.random.key(0), (16, 3), jnp.float32))
    x = normal * np.asarray([1, 2, 5], np.float32) + np.float32(1)
    mean, var = x.mean(0), x.var(0)
    np.testing.assert_allclose(norm(jnp.asarray(x)), (x - mean) / np.sqrt(var + 0.1), atol=1e-5)
    np.testing.assert_allclose(norm.batch_var[...], var, rtol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.75 + 0.25 * var * 16 / 15, rtol=1e-5)
    assert not jax.tree.leaves(nnx.state(norm, nnx.Param))
    norm.eval()
    running = [np.asarray(leaf[...]) for leaf in (norm.mean, norm.var, norm.batch_var)]
    expected = (x - running[0]) / np.sqrt(running[1] + 0.1)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)
    np.testing.assert_array_equal([norm.mean[...], norm.var[...], norm.batch_var[...]], running)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    norm.train()
    with pytest.raises(ValueError, match="one example while training"):
        norm(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"expected \(batch, 3\)"):
        norm(jnp.ones((4, 2)))


# ---- one small network, compiled

TINY = {"blocks": (1, 1), "width": 8}  # 3 x 3 x 8 = 72 weights a unit, enough to be centered


@pytest.fixture(scope="module")
def tiny():
    return ResNet(Layers("mimic_norm", nnx.Rngs(0)), 5, **TINY)


def kernels(model):
    return {
        "/".join(map(str, path)): np.asarray(param[...])
        for path, param in nnx.to_flat_state(nnx.state(model, nnx.Param))
        if param[...].ndim > 1
    }


def test_mask_selects_what_starts_centered(tiny):
    """Not the stem (27), the projection (8) or the read-out."""
    wanted = {"blocks/0/convs/0", "blocks/0/convs/1", "blocks/1/convs/0", "blocks/1/convs/1"}
    means = {path: np.abs(k.reshape(-1, k.shape[-1]).mean(0)).max() for path, k in kernels(tiny).items()}
    assert {path.removesuffix("/kernel") for path, mean in means.items() if mean < 1e-6} == wanted
    shifted = jax.tree.map(lambda leaf: leaf + 1, nnx.state(tiny, nnx.Param))
    model = nnx.clone(tiny)
    nnx.update(model, center(shifted, centering_mask(tiny)))
    changed = {path for path, k in kernels(model).items() if np.abs(k - kernels(tiny)[path]).max() < 0.5}
    assert {path.removesuffix("/kernel") for path in changed} == wanted
    np.testing.assert_array_equal(model.head.bias[...], 1)


@nnx.jit
def evaluate(model, images):
    return model(images)


@nnx.jit
def train(model, optimizer, images, labels):
    """One step; the logits before it."""

    def loss(model):
        logits = model(images)
        return -jnp.mean(jnp.sum(labels * nnx.log_softmax(logits), 1)), logits

    (_, logits), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
    optimizer.update(model, gradient)
    return logits


def test_evaluation_and_a_step_of_training(tiny):
    model = nnx.clone(tiny)
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 3), jnp.float32)
    model.eval()
    raw = np.asarray(evaluate(model, images)) * np.sqrt(np.float32(1 + 1e-5))  # running mean 0 and variance 1
    np.testing.assert_array_equal(model.last.var[...], 1)

    model.train()
    rule = optax.chain(optax.sgd(0.1, momentum=0.9), center_weights(centering_mask(model)))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    logits = train(model, optimizer, images, jnp.eye(8, 5, dtype=jnp.float32))
    # logits are sums over some hundred float32 terms of size 1
    np.testing.assert_allclose(logits, (raw - raw.mean(0)) / np.sqrt(raw.var(0) + 1e-5), atol=1e-4)
    np.testing.assert_allclose(model.last.batch_var[...], raw.var(0), rtol=1e-4)
    np.testing.assert_allclose(model.last.var[...], 0.9 + 0.1 * raw.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(model.last.mean[...], 0.1 * raw.mean(0), atol=1e-5)

    mask, before = centering_mask(model), kernels(tiny)
    for path, kernel in kernels(model).items():
        assert np.abs(kernel - before[path]).max() > 1e-4, path  # each was trained
        if mask(tuple(path.split("/")), None):
            np.testing.assert_allclose(kernel.mean((0, 1, 2)), 0, atol=1e-7)


# 1 / sqrt(l) in the paper; 1.2^m / l in its code
@pytest.mark.parametrize(
    ("normalization", "skip_scale", "convs", "value"),
    [
        ("mimic_norm", "paper", 2, 3**-0.5),
        ("mimic_norm", "authors", 2, 0.48),
        ("mimic_norm", "authors", 3, 0.576),
        ("skip_init", "paper", 2, 0),
        ("fixup", "paper", 3, 1),
    ],
)
def test_scalar_of_the_third_branch(normalization, skip_scale, convs, value):
    scalar = Layers(normalization, nnx.Rngs(0), skip_scale=skip_scale).branch_scale(3, convs)
    np.testing.assert_allclose(scalar(jnp.ones(2, jnp.float32)), value, rtol=1e-6)


@pytest.mark.parametrize(("convs", "power"), [(2, -1 / 2), (3, -1 / 4)])
def test_fixup_scales_all_but_the_last(convs, power):
    """By L^(-1/(2m - 2)) for L branches of m convolutions."""
    ones, rngs = nnx.initializers.ones, nnx.Rngs(0)
    branches = [[nnx.Conv(1, 1, (1, 1), kernel_init=ones, rngs=rngs) for _ in range(convs)] for _ in range(5)]
    head = nnx.Linear(1, 1, kernel_init=ones, rngs=rngs)
    start_fixup(branches, head)
    for branch in branches:
        starts = [conv.kernel[...].item() for conv in branch]
        np.testing.assert_allclose(starts, [5**power] * (convs - 1) + [0], rtol=1e-6)
    assert head.kernel[...].item() == 0


def test_a_fixup_network_starts_as_the_identity():
    @jax.jit
    def last_kernels():
        model = ResNet(Layers("fixup", nnx.Rngs(0)), 5, **TINY)
        return [model.head.kernel[...], *[block.convs[-1].kernel[...] for block in model.blocks]]

    assert not any(np.any(kernel) for kernel in last_kernels())


# ---- any model's MimicNorm form


class Hand(nnx.Module):
    """What a user might write: norms called with an argument, layers in a Sequential, a depthwise convolution."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.bn1 = nnx.BatchNorm(8, rngs=rngs)
        self.body = nnx.Sequential(
            nnx.Conv(8, 16, (3, 3), use_bias=False, rngs=rngs), nnx.BatchNorm(16, rngs=rngs), nnx.relu
        )
        self.depthwise = nnx.Conv(16, 16, (9, 9), feature_group_count=16, rngs=rngs)
        self.fc1 = nnx.Linear(16, 64, rngs=rngs)
        self.fc2 = nnx.Linear(64, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x), use_running_average=False))
        x = jnp.mean(self.depthwise(self.body(x)), (1, 2))
        return self.fc2(nnx.relu(self.fc1(x)))


def test_mimic_of_a_foreign_model():
    model = Hand(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    new, report = mimic(model, rngs=nnx.Rngs(1), read_out="fc2")
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(model)))
    assert isinstance(model.bn1, nnx.BatchNorm)

    assert not any(isinstance(module, nnx.BatchNorm) for _, module in nnx.iter_modules(new))
    assert report.parameters == (parameters(model), parameters(model) - 2 * 8 - 2 * 16)
    by_path = {change.path: change.what for change in report.changes if "weights" in change.what}
    assert [path for path, what in by_path.items() if "centered" in what] == ["body/layers/0"]  # depthwise: 81 weights
    assert set(by_path) == {"conv1", "body/layers/0", "depthwise", "fc1", "fc2"}
    depthwise, given = new.model.body.layers[0], model.body.layers[0]
    assert isinstance(depthwise, nnx.Conv)
    assert isinstance(given, nnx.Conv)
    kernel = depthwise.kernel[...]
    np.testing.assert_allclose(np.mean(kernel, (0, 1, 2)), 0, atol=1e-7)
    assert not np.array_equal(kernel, given.kernel[...])
    assert "bn1: batch norm of 8 features removed" in str(report)
    assert "residual branches of a foreign model cannot be known" in str(report)
    mask = centering_mask(new, read_out="fc2")
    assert [path for path in kernels(new) if mask(tuple(path.split("/")), None)] == ["model/body/layers/0/kernel"]
    images = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    assert nnx.eval_shape(lambda model, x: model(x), new, images).shape == (4, 4)

    with pytest.raises(ValueError, match="fits 2 layers: give read_out="):
        mimic(model, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="'fc9' fits 0 layers"):
        mimic(model, rngs=nnx.Rngs(0), read_out="fc9")
    with pytest.raises(ValueError, match="has a last batch norm already"):
        mimic(new, rngs=nnx.Rngs(0), read_out="fc2")


def shapes(model):
    return {path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def test_mimic_of_a_resnet_is_the_mimic_norm_resnet():
    """The same parameters as of the one built so."""
    reports = []

    def made():
        model, report = mimic(ResNet(Layers("batch_norm", nnx.Rngs(0)), 5, **TINY), rngs=nnx.Rngs(1))
        reports.append(report)
        return model.model

    normed, built = (
        abstract("resnet18", normalization=name, classes=5, **TINY) for name in ("batch_norm", "mimic_norm")
    )
    assert shapes(nnx.eval_shape(made)) == shapes(built) != shapes(normed)
    assert "blocks/1/scale: scalar 0.7071 at the end of residual branch 2" in str(reports[0])
    assert reports[0].parameters == (parameters(normed), parameters(built))
    assert not reports[0].notes


# ---- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet17"}, "unknown model 'resnet17': choose one of mlp, vgg11"),
        ({"normalization": "groups"}, "unknown normalization 'groups': choose one of none, weight_mean"),
        ({"stem": "mnist"}, "unknown stem 'mnist': choose one of cifar, imagenet"),
        ({"skip_scale": "1/l"}, "unknown skip_scale '1/l': choose one of paper, authors"),
        ({"name": "vgg11", "normalization": "fixup"}, "fixup is for residual networks"),
        ({"name": "mlp", "stem": "imagenet"}, "mlp has no stem"),
        ({"name": "mlp", "depth": 0}, "expected at least 1 hidden layer"),
    ],
)
def test_errors_name_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        build(**{"name": "resnet18", "classes": 10, "rngs": nnx.Rngs(0), **options})


def test_other_errors():
    with pytest.raises(ValueError, match="fan-in of at least 2"):
        centered_init()(jax.random.key(0), (1, 4))
    with pytest.raises(ValueError, match="expected 2 or more"):
        Centering(min_fan_in=1)
    with pytest.raises(ValueError, match="unknown normalization 'groups'"):
        hidden_norm("groups", 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"fits 0 layers.*none: no nnx.Linear"):
        read_out_path(SkipScale(1.0))
    with pytest.raises(ValueError, match="224 x 224"):
        jax.eval_shape(
            lambda x: build("vgg11", classes=10, stem="imagenet", rngs=nnx.Rngs(0))(x),
            jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32),
        )
    with pytest.raises(ValueError, match="build with inputs="):
        build("mlp", classes=10, rngs=nnx.Rngs(0), width=8)(jnp.ones((2, 8, 8, 3), jnp.float32))


def test_registry_is_complete():
    assert len(MODELS) == 1 + 4 + 4 + 2 + 4
