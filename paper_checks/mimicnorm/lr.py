"""Table 2, Supp. B.2: a last batch norm makes large learning rates trainable."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import resolution, rounding, sampling
from .recorded import FULL_VGG16, NARROW_VGG16, study
from .trained import Mlp, because, interval, seeds_of

Theory: TypeAlias = Callable[[float], float]
"""By which factor gradients change when the variance of the outputs grows by one."""

CLAIM = Claim(
    id="lr",
    title="large learning rates",
    statement="A batch norm behind the last layer makes large learning rates trainable, by shrinking the "
    "gradients with the variance of the outputs, which surges within some iterations and then "
    "settles.",
    source="Table 2, Supp. B.2, Supp. Fig. 3",
    scope="VGG16 on CIFAR-100, batches of 256, ten epochs at rates from 0.01 to 1 (Table 2); VGG11 and "
    "ResNet18 at rate 0.1 (Supp. Fig. 3).",
    formula=r"\|\partial \mathcal{L} / \partial W\| \propto 1 / \operatorname{Var} f",
    recorded=Verdict.OPEN,
    summary="In MLPs on digits it does, less so with depth: the largest rate that trains is 10 times that without it "
    "at 5 hidden layers, 3.7 times at 10, and 1.8 times, half a step between the rates tried, at 19 (on 5,000 images "
    "of MNIST 2.4 times at 10); with it nothing diverges. At rate 0.1 the variance grows 10^5-fold within some 50 "
    "steps and then falls slowly. But gradients shrink with the outputs' standard deviation, not their variance, and "
    "where only the read-out grows, only its own do. A VGG16 of a quarter of its channels on part of CIFAR-10 trains "
    "up to rate 1 with MimicNorm and 0.05 with weight mean.",
    figures=("learning_rates",),
    published=(
        Published("best accuracy of VGG16 in 10 epochs at rate 1, MimicNorm, %", 9.83, "Table 2"),
        Published("the same with weight mean, %", 1.0, "Table 2"),
    ),
)


def by_variance(variance: float) -> float:
    """Returns 1 over the variance, as stated."""
    return 1 / variance


def by_deviation(variance: float) -> float:
    """Returns 1 over the standard deviation."""
    return variance**-0.5


THEORY: Theory = by_deviation
WRONG: dict[str, Theory] = {
    "1 over the variance itself": by_variance,
    "no shrinking": lambda variance: 1.0,
}
OPEN = (
    "the claim is about VGG16 on CIFAR-100, as the paper trains it: Table 2, ten epochs at seven rates, with three "
    "seeds; MLPs, a narrow VGG16 and a variant of VGG16 at full width were trained here"
)
DEPTH = 10  # hidden layers
EPOCHS = 10
STEP = 0.5  # decades between rates
RATES = tuple(float(f"{10**exponent:.6g}") for exponent in (-3.0, -2.5, -2.0, -1.5, -1.0, -0.5, 0.0))
QUICK_RATES = RATES[3:6]
LARGE = RATES[4]  # the paper's 0.1
TRAINED = 0.9  # training accuracy
SEEN = 0.2  # training accuracy of a network that learns CIFAR-10 at all: twice that of guessing
SEEN_OF_100 = 0.1  # of one that learns CIFAR-100: ten times that of guessing
PAIRS = {"MimicNorm / weight mean": ("mimic_norm", "weight_mean"), "last BN / none": ("last_bn", "none")}
FACTOR = 10.0  # the second read-out's weights over the first's
EPS = 1e-5  # the last batch norm's own


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks what shrinks, the largest rates that train, and the variance by epoch; MLPs on digits and MNIST."""
    evidence = Evidence(open=OPEN)
    gradients(evidence, theory, setting.seed)
    seeds = seeds_of(setting.seed, setting.size(5, 8))
    subjects = setting.size([Mlp(DEPTH)], [Mlp(5), Mlp(DEPTH), Mlp(19), Mlp(DEPTH, "mnist5k")])
    for subject in setting.track(subjects, "lr: networks"):
        largest_rates(evidence, subject, setting.size(QUICK_RATES, RATES), seeds)
    variance(evidence, seeds)
    recorded_rates(evidence)
    return evidence


