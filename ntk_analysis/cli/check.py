"""The claims of papers, and a user's own network, checked."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ntk_analysis.cli.effects import refuse_idle
from ntk_analysis.cli.progress import Interrupted, progress


def check(
    only: Annotated[
        list[str] | None,
        Option(
            metavar="ID",
            help="Check this claim only. It may be given several times; --list shows the ids.",
            show_default=False,
        ),
    ] = None,
    *,
    paper: Annotated[
        list[str] | None,
        Option(
            metavar="NAME|FILE.py|FOLDER",
            help="Check the claims of this paper: a name of --list, all of them for `all`, or a paper of your own. It "
            "may be given several times. By default the paper is MimicNorm.",
            show_default=False,
        ),
    ] = None,
    new: Annotated[
        Path | None,
        Option(
            metavar="FOLDER",
            help="Write a paper of your own into FOLDER, one that runs and has one claim, and check nothing.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[
        bool, Option("--quick", help="Use small sizes, which take about 3 minutes for all claims. This is the default.")
    ] = False,
    full: Annotated[
        bool, Option("--full", help="Use the sizes with which the recorded results were computed.")
    ] = False,
    report: Annotated[
        Path | None,
        Option(metavar="DIR", help="Folder for report.html, claims.json and claims.md.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        Option("--resume", help="Take the claims that a stopped run has kept in --report DIR, and check the others."),
    ] = False,
    list_claims: Annotated[bool, Option("--list", help="List papers and claims, and check nothing.")] = False,
    seed: Annotated[int, Option(help="Seed of every random draw.", min=0)] = 0,
    network: Annotated[
        str | None,
        Option(
            metavar="MODULE:FUNCTION",
            help="Check your own network instead of the papers. FUNCTION returns (f, params, x), as for `diagnose`.",
            show_default=False,
        ),
    ] = None,
    axes: Annotated[
        list[str] | None,
        Option(
            metavar="END=AXIS,...",
            help="For --network: the AXIS that is the fan-in of arrays whose path ends in END, such as weight=1 for "
            "PyTorch. It may be given several times. By default the network's modules say it, or else the shape: "
            "(fan-in, units) or (height, width, channels, units).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Checks the claims of papers: each holds, holds under conditions, does not hold, or is not decidable here.

    The exit status is 0 when every verdict is the one on record and 1 when one differs or a check breaks down. With
    --network, the command answers the questions that make sense for any network, such as decorrelation, phase and
    conditioning; a name behind --only that is none of them lists them all.

    With --report, a claim is kept when it is finished, so --resume goes on where a run was stopped or killed.
    """
    try:
        from ntk_analysis.paper_checks.command import check as checked
        from ntk_analysis.paper_checks.command import claims_listed
        from ntk_analysis.paper_checks.contract import Setting
        from ntk_analysis.paper_checks.report.finished import number_kept
        from ntk_analysis.paper_checks.skeleton import write_skeleton
    except ImportError as error:  # a wheel without the checks, or a dependency missing
        raise ValueError(
            f"the checks cannot be imported ({error}); install ntk-analysis with its dependencies"
        ) from error

    given: dict[str, object] = {"only": only, "quick": quick, "full": full, "report": report, "seed": seed}
    given |= {"network": network, "axes": axes, "resume": resume}
    if list_claims or new is not None:
        given |= {"paper": paper, "list": list_claims} if new is not None else {}
        why = f"with --{'list' if new is None else 'new'}, which checks nothing"
        refuse_idle((name for name, value in given.items() if value), why)
        return print(claims_listed(paper or ()) if new is None else write_skeleton(new))
    if quick and full:
        raise ValueError("--quick and --full exclude each other: leave one out")
    if resume and report is None:
        raise ValueError("--resume needs --report DIR, the folder of the stopped run")
    if resume and network is not None:
        raise ValueError("--resume takes claims of papers; with --network all checks run anew: leave it out")
    bars = partial(progress, transient=True)
    if axes and network is None:
        raise ValueError("--axes states the fan-in of a network's arrays: give --network too")
    stated = dict(map(_stated, axes)) if axes else None
    try:
        with nullcontext() if network else in_stated_precision():
            status = checked(
                only or [],
                network,
                Setting(seed=seed, full=full),
                report,
                bars,
                stated,
                papers=paper or (),
                resume=resume,
            )
    except KeyboardInterrupt:
        kept = 0 if report is None else number_kept(report)
        if not kept:
            raise
        claims = "1 finished claim is" if kept == 1 else f"{kept} finished claims are"
        raise Interrupted(f"{claims} in {report}; add --resume to go on") from None
    raise typer.Exit(status)


def in_stated_precision() -> AbstractContextManager[None]:
    """A context in which claims have the precision that they state, whatever JAX_ENABLE_X64 says, which is told."""
    import jax

    if jax.dtypes.canonicalize_dtype(float) == "float64":
        warnings.warn("JAX_ENABLE_X64 is left aside: each claim states its precision", stacklevel=2)
    return jax.enable_x64(False)


def _stated(text: str) -> tuple[str, tuple[int, ...]]:
    end, _, numbers = text.rpartition("=")
    try:
        if end:
            return end, tuple(int(number) for number in numbers.split(","))
    except ValueError:
        pass
    raise ValueError(f"got --axes {text}: expected the end of a path and axes, as weight=1 or query/kernel=0")
