"""Every claim gets the verdict on record, and every check catches a wrong theory."""

import pytest

from paper_checks import CLAIMS
from paper_checks.contract import Setting, Verdict
from paper_checks.judge import module_of, run

CHECKED = [name for name in CLAIMS if module_of(name).CLAIM.recorded is not Verdict.OPEN]
WRONG = [(name, wrong) for name in CHECKED for wrong in module_of(name).WRONG]


@pytest.mark.parametrize("name", CLAIMS)
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
