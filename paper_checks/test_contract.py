"""The rule by which rows have outcomes, and outcomes a verdict: noise never helps a claim."""

import numpy as np
import pytest

from ntk_analysis.paper_checks.contract import Claim, Evidence, Outcome, Paper, Relation, Verdict
from ntk_analysis.paper_checks.judge import Judged, judge, parts
from ntk_analysis.paper_checks.tolerances import extrapolation, nearest, quadrature, resolution, rounding, sampling

C, R, U = Outcome.CONFIRMED, Outcome.REFUTED, Outcome.UNRESOLVED
LEAST, MOST = Relation.AT_LEAST, Relation.AT_MOST
BOUND = rounding(0.1, "a bound")
NOISE = sampling(0.1, "noise", 25)


def row(expected, measured, tolerance, relation=Relation.EQUAL, rival=None):
    return Evidence().stated(
        "x", expected=expected, measured=measured, tolerance=tolerance, relation=relation, rival=rival
    )


@pytest.mark.parametrize(
    ("measured", "tolerance", "relation", "rival", "outcome"),
    [
        (1.05, BOUND, Relation.EQUAL, None, C),
        (1.15, BOUND, Relation.EQUAL, None, R),
        (1.05, quadrature(0.1, "a bound"), Relation.EQUAL, 1.05, U),  # the rival is within the error
        (1.05, NOISE, Relation.EQUAL, 1.2, C),
        (1.05, NOISE, Relation.EQUAL, 0.95, U),
        (1.15, NOISE, Relation.EQUAL, 1.15, R),
        (1.05, NOISE, Relation.EQUAL, np.nan, C),  # no other theory says otherwise there
        (0.95, BOUND, LEAST, None, C),  # met within a bound
        (0.85, BOUND, LEAST, None, R),
        (1.05, BOUND, LEAST, None, C),
        (1.05, NOISE, LEAST, None, U),  # met, but within the noise
        (0.95, NOISE, LEAST, None, U),
        (1.15, NOISE, LEAST, None, C),
        (0.85, NOISE, LEAST, None, R),
        (0.85, extrapolation(0.1, "an estimate"), MOST, None, C),
        (0.95, extrapolation(0.1, "an estimate"), MOST, None, U),
        (1.15, extrapolation(0.1, "an estimate"), MOST, None, R),
        (1.05, resolution(0.1, "printed"), MOST, None, C),
    ],
)
def test_outcomes(measured, tolerance, relation, rival, outcome):
    assert row(1.0, measured, tolerance, relation, rival).outcome is outcome


def test_of_many_entries_the_one_that_says_most_against_the_claim_is_shown():
    far_but_sure, near_but_unsure = (1.09, 2.0), (1.01, 1.05)
    measured, rivals = np.array([far_but_sure, near_but_unsure]).T
    shown = row(1.0, measured, NOISE, rival=rivals)
    assert (shown.measured, shown.outcome, shown.entries) == (1.01, U, 2)
    assert row(1.0, [1.01, 1.5], NOISE, rival=[1.05, 3.0]).outcome is R


def test_the_draws_that_would_decide():
    unsure = row(1.0, 1.05, NOISE, LEAST)
    assert unsure.draws_needed == 101  # the error 0.1 of 25 draws falls below 0.05 at four times as many
    assert row(1.0, 1.05, sampling(0.1, "noise", unsure.draws_needed), LEAST).draws_needed > 101
    assert row(1.0, 1.05, sampling(0.1 * (25 / 101) ** 0.5, "noise", 101), LEAST).outcome is C
    assert row(1.0, 1.05, NOISE, rival=1.05).draws_needed == 101
    assert row(1.0, 1.05, NOISE, LEAST, rival=9.0).draws_needed == 101  # an inequality has no rival to tell apart
    assert row(1.0, 1.05, sampling(0.1, "noise"), LEAST).draws_needed is None
    assert row(1.0, 1.0, NOISE, LEAST).draws_needed is None
    assert row(1.0, 1.2, NOISE, LEAST).draws_needed is None


