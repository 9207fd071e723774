"""Claims of a paper as cases of a test: for pytest, or whatever runs functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from .contract import Outcome, Paper, Setting, Verdict
from .judge import Judged, attempt
from .papers import claim_checks, packages_of


@dataclass(frozen=True)
class Case:
    """One test of a claim: with the right theory it has the verdict on record, with a wrong one it has not.

    Attributes:
        paper: the paper that makes the claim.
        module: the module that checks it.
        wrong: name of the wrong theory in its `WRONG`; "" for the right one.
        setting: sizes and seed.
    """

    paper: Paper
    module: ModuleType
    wrong: str
    setting: Setting

    def __str__(self) -> str:
        name = str(self.module.CLAIM.id)
        return f"{name}, {self.wrong}" if self.wrong else name

    def __call__(self) -> Judged:
        """Checks the claim, and returns what was found.

        Raises:
            AssertionError: another verdict than the one on record, or of a wrong theory the same.
        """
        theory = {"theory": self.module.WRONG[self.wrong]} if self.wrong else {}
        claim = self.module.CLAIM
        judged = attempt(self.paper, claim, lambda: self.module.check(self.setting, **theory))
        if judged.error:
            raise AssertionError(f"{claim.id}: the check raised {judged.error}")
        if self.wrong:
            if judged.as_recorded:
                raise AssertionError(f"{claim.id}: the check cannot tell {self.wrong} from the theory")
        elif not judged.as_recorded:
            missed = [row for row in judged.evidence.rows if row.outcome is not Outcome.CONFIRMED]
            raise AssertionError(f"{claim.id}: {judged.verdict}, recorded {claim.recorded}; missed: {missed}")
        return judged


def cases(*papers: str | Path, only: Sequence[str] = (), setting: Setting = Setting()) -> list[Case]:  # noqa: B008  # frozen
    """Returns the cases of papers: each claim with its theory, and with each of its wrong theories.

    A claim that is not decidable here has no wrong theories to be told from.

    Args:
        papers: names, files or folders of papers.
        only: ids of claims; none for all.
        setting: sizes and seed of the checks.

    Raises:
        ValueError: an unknown paper; a claim without a wrong theory.
        ImportError: a paper that cannot be imported.
    """
    found = []
    for name, check in claim_checks(packages_of([str(paper) for paper in papers])).items():
        if only and name not in only:
            continue
        module = check.load()
        found.append(Case(check.paper, module, "", setting))
        if module.CLAIM.recorded is Verdict.OPEN:
            continue
        wrong = getattr(module, "WRONG", {})
        if not wrong:
            raise ValueError(f"{module.__file__}: expected WRONG, named wrong theories: a check must tell them apart")
        found += [Case(check.paper, module, each, setting) for each in wrong]
    return found
