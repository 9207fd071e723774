"""The claims of the paper, and a user's own network, checked."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ntk_analysis.cli.progress import progress


def check(
    only: Annotated[
        list[str] | None,
        Option(metavar="ID", help="This claim only; may be given several times.", show_default=False),
    ] = None,
    quick: Annotated[bool, Option("--quick", help="Small sizes, about 3 minutes for all claims: the default.")] = False,
    full: Annotated[bool, Option("--full", help="The sizes of the results on record.")] = False,
    report: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for report.html, claims.json and claims.md.", show_default=False),
    ] = None,
    seed: Annotated[int, Option(help="Seed of every random draw.", min=0)] = 0,
    network: Annotated[
        str | None,
        Option(
            metavar="MODULE:FUNCTION",
            help="Check a network of yours instead: a function that returns (f, params, x), as for `diagnose`.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """The paper's claims, each computed, measured and judged: it holds, under conditions, does not, or is open.

    The exit status is 0 when every verdict is the one on record and 1 when one differs or a check breaks down. With
    --network the questions that make sense for any network: decorrelation, phase, conditioning, scaling, centring.
    """
    try:
        from paper_checks import command
        from paper_checks.contract import Setting
    except ImportError as error:  # a wheel without the checks, or a dependency missing
        raise ValueError(
            f"the checks cannot be imported ({error}); install ntk-analysis with its dependencies"
        ) from error

    if quick and full:
        raise ValueError("--quick and --full exclude each other: leave one out")
    bars = partial(progress, transient=True)
    status = command.check(only or [], network, Setting(seed=seed, full=full), report, bars)
    raise typer.Exit(status)
