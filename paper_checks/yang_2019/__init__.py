"""Batch normalisation in mean field: gradients explode at every batch size."""

from ..contract import Paper

PAPER = Paper(
    name="Yang et al. 2019",
    title="A Mean Field Theory of Batch Normalization",
    authors="Greg Yang, Jeffrey Pennington, Vinay Rao, Jascha Sohl-Dickstein, Samuel S. Schoenholz",
    year=2019,
    arxiv="1902.08129",
    venue="ICLR 2019",
    claims=(
        "batch_norm_explosion",
        "large_batch_explosion",
        "measured_explosion",
    ),
    slow=("measured_explosion",),
)
