"""Sec. 5, Fig. 6 and 7: weight mean speeds up early training."""

from paper_checks.contract import Claim, Evidence, Setting, Verdict

CLAIM = Claim(
    id="early",
    title="early training",
    statement="Weight mean speeds up the first epochs of training, and more so in deeper networks.",
    source="Section 5, Fig. 6 and 7",
    recorded=Verdict.OPEN,
    summary="Needs trained networks.",
)


def check(setting: Setting) -> Evidence:
    """Not decidable without trained networks."""
    del setting
    return Evidence(
        open="needs VGG and ResNet models trained with and without weight mean, which this version does not build"
    )
