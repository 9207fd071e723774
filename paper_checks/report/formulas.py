"""LaTeX to MathML, which browsers draw themselves."""

import re
from html import unescape
from xml.etree import ElementTree

from latex2mathml.converter import convert_to_element
from markupsafe import Markup, escape

MATHML = re.compile(r' xmlns(:\w+)?="[^"]*"')  # HTML knows the elements without it


def split(text: str) -> list[tuple[bool, str]]:
    """Splits a text at dollar signs into pairs (is a formula, piece); a lone dollar sign is text."""
    pieces = text.split("$")
    if len(pieces) % 2 == 0:
        pieces[-2:] = [f"{pieces[-2]}${pieces[-1]}"]
    return [(bool(index % 2), piece) for index, piece in enumerate(pieces) if piece]


def formula(latex: str, display: str = "block") -> Markup:
    """Returns a formula as MathML with its LaTeX as the tooltip, or as LaTeX where the converter does not know it."""
    try:
        element = convert_to_element(latex, display=display)
    except Exception:  # the converter's errors have no base class of their own
        return Markup("<code>{}</code>").format(latex)
    for node in element.iter():  # the converter writes characters as entities, which are escaped once more below
        node.text = unescape(node.text or "")
    element.set("title", latex)
    return Markup(MATHML.sub("", ElementTree.tostring(element, "unicode")))


def prose(text: str) -> Markup:
    """Returns a text as HTML, with what stands between dollar signs as formulas."""
    return Markup("").join(
        formula(piece, "inline") if is_formula else escape(piece) for is_formula, piece in split(text)
    )
