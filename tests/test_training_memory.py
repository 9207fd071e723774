"""What the backward pass keeps: counted by hand, found again by value, the same to the byte as JAX's own leaves."""

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntk_analysis import cli
from ntk_analysis.cli.memory import _peak
from ntk_analysis.cli.train import summary
from ntk_analysis.common.memory import peak_bytes
from ntk_analysis.training.loop import Run, Trainer
from ntk_analysis.training.memory import CONSTANTS, COPIES, TABLE_1, TABLE_3, account, kept_by, kept_bytes, measuring
from ntk_analysis.training.metrics import Epoch
from ntk_analysis.training.models import MODELS, build
from ntk_analysis.training.normalization import SkipScale
from ntk_analysis.training.recipe import Recipe

from .tiers import full

FLOAT = 4  # bytes
B, D, H, C = 8, 5, 7, 3  # batch, inputs, hidden units, classes
SMALL = 16  # per-channel vectors that a batch norm keeps are fewer


def size(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


class Dense(nnx.Module):
    """Dense, norm or not, ReLU, dense."""

    def __init__(self, *, norm=False, scale=False):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(D, H, rngs=rngs)
        self.norm = nnx.BatchNorm(H, rngs=rngs) if norm else SkipScale(0.5) if scale else None
        self.head = nnx.Linear(H, C, rngs=rngs)

    def __call__(self, x):
        y = self.first(x)
        return self.head(nnx.relu(y if self.norm is None else self.norm(y)))


def test_dense_relu_dense_by_hand():
    found = dict(kept_by(Dense(), (B, D)))
    assert found.pop("loss") == pytest.approx(FLOAT * B * C, abs=FLOAT * 6 * B)  # softmax and a few numbers an image
    assert found == {
        "dense": FLOAT * B * H,  # the second's input: the first's is the network's
        "ReLU": B * H,  # a bool each
        CONSTANTS: FLOAT * B * H,  # zeros
    }


def test_batch_norm_keeps_two_arrays_and_a_scale_one():
    plain = kept_by(Dense(), (B, D))
    norm = kept_by(Dense(norm=True), (B, D))
    assert 2 * FLOAT * B * H <= norm["batch norm"] <= FLOAT * H * (2 * B + SMALL)
    assert {kind: count for kind, count in norm.items() if kind not in ("batch norm", COPIES)} == plain
    scale = dict(kept_by(Dense(scale=True), (B, D)))
    assert scale.pop("skip scale") == FLOAT * B * H
    assert scale == plain


def test_convolution_and_pooling_by_hand():
    class Net(nnx.Module):
        def __init__(self):
            self.convs = nnx.List([nnx.Conv(i, o, (3, 3), rngs=nnx.Rngs(0)) for i, o in ((3, 4), (4, C))])

        def __call__(self, x):
            y = nnx.relu(self.convs[0](x))
            pooled = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            return self.convs[1](pooled).mean((1, 2))

    found = kept_by(Net(), (B, 6, 6, 3))
    area = 6 * 6
    assert found["convolution"] == FLOAT * B * 4 * area / 4  # of the second: what was pooled
    assert found["pooling"] == FLOAT * B * 4 * area
    assert found["ReLU"] == B * 4 * area
    assert found[CONSTANTS] == FLOAT * B * 4 * area


def test_objects_count_once_and_equal_values_are_copies():
    x = jax.ShapeDtypeStruct((B,), jnp.float32)

    def kept(function):
        return dict(kept_bytes(lambda w, x: (jnp.sum(function(w, x)), None), x, x))

    assert kept(lambda w, x: w * x) == {}  # arguments
    assert kept(lambda w, x: w * (y := jnp.cos(x)) + w * w * y) == {"other": FLOAT * B}
    assert kept(lambda w, x: w * jnp.cos(x) + w * jnp.cos(x)) == {"other": FLOAT * B, COPIES: FLOAT * B}
    assert kept(lambda w, x: w * jnp.cos(x) + w * jnp.sin(x)) == {"other": 2 * FLOAT * B}
    assert kept(lambda w, x: w.reshape(2, -1) * x.reshape(2, -1)) == {COPIES: FLOAT * B}  # of an argument
    assert kept(lambda w, x: w * jnp.cos(jnp.zeros_like(x))) == {CONSTANTS: FLOAT * B}


def loss_of(model, shape):
    """Mean squared logits of a concrete or abstract model, and the shapes of the arguments."""
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states

    def loss(params, rest, x):
        model = nnx.merge(graph, params, rest, copy=True)
        return jnp.mean(model(x) ** 2), nnx.state(model, nnx.Not(nnx.Param))

    return loss, params, rest, jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("normalization", ["mimic_norm", *full("batch_norm")])
def test_the_sum_is_that_of_jax_leaves(normalization):
    """Under eval_shape objects have no identity: the same leaves, seen as tracers, tell it."""
    model = nnx.eval_shape(
        lambda: build("resnet18", classes=10, normalization=normalization, blocks=(1, 1), rngs=nnx.Rngs(0))
    )
    loss, params, *others = loss_of(model, (4, 32, 32, 3))
    unique: list[Any] = []

    def pull(params, *others):
        kept = jax.vjp(lambda params: loss(params, *others), params, has_aux=True)[1]
        known = {id(leaf) for leaf in jax.tree.leaves((params, others))}
        unique.extend({id(leaf): leaf for leaf in jax.tree.leaves(kept) if id(leaf) not in known}.values())
        return kept

    leaves = jax.eval_shape(pull, params, *others)
    found = kept_bytes(loss, params, *others)
    assert sum(found.values()) == size(unique)
    assert sum(found.values()) < size(leaves)  # which holds parameters, and aliases


def test_distinct_values_are_those_found_in_numbers():
    """A small network on random numbers: the bytes of each leaf once, without those of arguments and without zeros."""
    loss, *shapes = loss_of(Dense(norm=True), (B, D))
    rng = np.random.default_rng(0)
    arguments = jax.tree.map(lambda leaf: rng.random(leaf.shape).astype(leaf.dtype), shapes)

    def values(tree):
        return {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)}

    pull = jax.vjp(lambda params: loss(params, *arguments[1:]), arguments[0], has_aux=True)[1]
    kept = values(pull) - values(arguments)
    zeros = np.zeros((B, H), np.float32).tobytes()
    assert zeros in kept
    found = kept_bytes(loss, *shapes)
    assert found[CONSTANTS] >= len(zeros)
    assert sum(map(len, kept - {zeros})) == sum(found.values()) - found[CONSTANTS] - found[COPIES]


