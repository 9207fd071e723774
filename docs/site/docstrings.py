"""Formulas of docstrings, which are indented, as blocks of their own: Markdown wants an empty line before them."""

import re
from typing import Any

import griffe

BEFORE_FORMULA = re.compile(r"^(?!\s|- |\w+:$)(.+)\n(?= {4}\S)", re.MULTILINE)  # but no list, and no section as Args:


class Formulas(griffe.Extension):
    """Sets them apart in every docstring."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Changes the docstring in place."""
        if obj.docstring is not None:
            obj.docstring.value = BEFORE_FORMULA.sub(r"\1\n\n", obj.docstring.value)
