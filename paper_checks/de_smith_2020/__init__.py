"""Batch normalisation makes residual blocks small beside their skips."""

from ..contract import Paper

PAPER = Paper(
    name="De & Smith 2020",
    title="Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks",
    authors="Soham De, Samuel L. Smith",
    year=2020,
    arxiv="2002.10444",
    venue="NeurIPS 2020",
    claims=("skip_variance",),
    slow=("skip_variance",),
)
