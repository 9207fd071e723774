"""README's Python prints what README says it prints, and every command line in it exists."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ntk_analysis.figures.names import NAMES
from ntk_analysis.paper_checks.contract import Verdict
from ntk_analysis.paper_checks.papers import PAPERS, claim_checks, packages_of
from ntk_analysis.paper_checks.plugins import paper_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.full
def test_the_examples_print_what_it_says():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        for code in blocks:
            exec(compile(code, "README.md", "exec"), names)
    assert f"```\n{printed.getvalue()}```" in README


@pytest.mark.full
def test_the_command_lines_run(tmp_path):
    """Those of the section on the command line, one after the other, in an empty folder."""
    section = README[README.index("## On the command line") :]
    lines = re.findall(r"^uv run (\S+) (.*?)(?: +#.*)?$", section.split("```")[1], re.MULTILINE)
    assert len(lines) == 8
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    printed = []
    for program, arguments in lines:
        module = ["-m", "ntk_analysis.cli"] if program == "ntk-analysis" else []
        command = [sys.executable, *module, *shlex.split(arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert "ordered" in printed[2]
    assert "chaotic" in printed[3]
    verdicts = [re.findall(r"^verdict +(.*?):", text, re.MULTILINE)[0] for text in printed[4:7]]
    assert verdicts == ["not decidable", "ordered", "chaotic"]
    assert "outlier ratio" in printed[7]


def test_every_figure_is_described():
    page = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"| `{name}` |" in page


@pytest.mark.full
def test_every_claim_has_its_verdict():
    """Claims of the first paper have a row each; another paper has one, which names the claims that do not hold."""
    first, *others = map(paper_of, packages_of(PAPERS))
    checks = claim_checks()
    for name in first.claims:
        (row,) = re.findall(rf"^\| `{name}` \|.*$", README, re.MULTILINE)
        assert row.split(" | ")[2] == checks[name].load().CLAIM.recorded
    for paper in others:
        (row,) = re.findall(rf"^\| {re.escape(paper.name)}, .*$", README, re.MULTILINE)
        verdicts = {name: checks[name].load().CLAIM.recorded for name in paper.claims}
        named = {name: verdict for name, verdict in verdicts.items() if verdict != Verdict.HOLDS}
        assert row.split(" | ")[1] == f"{len(verdicts) - len(named)} of {len(verdicts)}"
        assert dict(re.findall(r"`(\w+)` ([a-z ]+)", row.split(" | ")[2])) == named
