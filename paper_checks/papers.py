"""Which papers are checked, and where the check of each claim is found."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import NamedTuple

from .contract import Paper

PAPERS = ("mimicnorm",)
"""Folders beside this file, one a paper, each with `PAPER` and a module a claim: a second paper is one name more."""


class Check(NamedTuple):
    """The place where a claim is checked.

    Attributes:
        paper: the paper that makes the claim.
        module: full name of the module that checks it.
    """

    paper: Paper
    module: str

    def load(self) -> ModuleType:
        """Imports the module, with its `CLAIM` and its `check`."""
        return importlib.import_module(self.module)


def claim_checks() -> dict[str, Check]:
    """Returns where each claim of the papers is checked, by its id, in the order in which claims are shown.

    Raises:
        ValueError: two papers give the same id to a claim.
    """
    return _checks(lambda paper: paper.claims, "")


def network_checks() -> dict[str, Check]:
    """Returns where each claim about a user's own network is checked, by its id.

    Raises:
        ValueError: two papers give the same id to a claim.
    """
    return _checks(lambda paper: paper.network_claims, ".own_network")


def _checks(ids_of: Callable[[Paper], tuple[str, ...]], folder: str) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name in PAPERS:
        package = f"{__package__}.{name}"
        paper: Paper = importlib.import_module(package).PAPER
        for claim in ids_of(paper):
            if claim in found:
                raise ValueError(
                    f"claim {claim!r} is one of {found[claim].paper.name} and one of {paper.name}: rename one of them"
                )
            found[claim] = Check(paper, f"{package}{folder}.{claim}")
    return found


def chosen(ids: Iterable[str], checks: Mapping[str, Check]) -> dict[str, Check]:
    """Returns the checks of these ids, or for no ids all checks, in the order in which claims are shown.

    Raises:
        ValueError: an unknown id; the message lists the right ones.
    """
    wanted = list(ids) or list(checks)
    for name in wanted:
        if name not in checks:
            raise ValueError(f"unknown claim {name!r}: choose from {', '.join(checks)}")
    return {name: check for name, check in checks.items() if name in wanted}
