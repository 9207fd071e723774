"""A paper that runs, for whoever begins one: one claim, one wrong theory, a test."""

from collections.abc import Callable
from pathlib import Path

from ntk_analysis.common.files import write_together

FILES = {
    "__init__.py": '''"""The claims of a paper: replace what is said here, and name each claim's module in `claims`."""

from ntk_analysis.paper_checks.contract import Paper

PAPER = Paper(
    name="Author 2026",
    title="Title of the paper in full",
    authors="A. Author, B. Author",
    year=2026,
    arxiv="",
    claims=("half",),
)
''',
    "half.py": '''"""Section 1: ReLU halves the second moment of a centered Gaussian."""

from collections.abc import Callable

import numpy as np

from ntk_analysis.paper_checks.contract import Claim, Evidence, Setting, Verdict
from ntk_analysis.paper_checks.tolerances import sampling

CLAIM = Claim(
    id="half",  # as this file is called
    title="ReLU halves",
    statement="For a Gaussian $u$ of mean 0, $E[relu(u)^2] = E[u^2] / 2$.",
    source="Section 1",
    scope="Gaussian preactivations of mean 0.",
    recorded=Verdict.HOLDS,
    summary="Means over draws agree with a half.",
)

Theory = Callable[[float], float]


def theory_of_the_paper(variance: float) -> float:
    """Returns the second moment that the paper says."""
    return variance / 2


THEORY: Theory = theory_of_the_paper
WRONG: dict[str, Theory] = {"ReLU keeps it": lambda variance: variance}


def check(setting: Setting, theory: Theory = THEORY) -> Evidence:
    """Draws Gaussians of two variances, and compares the mean of the squares with the theory."""
    evidence = Evidence()
    draws = setting.size(quick=100_000, full=10_000_000)
    rng = np.random.default_rng(setting.seed)
    for variance in (0.5, 2.0):
        squares = np.maximum(np.sqrt(variance) * rng.standard_normal(draws), 0) ** 2
        evidence.stated(
            "E[relu(u)^2]",
            expected=theory(variance),
            measured=squares.mean(),
            tolerance=sampling(5 * squares.std() / np.sqrt(draws), f"5 standard errors of {draws:,} draws", draws),
            rival=variance,  # what the nearest wrong theory says
            condition=f"variance {variance:g}",
        )
    return evidence
''',
    "test_claims.py": '''"""Every claim has the verdict on record, and every wrong theory changes it."""

from pathlib import Path

import pytest

from ntk_analysis.paper_checks.testing import cases


@pytest.mark.parametrize("case", cases(Path(__file__).parent), ids=str)
def test_claim(case):
    case()
''',
}


def write_skeleton(folder: Path) -> str:
    """Writes the files of a paper into a folder that is new or empty, and returns what to do with it.

    Raises:
        ValueError: the folder has files, or is one.
        OSError: it cannot be written.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"--new {folder}: there is something already; name a folder that is new or empty")

    write_together(folder, {name: _writer(text) for name, text in FILES.items()})
    return (
        f"written to {folder}: {', '.join(FILES)}\n\n"
        f"check it:  ntk-analysis check --paper {folder}/\n"
        f"test it:   pytest {folder}"
    )


def _writer(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text, encoding="utf-8")
