"""Training finite networks: each step against its formula, one curve from one seed, and divergence on the record."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_analysis import data
from ntk_analysis.data import DataError, ImageSet
from ntk_analysis.training.augmentation import crop_and_flip, random_crop, random_flip
from ntk_analysis.training.dataset import Dataset, hold_out, load_dataset
from ntk_analysis.training.initialization import VGG_GAIN, centering_mask
from ntk_analysis.training.loop import Trainer, epoch_key, fit, in_turn
from ntk_analysis.training.metrics import Epoch
from ntk_analysis.training.normalization import NORMALIZATIONS
from ntk_analysis.training.recipe import Recipe, chain
from ntk_analysis.training.surge import variance_by_step

from .tiers import full

SMALL = Recipe(depth=2, width=24, min_fan_in=2, batch=32, epochs=3, normalization="none", learning_rate=0.05)


@pytest.fixture(scope="module")
def digits():
    """160 digits to train on, 40 to test on."""
    return hold_out(data.load_digits().subset(200, 0))


@pytest.fixture(scope="module")
def plain(digits):
    """A trainer for tests to share: compiling it is what takes time."""
    return Trainer(replace(SMALL, epochs=10), digits)


def leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_bits(one, other):
    assert leaves(one).keys() == leaves(other).keys()
    for name, leaf in leaves(one).items():
        np.testing.assert_array_equal(leaf, leaves(other)[name], err_msg=name)


# ---- the loop against the network, by hand


def by_hand(trainer, part):
    """Loss and accuracy of a function of the state, on all images of a part at once, from NumPy's normalised pixels."""
    train = trainer.dataset.train.images.astype(np.float64)
    x = jnp.asarray((part.images - train.mean()) / train.std(), jnp.float32)

    def judge(state):
        logits = trainer.model(state)(x).astype(jnp.float64)
        logs = logits - jax.nn.logsumexp(logits, 1, keepdims=True)
        rows = jnp.arange(len(x))
        hits = jnp.argmax(logits, 1) == part.labels
        return -jnp.mean(logs[rows, part.labels]), jnp.mean(hits.astype(jnp.float64))

    return jax.jit(judge)


def test_metrics_are_means_over_all_images(digits, plain):
    """At no learning rate to speak of, training sees each image once; the 40 to test on are no multiple of 32."""
    trainer, start = plain, plain.init(0, 1e-20)
    state, metrics = trainer.epoch(start, epoch_key(0, 1))
    # float32: logits of size 1 from sums of 64 terms, averaged
    for part, found in (
        (digits.train, metrics[1:3]),
        (digits.test, metrics[3:5]),
        (digits.test, trainer.evaluate(start)),
    ):
        np.testing.assert_allclose(found, by_hand(trainer, part)(start), rtol=1e-5)
    assert metrics.last_bn_variance is None
    assert state.step == trainer.steps_per_epoch == 5


@pytest.mark.parametrize("loss", ["squared", *full("cross_entropy")])
def test_a_step_is_one_of_gradient_descent(digits, loss):
    """With all images in one batch the first step is -rate times the gradient, whatever the momentum."""
    trainer = Trainer(replace(SMALL, batch=160, loss=loss), digits)
    start = trainer.init(3)
    state, _ = trainer.epoch(start, epoch_key(3, 1))
    images, labels = digits.train.images, digits.train.labels
    x = jnp.asarray((images - images.mean()) / images.std(), jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = trainer.model(start._replace(params=params))(x).astype(jnp.float64)
        if loss == "squared":
            return jnp.mean(jnp.sum((logits - np.eye(10)[labels]) ** 2, 1)) / 2
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(x)), labels])

    expected = jax.tree.map(lambda w, g: w - 0.05 * g.astype(w.dtype), start.params, gradient(start.params))
    for name, leaf in leaves(state.params).items():
        # roundings of weights of size 0.3 and of gradients over 160 images
        np.testing.assert_allclose(leaf, leaves(expected)[name], rtol=0, atol=1e-6, err_msg=name)


