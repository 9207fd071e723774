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
        lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


def _paper(paper: Record) -> str:
    where = f", arXiv:{paper['arxiv']}" if paper["arxiv"] else ""
    return f"- {paper['name']} is “{_prose(paper['title'])}”{where}"


def _section(one: Record) -> list[str]:
    lines = [f'<a id="{one["id"]}"></a>', "", f"## {one['id']}: {one['title']}", "", f"**{one['verdict']}**"]
    if not one["as_recorded"]:
        lines[-1] += f" (recorded: {one['recorded']})"
    lines += ["", _prose(f"{one['paper']['name']}, {one['source']}. {one['statement']}")]
    if one["formula"]:
        lines += ["", f"$${one['formula']}$$"]
    for text in (one["summary"], one["open"]):
        if text:
            lines += ["", _prose(text)]
    if one["rows"]:
        lines += ["", *_rows(one["rows"])]
    facts = [*map(_edge, one["edges"]), *one["notes"]]
    return [*lines, "", *(f"- {_prose(fact)}" for fact in facts)] if facts else lines


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
    return _prose(text).replace("|", r"\|")


def _prose(text: str) -> str:
    """Returns a text on one line, without tags except inside of formulas."""
    pieces = split(" ".join(text.split()))
    return "".join(f"${piece}$" if formula else piece.replace("<", "&lt;") for formula, piece in pieces)
