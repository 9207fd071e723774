"""The way from evidence to a verdict: one rule for all claims."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .contract import Claim, Evidence, Kind, Paper, Row, Setting, Verdict
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
        """The row that tells most: the worst of those that decided the verdict."""
        rows = self.evidence.rows
        if not rows:
            return None
        for kind in (Kind.STATED, Kind.CORRECTED, Kind.VARIED):
            missed = [row for row in rows if row.kind is kind and not row.held]
            if missed:
                return max(missed, key=lambda row: row.miss)
        return max([row for row in rows if row.kind is Kind.STATED] or rows, key=lambda row: row.miss)


def judge(evidence: Evidence) -> Verdict:
    """Reads the verdict on a claim off the evidence.

    - not decidable here, where the check says so, or where a corrected statement is not confirmed either;
    - does not hold, where a row as stated misses;
    - holds under conditions, where only rows of other conditions miss;
    - holds, where every row is within its tolerance.

    Raises:
        ValueError: no row as stated, and no reason why the claim is open.
    """
    if evidence.open:
        return Verdict.OPEN
    missed = {row.kind for row in evidence.rows if not row.held}
    if not any(row.kind is Kind.STATED for row in evidence.rows):
        raise ValueError("no row compares the claim as stated: nothing can be judged")
    if Kind.CORRECTED in missed:
        return Verdict.OPEN
    if Kind.STATED in missed:
        return Verdict.FAILS
    return Verdict.CONDITIONS if Kind.VARIED in missed else Verdict.HOLDS


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
