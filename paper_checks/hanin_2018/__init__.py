"""Exploding and vanishing gradients as fluctuations from network to network, ruled by the sum of reciprocal widths."""

from ..contract import Paper

PAPER = Paper(
    name="Hanin 2018",
    title="Which Neural Net Architectures Give Rise To Exploding and Vanishing Gradients?",
    authors="Boris Hanin",
    year=2018,
    arxiv="1801.03744",
    venue="NeurIPS 2018",
    claims=("length_fluctuations", "reciprocal_widths"),
    slow=("length_fluctuations", "reciprocal_widths"),
)
