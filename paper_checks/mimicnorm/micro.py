"""Abstract: batch norm is inaccurate on micro-batches, as it depends on batch statistics."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ntk_analysis import batch_norm
from ntk_analysis.depth_study.micro_batch import second_moments
from ntk_analysis.meanfield import analyse, evaluation_mode
from ntk_analysis.training.normalization import LastBatchNorm

from ..contract import Claim, Evidence, Relation, Setting, Verdict
from ..draws import five_sigma
from ..tolerances import quadrature, resolution, rounding, sampling
from .micro_trained import KINDS, VGG_CELLS, VGG_LAYERS, VGG_REPEATED, Cell, accuracies, read, trained
from .trained import because, interval

Theory: TypeAlias = Callable[[int, int | None, str, int], np.ndarray]

CLAIM = Claim(
    id="micro",
    title="batch norm on micro-batches",
    statement="Batch norm is inaccurate on micro-batches, as it depends on the statistics of a batch.",
    source="Abstract",
    scope="Batch normalisation with statistics of small batches, in PyTorch's convention; no network is named.",
    formula=r"q_{l+1} = \frac{c_2}{v} \left( \frac{q_l}{2} - m c_1 \sqrt{\frac{2 q_l}{\pi c_2}} + Q \right)",
    recorded=Verdict.HOLDS,
    summary="At initialisation evaluation mode is off the more the smaller the batch: 20 layers behind batches of 4 "
    "shrink new points to .42 of training points with Bessel's correction (PyTorch) and blow them up to 63 without "
    "(Flax). MLPs on digits of 10 hidden layers, trained on batches of 4, get 28 % and 75 % of test images right, "
    "layer norm 91 %, MimicNorm 90 % and group norm 88 %; from batches of 8 on all get 93 to 99 %. With 20 hidden "
    "layers batch norm is the best at batches of 8 and 16, where MimicNorm fails, as it does at batches of 2. In a "
    "VGG, normalised over positions, too, three seeds show no harm: 42, 44, 44 % at 4, 8, 16, MimicNorm 33, 46, 44 %.",
    figures=("micro_batch",),
)


def closed_form(batch_size: int, batches: int | None, running_variance: str, depth: int) -> np.ndarray:
    """Returns second moments of new points by layer, behind statistics of so many batches; None is many."""
    field = evaluation_mode(batch_size=batch_size, batches=batches, running_variance=running_variance)
    return field.second_moments(depth)


def alone(batch_size: int, batches: int | None, running_variance: str, depth: int) -> np.ndarray:
    """Returns the second moments of a theory that forgets what new points have in common with the batches."""
    field = evaluation_mode(batch_size=batch_size, batches=batches, running_variance=running_variance)
    return field.first * field.rate ** np.arange(depth)


THEORY: Theory = closed_form
WRONG: dict[str, Theory] = {
    "new points are like training points": lambda batch_size, batches, variance, depth: np.ones(depth),
    "no framework corrects the running variance": lambda batch_size, batches, variance, depth: closed_form(
        batch_size, batches, "biased", depth
    ),
    "every framework corrects the running variance": lambda batch_size, batches, variance, depth: closed_form(
        batch_size, batches, "unbiased", depth
    ),
    "few batches are as good as many": lambda batch_size, batches, variance, depth: closed_form(
        batch_size, None, variance, depth
    ),
    "the common mean is forgotten": alone,
}
FRAMEWORKS = {"unbiased": "Bessel's correction, as in PyTorch", "biased": "no correction, as in Flax"}
BATCHES = (4, 8, 16, 64, 256)
DEPTH = 20
MICRO, REFERENCE = 4, 64  # trained networks
IMAGES = 359  # test images of digits
VGG_IMAGES = 625  # of CIFAR-10
VGG = f"VGG{VGG_LAYERS} with an eighth of the channels, 2,500 images of CIFAR-10 (JPEG re-encoded), recorded"
OTHERS = {"none": "no normalisation", "mimic": "MimicNorm"}
RERUN = Cell("batch", 10, 256)


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks frozen statistics, running statistics, trained networks, and what is left of a last batch norm."""
    evidence = Evidence()
    frozen_batch(evidence, theory)
    batch_statistics(evidence, setting)
    finite_networks(evidence, theory, setting)
    running_statistics(evidence)
    trained_networks(evidence, setting)
    last_batch_norm(evidence)
    return evidence


