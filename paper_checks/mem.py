"""Tables 1 and 3, abstract: about 20 % less memory than batch norm."""

from paper_checks.contract import Claim, Evidence, Setting, Verdict

CLAIM = Claim(
    id="mem",
    title="memory",
    statement="Training takes about 20 % less memory than with batch norm.",
    source="Tables 1 and 3, abstract",
    recorded=Verdict.OPEN,
    summary="Needs trained networks.",
)


def check(setting: Setting) -> Evidence:
    """Not decidable without trained networks."""
    del setting
    return Evidence(open="needs the networks of Tables 1 and 3 trained to the end on CIFAR-100 and ImageNet")
