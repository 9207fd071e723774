"""Batch normalisation keeps the rank of hidden representations up."""

from ..contract import Paper

PAPER = Paper(
    name="Daneshmand et al. 2020",
    title="Batch Normalization Provably Avoids Rank Collapse for Randomly Initialised Deep Networks",
    authors="Hadi Daneshmand, Jonas Kohler, Francis Bach, Thomas Hofmann, Aurelien Lucchi",
    year=2020,
    arxiv="2003.01652",
    venue="NeurIPS 2020",
    claims=("rank_of_batch_norm",),
    slow=("rank_of_batch_norm",),
)
