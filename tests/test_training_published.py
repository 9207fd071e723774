"""Networks, initial laws, augmentation and schedule of the MimicNorm authors' code, against the facts known of it."""

import functools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from ntk_analysis import data
from ntk_analysis.cli.options import ModelOptions, StepOptions, recipe_of
from ntk_analysis.data import ImageSet
from ntk_analysis.paper_checks import mimicnorm
from ntk_analysis.paper_checks.studies import read_study
from ntk_analysis.training.augmentation import augmented, crop_and_flip, random_rotation, rotated
from ntk_analysis.training.checkpoint import run_folder
from ntk_analysis.training.dataset import hold_out
from ntk_analysis.training.initialization import (
    CENTERED_GAIN,
    VGG_GAIN,
    Centering,
    Laws,
    centering_mask,
    torch_default,
)
from ntk_analysis.training.loop import Trainer, epoch_key, fit
from ntk_analysis.training.models import MODELS, build, default_gain, layers, published_options
from ntk_analysis.training.models.layers import Layers
from ntk_analysis.training.models.shufflenet import Reduction, Unit
from ntk_analysis.training.normalization import Shift, SkipScale
from ntk_analysis.training.recipe import Recipe
from ntk_analysis.training.run_file import append_runs, read_runs
from ntk_analysis.training.sweep import Grid

from .tiers import full


@pytest.fixture(scope="module")
def published():
    """The network of the paper's recipe with shapes for arrays, and its laws as (name, gain, shape of the weights)."""

    def recorded(law):
        def made(gain=None):
            def init(key, shape, dtype=jnp.float32):
                found.append((law, gain, tuple(shape)))
                return jnp.zeros(shape, dtype)

            return init

        return made

    @functools.cache
    def built(name, normalization, **changes):
        found.clear()
        recipe = Recipe.cifar100(name, normalization=normalization, **changes)
        model = nnx.eval_shape(lambda: recipe.build(nnx.Rngs(0), classes=100, inputs=3072))
        return model, tuple(found)

    found: list[tuple[str, float | None, tuple[int, ...]]] = []
    with pytest.MonkeyPatch.context() as patched:
        for law in ("he_normal", "centered_init", "torch_default"):
            patched.setattr(layers, law, recorded(law))
        yield built


def parameters(model):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


UNUSED = 1  # their ResNets without batch norm have a number, bias1, that nothing reads
PARAMETERS = {
    ("vgg16", "batch_norm"): 34_015_396,
    ("vgg16", "mimic_norm"): 34_006_948,
    ("vgg11", "mimic_norm"): 28_512_740,  # 28.5 M
    ("resnet18", "batch_norm"): 11_220_132,
    ("resnet18", "mimic_norm"): 11_215_341 - UNUSED,
    ("squeezenet1_0", "batch_norm"): 781_156,
    ("squeezenet1_0", "mimic_norm"): 775_204,
    ("shufflenet_v2_x1_0", "batch_norm"): 1_360_896,
    ("shufflenet_v2_x1_0", "mimic_norm"): 1_344_904,
}


@pytest.mark.parametrize(("name", "normalization"), PARAMETERS)
def test_parameters_are_those_of_the_authors_networks(name, normalization, published):
    model, _ = published(name, normalization)
    assert parameters(model) == PARAMETERS[name, normalization]


@pytest.mark.full  # basic blocks are counted above
def test_bottlenecks_have_biases_but_for_their_projections(published):
    plain, biased = (
        parameters(published("resnet50", "mimic_norm", architecture=a)[0]) for a in ("torchvision", "published")
    )
    units = [64] + [
        4 * (3, 4, 6, 3)[stage] * 64 * 2**stage for stage in range(4)
    ]  # of the stem, and of last convolutions
    inner = [2 * (3, 4, 6, 3)[stage] * 64 * 2**stage for stage in range(4)]
    assert biased - plain == sum(units) + sum(inner)


# ---- initial laws