def by_formula(recipe, weights, gradients, rates):
    """PyTorch's definitions of the optimizers, for one number."""
    w, mu, decay, m, v = weights, recipe.momentum, recipe.weight_decay, 0.0, 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        g = gradient + (0 if recipe.optimizer == "adamw" else decay * w)
        if recipe.optimizer == "sgd":
            m = mu * m + g
            w = w - rate * (g + mu * m if recipe.nesterov else m)
        else:
            m, v = mu * m + (1 - mu) * g, 0.999 * v + 0.001 * g**2
            step = m / (1 - mu**t) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
            w = w - rate * (step + (decay * w if recipe.optimizer == "adamw" else 0))
    return w


@pytest.mark.parametrize("optimizer", ["sgd", "sgd nesterov", "adam", "adamw"])
def test_optimizers(optimizer):
    name, *nesterov = optimizer.split()
    recipe = Recipe(optimizer=name, nesterov=bool(nesterov), weight_decay=0.2, momentum=0.8)
    rule, w = chain(recipe, None), jnp.asarray(0.7)
    state, gradients, rates = rule.init(w), (0.5, -0.1, 0.3), (0.1, 0.2, 0.05)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
        for gradient, rate in zip(gradients, rates, strict=True):
            change, state = rule.update(jnp.asarray(gradient), state, w, learning_rate=jnp.asarray(rate))
            w = w + change
    np.testing.assert_allclose(w, by_formula(recipe, 0.7, gradients, rates), rtol=1e-12)