class Gradients(NamedTuple):
    """Gradients of one batch at the start of training, with read-outs 1 and FACTOR times as large: arrays (2,).

    Attributes:
        variance: variance of the outputs, mean over classes.
        smallest: variance of a class, with the smaller read-out.
        read_out: norm of the gradient of the read-out's weights.
        first: norm of the gradient of the first layer's weights.
    """

    variance: np.ndarray
    smallest: float
    read_out: np.ndarray
    first: np.ndarray


@functools.cache
def measured(seed: int) -> Gradients:
    """Computes `Gradients` by automatic differentiation of the network in training mode."""
    images = Mlp(DEPTH).dataset.train
    subject = Mlp(DEPTH).trainer("last_bn")
    state = subject.init(seed)
    pixels, labels = (array[: subject.recipe.batch] for array in (images.images, images.labels))
    x = jnp.asarray((pixels - pixels.mean()) / pixels.std(), jnp.float32)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        model: Any = nnx.merge(nnx.graphdef(subject.shapes), params, state.rest, copy=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(model(x), jnp.asarray(labels, jnp.int32))
        return jnp.mean(losses), model.last.batch_var[...]

    @jax.jit
    def found(factor: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        model: Any = nnx.merge(nnx.graphdef(subject.shapes), state.params, state.rest, copy=True)
        model.head.kernel[...] = factor * model.head.kernel[...]
        gradient, variances = jax.grad(loss, has_aux=True)(nnx.state(model, nnx.Param))
        norms = [jnp.linalg.norm(gradient[layer]["kernel"][...]) for layer in ("head", "first")]
        return variances, norms[0], norms[1]

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        both = [jax.device_get(found(jnp.float32(factor))) for factor in (1.0, FACTOR)]
    variances, read_out, first = (np.array(values) for values in zip(*both, strict=True))
    return Gradients(variances.mean(-1), float(variances[0].min()), read_out, first)


def gradients(evidence: Evidence, theory: Theory, seed: int) -> None:
    """Checks that the read-out's gradient shrinks with its own size; gradients of layers before it do not change."""
    found = measured(seed)
    change = found.variance[1] / found.variance[0]
    # a step through a layer sums 128 products, and all roundings might add up
    error = EPS / found.smallest + DEPTH * 128 * 2.0**-24
    tolerance = rounding(error, "the norm's eps over the variance, and float32 roundings")
    condition = f"outputs {FACTOR:g} times as large, by the read-out; MLP of {DEPTH} hidden layers at the start"
    for row, law, norms, what in (
        (evidence.stated, by_variance, found.read_out, "the read-out's weights"),
        (evidence.corrected, theory, found.read_out, "the read-out's weights, with the outputs' deviation"),
        (evidence.varied, theory, found.first, "the first layer's weights, with the outputs' deviation"),
    ):
        row(
            f"log10 of the change of the gradient of {what}",
            expected=math.log10(law(change)),
            measured=math.log10(norms[1] / norms[0]),
            tolerance=tolerance,
            condition=condition,
        )


def largest_rates(evidence: Evidence, subject: Mlp, rates: tuple[float, ...], seeds: tuple[int, ...]) -> None:
    """Checks that the largest rate with a last batch norm is larger than without by at least one step of the grid."""
    for names, (with_it, without) in PAIRS.items():
        trained = [np.log10(largest(subject, name, rates, seeds)) for name in (with_it, without)]
        gains = trained[0] - trained[1]
        evidence.varied(
            f"log10 of the largest rate that trains, {names}",
            expected=STEP,
            measured=gains.mean(),
            tolerance=resolution(STEP / 2, "half a step between rates"),
            relation=Relation.AT_LEAST,
            condition=f"{subject.condition}, over {TRAINED:.0%} on training images in {EPOCHS} epochs",
        )
        diverged = [
            sum(run.epochs[-1].diverged for run in subject.curves(name, rates, seeds, EPOCHS))
            for name in (with_it, without)
        ]
        evidence.note(
            f"{subject.condition}: of {len(rates) * len(seeds)} runs {diverged[0]} diverge with {with_it}, "
            f"{diverged[1]} with {without}."
        )
        evidence.edge(
            "learning rate",
            float(10 ** trained[0].mean()),
            f"largest of {', '.join(f'{rate:g}' for rate in rates)} that trains with {with_it}, {subject.condition}, "
            f"geometric mean over seeds; {10 ** trained[1].mean():.3g} with {without}",
        )


def recorded_rates(evidence: Evidence) -> None:
    """Checks VGG16s at the paper's rates, a narrow one and one of all channels: by at least a step, a factor of two."""
    for found, least in ((study(NARROW_VGG16), SEEN), (study(FULL_VGG16), SEEN_OF_100)):
        for names, pair in PAIRS.items():
            if not all(map(found.rates, pair)):
                continue  # not trained
            with_it, without = (found.largest(name, least) for name in pair)
            evidence.varied(
                f"log10 of the largest rate that trains, {names}",
                expected=math.log10(2),
                measured=math.log10(with_it / without),
                tolerance=resolution(math.log10(2) / 2, "half the smallest step between rates"),
                relation=Relation.AT_LEAST,
                condition=f"{found.condition}, over {least:.0%} on training images, one seed",
            )
            evidence.edge(
                "learning rate",
                with_it,
                f"of {', '.join(f'{rate:g}' for rate in found.rates(pair[0]))} that up to which all train with "
                f"{pair[0]}, {without:g} with {pair[1]}; {found.condition}",
            )


def largest(subject: Mlp, normalization: str, rates: tuple[float, ...], seeds: tuple[int, ...]) -> np.ndarray:
    """Returns the largest rate that trains, by seed; where none does, a step below the smallest."""
    trains = subject.best("train", normalization, rates, seeds, EPOCHS) > TRAINED
    return np.max(np.where(trains, np.array(rates)[:, None], rates[0] / 10**STEP), 0)


def variance(evidence: Evidence, seeds: tuple[int, ...]) -> None:
    """Checks the outputs' variance: it rises far above its start within some epochs, then it changes less and less."""
    start = np.log10([measured(seed).variance[0] for seed in seeds])
    for name in ("mimic_norm", "last_bn"):
        runs = [run for run in Mlp(DEPTH).curves(name, QUICK_RATES, seeds, EPOCHS) if run.recipe.learning_rate == LARGE]
        values = np.log10([[np.mean(np.array(epoch.last_bn_variance)) for epoch in run.epochs] for run in runs])
        values = np.concatenate([start[:, None], values], 1)
        condition = f"{name}, {Mlp(DEPTH).condition}, rate {LARGE:g}"
        surge = values.max(1) - values[:, 0]
        evidence.varied(
            "log10 of the outputs' running variance, peak over start",
            expected=1.0,
            measured=surge.mean(),
            tolerance=sampling(interval(surge, 0.1), because(len(surge), "a tenth of a decade"), len(surge)),
            relation=Relation.AT_LEAST,
            condition=condition,
        )
        steps = np.abs(np.diff(values, axis=1))
        calmer = np.log10(steps[:, -3:].mean(1) / steps[:, :3].mean(1))
        evidence.varied(
            "log10 of its change an epoch, last three of ten over first three",
            expected=0.0,
            measured=calmer.mean(),
            tolerance=sampling(interval(calmer, 0.1), because(len(calmer), "a tenth of a decade"), len(calmer)),
            relation=Relation.AT_MOST,
            condition=condition,
        )
        evidence.note(
            f"{condition}: the running variance is {10 ** values[:, 0].mean():.2g} at the start, "
            f"{10 ** values.max(1).mean():.2g} at its peak in epoch {values.mean(0).argmax()}, "
            f"{10 ** values[:, -1].mean():.2g} behind epoch {EPOCHS} (geometric means over seeds)."
        )
