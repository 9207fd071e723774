"""README's Python prints what README says it prints, and every command line in it exists."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from ntk_analysis.figures.names import NAMES
from ntk_analysis.paper_checks.papers import claim_checks

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.full
def test_the_examples_print_what_it_says():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        for code in blocks:
            exec(compile(code, "README.md", "exec"), names)
    assert f"```\n{printed.getvalue()}```" in README


def test_every_figure_is_described():
    for name in NAMES:
        assert f"| `{name}` |" in README


@pytest.mark.full
def test_every_claim_has_its_verdict():
    for name, check in claim_checks().items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
        assert row.split(" | ")[2] == check.load().CLAIM.recorded
