"""README's Python prints what README says it prints, and every command line in it exists."""

import contextlib
import io
import re
from pathlib import Path

from figures import NAMES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


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
