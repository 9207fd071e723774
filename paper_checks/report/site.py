"""Pages of the claims, made of the records that are kept: one for each claim, and one that lists them."""

from ..recording import kept
from .markdown import prose, section
from .record import Record, papers_of

LIST = "claims/index.md"
INTRODUCTION = """\
# The claims

Each statement of a paper is computed from theory, measured on finite networks, and judged by one rule. A comparison
is *refuted* where its relation is missed by more than its error. It is *confirmed* where the error is a bound and the
relation is met within it; where an estimated error lies wholly on the right side of an inequality; or where an
equality is met within an error that is smaller than the distance to the nearest wrong theory. Else it is
*unresolved*.

A claim **holds** if all comparisons of what it says are confirmed. It **does not hold** if each part of it has one that
is refuted, and **holds under conditions** if it is true in a part of what it says. It is **not decidable here** if the
check cannot be made at the size that the claim is about, or if a comparison is unresolved. Where a claim fails beyond
what it says is one of its *edges*: they change no verdict.

"""
WIDE = "---\nhide: [toc]\n---\n\n"
"""What a page begins with that leaves the column of headings to its tables."""


def pages() -> dict[str, str]:
    """Returns the pages as Markdown by their place on the site."""
    records = kept()
    found = {LIST: INTRODUCTION + _lists(records)}
    for record in records:
        found[f"claims/{record['id']}.md"] = page(record)
    return found


def names() -> dict[str, list[str]]:
    """Returns the ids of the claims that have a page, by the name of their paper."""
    found: dict[str, list[str]] = {}
    for record in kept():
        found.setdefault(record["paper"]["name"], []).append(record["id"])
    return found


def page(record: Record) -> str:
    """Returns the page of one claim: what is said, what was found, its figures and its comparisons."""
    pictures = "".join(
        f"\n\n![{name}](../../figures/gallery/{name}.png)\n\nThe figure [`{name}`](../figures.md)."
        for name in record["figures"]
    )
    run = record["run"]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    made = f"\n\n*Computed with {run['sizes']} sizes, seed {run['seed']}, in {record['seconds']:.0f} s; {versions}.*"
    return WIDE + "\n".join(section(record, heading="#")) + pictures + made + "\n"


def _lists(records: list[Record]) -> str:
    text = ""
    for paper in papers_of(records):
        here = [record for record in records if record["paper"] == paper]
        where = f"[{prose(paper['title'])}]({paper['url']})" if paper["url"] else prose(paper["title"])
        by = ", ".join(str(paper[name]) for name in ("authors", "venue", "year") if paper[name])
        text += f"\n## {prose(paper['name'])}\n\n{where}{f', {prose(by)}' if by else ''}.\n\n"
        text += _table([record for record in here if not record["question"]])
        if questions := [record for record in here if record["question"]]:
            text += "\n**Questions of ours.** The paper does not say these; its argument made us ask.\n\n"
            text += _table(questions)
    return text


def _table(records: list[Record]) -> str:
    lines = ["| claim | where | verdict | what was found |", "|---|---|---|---|"]
    for record in records:
        cells = (
            f"[{prose(record['title'])}]({record['id']}.md)",
            prose(record["source"]),
            f"**{record['verdict']}**",
            prose(record["summary"]),
        )
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