@pytest.mark.parametrize("normalization", ["mimic_norm", *full("none", "batch_norm")])
def test_laws_of_vgg(published, normalization):
    """2.8 in every convolution, the first included, but 2 behind batch norm; dense layers and read-out He's 2."""
    gain = 2 if normalization == "batch_norm" else VGG_GAIN
    centered = "centered_init" if normalization == "mimic_norm" else "he_normal"
    _, (first, *convs, one, two, head) = published("vgg11", normalization)
    assert first == ("he_normal", gain, (3, 3, 3, 64))
    assert {(law, size) for law, size, _ in convs} == {(centered, gain)}
    assert [one, two, head] == [("he_normal", 2, shape) for shape in ((512, 4096), (4096, 4096), (4096, 100))]


def test_laws_of_resnets(published):
    counts = Counter((law, gain) for law, gain, _ in published("resnet18", "mimic_norm")[1])
    assert counts == {
        ("he_normal", 2): 1 + 1,
        ("centered_init", 2): 16 + 3,
    }  # stem 27, read-out; projections from 64 on
    _, plain = published("resnet18", "batch_norm")
    assert {law for law, *_ in plain} == {"torch_default"}
    biases = [(gain, shape) for _, gain, shape in plain if len(shape) == 1]
    assert biases == [(512, (100,))]  # the read-out's, of its fan-in


def test_laws_of_squeezenet_and_its_centered_read_out(published):
    model, (stem, *others) = published("squeezenet1_0", "mimic_norm")
    assert stem == ("he_normal", pytest.approx(VGG_GAIN * 3 / 4), (3, 3, 3, 96))  # three channels count as four
    assert {gain for _, gain, _ in others} == {VGG_GAIN}
    assert others[-1] == ("centered_init", VGG_GAIN, (1, 1, 512, 100))
    assert {law for law, _, shape in others if math.prod(shape[:3]) <= 50} == {"he_normal"}
    assert centering_mask(model, Recipe.cifar100("squeezenet1_0").centering)(("head", "kernel"), None)
    assert not centering_mask(model, Centering())(("head", "kernel"), None)


def test_laws_of_shufflenet(published):
    found = {shape: (law, gain) for law, gain, shape in published("shufflenet_v2_x1_0", "mimic_norm")[1]}
    assert found[3, 3, 3, 24] == ("he_normal", 2 * 3 / 4)
    assert found[3, 3, 1, 58] == ("he_normal", 2 / 4)  # depthwise: one channel counts as four
    assert found[1, 1, 58, 58] == ("centered_init", 2)
    assert found[1024, 100] == ("he_normal", 2)
    normed = {shape: (law, gain) for law, gain, shape in published("shufflenet_v2_x1_0", "batch_norm")[1]}
    assert normed[3, 3, 1, 58] == ("he_normal", 2 / 58)  # their fan-in is that of all channels together
    assert normed[1, 1, 58, 58] == ("he_normal", 2)
    outside = {shape for shape, (law, _) in normed.items() if law == "torch_default"}
    assert outside == {(3, 3, 3, 24), (24,), (1, 1, 464, 1024), (1024,), (1024, 100), (100,)}


def test_scalars_of_shufflenet(published):
    model, _ = published("shufflenet_v2_x1_0", "mimic_norm")
    values = [module for _, module in nnx.iter_modules(model) if isinstance(module, SkipScale | Shift)]
    assert len(values) == 52
    unit: Any = Unit(Layers("mimic_norm", nnx.Rngs(0)), 8, published=True).branch
    assert unit.separable.pointwise.scale.scale[...] == pytest.approx(1.2**2)
    assert (unit.scale.scale[...], unit.shift.shift[...]) == (1, 0)
    reduction: Any = Reduction(Layers("weight_mean", nnx.Rngs(0)), 4, 8, published=True)
    assert reduction.side.pointwise.scale.scale[...] == pytest.approx(1.2)
    assert reduction.branch.reduce.conv.out_features == 4  # kept; torchvision's has 8 / 2, the same here


