"""The tangent kernel of networks that are as deep as they are wide is random."""

from ..contract import Paper

PAPER = Paper(
    name="Hanin & Nica 2020",
    title="Finite Depth and Width Corrections to the Neural Tangent Kernel",
    authors="Boris Hanin, Mihai Nica",
    year=2020,
    arxiv="1909.05989",
    venue="ICLR 2020",
    claims=("ntk_fluctuations",),
    slow=("ntk_fluctuations",),
)
