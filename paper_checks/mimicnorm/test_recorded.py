"""The claims about training: what the full sizes gave is on record, and gives the verdict."""

import json
from pathlib import Path

import pytest

from ntk_analysis.paper_checks.contract import Evidence, Kind, Line, Relation, Row
from ntk_analysis.paper_checks.judge import judge
from ntk_analysis.paper_checks.mimicnorm import PAPER
from ntk_analysis.paper_checks.papers import claim_checks

RECORDED = json.loads((Path(__file__).parent / "studies" / "mlp" / "claims.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("record", RECORDED, ids=PAPER.slow)
def test_recorded_rows_of_trained_networks_give_the_verdict(record):
    """The comparisons are made again from the numbers on record."""
    rows = []
    for row in record["rows"]:
        numbers = {key: row[key] for key in ("expected", "measured", "tolerance", "because", "entries")}
        kinds = {"kind": Kind(row["kind"]), "relation": Relation(row["relation"]), "line": Line(**row["line"])}
        rows.append(Row(row["quantity"], row["condition"], **kinds, **numbers))
        assert rows[-1].held == row["held"]
    claim = claim_checks()[record["id"]].load().CLAIM
    assert judge(Evidence(rows, open=record["open"] or "")) is claim.recorded