def test_pytorchs_default_law():
    weights = np.asarray(torch_default()(jax.random.key(0), (3, 3, 2, 5000), jnp.float32), np.float64)
    assert np.abs(weights).max() <= 1 / math.sqrt(18)
    squares = 3 * 18 * weights**2
    assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(squares.size)
    assert np.abs(torch_default(100)(jax.random.key(0), (500,), jnp.float32)).max() == pytest.approx(0.1, rel=0.02)


def test_gains():
    assert default_gain("resnet18") == default_gain("vgg11", skip_scale="authors") == CENTERED_GAIN
    assert default_gain("resnet18", skip_scale="authors") == 2
    assert Recipe(model="resnet18", skip_scale="authors").gain == 2
    assert Recipe(model="resnet18", skip_scale="authors", gain=2.5).gain == 2.5
    assert Layers("none", nnx.Rngs(0), laws=Laws(2.8)).head(4, 2).kernel.shape == (4, 2)


# ---- forward passes


@pytest.mark.full  # compiles a whole network
def test_squeezenet_layer_by_layer():
    """As its authors write it: bypasses around fire 3, 5 and 7, pooling behind the stem and fire 4 and 8."""

    @nnx.jit
    def both(images):
        model: Any = build(
            "squeezenet1_0", classes=5, normalization="none", rngs=nnx.Rngs(0), **published_options("squeezenet1_0")
        )
        fire = dict(enumerate(model.fires, 2))

        def pool(x):
            return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))

        f2 = fire[2](pool(nnx.relu(model.stem(images))))
        f4 = pool(fire[4](fire[3](f2) + f2))
        f6 = fire[6](fire[5](f4) + f4)
        f8 = pool(fire[8](fire[7](f6) + f6))
        return model(images), model.head(fire[9](f8)).mean((1, 2))

    ours, theirs = both(jax.random.normal(jax.random.key(0), (2, 32, 32, 3), jnp.float32))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.full  # compiles