@pytest.mark.parametrize(
    ("expected", "measured", "tolerance", "relation", "message"),
    [
        (1.0, 1.0, NOISE, Relation.EQUAL, "an equality within an error of sampling needs the value of a rival"),
        (np.nan, 1.0, BOUND, Relation.EQUAL, "not finite numbers"),
        (1.0, np.inf, BOUND, LEAST, "not finite numbers"),
        (None, 1.0, BOUND, Relation.EQUAL, "not finite numbers"),
        ([], [], BOUND, Relation.EQUAL, "not finite numbers"),
        (1.0, 1.0, rounding(0.0, "none"), Relation.EQUAL, "every row needs its error"),
        (1.0, 1.0, rounding(0.1, ""), Relation.EQUAL, "every row needs its error"),
    ],
)
def test_rows_that_are_refused(expected, measured, tolerance, relation, message):
    with pytest.raises(ValueError, match=message):
        row(expected, measured, tolerance, relation)


def test_expected_and_measured_cannot_be_swapped_unseen():
    with pytest.raises(TypeError, match="positional argument"):
        Evidence().stated("x", 1.0, 2.0, BOUND)


def test_the_nearest_rival_is_the_closest_that_differs():
    assert nearest(1.0, [1.0, 3.0, 0.5]) == 0.5
    np.testing.assert_array_equal(nearest([1.0, 2.0], [[1.0, 2.0], [4.0, 2.0]]), [4.0, np.nan])
    assert np.isnan(nearest(1.0, [1.0 + 1e-15, np.inf]))


def evidence(*outcomes, corrected=(), varied=(), names=("",)):
    """Rows as stated with these outcomes, of these parts in turn."""
    made = Evidence()
    values = {C: 1.3, R: 0.8, U: 1.05}
    common = {"expected": 1.0, "tolerance": NOISE, "relation": LEAST}
    for index, outcome in enumerate(outcomes):
        made.stated("x", measured=values[outcome], part=names[index % len(names)], **common)
    for outcome in corrected:
        made.corrected("y", measured=values[outcome], **common)
    for outcome in varied:
        made.varied("z", measured=values[outcome], condition=f"where z is {outcome}", **common)
    return made


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (evidence(C, C), Verdict.HOLDS),
        (evidence(C, varied=(R, U)), Verdict.HOLDS),  # edges, and not the claim
        (evidence(C, R), Verdict.FAILS),
        (evidence(C, U), Verdict.OPEN),
        (evidence(R, U), Verdict.FAILS),  # one part, and it is refuted
        (evidence(C, corrected=(C,)), Verdict.HOLDS),
        (evidence(R, corrected=(U,)), Verdict.OPEN),
        (evidence(R, corrected=(R,)), Verdict.OPEN),
        (evidence(C, R, names=("a", "b")), Verdict.CONDITIONS),
        (evidence(R, R, names=("a", "b")), Verdict.FAILS),
        (evidence(C, U, names=("a", "b")), Verdict.OPEN),
        (evidence(R, U, names=("a", "b")), Verdict.OPEN),
        (Evidence(open="needs a GPU"), Verdict.OPEN),
    ],
)
def test_verdicts(found, verdict):
    assert judge(found) is verdict


def test_nothing_as_stated_is_no_verdict():
    with pytest.raises(ValueError, match="nothing can be judged"):
        judge(evidence(varied=(C,)))


def test_what_a_judged_claim_tells_of_itself():
    claim = Claim("x", "a claim", "It is so.", "Eq. 1", Verdict.HOLDS, "So.")
    paper = Paper("Made up", "A title", "", ("x",))
    open_one = Judged(paper, claim, evidence(C, U, varied=(R,)), 0.0)
    assert parts(open_one.evidence) == {"": U}
    assert open_one.open == "unresolved, as stated: x, about 101 draws in place of 25 would decide"
    assert [edge.condition for edge in open_one.edges] == ["where z is refuted"]
    assert open_one.decisive.outcome is U
    held = Judged(paper, claim, evidence(C, varied=(R,)), 0.0)
    assert (held.open, held.decisive.outcome, held.decisive.quantity) == ("", C, "x")