def test_resnet18_at_cifar_size():
    """What is kept, counted by hand in arrays of 64 x 32^2 numbers an image; stages have halves of each other's.

    MimicNorm keeps the outputs of ReLUs, one behind the stem and 4 a stage, and of residual branches, 2 a stage.
    Batch norm keeps the former and, for each of its layers, its input and the input normalised: one behind the stem, 4
    a stage, and one for each of the 3 projections.
    """
    norm, mimic = (account("resnet18", name) for name in ("batch_norm", "mimic_norm"))
    array, stages = FLOAT * 256 * 64 * 32**2, 1 + 1 / 2 + 1 / 4 + 1 / 8
    rectified = 1 + 4 * stages
    small = 2e-3  # logits and vectors of a channel, as part of all
    assert mimic.distinct == pytest.approx(array * (rectified + 2 * stages), rel=small)
    assert norm.distinct == pytest.approx(array * (rectified + 2 * (rectified + stages - 1)), rel=small)
    # channels times pixels of the outputs of the residual branches: 2 blocks each of 64 x 32^2, 128 x 16^2, ...
    assert mimic.by_kind["skip scale"] == FLOAT * 256 * sum(2 * 64 * 2**i * (32 // 2**i) ** 2 for i in range(4))
    assert "other" not in mimic.by_kind
    assert norm.optimizer == norm.parameters == FLOAT * 11_220_132
    assert norm.training == 3 * norm.parameters + norm.inputs + norm.kept


def test_a_batch_that_no_machine_holds():
    found = account("vgg11", "none", batch=10**9, stem="imagenet", classes=1000)
    assert found.kept > 2**53
    assert found.kept == sum(found.by_kind.values())
    assert found.temporaries is None


def test_the_published_classifier_by_hand():
    """Of two dense layers of 4096 units: inputs, outputs of ReLUs, and a bool a unit for dropout."""
    plain, published = (account("vgg11", "none", batch=B, published=how) for how in (False, True))
    units = 2 * 4096
    more = {kind: published.by_kind.get(kind, 0) - plain.by_kind.get(kind, 0) for kind in published.by_kind}
    assert more["dense"] == more["ReLU"] == FLOAT * B * units
    assert more["dropout"] == B * units
    assert published.parameters == FLOAT * 28_512_740
    assert (plain.published, published.published) == (False, True)


def test_networks_of_the_tables_are_ours():
    for row in TABLE_1 + TABLE_3:
        assert row.model in MODELS
    assert TABLE_1[0].saving("mimic_norm") == pytest.approx(4.04, abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 1}, "at least 2 images"),
        ({"classes": 0}, "1 class"),
        ({"stem": "mnist"}, "stem"),
        ({"stem": "imagenet", "published": True}, "vgg11 is not known at imagenet size"),
    ],
)
def test_rubbish(arguments, message):
    with pytest.raises(ValueError, match=message):
        account("vgg11", **arguments)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ntk-analysis", "memory", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


def test_command(run, tmp_path):
    status, out, _ = run("mlp", "--normalization", "last_bn", "--batch", 64, "--out", tmp_path / "m.json")
    assert status == 0
    for word in ("mlp, cifar, batch 64", "batch_norm", "last batch norm", "saved", "cuDNN"):
        assert word in out
    first, second = json.loads((tmp_path / "m.json").read_text())
    assert (first["normalization"], second["normalization"]) == ("batch_norm", "last_bn")
    assert first["kept"] == sum(first["by_kind"].values()) > second["kept"]