@pytest.mark.parametrize("normalization", ["mimic_norm", "none"])
def test_units_of_shufflenet_in_numpy(normalization):
    """Convolutions written out; channels of the side and of the branch alternate."""
    unit: Any = Reduction(Layers(normalization, nnx.Rngs(0)), 4, 6, published=True)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype(np.float32)

    def pointwise(part, x):
        scale = part.scale.scale[...] if isinstance(part.scale, SkipScale) else 1
        return scale * (x @ np.asarray(part.conv.kernel[...])[0, 0] + np.asarray(part.conv.bias[...]))

    def separable(part, x):
        kernel = np.asarray(part.depthwise.conv.kernel[...])[:, :, 0]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        spots = [[np.sum(padded[:, i : i + 3, j : j + 3] * kernel, (1, 2)) for j in (0, 2, 4)] for i in (0, 2, 4)]
        moved = np.moveaxis(np.array(spots), 2, 0) + np.asarray(part.depthwise.conv.bias[...])
        return np.maximum(pointwise(part.pointwise, moved), 0)

    branch = separable(unit.branch.separable, np.maximum(pointwise(unit.branch.reduce, x), 0))
    expected = np.stack([separable(unit.side, x), branch], -1).reshape(2, 3, 3, 6)
    np.testing.assert_allclose(unit(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)  # float32, sums of 36 products
    assert isinstance(unit.branch.shift, Shift) == (normalization == "mimic_norm")


def test_nothing_is_published_of_others():
    assert published_options("mlp") == {}
    assert set(MODELS) - {"mlp"} == {name for name in MODELS if published_options(name)}
    for name, options, told in [
        ("squeezenet1_1", {"architecture": "published"}, "choose squeezenet1_0"),
        ("shufflenet_v2_x1_0", {"architecture": "published", "stem": "imagenet"}, "32 x 32"),
        ("mlp", {"initialization": "published"}, "mlp has no published initialization"),
        ("vgg11", {"classifier": "mlp"}, "unknown classifier 'mlp': choose one of linear, published"),
        ("resnet18", {"architecture": "authors"}, "unknown architecture 'authors'"),
        ("resnet18", {"initialization": "glorot"}, "unknown initialization 'glorot'"),
    ]:
        with pytest.raises(ValueError, match=told):
            build(name, classes=5, rngs=nnx.Rngs(0), **options)


# ---- augmentation


def test_rotations_are_pillows():
    """Pixels whose source lies within a thousandth of the border between two are left out: there roundings decide."""
    images = np.random.default_rng(0).integers(1, 255, (3, 9, 12, 3), np.uint8)
    angles = np.array([-13.0, 7.5, 15.0], np.float32)
    found = np.asarray(rotated(jnp.asarray(images), jnp.asarray(angles)))
    y, x = np.mgrid[:9, :12] - np.array([4.0, 5.5])[:, None, None]
    for image, angle, ours in zip(images, angles, found, strict=True):
        theirs = np.asarray(Image.fromarray(image).rotate(float(angle)))
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        sources = np.stack([cos * x - sin * y + 6, sin * x + cos * y + 4.5])
        clear = (np.abs(sources - np.round(sources)) > 1e-3).all(0)
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(ours[clear], theirs[clear])
        assert (ours == 0).any()


def test_rotation_comes_behind_crop_and_flip():
    images, key = jnp.ones((64, 8, 8, 1), jnp.uint8), jax.random.key(3)
    plain = crop_and_flip(key, images)
    np.testing.assert_array_equal(augmented(key, images), plain)
    turned = augmented(key, images, 15.0)
    expected = random_rotation(jax.random.fold_in(key, 2), plain, 15.0)
    np.testing.assert_array_equal(turned, expected)
    assert turned.dtype == images.dtype
    assert not np.array_equal(turned, plain)


# ---- schedule and recipes


def test_the_schedule_of_the_authors():
    """196 steps an epoch; 1e-4 + .1 k/n in warm-up from k = 0; decays at 82, 112 and 137, counted from 0."""
    recipe = Recipe.cifar100("vgg16")
    assert (recipe.decay_at, recipe.rotation, recipe.drop_last, recipe.dense) == ((82, 112, 137), 15, False, False)
    assert Recipe.cifar100("resnet50").batch == 128
    steps = np.array([0, 1, 391, 392, 82 * 196 - 1, 82 * 196, 112 * 196, 137 * 196])
    lr = jnp.asarray(0.1, jnp.float32)
    found = [float(recipe.rate(jnp.asarray(step, jnp.int32), 196, lr)) for step in steps]
    expected = [1e-4, 1e-4 + 0.1 / 392, 1e-4 + 0.1 * 391 / 392, 0.1, 0.1, 0.01, 1e-3, 1e-4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # float32


def test_recipes_of_other_variants():
    linear = Recipe.cifar100("vgg16", classifier="linear", initialization="he", drop_last=True)
    assert linear.gain == CENTERED_GAIN
    assert Recipe.from_json(linear.to_json()) == linear
    assert linear.digest != replace(linear, classifier="published").digest
    assert Recipe.cifar100("mlp").initialization == "he"
    assert Recipe.cifar100(warmup_epochs=0).warmup_start is None
    assert Recipe.cifar100(augment=False).rotation == 0
    for options, told in [
        ({"model": "vgg11", "architecture": "published"}, "vgg11 has no architecture to choose"),
        ({"model": "resnet18", "classifier": "published"}, "resnet18 has no classifier to choose"),
        ({"stem": "imagenet"}, "mlp has no stem"),
        ({"rotation": 15}, "rotation needs augment"),
        ({"rotation": 200, "augment": True}, "expected degrees from 0 to 180"),
        ({"warmup_start": 1e-4}, "warmup_start needs warmup_epochs"),
        ({"warmup_start": 0, "warmup_epochs": 1}, "got warmup_start=0.0: expected a positive"),
    ]:
        with pytest.raises(ValueError, match=told):
            Recipe(**options)


RECORDED = [
    path
    for path in sorted((Path(mimicnorm.__file__).parent / "studies").glob("*/runs.jsonl"))
    if path.parent.name != "vgg16_published_narrow"  # its lines have all fields
]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.parent.name)
def test_recorded_runs_mean_what_was_trained(path):
    """Lines from before the published networks: one linear layer, torchvision's others, He's laws, no rotation."""
    (line, *_) = path.read_text(encoding="utf-8").splitlines()
    written = json.loads(line)["recipe"]
    curves = read_runs(path.parent)
    for curve in curves.values():
        recipe = curve.recipe
        assert (recipe.classifier, recipe.architecture, recipe.initialization) == ("linear", "torchvision", "he")
        assert (recipe.rotation, recipe.drop_last, recipe.warmup_start) == (0, True, None)
        assert recipe.gain == written["gain"]
        assert recipe.running_variance == written.get("running_variance", "biased")  # Flax's, before there was a choice
    first = Recipe.from_json(json.dumps(written))
    missing = Recipe(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in written.items()} | {"running_variance": "biased"}
    )
    assert first == missing
    assert first.digest in {digest for digest, _ in curves}