def frozen_batch(evidence: Evidence, theory: Theory) -> None:
    """Checks the closed form of one frozen batch on the exact kernels of the training batch and a new point."""
    B, layers = 8, 6
    weights, found = np.append(np.full(B, 1 / B), 0.0), []
    sigma: np.ndarray = np.eye(B + 1)
    for _ in range(layers):
        sigma = 2 * np.asarray(batch_norm.nngp(sigma, "relu", weights=weights))
        found.append(sigma[-1, -1])  # half of xhat^2 is behind the ReLU, by symmetry
    condition = f"one frozen batch of {B}, exact kernels, {layers} layers"
    error = 1e3 * batch_norm.rule_error(B - 3) * np.array(found)
    evidence.corrected(
        "second moment of a new point over a training point's",
        expected=theory(B, 1, "biased", layers),
        measured=found,
        tolerance=quadrature(error, "quadrature, through all layers"),
        condition=condition,
    )
    evidence.corrected(
        "the same behind the first layer, (B + 1)/(B - 3)",
        expected=(B + 1) / (B - 3),
        measured=found[0],
        tolerance=quadrature(error[0], "quadrature"),
        condition=condition,
    )
    for size in (8, 16, 256):
        field = evaluation_mode(batch_size=size, batches=1, running_variance="biased")
        evidence.note(
            f"Behind one frozen batch of {size} the second moment of new points grows by {field.rate:.4f} a layer in "
            f"the end; the training gradient's by chi = "
            f"{analyse('relu', normalization='batch', batch_size=size).chi_1:.4f}."
        )


def batch_statistics(evidence: Evidence, setting: Setting) -> None:
    """Checks how much the variance of a batch varies, and by how much the training gradient grows a layer for it."""
    draws, groups, generator = setting.size(500, 2_000), 30, np.random.default_rng(setting.seed)
    spreads, found, error = np.sqrt(2 / (np.array(BATCHES) - 1)), [], []
    for B in BATCHES:
        variances = generator.standard_normal((groups, draws, B)).var(axis=2)
        relative = variances.std(axis=1, ddof=1) / variances.mean(axis=1)
        found.append(relative.mean())
        error.append(five_sigma(groups) * relative.std(ddof=1) / np.sqrt(groups) + spreads[len(found) - 1] / draws)
    evidence.corrected(
        "relative standard deviation of a batch's variance, sqrt(2/(B - 1))",
        expected=spreads,
        measured=found,
        tolerance=sampling(
            np.array(error),
            f"as rare as 5 standard errors of {groups} groups of {draws} batches, and a bias of order 1/{draws}",
        ),
        condition=f"normal pre-activations, batches of {_list(BATCHES)}",
    )
    sizes, growth, limit = BATCHES, [], analyse("relu", normalization="batch").chi_1
    fields = [analyse("relu", normalization="batch", batch_size=B) for B in sizes]
    for B, field in zip(sizes, fields, strict=True):
        fixed_point, zero_mean = (1 - field.c_star) * np.eye(B) + field.c_star, np.eye(B) - 1 / B
        growth.append(2 * np.trace(np.asarray(batch_norm.push(fixed_point, zero_mean)) @ zero_mean) / (B - 1))
    chi = np.array([field.chi_1 for field in fields])
    evidence.corrected(
        "growth of the training gradient's second moment per layer, chi(B)",
        expected=chi,
        measured=np.array(growth),
        tolerance=quadrature(1e-8 * chi, "quadrature: 1e-11 of the largest entry, for each of 256 inputs, with room"),
        condition=f"ReLU, batches of {_list(BATCHES)}, exact kernels at the fixed point",
    )
    evidence.stated(
        "chi(B) over its limit, pi/(pi - 1), less 1",
        expected=chi[1:] / limit - 1,
        measured=chi[:-1] / limit - 1,
        tolerance=rounding(1e-9, "rounding"),
        part="the training gradient",
        relation=Relation.AT_LEAST,
        condition=f"batches of {_list(BATCHES[:-1])} against the next larger",
    )


