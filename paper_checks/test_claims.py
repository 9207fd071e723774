"""Every claim gets the verdict on record, and every check catches a wrong theory."""

import json
from pathlib import Path

import pytest

from paper_checks import CLAIMS
from paper_checks.contract import Evidence, Kind, Line, Relation, Row, Setting, Verdict
from paper_checks.judge import judge, module_of, run

CHECKED = [name for name in CLAIMS if module_of(name).CLAIM.recorded is not Verdict.OPEN]
WRONG = [(name, wrong) for name in CHECKED for wrong in module_of(name).WRONG]

# these train hundreds of networks; what the full sizes gave is on record
TRAINED = ("early", "lr", "acc")
RECORDED = json.loads((Path(__file__).parent / "studies" / "mlp" / "claims.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("record", RECORDED, ids=TRAINED)
def test_recorded_rows_of_trained_networks_give_the_verdict(record):
    """The comparisons are made again from the numbers on record."""
    rows = []
    for row in record["rows"]:
        numbers = {key: row[key] for key in ("expected", "measured", "tolerance", "because", "entries")}
        kinds = {"kind": Kind(row["kind"]), "relation": Relation(row["relation"]), "line": Line(**row["line"])}
        rows.append(Row(row["quantity"], row["condition"], **kinds, **numbers))
        assert rows[-1].held == row["held"]
    assert judge(Evidence(rows, open=record["open"] or "")) is module_of(record["id"]).CLAIM.recorded


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] * (n in TRAINED)) for n in CLAIMS])
def test_verdict_is_the_one_on_record(name):
    judged = run(name, Setting())
    missed = [row for row in judged.evidence.rows if not row.held]
    assert judged.as_recorded, f"{judged.verdict}, recorded {judged.claim.recorded}; missed: {missed}"


@pytest.mark.full  # a claim is measured anew for each
@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_wrong_theory_is_caught(name, wrong):
    judged = run(name, Setting(), theory=module_of(name).WRONG[wrong])
    assert not judged.as_recorded, f"the check of {name} cannot tell {wrong} from the theory"


@pytest.mark.parametrize("name", CHECKED)
def test_every_check_knows_a_wrong_theory(name):
    assert module_of(name).WRONG
