"""What training takes: the arrays that the backward pass keeps, beside the paper's tables."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Option

from ntk_analysis.cli.groups import Group
from ntk_analysis.cli.options import TRAINED_NAMES, refuse
from ntk_analysis.cli.progress import progress

if TYPE_CHECKING:
    from ntk_analysis.training.memory import Account, Published

MEBIBYTE = 2**20
BASE = "batch_norm"  # savings are against it
CIFAR_CLASSES, IMAGENET_CLASSES = 100, 1000


@dataclass(frozen=True)
class SizeOptions(Group, title="Sizes for MODEL"):
    """The sizes of networks that are named; the paper's tables have their own."""

    batch: Annotated[int, Option(help="Number of images in a training step.", min=2)] = 256
    stem: Annotated[
        Literal["cifar", "imagenet"], Option(help="Size of the images: cifar is 32 x 32, imagenet 224 x 224.")
    ] = "cifar"
    classes: Annotated[
        int | None,
        Option(help="Number of logits; default: 100, or 1000 with --stem imagenet.", min=1, show_default=False),
    ] = None
    published: Annotated[
        bool, Option("--published", help="Take the networks of the authors' code for CIFAR, as --table1 does.")
    ] = False


def memory(
    models: Annotated[
        list[str] | None,
        Argument(metavar="MODEL", help="Names of networks, such as vgg16 or resnet50.", show_default=False),
    ] = None,
    *,
    normalization: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help=f"Normalisation to compare with batch norm: {TRAINED_NAMES}. Several may be given; default: all.",
            show_default=False,
        ),
    ] = None,
    table1: Annotated[bool, Option("--table1", help="Take the networks of the paper's Table 1, CIFAR-100.")] = False,
    table3: Annotated[bool, Option("--table3", help="Take the networks of the paper's Table 3, ImageNet.")] = False,
    compile: Annotated[
        bool,
        Option(
            "--compile",
            help="Also compile each gradient here, and show what XLA adds for temporary arrays: this takes minutes.",
        ),
    ] = False,
    measure: Annotated[
        bool,
        Option(
            "--measure",
            help="Also train one step of each on the GPU, in a process of its own, and show the allocator's peak.",
        ),
    ] = False,
    out: Annotated[Path | None, Option(help="File for all numbers, .json.")] = None,
    sizes: SizeOptions,
) -> None:
    """Tells the memory that training needs, by normalisation and kind of layer: from shapes, without a run.

    The command counts the arrays that JAX hands from forward to backward pass, in MiB and float32,
    which is a bound before compilation. What a GPU holds in a step, weights and all, is measured by --measure.
    """
    from ntk_analysis.cli.output import json_text
    from ntk_analysis.common.files import require_result, write_whole
    from ntk_analysis.training.memory import TABLE_1, TABLE_3, WHY, Published

    if out is not None:
        require_result(out, (".json",))
    if not models and not (table1 or table3):
        raise ValueError("give a MODEL, such as resnet18, or --table1 or --table3, the paper's networks")
    if not models:
        refuse(set(sizes.given()), "is for MODEL; the tables have their own")
    wanted = [(Published(name, sizes.batch, {}), sizes) for name in models or ()]
    wanted += [(row, SizeOptions(published=True)) for row in (TABLE_1 if table1 else ())]
    wanted += [(row, SizeOptions(stem="imagenet")) for row in (TABLE_3 if table3 else ())]
    names = [_names(row.model, normalization or []) for row, _ in wanted]  # every error before any result
    if measure:
        _require_measurable()
    records = []
    for (row, size), normalizations in zip(wanted, names, strict=True):
        with progress(transient=True) as track:
            accounts = _accounts(row, size, track(normalizations, row.model), compile, measure)
        print("\n".join(_lines(row, accounts)), end="\n\n")
        records += [account.record() | _reported(row, account.normalization) for account in accounts]
    print(WHY)
    if out is not None:
        write_whole(out, lambda temporary: temporary.write_text(json_text(records), encoding="utf-8"))
        print(f"written to {out}")


