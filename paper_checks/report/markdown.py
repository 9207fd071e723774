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
    where = f", arXiv:{paper['arxiv']}" if paper["arxiv"] else ""
    return f"- {paper['name']} is “{prose(paper['title'])}”{where}"


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
    heads = (
        "quantity",
        "condition",
        "kind",
        "",
        "expected",
        "measured",
        "tolerance",
        "because",
        "off by (tolerances)",
        "",
        "line",
    )
    return _table(
        heads,
        (
            (
                row["quantity"],
                row["condition"],
                row["kind"],
                row["relation"],
                *_numbers(row),
                row["because"],
                misses(row["miss"]),
                row["outcome"] if row["outcome"] == "confirmed" else f"**{row['outcome']}**",
                f"{row['line']['file']}:{row['line']['number']}",
            )
            for row in rows
        ),
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
