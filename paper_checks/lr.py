"""Table 2, Supp. B.2: a last batch norm makes large learning rates trainable."""

from paper_checks.contract import Claim, Evidence, Setting, Verdict

CLAIM = Claim(
    id="lr",
    title="large learning rates",
    statement="A batch norm behind the last layer makes large learning rates trainable, by shrinking the "
    "gradients with the variance of the outputs, which surges within some iterations and then "
    "settles.",
    source="Table 2, Supp. B.2, Supp. Fig. 3",
    recorded=Verdict.OPEN,
    summary="Needs trained networks.",
)


def check(setting: Setting) -> Evidence:
    """Not decidable without trained networks."""
    del setting
    return Evidence(
        open="needs networks trained at many rates with a last batch norm and its running variance, which "
        "this version does not build"
    )
