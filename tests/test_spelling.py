"""One spelling of the words that names contain, in names and in prose."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("ntk_analysis", "figures", "paper_checks", "tests", "docs", "examples", "benchmarks")
OTHERS = re.compile(r"centr(?:e|ing)|optimiser", re.IGNORECASE)  # of center, centering and optimizer
ALIAS = '"weight_centring"'  # accepted where a user writes it


def test_names_and_prose_spell_center_and_optimizer():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".md", ".j2")]
    texts = {path: path.read_text(encoding="utf-8").replace(ALIAS, "") for path in [*files, *ROOT.glob("*.md")]}
    found = [str(path.relative_to(ROOT)) for path, text in texts.items() if OTHERS.search(text)]
    assert found == ["tests/test_spelling.py", "CHANGELOG.md"][: len(found)]  # which name what they forbid and replace