def test_the_command_of_the_runs_at_full_width(tmp_path, dropped):
    """What studies/README.md says trains the recorded variant, which the paper's recipe now is not."""
    (path,) = [each for each in RECORDED if each.parent.name == "vgg16_cifar100"]
    recorded = {curve.recipe for curve in read_runs(path.parent).values()}
    network = ModelOptions(model="vgg16", gain=2.8, running_variance="biased")
    steps = StepOptions(batch=256, epochs=10, warmup_epochs=2, weight_decay=5e-4, augment=True, decay_at="80,110,135")
    recipe = recipe_of(network, steps, ["none", "mimic"])
    grid = Grid(recipe, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (0,), ("none", "weight_mean", "mimic", "batch"))
    assert {each for name in grid.normalizations for each in grid.recipes(name)} <= recorded
    (tmp_path / "runs.jsonl").write_bytes(path.read_bytes())
    other = next(iter(read_runs(path.parent).values()))
    append_runs(tmp_path, [replace(other, recipe=replace(other.recipe, classifier="published"))], dropped.dataset)
    with pytest.raises(ValueError, match="got runs of 2 recipes, expected one"):
        read_study(tmp_path, "a published network among others")


# ---- dropout and last batches in the loop


class Dropped(nnx.Module):
    """Two dense layers with dropout between them."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.first(x.reshape(len(x), -1)))))


class WithDropout(Recipe):
    """A recipe whose network has dropout, and compiles in a second."""

    def build(self, rngs, *, classes, inputs):
        return Dropped(rngs)


@pytest.fixture(scope="module")
def dropped():
    """160 images in batches of 48: three whole ones, and 16 images in a last one."""
    digits = hold_out(data.load_digits().subset(200, 0))
    return Trainer(WithDropout(batch=48, drop_last=False, epochs=2, learning_rate=0.05), digits)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_dropout_is_a_function_of_seed_and_step(dropped):
    start = dropped.init(0)
    assert not jax.tree.leaves(start.rest)  # no key is part of a state
    batches, keys = dropped.order(epoch_key(0, 1))
    step = dropped.step(start, (batches[0], keys[0]))
    assert same(step, dropped.step(start, (batches[0], keys[0])))
    assert step[1][1] != dropped.step(start, (batches[0], keys[1]))[1][1]  # the same images, other units dropped
    assert same(dropped.evaluate(start), dropped.evaluate(start))


@pytest.mark.full  # writes checkpoints
def test_dropout_goes_on_with_the_same_bits(dropped, tmp_path):
    whole = fit(dropped)
    fit(Trainer(replace(dropped.recipe, epochs=1), dropped.dataset), folder=tmp_path / "run")
    resumed = fit(dropped, folder=tmp_path / "run", resume=True)
    assert same(resumed.state, whole.state)
    assert [replace(each, seconds=0.0) for each in resumed.epochs] == [
        replace(each, seconds=0.0) for each in whole.epochs
    ]


def test_dropout_drops_half_while_training_only(dropped):
    model = dropped.model(dropped.init(0))
    x = jnp.ones((1, 4000), jnp.float32)
    np.testing.assert_array_equal(model.dropout(x), x)
    model.train()
    kept = np.asarray(model.dropout(x)) > 0
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / math.sqrt(x.size)


def test_the_last_batch_is_what_is_left_over(dropped):
    key = epoch_key(0, 1)
    whole, keys = dropped.order(key)
    rest, last = dropped.last_batch(key)
    assert (whole.shape, rest.shape, dropped.steps_per_epoch, dropped.left_over) == ((3, 48), (16,), 4, 16)
    assert sorted([*np.ravel(whole), *np.ravel(rest)]) == list(range(160))
    assert len({tuple(np.ravel(jax.random.key_data(each))) for each in (*keys, last)}) == 4
    state, metrics = dropped.epoch(dropped.init(0), key)
    assert state.step == 4
    stepped, losses = dropped.init(0), []
    for batch in (*zip(whole, keys, strict=True), (rest, last)):
        stepped, (_, loss, _) = dropped.step(stepped, batch)
        losses.append(float(loss))
    np.testing.assert_allclose(metrics.train_loss, np.average(losses, weights=[48, 48, 48, 16]), rtol=1e-5)
    assert Trainer(replace(dropped.recipe, drop_last=True), dropped.dataset).last_batch(key) is None
    with pytest.raises(ValueError, match="one image of 160 is left over"):
        Trainer(replace(dropped.recipe, batch=53), dropped.dataset)


def test_a_folder_of_before_is_gone_on_with(dropped, tmp_path):
    """run.json without the new fields means what they are by default."""
    recipe = Recipe(running_variance="biased", batch=32, epochs=1)
    with run_folder(tmp_path / "run", recipe, dropped.dataset, resume=False):
        pass
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    described.pop("seal", None)
    for name in ("stem", "classifier", "architecture", "initialization", "dense", "drop_last", "running_variance"):
        described["recipe"].pop(name)
    sealless = {
        key: value for key, value in described.items() if key in ("format", "recipe", "digest", "data", "made by")
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(sealless))
    with run_folder(tmp_path / "run", recipe, dropped.dataset, resume=True):
        pass
    with (
        pytest.raises(ValueError, match="running_variance is biased there and unbiased here"),
        run_folder(tmp_path / "run", replace(recipe, running_variance="unbiased"), dropped.dataset, resume=True),
    ):
        pass


@pytest.mark.full  # as runs at once are, in a sweep
def test_dropout_is_mapped_over(dropped):
    seeds = jnp.arange(2)
    states = jax.vmap(dropped.init)(seeds)
    _, many = jax.vmap(dropped.epoch)(states, jax.vmap(epoch_key, (0, None))(seeds, 1))
    for index in range(2):
        _, one = dropped.epoch(dropped.init(index), epoch_key(index, 1))
        np.testing.assert_allclose(many.train_loss[index], one.train_loss, rtol=1e-4)  # float32, other sums


@pytest.mark.full
def test_a_recipe_for_images_of_imagenets_size():
    images = np.random.default_rng(0).integers(0, 255, (10, 224, 224, 3), np.uint8)
    dataset = hold_out(ImageSet(images, np.arange(10) % 2, "large", 2))
    trainer = Trainer(Recipe(model="resnet18", width=4, stem="imagenet", batch=4), dataset)
    assert trainer.input_shape == (4, 224, 224, 3)
    assert trainer.shapes.stem.kernel_shape == (7, 7, 3, 4)


@pytest.mark.parametrize("model", full("vgg11"))
def test_a_published_network_is_trained(model, dropped):
    trainer = Trainer(Recipe.cifar100(model, width=2, min_fan_in=5, batch=48, epochs=1), dropped.dataset)
    run, again = fit(trainer), fit(trainer)
    assert same(run.state, again.state)
    assert run.diverged_at is None
