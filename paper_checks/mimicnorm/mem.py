"""Tables 1 and 3, abstract: about 20 % less memory than batch norm, and a last batch norm for next to nothing."""

import bisect
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ntk_analysis.training.memory import TABLE_1, TABLE_3, Account, account
from ntk_analysis.training.memory import Published as Totals
from ntk_analysis.training.models import resnet, vgg

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import resolution
from .recorded import STUDIES

Theory: TypeAlias = Callable[[Account], int]
"""Bytes that training holds."""

CLAIM = Claim(
    id="mem",
    title="memory",
    statement="Training with MimicNorm takes about 20 % less memory than with batch norm (10 % for VGG and ResNet at "
    "CIFAR size, over 20 % for light networks), and its last batch norm only 20 MB more than no norm.",
    source="Tables 1 and 3, abstract",
    scope="The networks of Tables 1 and 3 in training: batches of 256, ResNet50 of 128 on CIFAR-100; all "
    "memory of the GPU.",
    recorded=Verdict.CONDITIONS,
    summary="Of parameters, gradients, momentum and all that the backward pass keeps before compilation, MimicNorm "
    "saves 41 to 59 % at CIFAR size, and the last batch norm costs 0.2 MB. Of everything on the GPU the paper's own "
    "Table 1 has 4.0 to 6.8 %, not 10, for VGG11, VGG16 and ResNet18; but MimicNorm's scalars keep one more array "
    "each: over no norm they cost hundreds of MB in ResNets, and 172 MB in ShuffleNetV2. On an H100 PyTorch's "
    "allocator held 23 to 38 % less at its peak; programs of XLA, which computes activations again where that is "
    "cheap, took 2.4 % less (VGG16) and 2.7 % (ResNet18), before max pooling and ReLU were made to keep less.",
    published=(
        Published("memory saved, VGG and ResNet at CIFAR size, %", 10.0, "Table 1"),
        Published("memory saved, light networks and ImageNet, %", 20.0, "Tables 1 and 3, abstract"),
        Published("MimicNorm over no norm, MB", 20.0, "Table 1"),
    ),
)

DEEPEST = "resnet50"  # of Table 1: tracing it takes a third of the time of all
MEGABYTE = 2**20  # as GPU tools count
FLOAT = 4
CLASSES = {"cifar": 100, "imagenet": 1000}
LAST = 20.0  # MB that the last batch norm is said to cost
LEAST = {"shufflenet": 20.0, "squeezenet": 20.0, "vgg": 10.0, "resnet": 10.0}  # percent said, at CIFAR size
IMAGENET_LEAST = 20.0
WHOLE, ABOUT = 0.5, 5.0  # percent: the claim is in whole ones at CIFAR size, "about 20" elsewhere: to the nearest ten
VECTORS = 16  # more than the numbers a channel that a batch norm keeps; JAX's keeps 7
LOGITS = 3  # arrays of the size of the logits, at most, that a last batch norm keeps


def held(found: Account) -> int:
    """Returns the bytes of parameters, gradients, momentum, images, and of all that the backward pass keeps."""
    return found.training


THEORY: Theory = held
WRONG: dict[str, Theory] = {
    "the weights' copies alone": lambda found: found.training - found.kept,
    "the inputs of convolutions and dense layers alone": lambda found: sum(
        found.by_kind.get(kind, 0) for kind in ("convolution", "dense")
    ),
    "residual scalars for nothing": lambda found: found.training - found.by_kind.get("skip scale", 0),
}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Checks networks of Table 1 (all of them, and Table 3, in full only) at the paper's batch sizes, from shapes."""
    evidence = Evidence()
    table_1, table_3 = setting.size(([row for row in TABLE_1 if row.model != DEEPEST], ()), (TABLE_1, TABLE_3))
    rows = [(row, "cifar") for row in table_1] + [(row, "imagenet") for row in table_3]
    for row, stem in setting.track(rows, "mem: networks"):
        _savings(evidence, theory, row, stem)
        _over_no_norm(evidence, theory, row, stem)
    _corrected(evidence, theory, table_1)
    _on_a_gpu(evidence)
    _edges(evidence, theory)
    _notes(evidence, table_1)
    return evidence


def holds(held: Theory, row: Totals, normalization: str, stem: str = "cifar") -> int:
    """Returns the bytes that training a network of the tables holds."""
    return held(accounted(row.model, normalization, row.batch, stem, CLASSES[stem]))


