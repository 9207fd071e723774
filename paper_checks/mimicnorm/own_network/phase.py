"""Is the network chaotic, as batch norm and weight mean are said to make it?"""

import math

from ntk_analysis.diagnosis.verdict import half_width

from ...contract import Claim, Evidence, Relation, Setting
from ...subject import Subject
from ...tolerances import sampling

CLAIM = Claim(
    id="phase",
    title="the chaotic phase",
    statement="Small differences of inputs grow from layer to layer, relative to the signal: $\\chi_1 > 1$, the phase "
    "in which the tangent kernel of a deep network is well conditioned.",
    source="Theorems 1 and 2",
    formula=r"\chi_1 > 1",
    recorded=None,
    summary="",
)


def check(setting: Setting, subject: Subject) -> Evidence:
    """Makes the verdict of `diagnose` a comparison: ordered and critical networks miss, undecided ones are open."""
    del setting
    found, evidence = subject.found, Evidence()
    evidence.note(f"Diagnosis: {found.verdict.phase}. {found.verdict.reason}.")
    if found.field is not None and found.field.chi_1 is not None:
        evidence.note(f"Mean-field theory of its block: chi_1 = {found.field.chi_1:.4g}, {found.field.phase}.")
    layers = found.products - 1
    if layers > 0 and math.isfinite(found.log_chi):
        evidence.stated(
            "the smallest ln chi_1 per layer that the measurement leaves open",
            expected=0.0,
            measured=found.log_chi - half_width(found.growth, layers),
            tolerance=sampling(
                max(subject.rounding, 1e-9),
                "roundings; the interval has 95 % of networks with the same weights shuffled, and what happens once",
            ),
            condition=f"{layers} layers, end to end: {found.log_chi:.3g} measured",
            relation=Relation.AT_LEAST,
        )
    if found.verdict.phase == "not decidable":
        evidence.open = found.verdict.reason
    return evidence