def test_learning_rates():
    recipe = Recipe(warmup_epochs=2, decay_at=(3, 5), decay_factor=0.1)
    one = jnp.ones((), jnp.float32)
    found = [float(recipe.rate(jnp.asarray(step, jnp.int32), 4, one)) for step in range(24)]
    expected = [*np.arange(1, 9) / 8, *[1] * 4, *[0.1] * 8, *[0.01] * 4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # a few float32 products


# ---- runs


@pytest.fixture(scope="module")
def mimic(digits):
    """A run that has everything: augmentation, warm-up, decay, a last batch norm."""
    recipe = replace(
        SMALL, normalization="mimic_norm", epochs=4, warmup_epochs=1, decay_at=(3,), weight_decay=1e-3, augment=True
    )
    return fit(Trainer(recipe, digits))


def test_the_loss_falls(plain):
    run = fit(plain)
    assert run.epochs[0].train_loss > 1.3
    assert run.epochs[-1].train_loss < 0.35
    assert run.epochs[-1].test_accuracy > 0.8
    assert run.diverged_at is None
    assert [each.epoch for each in run.epochs] == list(range(1, 11))
    assert run.epochs[-1].learning_rate == np.float32(0.05)


@pytest.mark.parametrize("compiled", full("once", "again"))
def test_equal_seeds_give_equal_bits_and_others_do_not(compiled, digits, mimic):
    trainer = mimic.trainer
    again = fit(trainer if compiled == "once" else Trainer(trainer.recipe, digits))
    assert_same_bits(again.state, mimic.state)
    assert [replace(each, seconds=0.0) for each in again.epochs] == [
        replace(each, seconds=0.0) for each in mimic.epochs
    ]
    start = trainer.init(0)
    one, other = (trainer.epoch(start, epoch_key(0, epoch))[1].train_loss for epoch in (1, 2))
    assert one != other  # another order
    assert not np.array_equal(start.params["head"]["kernel"][...], trainer.init(1).params["head"]["kernel"][...])


def test_an_epoch_is_its_steps(digits, mimic):
    """The same from outside, step by step, and so the running variances of `variance_by_step`."""
    trainer, key = mimic.trainer, epoch_key(0, 1)
    whole, metrics = trainer.epoch(trainer.init(0), key)
    stepped, (rates, losses, _) = in_turn(trainer.step, trainer.init(0), trainer.order(key))
    # other programs, other roundings: float32, some hundred products, a few steps
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for name, leaf in leaves(whole).items():
        close(leaves(stepped)[name], leaf, err_msg=name)
    close(metrics.train_loss, losses.mean())
    assert metrics.learning_rate == rates[-1]
    variances = variance_by_step(trainer, epochs=2)
    assert variances.shape == (2 * trainer.steps_per_epoch + 1, digits.classes)
    np.testing.assert_array_equal(variances[0], 1)
    for epoch in (1, 2):
        close(variances[epoch * trainer.steps_per_epoch], mimic.epochs[epoch - 1].last_bn_variance)


def test_in_turn_is_scan():
    def step(carry, xs):
        return carry * xs["a"] + xs["b"], (carry, None)

    xs = {"a": jnp.asarray([2.0, 0.5, 3.0]), "b": jnp.asarray([1.0, -1.0, 0.25])}
    found, expected = in_turn(step, jnp.asarray(1.0), xs), jax.lax.scan(step, jnp.asarray(1.0), xs)
    assert jax.tree.structure(found) == jax.tree.structure(expected)  # type: ignore[operator]  # JAX leaves the type open
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_no_convolution_is_trained_in_a_loop_on_a_cpu(digits):
    """There XLA's are 200 times slower."""
    trainer = Trainer(replace(SMALL, model="vgg11", depth=None, width=2), digits)
    state = jax.eval_shape(trainer.init, 0)
    program = str(jax.make_jaxpr(trainer.epoch)(state, epoch_key(0, 1)))
    assert ("scan" in program) == (jax.default_backend() != "cpu")


@pytest.mark.parametrize(
    ("settings", "told"), [({"epochs": 0}, "got epochs=0"), ({}, "none has no last batch norm: choose last_bn")]
)
def test_no_variances_to_follow(digits, settings, told):
    with pytest.raises(ValueError, match=told):
        variance_by_step(Trainer(SMALL, digits), **settings)


@pytest.mark.full  # as runs at once are, in a sweep
def test_seeds_and_learning_rates_are_mapped_over(mimic):
    trainer, seeds, rates = mimic.trainer, jnp.arange(2), jnp.asarray([0.05, 0.01], jnp.float32)
    states = jax.vmap(trainer.init)(seeds, rates)
    _, many = jax.vmap(trainer.epoch)(states, jax.vmap(epoch_key, (0, None))(seeds, 1))
    for index, rate in enumerate((0.05, 0.01)):
        _, one = trainer.epoch(trainer.init(index, rate), epoch_key(index, 1))
        np.testing.assert_allclose(many.learning_rate[index], rate, rtol=1e-6)
        # five steps of float32, their sums in another order
        np.testing.assert_allclose(many.train_loss[index], one.train_loss, rtol=1e-4)


def test_the_last_batch_norm_is_recorded(mimic):
    last = mimic.epochs[-1].last_bn_variance
    assert len(last) == 10
    np.testing.assert_array_equal(mimic.trainer.model(mimic.state).last.var[...], np.float32(last))
    assert all(each.last_bn_variance != (1.0,) * 10 for each in mimic.epochs)


def test_the_statistics_of_test_batches_in_training_mode(mimic):
    """A batch of 32 of the 40 test images is normalised by itself, the 8 left over do not count."""
    trainer, state = mimic.trainer, mimic.state
    train, test = trainer.dataset.train.images.astype(np.float64), trainer.dataset.test
    model = trainer.model(state)
    model.last = lambda logits: logits
    logits = np.asarray(model(jnp.asarray((test.images[:32] - train.mean()) / train.std(), jnp.float32)), np.float64)
    logits = (logits - logits.mean(0)) / np.sqrt(logits.var(0) + 1e-5)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), test.labels[:32]]
    hits = np.argmax(logits, 1) == test.labels[:32]
    found = trainer.evaluate(state, training=True)
    np.testing.assert_allclose(found, [losses.mean(), hits.mean()], rtol=1e-4)  # float32
    assert abs(found[0] - trainer.evaluate(state)[0]) > 0.01


def test_a_batch_larger_than_the_test_images_has_no_training_mode(digits, plain):
    trainer = Trainer(replace(SMALL, batch=64), digits)
    with pytest.raises(ValueError, match="got 40 test images, fewer than batch=64: statistics of a batch need a whole"):
        trainer.evaluate(plain.init(0), training=True)


@pytest.mark.parametrize("normalization", ["weight_mean", *full("none")])
def test_weights_stay_centered_under_adam(digits, normalization):
    recipe = replace(SMALL, normalization=normalization, optimizer="adam", learning_rate=0.01)
    trainer = Trainer(recipe, digits)
    run = fit(trainer)
    mask = centering_mask(trainer.model(run.state), recipe.centering)
    flat = nnx.to_flat_state(run.state.params)
    chosen = {path: np.asarray(leaf[...]) for path, leaf in flat if mask(tuple(map(str, path)), leaf)}
    assert [tuple(map(str, path)) for path in chosen] == [("hidden", "0", "kernel")]
    worst = max(np.abs(kernel.mean(0)).max() for kernel in chosen.values())
    assert (worst < 1e-6) == (normalization == "weight_mean"), worst