def _names(model: str, wanted: Sequence[str]) -> list[str]:
    """Batch norm and the others: those wanted, or all that there are for this network."""
    from ntk_analysis.common.normalizations import trained_name
    from ntk_analysis.training.models import MODELS, RESIDUAL
    from ntk_analysis.training.models.layers import check
    from ntk_analysis.training.normalization import NORMALIZATIONS

    check("model", model, MODELS)
    wanted = list(map(trained_name, wanted))
    possible = [name for name, parts in NORMALIZATIONS.items() if model in RESIDUAL or not parts.residual]
    return [BASE, *(name for name in wanted or possible if name != BASE)]


def _require_measurable() -> None:
    """Raises ValueError without a device that counts; leaves it free for the processes that measure."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read when JAX first looks for devices
    from ntk_analysis.training.memory.measuring import require_peak

    require_peak()


def _accounts(
    row: "Published", sizes: SizeOptions, normalizations: Iterable[str], compiled: bool, measured: bool
) -> list["Account"]:
    from ntk_analysis.training.memory import account

    options: dict[str, Any] = {
        "batch": row.batch,
        "stem": sizes.stem,
        "classes": sizes.classes or (IMAGENET_CLASSES if sizes.stem == "imagenet" else CIFAR_CLASSES),
        "published": sizes.published,
        "compiled": compiled,
    }
    accounts = (account(row.model, name, **options) for name in normalizations)
    return [replace(found, peak=_peak(found)) if measured else found for found in accounts]


def _peak(found: "Account") -> int | None:
    """The peak of a step of the network of an account, on images that are not augmented."""
    from ntk_analysis.training.memory.measuring import measured_peak
    from ntk_analysis.training.recipe import Recipe

    make = partial(Recipe.cifar100, augment=False) if found.published else Recipe
    recipe = make(model=found.model, normalization=found.normalization, batch=found.batch, stem=found.stem)
    return measured_peak(recipe, found.classes)


def _reported(row: "Published", normalization: str) -> dict[str, float]:
    """The paper's numbers for this network and normalisation, if it reports any."""
    if normalization not in row.megabytes:
        return {}
    return {"paper_megabytes": row.megabytes[normalization], "paper_saving": row.saving(normalization)}


def _lines(row: "Published", accounts: Sequence["Account"]) -> Iterator[str]:
    """The lines about one network: its normalisations with savings in percent, then the bytes kept by kind of layer."""
    base = accounts[0]
    yield (
        f"{base.model}{', as published' * base.published}, {base.stem}, batch {base.batch}, {base.classes} classes: "
        f"parameters {_mib(base.parameters)}, momentum {_mib(base.optimizer)}, images {_mib(base.inputs)} MiB"
    )
    sums = ["kept", "distinct", "training"]
    sums += [name for name in ("temporaries", "peak") if getattr(base, name) is not None]
    heads = [title for name in sums for title in (name, "saved")] + (["paper", "saved"] if row.megabytes else [])
    cells = [["MiB", *heads]]
    for found in accounts:
        values = [(getattr(found, name), getattr(base, name)) for name in sums]
        line = [text for value, least in values for text in (_mib(value), f"{100 * (1 - value / least):.1f} %")]
        told = _reported(row, found.normalization)
        if told:
            line += [f"{told['paper_megabytes']}", f"{told['paper_saving']:.1f} %"]
        cells.append([found.normalization, *line])
    yield from _aligned(cells)
    kinds = sorted({kind for found in accounts for kind in found.by_kind}, key=lambda kind: -base.by_kind.get(kind, 0))
    yield from _aligned(
        [["kept by", *(found.normalization for found in accounts)]]
        + [[kind, *(_mib(found.by_kind.get(kind, 0)) for found in accounts)] for kind in kinds]
    )


def _aligned(cells: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table whose first column is aligned to the left and the others to the right."""
    widths = [max(len(line[i]) for line in cells if i < len(line)) for i in range(max(map(len, cells)))]
    for first, *others in cells:
        yield "  ".join([f"  {first:<{widths[0]}}", *map(str.rjust, others, widths[1:])]).rstrip()


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / MEBIBYTE:.1f}"