@functools.cache  # shared by all theories
def accounted(name: str, normalization: str, batch: int, stem: str, classes: int) -> Account:
    """Returns the account of a network's memory; at CIFAR size of the network that the authors published."""
    published = stem == "cifar" and name != "mlp"
    return account(name, normalization, batch=batch, stem=stem, classes=classes, published=published)


def saving(held: Theory, row: Totals, stem: str) -> float:
    """Returns the percentage that MimicNorm saves against batch norm."""
    norm, mimic = (holds(held, row, name, stem) for name in ("batch_norm", "mimic_norm"))
    return 100 * (1 - mimic / norm)


def over(held: Theory, row: Totals, stem: str) -> float:
    """Returns by how many MB MimicNorm takes more than no norm."""
    mimic, none = (holds(held, row, name, stem) for name in ("mimic_norm", "none"))
    return (mimic - none) / MEGABYTE


def _savings(evidence: Evidence, theory: Theory, row: Totals, stem: str) -> None:
    """Checks that the savings are what is said: in all arrays of training, in other sums, in the paper's own totals."""
    where = f"{row.model}, {stem}, batch {row.batch}"
    quantity = "memory that MimicNorm saves, %"
    cifar = stem == "cifar"
    family = next(percent for name, percent in LEAST.items() if row.model.startswith(name))
    said = family if cifar else IMAGENET_LEAST
    slack, because = (WHOLE, "the claim is in whole percent") if cifar else (ABOUT, "about 20 %: to the nearest ten")
    more = {"relation": Relation.AT_LEAST}
    evidence.stated(
        quantity,
        expected=said,
        measured=saving(theory, row, stem),
        tolerance=resolution(slack, because),
        condition=f"{where}, arrays of training",
        part="of the arrays of training",
        **more,
    )
    others: dict[str, Theory] = {
        "what the backward pass keeps": lambda found: found.kept,
        "of that, distinct values": lambda found: found.distinct,
    }
    for name, held in others.items():
        evidence.varied(
            quantity,
            expected=said,
            measured=saving(held, row, stem),
            tolerance=resolution(slack, because),
            condition=f"{where}, {name}",
            **more,
        )
    evidence.stated(
        quantity,
        expected=said,
        measured=row.saving("mimic_norm"),
        tolerance=resolution(slack, because),
        part="of all that the GPU holds",
        condition=f"{where}, all that the GPU holds, by the paper's own table",
        **more,
    )


def _over_no_norm(evidence: Evidence, theory: Theory, row: Totals, stem: str) -> None:
    """Compares with no norm at all, which the tables have for VGG only; where there are scalars the claim breaks."""
    scaled = row.model.startswith(("resnet", "shufflenet"))
    if "none" not in row.megabytes and not scaled:
        return
    add = evidence.varied if scaled else evidence.stated
    add(
        "MimicNorm over no norm, MB",
        expected=LAST,
        measured=over(theory, row, stem),
        tolerance=resolution(1.0, "two totals in whole MB"),
        condition=f"{row.model}, {stem}, batch {row.batch}" + ", with its scalars" * scaled,
        relation=Relation.AT_MOST,
        **({} if scaled else {"part": "the last batch norm"}),
    )


def _corrected(evidence: Evidence, theory: Theory, table_1: Sequence[Totals]) -> None:
    """Checks a count by hand: a batch norm keeps two arrays of the size of its input, a residual scalar one."""
    (vgg16,) = (row for row in table_1 if row.model == "vgg16")
    resnets = [row for row in table_1 if row.model.startswith("resnet")]
    norm, mimic = (holds(theory, vgg16, name) for name in ("batch_norm", "mimic_norm"))
    counts = vgg.CONVS[16]
    evidence.corrected(
        "MB that MimicNorm saves",
        expected=2
        * FLOAT
        * vgg16.batch
        * sum(map(math.prod, zip(counts, pixels(5), channels(5), strict=True)))
        / MEGABYTE,
        measured=(norm - mimic) / MEGABYTE,
        tolerance=resolution(
            FLOAT * (VECTORS * sum(map(math.prod, zip(counts, channels(5), strict=True))) + _logits(vgg16)) / MEGABYTE,
            f"up to {VECTORS} numbers a channel, and the last batch norm's up to {LOGITS} a logit",
        ),
        condition="vgg16, cifar: two arrays for each hidden batch norm",
    )
    for row in resnets:
        depth = int(row.model.removeprefix("resnet"))
        expansion = resnet.EXPANSION if depth >= 50 else 1
        branches = sum(map(math.prod, zip(resnet.BLOCKS[depth], pixels(4), channels(4), strict=True)))
        evidence.corrected(
            "MimicNorm over no norm, MB",
            expected=FLOAT * row.batch * expansion * branches / MEGABYTE,
            measured=over(theory, row, "cifar"),
            tolerance=resolution(
                FLOAT * _logits(row) / MEGABYTE, f"the last batch norm's up to {LOGITS} numbers a logit"
            ),
            condition=f"{row.model}, cifar: one array for each residual scalar",
        )