def finite_networks(evidence: Evidence, theory: Theory, setting: Setting) -> None:
    """Compares finite networks, of two widths, with the closed form: one batch, and running statistics of some."""
    widths, draws, new = setting.size(((64, 128), 30, 32), ((512, 1024), 60, 64))
    depth, layers = setting.size((6, np.array([1, 2, 4, 6])), (20, np.array([1, 3, 6, 10, 20])))
    for B, k, variance in ((16, 1, "biased"), (4, 16, "biased"), (4, 16, "unbiased"), (16, 4, "unbiased")):
        mean, error = [], []
        for width in widths:
            found = np.array(
                [
                    second_moments(
                        depth,
                        width,
                        batch_size=B,
                        batches=k,
                        running_variance=variance,
                        new=new,
                        seed=setting.seed * draws + draw,
                    )
                    for draw in range(draws)
                ]
            )[:, layers - 1]
            mean.append(found.mean(0))
            error.append(five_sigma(draws) * found.std(0, ddof=1) / np.sqrt(draws))
        statistics = "one frozen batch" if k == 1 else f"running statistics of {k} batches"
        evidence.corrected(
            "second moment of a new point over a training point's",
            expected=theory(B, k, variance, depth)[layers - 1],
            measured=mean[1],
            tolerance=sampling(
                np.hypot(*error) + abs(mean[1] - mean[0]),
                f"as rare as 5 standard errors of {draws} networks, and the change from half the width",
            ),
            condition=f"{statistics} of {B}, {FRAMEWORKS[variance]}, width {widths[1]}, layers 1 to {depth}",
        )


def running_statistics(evidence: Evidence) -> None:
    """Compares evaluation mode with training mode, by batch size, behind running statistics of many batches."""
    for variance, words in FRAMEWORKS.items():
        away = np.array([abs(np.log(closed_form(B, None, variance, DEPTH)[-1])) for B in BATCHES])
        part = "evaluation mode at the start"
        row = functools.partial(evidence.stated, part=part) if variance == "unbiased" else evidence.varied
        row(
            "|log second moment| in evaluation mode, where training mode has 0",
            expected=away[1:],
            measured=away[:-1],
            tolerance=rounding(1e-9, "rounding"),
            relation=Relation.AT_LEAST,
            condition=f"batches of {_list(BATCHES[:-1])} against the next larger, {DEPTH} layers, many "
            f"batches, {words}",
        )
    settled = ", ".join(f"{evaluation_mode(batch_size=B).settles_at:.4f}" for B in BATCHES)
    evidence.note(
        f"With the correction the second moment in evaluation mode settles at {settled} for batches of "
        f"{_list(BATCHES)}, where training mode has 1; without it, it explodes at every batch size."
    )
    for B in (4, 16, 256):
        exploded = np.argmax(closed_form(B, None, "biased", 400) > 10) + 1
        evidence.edge("layers", float(exploded), f"without the correction evaluation mode passes 10, batches of {B}")
    for B in (4, 16):
        ends = (evaluation_mode(batch_size=B, batches=k).settles_at for k in range(2, 100))
        few = next(k for k, end in enumerate(ends, 2) if np.isfinite(end))
        evidence.edge("batches averaged", float(few), f"from here on evaluation mode settles with it, batches of {B}")


def trained_networks(evidence: Evidence, setting: Setting) -> None:
    """Compares MLPs on record, trained by batch size: what small batches cost, and whether their statistics are why."""
    for depth in (10, 20):
        for batch in (MICRO, 8, 16):
            for kind in ("batch", "batch, biased"):
                stated = kind == "batch" and batch == MICRO
                _loses(evidence, stated, Cell(kind, depth, batch), Cell(kind, depth, REFERENCE))
            for other in ("layer", "group"):
                _loses(evidence, False, Cell("batch", depth, batch), Cell(other, depth, batch))
        for kind in KINDS:
            by_mode = (
                f"{mode} " + ", ".join(f"{accuracies(mode, kind, depth, batch).mean():.2f}" for batch in BATCHES)
                for mode in ("training", "evaluation")
            )
            evidence.note(f"{kind}, {_mlp(depth)}, batches of {_list(BATCHES)}: {'; '.join(by_mode)}.")
    _vggs(evidence)
    for depth, batch in ((10, 2), (10, MICRO), (20, MICRO)):
        mimic, larger = (accuracies("evaluation", "mimic", depth, size) for size in (batch, REFERENCE))
        evidence.varied(
            "test accuracy of MimicNorm",
            expected=larger.mean(),
            measured=mimic.mean(),
            tolerance=sampling(
                np.hypot(interval(mimic, 1 / IMAGES), interval(larger, 1 / IMAGES)), because(len(mimic), "one image")
            ),
            relation=Relation.AT_LEAST,
            condition=f"batches of {batch} against {REFERENCE}, {_mlp(depth)}",
        )
    unbiased, biased = (accuracies("evaluation", kind, 10, MICRO) for kind in ("batch", "batch, biased"))
    evidence.stated(
        "test accuracy that changes with nothing but the remembered variance",
        expected=0.0,
        measured=abs((biased - unbiased).mean()),
        tolerance=sampling(interval(biased - unbiased, 1 / IMAGES), because(len(biased), "one image"), len(biased)),
        part="trained networks",
        relation=Relation.AT_LEAST,
        condition=f"batches of {MICRO}, {_mlp(10)}: the same weights, with Bessel's correction and without",
    )
    if setting.full:
        (again,) = trained(RERUN, (0,))
        before = next(one for one in read()[RERUN] if one.seed == 0)
        spread = interval(accuracies("evaluation", *RERUN), 1 / IMAGES)
        evidence.corrected(
            "test accuracy of a recorded network, trained again",
            expected=before.evaluation,
            measured=again.evaluation,
            tolerance=sampling(
                spread,
                "the confidence interval over the recorded seeds, as training enlarges other machines' roundings",
            ),
            condition=f"batch norm, batches of {RERUN.batch}, {_mlp(RERUN.depth)}",
        )


