"""What `ntk-analysis check` does: runs the checks, tells of each, writes the report, compares with the record."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias

from ntk_analysis.common.progress import Track

from . import judge
from .contract import Outcome, Relation, Row, Setting
from .judge import Judged
from .papers import ALL, Check, chosen, claim_checks, known, network_checks, packages_of
from .plugins import paper_of
from .report import finished, prepare_folder, write_report
from .report.numbers import compared, off_by
from .report.record import run_facts

AS_RECORDED, NOT_AS_RECORDED = 0, 1
LONGEST = 20  # missed rows that are told of one claim
WIDEST = 116  # characters of the line that says what was compared
EXPLAINED = """\
The line under a claim names the comparison that decided its verdict, and the numbers are those of it. The tolerance is
the error that this comparison is allowed; "off by" says what part of it the difference of expected and measured takes.
Edges are where a claim stops being true beyond what it says; they change no verdict.
--report DIR writes all comparisons, and where each tolerance comes from."""

Progress: TypeAlias = Callable[[], AbstractContextManager[Track]]
Job: TypeAlias = tuple[str, Callable[[Setting], Judged]]


def check(
    only: Sequence[str],
    network: str | None,
    setting: Setting,
    report: Path | None,
    progress: Progress,
    axes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    papers: Sequence[str] = (),
    resume: bool = False,
) -> int:
    """Runs, prints and reports the checks, and returns the exit status.

    With a report, each claim of a paper is kept in its folder when it is finished, until the report is written.

    Args:
        only: ids of claims, none for all.
        network: MODULE:FUNCTION of the user's own network, to be checked in place of the papers' claims.
        setting: sizes and seed.
        report: folder of the report.
        progress: makes a `track` whose bars end with the block.
        axes: the fan-in of the network's arrays by the end of their path; None: its modules say.
        papers: names, files or folders of papers, or "all"; none for the first one. Of a network, the papers whose
            questions are put to it.
        resume: whether claims that a stopped run with the same sizes, seed and versions has kept are taken from there.

    Returns:
        0 if every check came to its end with the verdict on record (of the user's own network nothing is on record), 1
        otherwise.

    Raises:
        ValueError: unknown ids or papers; a network that cannot be checked.
        ImportError: a paper that cannot be imported.
        OSError: the report cannot be written.
    """
    packages = packages_of(papers)
    if report is not None:
        prepare_folder(report)
    checks = chosen(only, claim_checks(packages) if network is None else network_checks(packages))
    jobs = claim_jobs(checks) if network is None else network_jobs(network, checks, setting, axes)
    keeps = report if network is None else None
    run = run_facts(setting)
    taken = finished.kept(keeps, checks, run) if keeps is not None and resume else {}
    found = dict(taken)
    for one in taken.values():
        print(f"{told(one)}, kept by an earlier run", flush=True)
    for one in run_jobs([job for job in jobs if job[0] not in taken], setting, progress):
        print(told(one), flush=True)
        found[one.claim.id] = one
        if keeps is not None:
            finished.keep(keeps, one, run)
    judged = [found[name] for name, _ in jobs]
    print(f"\n{table(judged)}")
    if report is not None:
        print(f"\nwritten to {write_report(report, judged, setting, network or '')}")
        finished.forget(report, found)
    others = [one for one in judged if not one.as_recorded]
    for one in others:
        print(f"\n{difference(one)}")
    return NOT_AS_RECORDED if others else AS_RECORDED


def told(one: Judged) -> str:
    """Returns the line on a claim that is finished: its id, verdict and time."""
    return f"{one.claim.id:<16}  {one.verdict:<22}  {one.seconds:6.1f} s"


def claim_jobs(checks: Mapping[str, Check]) -> list[Job]:
    """Returns the jobs for claims of papers; every module is imported before the first check runs."""
    return [(name, _job(check)) for name, check in checks.items()]


def network_jobs(
    target: str, checks: Mapping[str, Check], setting: Setting, axes: Mapping[str, tuple[int, ...]] | None
) -> list[Job]:
    """Returns the jobs for a user's own network, which is loaded and measured here."""
    from .subject import subject_of  # it takes as long to import as a short check to run

    subject = subject_of(target, setting, axes)
    return [(name, _job(check, subject)) for name, check in checks.items()]


def _job(check: Check, *subject: Any) -> Callable[[Setting], Judged]:
    module = check.load()
    return lambda setting: judge.attempt(check.paper, module.CLAIM, lambda: module.check(setting, *subject))


def run_jobs(jobs: Sequence[Job], setting: Setting, progress: Progress) -> Iterator[Judged]:
    """Runs one job after the other, each with a bar that counts them and names the one that runs."""
    for index, (name, job) in enumerate(jobs):
        with progress() as track:
            for _ in track(range(1), f"{index + 1} of {len(jobs)}: {name}"):
                judged = job(replace(setting, track=track))
        yield judged


def claims_listed(papers: Sequence[str] = ()) -> str:
    """Lists papers and their claims by id, with titles, where they are made and the verdicts on record.

    Args:
        papers: names, files or folders of papers; none for all that are known.

    Raises:
        ValueError: an unknown paper.
        ImportError: a paper that cannot be imported.
    """
    names = {package: name for name, package in known().items()}
    parts = []
    for package in packages_of(papers or [ALL]):
        paper = paper_of(package)
        claims = [check.load().CLAIM for check in claim_checks([package]).values()]
        width = max((len(claim.id) for claim in claims), default=0)
        told = [f"  {claim.id:<{width}}  {claim.title} ({claim.source}): {claim.recorded}" for claim in claims]
        head = f"{names.get(package, paper.name)}, “{paper.title}”" + (f", arXiv:{paper.arxiv}" if paper.arxiv else "")
        parts.append("\n".join([head, *told]))
    return "\n\n".join(parts)


def table(judged: Iterable[Judged]) -> str:
    """Returns a table of the verdicts; under each stand the comparison that decided it, and the claim's edges."""
    lines = [("claim", "verdict", "on record", "expected", "measured", "tolerance", "off by")]
    words: list[list[str]] = [[]]
    for one in judged:
        recorded = "" if one.claim.recorded is None else "the same" if one.as_recorded else str(one.claim.recorded)
        row = one.decisive
        numbers = ("", "", "", "") if row is None else (*_numbers(row), off_by(row.miss))
        lines.append((one.claim.id, str(one.verdict), recorded, *numbers))
        words.append([text for text in ("" if row is None else _what(row), _edges(one)) if text])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line, below in zip(lines, words, strict=True):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        text += [f"    {each}" for each in below]
    return "\n".join([*text, "", EXPLAINED])


def _edges(one: Judged) -> str:
    """The conditions beyond the claim under which it fails, cut to a line."""
    edges = "; ".join(dict.fromkeys(row.condition or row.quantity for row in one.edges))
    return shorten(f"edges: {edges}", WIDEST, placeholder=" ...") if edges else ""


def _what(row: Row) -> str:
    """What the decisive row compares, under which conditions, cut to a line."""
    where = f", {row.condition}" if row.condition else ""
    return shorten(f"{row.kind}: {row.quantity}{where}", WIDEST, placeholder=" ...")


def difference(one: Judged) -> str:
    """Returns lines that say what was on record, what was found, and which rows differ."""
    if one.error:
        return f"{one.claim.id}: the check raised {one.error}"
    head = f"{one.claim.id}: recorded {one.claim.recorded!s}, found {one.verdict!s}"
    if one.open:
        return f"{head}: {one.open}"
    missed = [row for row in one.evidence.rows if row.outcome is not Outcome.CONFIRMED]
    if not missed:
        return f"{head}: every row is confirmed"
    lines = [f"  {_told(row)}" for row in missed[:LONGEST]]
    more = [f"  and {len(missed) - LONGEST} more"] if len(missed) > LONGEST else []
    return "\n".join([head, *lines, *more])


def _told(row: Row) -> str:
    expected, measured, tolerance = _numbers(row)
    where = f" ({row.condition})" if row.condition else ""
    return (
        f"{row.outcome}, {row.kind}: {row.quantity}{where}: expected {expected}, measured {measured}, "
        f"tolerance {tolerance} ({row.because}), {row.line.file}:{row.line.number}"
    )


def _numbers(row: Row) -> tuple[str, str, str]:
    sign = "" if row.relation is Relation.EQUAL else f"{row.relation} "
    expected, measured, tolerance = compared(row.expected, row.measured, row.tolerance)
    return sign + expected, measured, tolerance