@pytest.mark.full  # the numbers without it are shown by default
def test_compiled(run):
    status, out, _ = run("mlp", "--normalization", "none", "--batch", 4, "--compile")
    assert status == 0
    assert "temporaries" in out


def test_the_peak_is_what_the_allocator_tells(monkeypatch):
    assert peak_bytes() is None  # tests run on CPUs
    for told, peak in ((None, None), ({"bytes_limit": 9}, None), ({"peak_bytes_in_use": 7}, 7)):
        device = SimpleNamespace(memory_stats=lambda told=told: told)
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        assert peak_bytes() == peak


def test_training_tells_the_peak_where_the_device_does(monkeypatch):
    last = Epoch(1, 0.1, 1.0, 0.5, 1.0, 0.5, None, False, 1.0)
    trainer = Trainer(Recipe(depth=1, width=2, batch=4), measuring.noise(4, 2))
    run = Run(trainer, trainer.init(0), (last,))
    assert "on the device" not in summary(run, None)
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 3 * 2**29})
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert summary(run, Path("run")).endswith("; at most 1.5 GiB on the device; in run")


def test_one_step_is_trained_before_the_peak_is_read(monkeypatch):
    done: list[Any] = []
    monkeypatch.setattr(measuring, "peak_bytes", lambda: len(done))
    monkeypatch.setattr(Trainer, "init", lambda trainer, seed: 0)
    monkeypatch.setattr(Trainer, "step", lambda trainer, state, batch: done.append((trainer, *batch)))
    recipe = Recipe(depth=1, width=2, batch=4)
    assert measuring.peak_of_step(recipe, 5) == 1
    ((trainer, batch, _),) = done
    assert (trainer.recipe, trainer.dataset.classes, trainer.input_shape) == (recipe, 5, (4, 32, 32, 3))
    assert sorted(batch.tolist()) == [0, 1, 2, 3]


@pytest.mark.full  # builds VGG16
@pytest.mark.parametrize("options", [{}, {"stem": "imagenet"}, {"published": True}])
def test_what_is_measured_is_what_is_counted(options, monkeypatch):
    """Parameters of the network that a step is measured of, against those of the account."""
    recipes = []
    monkeypatch.setattr(measuring, "measured_peak", lambda recipe, classes: recipes.append((recipe, classes)))
    counted = account("vgg16", "mimic_norm", batch=2, **options)
    _peak(counted)
    ((recipe, classes),) = recipes
    shapes = jax.eval_shape(lambda: nnx.state(recipe.build(nnx.Rngs(0), classes=classes, inputs=1), nnx.Param))
    assert 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == counted.parameters


def test_measured_command(run, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "peak_bytes", lambda: 1)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the command sets it where it is not
    peaks = {"batch_norm": 4 * 2**20, "last_bn": 3 * 2**20}
    monkeypatch.setattr(measuring, "measured_peak", lambda recipe, classes: peaks[recipe.normalization])
    status, out, _ = run("mlp", "--normalization", "last_bn", "--batch", 64, "--measure", "--out", tmp_path / "m.json")
    assert status == 0
    assert re.search(r"MiB .* peak +saved$", out, re.MULTILINE)
    assert re.search(r"last_bn .* 3\.0 +25\.0 %$", out, re.MULTILINE)
    assert [one["peak"] for one in json.loads((tmp_path / "m.json").read_text())] == [*peaks.values()]


@pytest.mark.full  # starts processes
def test_a_step_is_measured_in_a_process_of_its_own(monkeypatch):
    assert measuring.measured_peak(Recipe(depth=1, width=2, batch=4), 5) is None  # trained, on a CPU
    with pytest.raises(ValueError, match="min_fan_in"):
        measuring.measured_peak(Recipe(depth=1, width=2, normalization="weight_mean", min_fan_in=10**6), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mlp", "--measure"], "--measure reads the allocator of a GPU, and cpu (cpu) has no such count: --compile"),
        ([], "give a MODEL, such as resnet18, or --table1"),
        (["alexnet"], "unknown model 'alexnet': choose one of mlp, vgg11"),
        (["vgg11", "--normalization", "groups"], "unknown normalization 'groups'"),
        (["vgg11", "--normalization", "fixup"], "fixup is for residual networks"),
        (["vgg11", "--batch", 1], "'--batch': Input should be greater than or equal to 2"),
        (["--table1", "--batch", 64], "--batch is for MODEL"),
        (["vgg11", "--out", "m.txt"], "--out m.txt: give a file ending in .json"),
        (["mlp", "--stem", "imagenet"], "mlp has no stem"),
        (["mlp", "--published"], "the authors' mlp is not known"),
        (["--table1", "--published"], "--published is for MODEL"),
    ],
)
def test_rubbish_on_the_command_line(run, arguments, message):
    status, out, error = run(*arguments)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
