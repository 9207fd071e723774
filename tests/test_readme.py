"""README's Python prints what README says it prints, and every command line in it exists."""

import contextlib
import io
import re
from pathlib import Path

from figures import NAMES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_it_says():
    (code,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert f"```\n{printed.getvalue()}```" in README


def test_every_figure_is_described():
    for name in NAMES:
        assert f"| `{name}` |" in README
