"""What the API pages need of docstrings and annotations before they are drawn."""

import re
from typing import Any

import griffe

BEFORE_FORMULA = re.compile(r"^(?!\s|- |\w+:$)(.+)\n(?= {4}\S)", re.MULTILINE)  # but no list, and no section as Args:
ARRAYS = {"Bool", "Float", "Float64", "Int", "Real", "UInt8"}


class Readable(griffe.Extension):
    """Formulas of docstrings as blocks of their own, and shapes of arrays as they are written."""

    def on_object(self, *, obj: griffe.Object, **others: Any) -> None:
        """Changes the object in place."""
        if obj.docstring is not None:  # Markdown wants an empty line before what is indented
            obj.docstring.value = BEFORE_FORMULA.sub(r"\1\n\n", obj.docstring.value)
        if isinstance(obj, griffe.Function):
            for annotation in (obj.returns, *(parameter.annotation for parameter in obj.parameters)):
                quote_shapes(annotation)
        elif isinstance(obj, griffe.Attribute):
            quote_shapes(obj.annotation)


def quote_shapes(annotation: str | griffe.Expr | None) -> None:
    """Griffe takes the string "n *features" for a product: makes it a string again."""
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) in ARRAYS:
        if isinstance(annotation.slice, griffe.ExprTuple):
            array, shape = annotation.slice.elements
            text = re.sub(r"\* (?=\w)", "*", str(shape)).strip("\"' ")
            annotation.slice.elements = [array, f'"{text}"']
    elif isinstance(annotation, griffe.Expr):
        for part in annotation.iterate(flat=False):
            if part is not annotation:  # a name has itself as its only part
                quote_shapes(part)
