"""`report.html`: one file, everything in it, for a browser without a network."""

import ast
import base64
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ntk_analysis import figures

from ..contract import Kind, Relation, Verdict, source_of
from .formulas import formula, prose
from .numbers import bar, compared, misses, plain
from .record import Record, papers_of, title_of

MARKS = {Verdict.HOLDS: "✓", Verdict.CONDITIONS: "◐", Verdict.FAILS: "✗", Verdict.OPEN: "?"}
SLUGS = {Verdict.HOLDS: "holds", Verdict.CONDITIONS: "conditions", Verdict.FAILS: "fails", Verdict.OPEN: "open"}
SIGNS = {Relation.EQUAL: "", Relation.AT_MOST: "≤ ", Relation.AT_LEAST: "≥ "}
KINDS = {
    Kind.STATED: "the claim, in the setting that the paper gives",
    Kind.VARIED: "the claim where the paper says nothing: where it fails is an edge",
    Kind.CORRECTED: "what is true instead",
}


RESULTS = {"confirmed": "✓ confirmed", "refuted": "✗ refuted", "unresolved": "? unresolved"}
PIXELS = 1.5  # pixels of a picture for one of the page, so that it is sharp on fine screens


class Source(NamedTuple):
    """A file of checks, with the lines that rows link to."""

    file: str
    lines: list[str]
    linked: set[int]


class Picture(NamedTuple):
    """A figure of the gallery, its size in pixels of the screen; data is "" where the picture is missing."""

    name: str
    caption: str
    data: str = ""
    width: int = 0
    height: int = 0


def page(records: Sequence[Record], run: Record) -> str:
    """Returns the page, made from the records of `claims.json`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "formula": formula, "plain": plain, "misses": misses, "bar": bar}
    environment.globals |= {
        "compared": compared,
        "sign": SIGNS.__getitem__,
        "slug": _slug,
        "anchor": _anchor,
        "results": RESULTS,
        "mark": lambda name: MARKS[Verdict(name)],
    }
    return environment.get_template("report.html.j2").render(
        title=title_of(records, run),
        papers=papers_of(records),
        records=records,
        run=run,
        counts=[(verdict.value, sum(one["verdict"] == verdict for one in records)) for verdict in Verdict],
        kinds={kind.value: text for kind, text in KINDS.items()},
        sources=_once(records, _sources),
        pictures=_once(records, lambda one: {name: _picture(name) for name in one["figures"]}),
        groups=_groups(records),
        others=[one for one in records if not one["as_recorded"]],
    )


def _groups(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Returns the parts of the overview, with their headings: the claims of each paper, then questions of ours."""
    papers = papers_of(records)
    groups = [
        (
            paper["name"] if len(papers) > 1 else "",
            [one for one in records if one["paper"] == paper and not one["question"]],
        )
        for paper in papers
    ]
    ours = [one for one in records if one["question"]]
    return [*groups, ("Questions of ours, of what the papers do not say", ours)]


def _slug(verdict: str) -> str:
    return SLUGS[Verdict(verdict)]


def _anchor(file: str, number: int) -> str:
    """Returns the anchor of a line of a source."""
    return f"{file.removesuffix('.py').replace('/', '-')}-L{number}"


def _once(records: Sequence[Record], things_of: Any) -> dict[str, list[Any]]:
    """Returns for each claim the things that no claim before it has, so that each stands on the page once."""
    seen: set[str] = set()
    found: dict[str, list[Any]] = {}
    for one in records:
        things = {name: thing for name, thing in things_of(one).items() if name not in seen}
        seen |= things.keys()
        found[one["id"]] = list(things.values())
    return found


def _sources(one: Record) -> dict[str, Source]:
    linked: dict[str, set[int]] = {}
    for row in one["rows"]:
        linked.setdefault(row["line"]["file"], set()).add(row["line"]["number"])
    return {
        file: Source(file, path.read_text(encoding="utf-8").splitlines(), numbers)
        for file, numbers in linked.items()
        if (path := source_of(file)) is not None
    }


def _picture(name: str) -> Picture:
    folder = Path(figures.__path__[0])
    png, module = folder / "gallery" / f"{name}.png", folder / f"{name}.py"
    caption = ""
    if module.is_file():
        caption = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[0]
    if not png.is_file():
        return Picture(name, caption)
    content = png.read_bytes()
    width, height = (round(side / PIXELS) for side in struct.unpack(">II", content[16:24]))
    return Picture(name, caption, base64.b64encode(content).decode(), width, height)