OF_LAYERS = [name for name, parts in NORMALIZATIONS.items() if not parts.residual]


@pytest.mark.parametrize(
    "normalization",
    ["mimic_norm", "layer_norm", *full(*(name for name in OF_LAYERS if name not in ("mimic_norm", "layer_norm")))],
)
def test_bfloat16_keeps_its_state_in_float32(digits, normalization):
    """The scan would refuse a state whose dtypes change; only shapes are computed."""
    trainer = Trainer(replace(SMALL, normalization=normalization, bfloat16=True), digits)
    start = jax.eval_shape(trainer.init, 0)
    state, metrics = jax.eval_shape(trainer.epoch, start, epoch_key(0, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.rest, metrics))} == {jnp.dtype("float32")}
    images = jax.ShapeDtypeStruct(trainer.input_shape, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # as Flax needs it, and the trainer has it
        logits = jax.eval_shape(lambda state, x: trainer.model(state)(x), start, images)
    assert logits.dtype == jnp.bfloat16


@pytest.mark.full
def test_bfloat16_learns_the_same(digits):
    one, other = (fit(Trainer(replace(SMALL, bfloat16=how), digits)).epochs[0] for how in (False, True))
    assert one.train_loss != other.train_loss
    # 8 bits: each of some 5 layers rounds by 0.4 %
    np.testing.assert_allclose(other.train_loss, one.train_loss, rtol=0.02)


@pytest.mark.parametrize("model", ["vgg11", *full("resnet18")])
def test_image_networks_take_small_grey_images(digits, model):
    trainer = Trainer(Recipe.cifar100(model, batch=40, bfloat16=True), digits)
    assert trainer.input_shape == (40, 32, 32, 3)
    _, metrics = jax.eval_shape(trainer.epoch, jax.eval_shape(trainer.init, 0), epoch_key(0, 1))
    assert metrics.last_bn_variance.shape == (10,)


@pytest.mark.full  # as it is of a sweep
def test_divergence_is_a_result(digits):
    run = fit(Trainer(replace(SMALL, learning_rate=1e6), digits))
    assert run.diverged_at == len(run.epochs) == 1
    assert run.epochs[0].diverged
    assert not run.epochs[0].train_loss < 1e3


def test_an_epoch_is_written_and_read():
    epoch = Epoch(7, 0.1, math.inf, 0.25, -math.inf, 0.1, (1 / 3, 2.0), True, 1.5)
    assert Epoch.from_json(epoch.to_json()) == epoch
    assert "\n" not in epoch.to_json()
    nothing = Epoch.from_json(replace(epoch, train_loss=math.nan, last_bn_variance=None).to_json())
    assert math.isnan(nothing.train_loss)
    assert nothing.last_bn_variance is None


# ---- augmentation


def numbered(n, h=6, w=5, c=2, dtype=np.uint8):
    """Images of different pixels, none of them 0."""
    return jnp.asarray(np.arange(n * h * w * c).reshape(n, h, w, c) % 250 + 1, dtype)


def test_crops_are_windows_of_the_padded_image():
    images = numbered(400)
    cropped = np.asarray(random_crop(jax.random.key(0), images, 1))
    assert cropped.shape == images.shape
    assert cropped.dtype == np.uint8
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = {(i, j): padded[:, i : i + 6, j : j + 5] for i in range(3) for j in range(3)}
    counts = {place: int(np.all(cropped == window, (1, 2, 3)).sum()) for place, window in windows.items()}
    assert sum(counts.values()) == 400
    # 9 equally likely places: mean 44.4, standard deviation 6.3
    assert all(abs(count - 400 / 9) < 4 * math.sqrt(400 * 8 / 81) for count in counts.values())
    np.testing.assert_array_equal(random_crop(jax.random.key(0), images, 0), images)


def test_flips_mirror_half_of_the_images():
    images = numbered(400, dtype=np.float32)
    flipped = np.asarray(random_flip(jax.random.key(1), images))
    mirrored = np.all(flipped == images[:, :, ::-1], (1, 2, 3))
    same = np.all(flipped == images, (1, 2, 3))
    assert np.all(mirrored ^ same)
    assert abs(mirrored.sum() - 200) < 4 * 10  # standard deviation sqrt(400/4)


def test_augmentation_is_a_function_of_its_key():
    images = numbered(8, 12, 12, 3)
    augment = jax.jit(partial(crop_and_flip, images=images))
    one, again, other = (np.asarray(augment(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    with pytest.raises(ValueError, match="got padding=-1"):
        random_crop(jax.random.key(0), images, -1)


# ---- recipes and data sets


def test_the_papers_recipe():
    recipe = Recipe.cifar100()
    assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (0.1, 0.9, 5e-4)
    assert (recipe.batch, recipe.epochs, recipe.warmup_epochs, recipe.decay_at) == (256, 150, 2, (82, 112, 137))
    assert recipe.augment
    assert Recipe.cifar100("vgg16").gain == VGG_GAIN
    assert Recipe.cifar100(epochs=3) == replace(recipe, epochs=3)


def test_a_recipe_is_written_and_read():
    recipe = Recipe.cifar100("vgg11", learning_rate=1, seed=4)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert len({recipe, Recipe.from_json(recipe.to_json())}) == 1
    assert recipe.digest == replace(recipe, learning_rate=1.0, epochs=3).digest
    assert recipe.digest != replace(recipe, decay_at=(82, 112)).digest
    with pytest.raises(ValueError, match="not a recipe: got rate"):
        Recipe.from_json('{"rate": 1}')


WRONG = {
    "unknown model": {"model": "alexnet"},
    "unknown normalization": {"normalization": "groups"},
    "unknown loss": {"loss": "hinge"},
    "unknown optimizer": {"optimizer": "lion"},
    "for residual networks": {"normalization": "fixup"},
    "its own depth": {"model": "resnet18", "depth": 3},
    "got depth=0": {"depth": 0},
    "got batch=1": {"batch": 1},
    "got epochs=0": {"epochs": 0},
    "got seed=2147483648": {"seed": 2**31},
    "got learning_rate=0.0": {"learning_rate": 0},
    "got learning_rate=nan": {"learning_rate": math.nan},
    "got momentum=1.0": {"momentum": 1},
    "nesterov needs momentum": {"momentum": 0, "nesterov": True},
    "got weight_decay=-1.0": {"weight_decay": -1},
    r"got decay_at=\(5, 3\)": {"decay_at": (5, 3)},
}


@pytest.mark.parametrize("told", WRONG)
def test_recipes_that_make_no_sense(told):
    with pytest.raises(ValueError, match=told) as error:
        Recipe(**WRONG[told])
    assert "\n" not in str(error.value)


def test_recipes_that_do_not_fit_the_data(digits):
    with pytest.raises(ValueError, match="got batch=161: digits has 160 images"):
        Trainer(replace(SMALL, batch=161), digits)
    with pytest.raises(ValueError, match="selects no weights to center"):
        Trainer(replace(SMALL, normalization="weight_mean", min_fan_in=51), digits)
    two = ImageSet(np.arange(64, dtype=np.uint8).reshape(4, 4, 2, 2), np.arange(4), "two channels", 4)
    with pytest.raises(ValueError, match="takes images of 1 or 3 channels, two channels has 2"):
        Trainer(Recipe(model="resnet18", batch=2), Dataset(two, two))


def test_data_sets(tmp_path):
    whole = data.load_digits()
    parts = load_dataset("digits")
    assert (len(parts.train.images), len(parts.test.images)) == (1438, 359)
    together = np.concatenate([parts.train.images, parts.test.images]).astype(int)
    np.testing.assert_array_equal(np.sort(together.sum((1, 2, 3))), np.sort(whole.images.astype(int).sum((1, 2, 3))))
    np.savez(tmp_path / "images.npz", images=whole.images[..., 0], labels=whole.labels)
    assert load_dataset(tmp_path / "images.npz").digest == parts.digest
    assert hold_out(whole, seed=1).digest != parts.digest
    np.save(tmp_path / "images.npy", whole.images)
    with pytest.raises(DataError, match="images without labels"):
        load_dataset(tmp_path / "images.npy")
    with pytest.raises(DataError, match="no data set 'digit': give digits, mnist5k, or the path"):
        load_dataset("digit")
    with pytest.raises(ValueError, match="got fraction=1"):
        hold_out(whole, 1.0)
