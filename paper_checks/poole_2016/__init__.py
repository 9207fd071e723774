"""Two inputs, and curves, on their way through a random deep network: transient chaos."""

from ..contract import Paper

PAPER = Paper(
    name="Poole et al. 2016",
    title="Exponential expressivity in deep neural networks through transient chaos",
    authors="Ben Poole, Subhaneil Lahiri, Maithra Raghu, Jascha Sohl-Dickstein, Surya Ganguli",
    year=2016,
    arxiv="1606.05340",
    venue="NeurIPS 2016",
    claims=("tanh_length_map", "tanh_chaos_correlation", "curvature_of_a_circle"),
    slow=("tanh_length_map", "tanh_chaos_correlation", "curvature_of_a_circle"),
)