def _on_a_gpu(evidence: Evidence) -> None:
    """Checks what was measured on a GPU: what PyTorch's allocator held at most, and what XLA's programs took."""
    relation, small = Relation.AT_LEAST, resolution(WHOLE, "the claim is in whole percent")
    peaks: dict[str, dict[str, int]] = {}
    for one in json.loads((STUDIES / "gpu_memory" / "torch.json").read_text(encoding="utf-8")):
        if one["relu_inplace"]:
            peaks.setdefault(one["model"], {})[one["norm"]] = one["peak_allocated"]
    temporaries: dict[str, dict[str, int]] = {}
    for one in json.loads((STUDIES / "gpu_memory" / "xla.json").read_text(encoding="utf-8")):
        temporaries.setdefault(one["model"], {})[one["normalization"]] = one["temporaries"]
    for what, measured in (
        ("peak of PyTorch's allocator, eager", peaks),
        ("XLA's temporaries, which keep what can be computed again", temporaries),
    ):
        for model, held in measured.items():
            evidence.varied(
                "memory that MimicNorm saves, %",
                expected=next(percent for name, percent in LEAST.items() if model.startswith(name)),
                measured=100 * (1 - held["mimic_norm"] / held["batch_norm"]),
                tolerance=small,
                relation=relation,
                condition=f"{model}, cifar, batches of Table 1, one H100, recorded: {what}",
            )


def pixels(stages: int) -> list[int]:
    """Returns the pixels in each stage, of an image of 32 x 32 that every stage but the first halves."""
    return [(32 // 2**stage) ** 2 for stage in range(stages)]


def channels(stages: int) -> list[int]:
    """Returns the channels of each stage: 64, 128, 256, 512, 512, ..."""
    return [min(64 * 2**stage, 512) for stage in range(stages)]


def _logits(row: Totals) -> int:
    return LOGITS * row.batch * CLASSES["cifar"]


def _edges(evidence: Evidence, theory: Theory) -> None:
    """Finds how much may be held besides, and from which batch on the last batch norm costs more than is said."""
    row = TABLE_1[0]
    norm, mimic = (holds(theory, row, name) for name in ("batch_norm", "mimic_norm"))
    evidence.edge(
        "MB held besides the arrays of training",
        ((norm - mimic) * 100 / LEAST["vgg"] - norm) / MEGABYTE,
        f"from there on MimicNorm saves less than {LEAST['vgg']:g} % of VGG11 at CIFAR size, batch {row.batch}",
    )

    def cost(batch: int) -> float:
        classes = CLASSES["imagenet"]
        last, none = (theory(accounted("mlp", name, batch, "cifar", classes)) for name in ("last_bn", "none"))
        return (last - none) / MEGABYTE

    batches = range(512, 2**13, 512)
    place = bisect.bisect_right(batches, LAST, key=cost)
    evidence.edge(
        "batch, 1000 classes",
        batches[place] if place < len(batches) else None,
        f"first multiple of {batches.step} at which the last batch norm costs more than {LAST:g} MB over no norm",
    )


def _notes(evidence: Evidence, table_1: Sequence[Totals]) -> None:
    """Notes what the paper's MB are made of."""
    for row in table_1:
        norm = holds(lambda found: found.by_kind["batch norm"], row, "batch_norm")
        scale = holds(lambda found: found.by_kind.get("skip scale", 0), row, "mimic_norm")
        alone = (norm / 2 - scale) / MEGABYTE
        evidence.note(
            f"{row.model}, cifar: with one array a batch norm, as in PyTorch, MimicNorm saves {alone:.0f} MB; the "
            f"paper has {row.megabytes['batch_norm'] - row.megabytes['mimic_norm']}."
        )
    evidence.note(
        "20 MB is what PyTorch's allocator asks of the GPU at once for arrays of 1 to 10 MB: the paper's 20 MB may be "
        "one such block. The arrays of the last batch norm take 0.2 MB at 100 classes."
    )
    evidence.note(
        "The sums are bounds before compilation; which SqueezeNet and which ShuffleNetV2 the paper's Table 1 has, it "
        "does not say: 1.0 and 1.0 are taken."
    )
