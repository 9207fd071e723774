"""Networks without normalisation: gains of scaled weight standardisation."""

from ..contract import Paper

PAPER = Paper(
    name="Brock et al. 2021",
    title="Characterizing signal propagation to close the performance gap in unnormalized ResNets",
    authors="Andrew Brock, Soham De, Samuel L. Smith",
    year=2021,
    arxiv="2101.08692",
    venue="ICLR 2021",
    claims=("scaled_gains",),
    slow=("scaled_gains",),
)
