"""Every claim of every paper gets the verdict on record, and every check catches a wrong theory."""

import pytest

from ntk_analysis.paper_checks.papers import PAPERS
from ntk_analysis.paper_checks.testing import cases


def marked(case):
    """Those of a wrong theory, and of claims that take long, run in the full tests: each measures a claim anew."""
    late = case.wrong or case.module.CLAIM.id in case.paper.slow
    return pytest.param(case, marks=[pytest.mark.full] * bool(late), id=str(case))


@pytest.mark.parametrize("case", [marked(case) for case in cases(*PAPERS)])
def test_claim(case):
    case()
