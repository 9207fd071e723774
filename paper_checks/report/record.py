"""A judged claim as plain data: what `claims.json` holds; `claims.schema.json` describes it."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from ntk_analysis.common.provenance import versions

from ..contract import AGAINST, Claim, Edge, Evidence, Kind, Line, Outcome, Paper, Relation, Row, Setting
from ..judge import Judged, parts
from ..tolerances import Source

Record: TypeAlias = dict[str, Any]

NAMED = 3
"""The largest number of papers that a title names."""
LIBRARIES = ("ntk-analysis", "jax", "jaxlib", "numpy", "scipy")


def run_facts(setting: Setting, network: str = "") -> Record:
    """Returns what the numbers depend on besides the code of the checks; all records of a run share it."""
    return {
        "network": network or None,
        "sizes": "full" if setting.full else "quick",
        "seed": setting.seed,
        "versions": versions(*LIBRARIES),
    }


def record(judged: Judged, run: Record) -> Record:
    """Returns a claim with its verdict and all its evidence; the decisive row gives expected, measured and tolerance.

    Args:
        judged: the claim.
        run: facts of the run, see `run_facts`.
    """
    paper, claim, evidence, decisive = judged.paper, judged.claim, judged.evidence, judged.decisive
    return {
        "id": claim.id,
        "paper": _paper(paper),
        "title": claim.title,
        "statement": claim.statement,
        "formula": claim.formula,
        "source": claim.source,
        "scope": claim.scope,
        "published": [number._asdict() for number in claim.published],
        "question": claim.question,
        "verdict": judged.verdict.value,
        "recorded": None if claim.recorded is None else claim.recorded.value,
        "as_recorded": judged.as_recorded,
        "summary": claim.summary,
        "expected": None if decisive is None else decisive.expected,
        "measured": None if decisive is None else decisive.measured,
        "tolerance": None if decisive is None else decisive.tolerance,
        "decisive_row": None if decisive is None else evidence.rows.index(decisive),
        "parts": [{"part": part, "outcome": outcome.value} for part, outcome in parts(evidence).items()],
        "conditions": _conditions(evidence.rows),
        "rows": [_row(row) for row in evidence.rows],
        "edges": [
            {"variable": edge.variable, "at": None if edge.at is None else float(edge.at), "meaning": edge.meaning}
            for edge in evidence.edges
        ],
        "notes": list(evidence.notes),
        "open": judged.open or None,
        "error": judged.error or None,
        "figures": list(claim.figures),
        "seconds": round(judged.seconds, 3),
        "run": run,
    }


def judged_of(record: Record, paper: Paper, claim: Claim) -> Judged:
    """Returns the judged claim of a record: what `record` was made of, with seconds to three decimals.

    Args:
        record: a claim's record.
        paper: the paper that makes the claim.
        claim: the claim as its module has it now; its words and the verdict on record are not read from the record.
    """
    evidence = Evidence(
        rows=[_row_of(row) for row in record["rows"]],
        edges=[Edge(**edge) for edge in record["edges"]],
        notes=list(record["notes"]),
        open=record["open"] or "",
    )
    return Judged(paper, claim, evidence, record["seconds"], record["error"] or "")


def papers_of(records: Sequence[Record]) -> list[Record]:
    """Returns the papers of these records, each once."""
    return list({one["paper"]["name"]: one["paper"] for one in records}.values())


def title_of(records: Sequence[Record], run: Record) -> str:
    """Returns the title of a report."""
    if run["network"]:
        return f"Checks of {run['network']}"
    names = [paper["name"] for paper in papers_of(records)]
    if len(names) > NAMED:
        return f"The claims of {len(names)} papers, checked"
    return f"The claims of the {' and '.join(names)} paper{'s' if len(names) > 1 else ''}, checked"


def _paper(paper: Paper) -> Record:
    return {
        "name": paper.name,
        "title": paper.title,
        "authors": paper.authors or None,
        "year": paper.year,
        "venue": paper.venue or None,
        "arxiv": paper.arxiv or None,
        "url": paper.url or (f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None),
    }


def _row(row: Row) -> Record:
    return {
        "quantity": row.quantity,
        "condition": row.condition,
        "kind": row.kind.value,
        "part": row.part,
        "relation": row.relation.value,
        "expected": row.expected,
        "measured": row.measured,
        "tolerance": row.tolerance,
        "source": row.source.value,
        "because": row.because,
        "rival": row.rival,
        "draws": row.draws or None,
        "draws_needed": row.draws_needed,
        "entries": row.entries,
        "miss": row.miss if math.isfinite(row.miss) else None,  # beyond what float64 holds
        "outcome": row.outcome.value,
        "line": {"file": row.line.file, "number": row.line.number},
    }


def _row_of(record: Record) -> Row:
    return Row(
        quantity=record["quantity"],
        condition=record["condition"],
        kind=Kind(record["kind"]),
        part=record["part"],
        relation=Relation(record["relation"]),
        expected=record["expected"],
        measured=record["measured"],
        tolerance=record["tolerance"],
        source=Source(record["source"]),
        because=record["because"],
        rival=record["rival"],
        draws=record["draws"] or 0,
        entries=record["entries"],
        line=Line(**record["line"]),
    )


def _conditions(rows: list[Row]) -> list[Record]:
    """Returns each condition that was tried, once for each kind of row, and what its rows say together."""
    found: dict[tuple[str, str], Record] = {}
    for row in rows:
        key = (row.condition, row.kind.value)
        entry = found.setdefault(
            key, {"condition": row.condition, "kind": row.kind.value, "outcome": "confirmed", "rows": 0}
        )
        entry["outcome"] = max(Outcome(entry["outcome"]), row.outcome, key=AGAINST.index).value
        entry["rows"] += 1
    return list(found.values())
