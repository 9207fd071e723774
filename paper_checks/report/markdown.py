"""`claims.md`: the verdicts as a table, then every claim with its rows."""

from collections.abc import Iterable, Sequence

from .formulas import split
from .numbers import compared, misses, plain
from .record import Record, papers_of, title_of


def markdown(records: Sequence[Record], run: Record) -> str:
    """Returns the whole report as Markdown; formulas stay LaTeX between dollar signs."""
    lines = [f"# {title_of(records, run)}", "", *map(_paper, papers_of(records)), "", _run_line(run), ""]
    lines += _table(
        ("claim", "source", "verdict", "recorded", "expected", "measured", "tolerance", "s"),
        (
            (
                f"[{one['id']}](#{one['id']})",
                one["source"] + ("; a question of ours" if one["question"] else ""),
                one["verdict"],
                one["recorded"] or "",
                *_numbers(one),
                f"{one['seconds']:.1f}",
            )
            for one in records
        ),
    )
    for one in records:
        lines += ["", f'<a id="{one["id"]}"></a>', "", *section(one)]
    return "\n".join(lines) + "\n"


def _paper(paper: Record) -> str:
    by = ", ".join(str(paper[name]) for name in ("authors", "venue", "year") if paper[name])
    where = f"arXiv:{paper['arxiv']}" if paper["arxiv"] else paper["url"] or ""
    return ", ".join(filter(None, (f"- {paper['name']} is “{prose(paper['title'])}”", prose(by), where)))


def section(one: Record, heading: str = "##") -> list[str]:
    """Returns the lines of one claim: statement, setting, verdict, comparisons, edges and notes, below a heading."""
    lines = [f"{heading} {one['id']}: {one['title']}", "", f"**{one['verdict']}**"]
    if not one["as_recorded"]:
        lines[-1] += f" (recorded: {one['recorded']})"
    lines += ["", prose(f"{one['paper']['name']}, {one['source']}. {one['statement']}")]
    if one["scope"]:
        lines += ["", prose(f"*Setting in the paper.* {one['scope']}")]
    if one["formula"]:
        lines += ["", f"$${one['formula']}$$"]
    for name, text in (("Found", one["summary"]), ("Why it is open", one["open"]), ("Edges", _failing(one))):
        if text:
            lines += ["", prose(f"*{name}.* {text}")]
    if len(one["parts"]) > 1:
        lines += ["", *(f"- {prose(part['part'])}: {part['outcome']}" for part in one["parts"])]
    if one["rows"]:
        lines += ["", *_rows(one["rows"])]
    facts = [*map(_edge, one["edges"]), *one["notes"]]
    return [*lines, "", *(f"- {prose(fact)}" for fact in facts)] if facts else lines


def _failing(one: Record) -> str:
    """The conditions beyond the claim under which it fails."""
    rows = [row for row in one["rows"] if (row["kind"], row["outcome"]) == ("beyond the claim", "refuted")]
    found = "; ".join(dict.fromkeys(row["condition"] or row["quantity"] for row in rows))
    return f"It fails beyond what is claimed: {found}." if found else ""


def _edge(edge: Record) -> str:
    at = "" if edge["at"] is None else f" = {plain(edge['at'], 4)}"
    return f"edge, {edge['variable']}{at}: {edge['meaning']}"


def _rows(rows: Sequence[Record]) -> list[str]:
    """A table for each kind of row: few columns, so that it fits on a page."""
    heads = ("comparison", "expected", "measured", "tolerance", "off by (tolerances)", "outcome", "tolerance's source")
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        cells = [_comparison(row) for row in rows if row["kind"] == kind]
        lines += ["", f"*{kind.capitalize()}*", "", *_table(heads, cells)]
    return lines[1:]


def _comparison(row: Record) -> tuple[str, ...]:
    expected, measured, tolerance = _numbers(row)
    return (
        row["quantity"] + (f" ({row['condition']})" if row["condition"] else ""),
        expected if row["relation"] == "=" else f"{row['relation']} {expected}",
        measured,
        tolerance,
        misses(row["miss"]),
        row["outcome"] if row["outcome"] == "confirmed" else f"**{row['outcome']}**",
        f"{row['because']}; {row['line']['file']}:{row['line']['number']}",
    )


def _numbers(one: Record) -> tuple[str, str, str]:
    if one["tolerance"] is None:
        return "", "", ""
    return compared(one["expected"], one["measured"], one["tolerance"])


def _run_line(run: Record) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"{run['sizes'].capitalize()} sizes, seed {run['seed']}; {versions}."


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *map(line, rows)]


def _cell(text: str) -> str:
    return prose(text).replace("|", r"\|")


def prose(text: str) -> str:
    """Returns a text on one line, without tags except inside of formulas."""
    pieces = split(" ".join(text.split()))
    return "".join(f"${piece}$" if formula else piece.replace("<", "&lt;") for formula, piece in pieces)
