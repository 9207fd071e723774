"""Which papers are checked, and where the check of each claim is found."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from . import plugins
from .contract import Paper

PAPERS = (
    "mimicnorm",
    "xiao_2020",
    "poole_2016",
    "schoenholz_2017",
    "hayou_2019",
    "yang_schoenholz_2017",
    "hanin_2018",
    "hanin_nica_2020",
    "karakida_2019",
    "brock_2021",
    "de_smith_2020",
    "jacot_2019",
    "yang_2019",
    "daneshmand_2020",
    "cho_saul_2009",
    "bietti_mairal_2019",
    "roberts_2022",
)
"""Folders beside this file, one a paper, each with `PAPER` and a module a claim. The first is checked by default."""
ALL = "all"
"""The name that stands for every paper that is known."""


class Check(NamedTuple):
    """The place where a claim is checked.

    Attributes:
        paper: the paper that makes the claim.
        module: full name of the module that checks it.
    """

    paper: Paper
    module: str

    def load(self) -> ModuleType:
        """Imports the module, with its `CLAIM` and its `check`.

        Raises:
            ImportError: there is no such module, or it raises.
            ValueError: it lacks one of the two, or its claim has another id.
        """
        return plugins.claim_module(self.module)


def known() -> dict[str, str]:
    """Returns the packages of all papers that need no path, by their names: those here, and those of entry points."""
    return {name: f"{__package__}.{name}" for name in PAPERS} | plugins.installed()


def packages_of(given: Sequence[str]) -> list[str]:
    """Returns the names of the packages of papers, each once.

    Args:
        given: names of papers, files or folders of papers, or "all"; none for the first paper here.

    Raises:
        ValueError: an unknown name; a file or a folder that is no paper.
        ImportError: a file or a folder whose import raises.
    """
    papers = known()
    found: list[str] = []
    for one in given or PAPERS[:1]:
        if one == ALL:
            found += papers.values()
        elif one in papers:
            found.append(papers[one])
        elif plugins.is_path(one):
            found.append(plugins.given(one))
        else:
            raise ValueError(
                f"unknown paper {one!r}: choose from {', '.join([*papers, ALL])}, or give FILE.py or FOLDER/ of a paper"
            )
    return list(dict.fromkeys(found))


def claim_checks(packages: Iterable[str] | None = None) -> dict[str, Check]:
    """Returns where each claim of the papers is checked, by its id, in the order in which claims are shown.

    Args:
        packages: names of the papers' packages; None for all papers that are here.

    Raises:
        ValueError: two papers give the same id to a claim.
    """
    return _checks(packages, lambda paper: paper.claims, "")


def network_checks(packages: Iterable[str] | None = None) -> dict[str, Check]:
    """Returns where each claim about a user's own network is checked, by its id; see `claim_checks`."""
    return _checks(packages, lambda paper: paper.network_claims, ".own_network")


def _checks(
    packages: Iterable[str] | None, ids_of: Callable[[Paper], tuple[str, ...]], folder: str
) -> dict[str, Check]:
    found: dict[str, Check] = {}
    for package in [f"{__package__}.{name}" for name in PAPERS] if packages is None else packages:
        paper = plugins.paper_of(package)
        for claim in ids_of(paper):
            if claim in found:
                raise ValueError(
                    f"claim {claim!r} is one of {found[claim].paper.name} and one of {paper.name}: rename one of them"
                )
            alone = not hasattr(importlib.import_module(package), "__path__")  # a file: paper and claim in one module
            found[claim] = Check(paper, package if alone else f"{package}{folder}.{claim}")
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
