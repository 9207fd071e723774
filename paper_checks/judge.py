"""The way from evidence to a verdict: one rule for all claims."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .contract import AGAINST, Claim, Evidence, Kind, Outcome, Paper, Row, Setting, Verdict
from .papers import chosen, claim_checks


@dataclass(frozen=True)
class Judged:
    """A claim, what a run of its check found, and the verdict.

    Attributes:
        paper: the paper that makes the claim.
        claim: what was checked.
        evidence: what was found.
        seconds: time that the check took.
        error: what the check raised, in one line; "" if it came to its end.
    """

    paper: Paper
    claim: Claim
    evidence: Evidence
    seconds: float
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        """The verdict that `judge` reads off the evidence."""
        return judge(self.evidence)

    @property
    def as_recorded(self) -> bool:
        """Whether the check came to its end, with the verdict on record if there is one."""
        return not self.error and self.claim.recorded in (None, self.verdict)

    @property
    def decisive(self) -> Row | None:
        """The row that tells most: of those that decide the verdict the one that says most against the claim."""
        rows = self.evidence.rows
        for kind in (Kind.STATED, Kind.CORRECTED):
            against = [row for row in rows if row.kind is kind and row.outcome is not Outcome.CONFIRMED]
            if against:
                return max(against, key=_against)
        return max([row for row in rows if row.kind is Kind.STATED] or rows, key=_against, default=None)

    @property
    def edges(self) -> list[Row]:
        """The rows beyond the claim in which it fails: where it stops being true."""
        return [row for row in self.evidence.rows if row.kind is Kind.VARIED and row.outcome is Outcome.REFUTED]

    @property
    def open(self) -> str:
        """Why nothing can be decided, and what would decide it; "" if the verdict is another."""
        if self.evidence.open or self.verdict is not Verdict.OPEN:
            return self.evidence.open
        unsure = [
            row
            for row in self.evidence.rows
            if (row.kind is Kind.STATED and row.outcome is Outcome.UNRESOLVED)
            or (row.kind is Kind.CORRECTED and row.outcome is not Outcome.CONFIRMED)
        ]
        return "; ".join(dict.fromkeys(map(_unsure, unsure)))


def judge(evidence: Evidence) -> Verdict:
    """Reads the verdict on a claim off the evidence.

    - not decidable here, where the check says so, where a part of the claim is neither confirmed nor refuted, or where
      a corrected statement is not confirmed;
    - holds, where every part of the claim is confirmed;
    - does not hold, where every part is refuted;
    - holds under conditions, where some parts are confirmed and others refuted: it is true in a part of what it says.

    Rows beyond the claim decide nothing: those that are refuted are its edges.

    Raises:
        ValueError: no row as stated, and no reason why the claim is open.
    """
    if evidence.open:
        return Verdict.OPEN
    found = set(parts(evidence).values())
    if not found:
        raise ValueError("no row compares the claim as stated: nothing can be judged")
    corrected = [row.outcome for row in evidence.rows if row.kind is Kind.CORRECTED]
    if Outcome.UNRESOLVED in found or any(outcome is not Outcome.CONFIRMED for outcome in corrected):
        return Verdict.OPEN
    if found == {Outcome.CONFIRMED}:
        return Verdict.HOLDS
    return Verdict.FAILS if found == {Outcome.REFUTED} else Verdict.CONDITIONS


def parts(evidence: Evidence) -> dict[str, Outcome]:
    """Reads the outcome of each part of a claim off its rows as stated.

    A part is refuted where one of its rows is, confirmed where all of them are, and unresolved otherwise.
    """
    found: dict[str, Outcome] = {}
    for row in evidence.rows:
        if row.kind is Kind.STATED:
            found[row.part] = max(found.get(row.part, Outcome.CONFIRMED), row.outcome, key=AGAINST.index)
    return found


def _against(row: Row) -> tuple[int, float]:
    return AGAINST.index(row.outcome), row.miss


def _unsure(row: Row) -> str:
    """Words for a row that leaves a claim open."""
    where = f" ({row.condition})" if row.condition else ""
    needed = row.draws_needed
    more = "" if needed is None else f", about {needed:,} draws in place of {row.draws:,} would decide"
    return f"{row.outcome}, {row.kind}: {row.quantity}{where}{more}"


def run(name: str, setting: Setting = Setting(), **theory: Any) -> Judged:  # noqa: B008  # frozen
    """Checks one claim; `theory=...` puts another theory in place of the right one.

    Raises:
        ValueError: an unknown id; whatever the check raises.
    """
    check = chosen([name], claim_checks())[name]
    module = check.load()
    start = time.perf_counter()
    evidence = module.check(setting, **theory)
    return Judged(check.paper, module.CLAIM, evidence, time.perf_counter() - start)


def attempt(paper: Paper, claim: Claim, check: Callable[[], Evidence]) -> Judged:
    """Runs a check; where it raises, keeps the error and an open verdict, so that other checks can go on."""
    start, error = time.perf_counter(), ""
    try:
        evidence = check()
        judge(evidence)
    except Exception as raised:  # one broken check is not to take the others' results along
        error = " ".join(f"{type(raised).__name__}: {raised}".split())
        evidence = Evidence(open=f"the check raised {error}")
    return Judged(paper, claim, evidence, time.perf_counter() - start, error)
