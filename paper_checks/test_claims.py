"""Every claim of every paper gets the verdict on record, and every check catches a wrong theory."""

import pytest

from ntk_analysis.paper_checks.contract import Outcome, Setting, Verdict
from ntk_analysis.paper_checks.judge import run
from ntk_analysis.paper_checks.papers import claim_checks

CHECKS = claim_checks()
MODULES = {name: check.load() for name, check in CHECKS.items()}
CHECKED = [name for name, module in MODULES.items() if module.CLAIM.recorded is not Verdict.OPEN]
WRONG = [(name, wrong) for name in CHECKED for wrong in MODULES[name].WRONG]


def marked(name):
    return pytest.param(name, marks=[pytest.mark.full] * (name in CHECKS[name].paper.slow))


@pytest.mark.parametrize("name", [marked(name) for name in CHECKS])
def test_verdict_is_the_one_on_record(name):
    judged = run(name, Setting())
    missed = [row for row in judged.evidence.rows if row.outcome is not Outcome.CONFIRMED]
    assert judged.as_recorded, f"{judged.verdict}, recorded {judged.claim.recorded}; missed: {missed}"


@pytest.mark.full  # a claim is measured anew for each
@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_wrong_theory_is_caught(name, wrong):
    judged = run(name, Setting(), theory=MODULES[name].WRONG[wrong])
    assert not judged.as_recorded, f"the check of {name} cannot tell {wrong} from the theory"


@pytest.mark.parametrize("name", CHECKED)
def test_every_check_knows_a_wrong_theory(name):
    assert MODULES[name].WRONG


@pytest.mark.parametrize("name", CHECKS)
def test_a_claim_is_called_as_its_module(name):
    assert MODULES[name].CLAIM.id == name
