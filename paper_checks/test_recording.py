"""The records that are kept: every claim has one, with its verdict; and the site shows them."""

import json
from pathlib import Path

import jsonschema
import pytest

from ntk_analysis.paper_checks import report
from ntk_analysis.paper_checks.contract import Evidence, Kind, Line, Relation, Row, Verdict
from ntk_analysis.paper_checks.judge import judge
from ntk_analysis.paper_checks.papers import claim_checks
from ntk_analysis.paper_checks.recording import keep, kept
from ntk_analysis.paper_checks.report import site
from ntk_analysis.paper_checks.tolerances import Source

SCHEMA = json.loads(Path(report.__file__).with_name("claims.schema.json").read_text(encoding="utf-8"))
RECORDS = kept()


def test_every_claim_has_a_record():
    assert [record["id"] for record in RECORDS] == list(claim_checks())
    jsonschema.validate(RECORDS, SCHEMA)


@pytest.mark.parametrize("record", RECORDS, ids=[record["id"] for record in RECORDS])
def test_a_record_has_the_verdict_and_the_words_of_its_claim(record):
    claim = claim_checks()[record["id"]].load().CLAIM
    assert (record["verdict"], record["error"]) == (claim.recorded.value, None)
    assert (record["summary"], record["scope"], record["title"]) == (claim.summary, claim.scope, claim.title)


@pytest.mark.parametrize("record", RECORDS, ids=[record["id"] for record in RECORDS])
def test_recorded_rows_give_the_verdict(record):
    """The comparisons are made again from the numbers on record."""
    rows = []
    for row in record["rows"]:
        names = ("quantity", "condition", "part", "expected", "measured", "tolerance", "because", "rival", "entries")
        kinds = {"kind": Kind(row["kind"]), "relation": Relation(row["relation"]), "source": Source(row["source"])}
        rows.append(
            Row(**{name: row[name] for name in names}, **kinds, draws=row["draws"] or 0, line=Line(**row["line"]))
        )
        assert rows[-1].outcome == row["outcome"]
    claim = claim_checks()[record["id"]].load().CLAIM
    open_here = record["open"] if claim.recorded is Verdict.OPEN else None
    assert judge(Evidence(rows, open=open_here or "")) is claim.recorded


def test_the_site_has_a_page_for_each_and_a_list():
    pages = site.pages()
    assert set(pages) == {site.LIST, *(f"claims/{record['id']}.md" for record in RECORDS)}
    for record in RECORDS:
        page = pages[f"claims/{record['id']}.md"]
        assert page.startswith(f"{site.WIDE}# {record['id']}: ")
        assert f"({record['id']}.md)" in pages[site.LIST]
        assert all(f"gallery/{name}.png" in page for name in record["figures"])


def test_records_of_unknown_claims_are_refused_before_anything_is_written(monkeypatch, tmp_path):
    places = {record["id"]: tmp_path / "record" / f"{record['id']}.json" for record in RECORDS}
    monkeypatch.setattr("ntk_analysis.paper_checks.recording.places", lambda: places)
    with pytest.raises(ValueError, match="unknown claim 'no_such'"):
        keep([RECORDS[0], RECORDS[0] | {"id": "no_such"}])
    assert not list(tmp_path.iterdir())
    assert keep(RECORDS[:1]) == [places[RECORDS[0]["id"]]]
    assert kept() == RECORDS[:1]