def last_batch_norm(evidence: Evidence) -> None:
    """Checks how many directions of a batch's outputs a last batch norm leaves to learn, by its derivatives."""
    sizes, ranks = (2, 8), []
    jacobian = jax.jit(jax.jacobian(lambda f: LastBatchNorm(1, eps=0.0)(f)))
    with jax.enable_x64(True):
        for B in sizes:
            outputs = np.random.default_rng(B).standard_normal((B, 1))
            derivative = np.asarray(jacobian(jnp.asarray(outputs)))[:, 0, :, 0] * np.std(outputs)
            ranks.append(float(np.sum(np.linalg.svd(derivative, compute_uv=False) > 1e-10)))
            if B == 2:
                evidence.corrected(
                    "largest derivative behind a last batch norm, times the outputs' deviation",
                    expected=0.0,
                    measured=np.max(np.abs(derivative)),
                    tolerance=rounding(1e-14, "rounding"),
                    condition="MimicNorm's, batch of 2, eps = 0: nothing is learnt",
                )
    evidence.corrected(
        "directions of the outputs that a last batch norm leaves to learn, B - 2",
        expected=np.array(sizes) - 2.0,
        measured=ranks,
        tolerance=resolution(1e-9, "a count"),
        condition=f"batches of {_list(sizes)}, eps = 0",
    )
    evidence.note(
        "MimicNorm depends on its batch through the last batch norm: in training a batch of 2 has no gradient at eps = "
        "0, and eps/(var + eps) of one direction above. In evaluation Bessel's correction, or none, multiplies all "
        "outputs by one factor, which changes no decision; nothing is carried through the layers."
    )


def _vggs(evidence: Evidence) -> None:
    """Compares VGGs: whether batch norm of convolutions, over positions too, fails on small batches."""
    for kind in dict.fromkeys(cell.kind for cell in VGG_CELLS):
        found = (accuracies("evaluation", kind, VGG_LAYERS, batch, "vgg") for batch in BATCHES)
        shown = ", ".join(f"{one.mean():.2f} ({len(one)})" for one in found)
        evidence.note(f"{kind}, {VGG}, evaluation mode, batches of {_list(BATCHES)}, in brackets seeds: {shown}.")
    for batch in VGG_REPEATED:
        for other in ("none", "group", "mimic"):
            _loses(evidence, False, *(Cell(kind, VGG_LAYERS, batch, "vgg") for kind in ("batch", other)))
    _loses(evidence, False, *(Cell("batch", VGG_LAYERS, batch, "vgg") for batch in (MICRO, VGG_REPEATED[-1])))


def _loses(evidence: Evidence, stated: bool, cell: Cell, better: Cell) -> None:
    """Adds a row: a network's test accuracy in evaluation mode is below another's by more than their errors."""
    images, network = (IMAGES, _mlp(cell.depth)) if cell.model == "mlp" else (VGG_IMAGES, VGG)
    worse, than = (accuracies("evaluation", *one) for one in (cell, better))
    error = np.hypot(interval(worse, 1 / images), interval(than, 1 / images))
    other = OTHERS.get(better.kind, f"{better.kind} norm")
    against = f"against batches of {better.batch}" if better.kind == cell.kind else f"against {other}"
    row = functools.partial(evidence.stated, part="trained networks") if stated else evidence.varied
    row(
        "test accuracy that batch norm loses",
        expected=0.0,
        measured=than.mean() - worse.mean(),
        tolerance=sampling(error, because(len(worse), "one image"), len(worse)),
        relation=Relation.AT_LEAST,
        condition=f"batches of {cell.batch} {against}, {network}, "
        + FRAMEWORKS["biased" if "biased" in cell.kind else "unbiased"],
    )


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _mlp(depth: int) -> str:
    return f"MLP on digits, {depth} hidden layers, recorded"
